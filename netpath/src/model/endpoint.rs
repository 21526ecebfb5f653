//! An endpoint: one container interface on one network.

use super::Route;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A valid interface name: 1 to 15 bytes, not `.` or `..`, no `/`, `:` or white space (`net/core/dev.c,
/// dev_valid_name()`), and no `%`, which the kernel would replace.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IfName(String);

impl IfName {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The loopback interface of every network namespace.
    pub fn loopback() -> Self {
        Self("lo".to_owned())
    }
}

impl TryFrom<String> for IfName {
    type Error = String;
    fn try_from(name: String) -> Result<Self, String> {
        let bad = |why: &str| Err(format!("{name:?} is not an interface name: {why}"));
        if name.is_empty() {
            return bad("it is empty");
        }
        if name.len() > 15 {
            return bad("it has more than 15 bytes");
        }
        if name == "." || name == ".." || name.contains(['/', ':', '%', '\0']) || name.contains(char::is_whitespace) {
            return bad("it contains a character that the kernel rejects");
        }
        Ok(Self(name))
    }
}

impl FromStr for IfName {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        Self::try_from(s.to_owned())
    }
}

impl From<IfName> for String {
    fn from(n: IfName) -> String {
        n.0
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A unicast Ethernet address that is not all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac([u8; 6]);

impl Mac {
    /// An address read from the kernel needs no check.
    pub fn from_kernel(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for Mac {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        // The first words of both texts are netavark's.
        let bad = |why: &str| format!("unable to parse mac address {s}: {why}");
        let parts: Vec<&str> = s.split([':', '-']).collect();
        let mut mac = [0u8; 6];
        if parts.len() != 6 {
            return Err(format!("invalid mac length for address: {s}: expected six numbers"));
        }
        for (byte, part) in mac.iter_mut().zip(parts) {
            if !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad("expected hexadecimal digits"));
            }
            *byte = u8::from_str_radix(part, 16).map_err(|e| bad(&e.to_string()))?;
        }
        if mac[0] & 1 != 0 {
            return Err(bad("it is a multicast address"));
        }
        if mac == [0; 6] {
            return Err(bad("it is all zero"));
        }
        Ok(Self(mac))
    }
}

impl TryFrom<String> for Mac {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

impl From<Mac> for String {
    fn from(m: Mac) -> String {
        m.to_string()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The container of an endpoint, with the id and name of its engine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Container {
    pub id: String,
    pub name: String,
}

impl Container {
    /// `web (3f9a1c2b4d5e)`, for messages.
    pub fn label(&self) -> String {
        let short: String = self.id.chars().take(12).collect();
        if self.name.is_empty() { short } else { format!("{} ({short})", self.name) }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Endpoint {
    /// Name of the interface inside the container.
    pub interface: IfName,
    /// Name of the host's end of a veth; `None`: the kernel chooses.
    pub host_interface: Option<IfName>,
    /// With the prefix length of their subnet.
    pub addresses: Vec<IpNet>,
    pub mac: Option<Mac>,
    /// Additional DNS names.
    pub aliases: Vec<String>,
    /// Upstream DNS servers of this container.
    pub dns_servers: Vec<std::net::IpAddr>,
    /// The container's own name, for DHCP servers; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host_name: String,
}

/// What a DHCP server has granted beside an address.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Leased {
    pub gateway: Option<std::net::IpAddr>,
    pub dns_servers: Vec<std::net::IpAddr>,
    pub domain: Option<String>,
}

impl Endpoint {
    /// Whether the kernel deletes the route together with the interface: other routes have no interface, or another one.
    pub fn covers(&self, route: &Route) -> bool {
        route.gateway.is_some_and(|g| self.addresses.iter().any(|a| a.contains(&g)))
    }

    /// The first address of the family, which receives published ports.
    pub fn first_v4(&self) -> Option<std::net::Ipv4Addr> {
        self.addresses.iter().find_map(|a| if let IpNet::V4(a) = a { Some(a.addr()) } else { None })
    }

    pub fn first_v6(&self) -> Option<std::net::Ipv6Addr> {
        self.addresses.iter().find_map(|a| if let IpNet::V6(a) = a { Some(a.addr()) } else { None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_are_valid_for_the_kernel() {
        for good in ["eth0", "a", "podman-net_1.2", "fifteen-bytes-x"] {
            assert!(good.parse::<IfName>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "a:1", "sixteen-bytes-xx", "a\tb", "nul\0"] {
            assert!(bad.parse::<IfName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn mac_addresses_have_either_separator_and_are_unicast() {
        assert_eq!("0a:11:22:33:44:55", "0A-11-22-33-44-55".parse::<Mac>().expect("valid").to_string());
        for bad in
            ["", "0a:11:22:33:44", "01:00:5e:00:00:01", "00:00:00:00:00:00", "0a:11:22:33:44:+5", "0a:11:22:33:44:555"]
        {
            assert!(bad.parse::<Mac>().is_err(), "{bad:?}");
        }
    }
}
