//! A published port or range of ports.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    Tcp,
    Udp,
    Sctp,
}

impl std::fmt::Display for Proto {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Proto::Tcp => "tcp",
            Proto::Udp => "udp",
            Proto::Sctp => "sctp",
        })
    }
}

impl std::str::FromStr for Proto {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "tcp" => Ok(Proto::Tcp),
            "udp" => Ok(Proto::Udp),
            "sctp" => Ok(Proto::Sctp),
            other => Err(format!("{other:?}: expected tcp, udp or sctp")),
        }
    }
}

/// The host addresses that a port is published on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostBind {
    /// Every address of the host, in the families of the container.
    Any,
    AnyV4,
    AnyV6,
    Address(IpAddr),
}

impl HostBind {
    pub fn serves_v4(self) -> bool {
        matches!(self, HostBind::Any | HostBind::AnyV4 | HostBind::Address(IpAddr::V4(_)))
    }

    pub fn serves_v6(self) -> bool {
        matches!(self, HostBind::Any | HostBind::AnyV6 | HostBind::Address(IpAddr::V6(_)))
    }
}

/// Ports `host_port..host_port + count` of the host lead to `container_port..` of the endpoint.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Publish {
    pub bind: HostBind,
    pub proto: Proto,
    host_port: u16,
    container_port: u16,
    count: u16,
    /// The allow list of this port; `None`: that of the endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<IpNet>>,
}

impl Publish {
    /// # Errors
    /// Port 0, or a range that ends beyond 65,535; the text begins with `host_port`, `container_port` or `range`.
    pub fn new(bind: HostBind, proto: Proto, host_port: u16, container_port: u16, count: u16) -> Result<Self, String> {
        for (field, first) in [("host_port", host_port), ("container_port", container_port)] {
            if first == 0 {
                return Err(format!("{field}: 0 is not a port; expected 1 to 65535"));
            }
            if u32::from(first) + u32::from(count.max(1)) - 1 > 65_535 {
                return Err(format!("range: {count} ports from {field} {first} end beyond 65535"));
            }
        }
        Ok(Self { bind, proto, host_port, container_port, count: count.max(1), allow: None })
    }

    /// At most `count` ports of the range from `offset` on; `None` if there are none.
    #[must_use]
    pub fn part(&self, offset: u16, count: u16) -> Option<Self> {
        let count = count.min(self.count.checked_sub(offset)?);
        let (host_port, container_port) = (self.host_port + offset, self.container_port + offset);
        (count > 0).then(|| Self { host_port, container_port, count, ..self.clone() })
    }

    /// Whether they have a host port in common, on any address.
    pub fn overlaps(&self, other: &Self) -> bool {
        let ends = |p: &Self| (u32::from(p.host_port), u32::from(p.host_port) + u32::from(p.count));
        let ((first, end), (other_first, other_end)) = (ends(self), ends(other));
        self.proto == other.proto && first < other_end && other_first < end
    }

    /// SCTP with another host port than container port, which needs netfilter: the checksum covers the whole packet (RFC 9260
    /// §6.8), which can be larger than the part that a program can read.
    pub fn is_moved_sctp(&self) -> bool {
        self.proto == Proto::Sctp && self.host_port != self.container_port
    }

    pub fn host_port(&self) -> u16 {
        self.host_port
    }

    pub fn container_port(&self) -> u16 {
        self.container_port
    }

    /// Number of ports, at least 1.
    pub fn count(&self) -> u16 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_must_end_within_the_ports() {
        assert!(Publish::new(HostBind::Any, Proto::Tcp, 65_535, 80, 1).is_ok());
        assert!(Publish::new(HostBind::Any, Proto::Tcp, 65_535, 80, 2).expect_err("beyond").starts_with("range"));
        assert!(Publish::new(HostBind::Any, Proto::Tcp, 0, 80, 1).expect_err("zero").starts_with("host_port"));
        assert_eq!(1, Publish::new(HostBind::Any, Proto::Udp, 1, 1, 0).expect("zero counts as one").count());
        assert!(Publish::new(HostBind::Any, Proto::Tcp, 1, 1, 65_535).is_ok());
    }
}
