//! A network: attachment of its endpoints, subnets, routes and policy.

use super::{Attachment, IfName};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Maximum size of an IP packet on a link: 68 (RFC 791 §3.2) to 65,535 bytes; at least 1,280 for IPv6 (RFC 8200 §5).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Mtu(u32);

impl Mtu {
    pub fn bytes(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Mtu {
    type Error = String;
    fn try_from(bytes: u32) -> Result<Self, String> {
        if (68..=65_535).contains(&bytes) { Ok(Self(bytes)) } else { Err(format!("{bytes}: expected 68 to 65535")) }
    }
}

impl From<Mtu> for u32 {
    fn from(m: Mtu) -> u32 {
        m.0
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Subnet {
    pub net: IpNet,
    /// Gateway of the containers' default route; on a bridge it is the bridge's address.
    pub gateway: Option<IpAddr>,
}

/// The other networks of this host that may reach this one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// `Open` and `Isolated` ones.
    #[default]
    Open,
    /// `Open` ones.
    Isolated,
    /// None.
    Strict,
}

/// Who translates the packets of published ports and of masquerade.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TranslationPath {
    /// The programs, unless forwarded packets meet rules of others in netfilter.
    #[default]
    Auto,
    /// Netfilter, for all containers of this host. Records of earlier versions may hold `edge`.
    #[serde(alias = "edge")]
    Kernel,
    /// The programs, past the host's stack and netfilter.
    Offload,
}

/// Whether packets are also handled in XDP, before the kernel allocates an skb, on uplinks whose driver supports it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Xdp {
    /// With drivers for which XDP is measured to be faster.
    #[default]
    Auto,
    On,
    Off,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteKind {
    Unicast,
    Blackhole,
    Unreachable,
    Prohibit,
}

/// As `ip route` writes it.
impl std::fmt::Display for RouteKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            RouteKind::Unicast => "unicast",
            RouteKind::Blackhole => "blackhole",
            RouteKind::Unreachable => "unreachable",
            RouteKind::Prohibit => "prohibit",
        })
    }
}

/// A static route inside the container.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Route {
    pub destination: IpNet,
    /// Present only for [`RouteKind::Unicast`], in the destination's family.
    pub gateway: Option<IpAddr>,
    pub metric: u32,
    pub kind: RouteKind,
}

/// `172.20.0.0/16 via 10.89.7.254 metric 50`, as `ip route` writes it.
impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.kind != RouteKind::Unicast {
            write!(f, "{} ", self.kind)?;
        }
        match self.destination.prefix_len() {
            0 => f.write_str("default")?,
            _ => write!(f, "{}", self.destination)?,
        }
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        write!(f, " metric {}", self.metric)
    }
}

/// Where resolvers ask.
pub const DNS_PORT: u16 = 53;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Network {
    pub name: String,
    pub id: String,
    #[serde(flatten)]
    pub attachment: Attachment,
    pub mtu: Option<Mtu>,
    pub subnets: Vec<Subnet>,
    pub routes: Vec<Route>,
    /// No traffic to or from the outside.
    pub internal: bool,
    pub isolation: Isolation,
    /// Containers have default routes through the gateways, with metric `metric`.
    pub default_route: bool,
    pub metric: u32,
    /// Fixed source addresses for masquerade.
    pub outbound4: Option<std::net::Ipv4Addr>,
    pub outbound6: Option<std::net::Ipv6Addr>,
    // Records of earlier versions do not have the next four.
    #[serde(default)]
    pub path: TranslationPath,
    /// Containers are reached from outside by their own addresses.
    #[serde(default)]
    pub direct: bool,
    /// Traffic to the outside has an address of the host as source.
    #[serde(default = "yes")]
    pub masquerade: bool,
    #[serde(default)]
    pub xdp: Xdp,
    /// The VLAN of the endpoints on their bridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// The VRF of the bridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vrf: Option<IfName>,
    /// The containers get their addresses and default routes by DHCP (IPv4).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dhcp: bool,
    /// An address by DHCPv6.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dhcp6: bool,
    /// Addresses by the advertisements of routers (RFC 4862).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub slaac: bool,
    pub dns: bool,
    /// The addresses of the network's DNS server, if they are not the gateways.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_addresses: Option<Vec<IpAddr>>,
    /// The port that it listens on; containers ask port 53.
    #[serde(default = "dns_port", skip_serializing_if = "is_dns_port")]
    pub dns_port: u16,
    /// Upstream servers of this network's DNS.
    pub dns_servers: Vec<IpAddr>,
    /// Seconds for which clients may keep answers about its containers.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dns_ttl: u32,
}

fn dns_port() -> u16 {
    DNS_PORT
}

fn is_dns_port(port: &u16) -> bool {
    *port == DNS_PORT
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn yes() -> bool {
    true
}

impl Network {
    pub fn has_v6(&self) -> bool {
        self.subnets.iter().any(|s| s.net.addr().is_ipv6())
    }

    pub fn has_v4(&self) -> bool {
        self.subnets.iter().any(|s| s.net.addr().is_ipv4())
    }

    /// The bridge of the network, if netpath manages one; datapaths serve only such networks.
    pub fn bridge(&self) -> Option<&IfName> {
        match &self.attachment {
            Attachment::Bridge(name) => Some(name),
            Attachment::Unmanaged(_) | Attachment::Macvlan(_) | Attachment::Ipvlan(_) | Attachment::Plugin(_) => None,
        }
    }

    /// The addresses that the network's DNS server listens on.
    pub fn dns_addresses(&self) -> Vec<IpAddr> {
        self.dns_addresses.clone().unwrap_or_else(|| self.gateways().map(|(gateway, _)| gateway).collect())
    }

    /// The gateways with the prefix lengths of their subnets.
    pub fn gateways(&self) -> impl Iterator<Item = (IpAddr, u8)> + '_ {
        self.subnets.iter().filter_map(|s| s.gateway.map(|g| (g, s.net.prefix_len())))
    }
}
