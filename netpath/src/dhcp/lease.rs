//! What a server has granted.

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// By DHCP or by DHCPv6.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Lease {
    V4(Lease4),
    V6(Lease6),
}

/// The one address of an IA_NA (RFC 8415 §21.4). Routers and prefixes are advertised by routers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lease6 {
    pub address: Ipv6Addr,
    /// DUID.
    pub server: Vec<u8>,
    pub dns_servers: Vec<Ipv6Addr>,
    pub domain: Option<String>,
    /// As in [`Lease4`].
    pub t1: u32,
    pub t2: u32,
    pub lifetime: u32,
    pub obtained: Duration,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lease4 {
    pub address: Ipv4Net,
    pub server: Ipv4Addr,
    /// The sender of the server's answer: the server itself, or its relay.
    pub server_mac: [u8; 6],
    /// `siaddr`.
    pub next_server: Ipv4Addr,
    pub gateways: Vec<Ipv4Addr>,
    pub dns_servers: Vec<Ipv4Addr>,
    pub ntp_servers: Vec<Ipv4Addr>,
    pub domain: Option<String>,
    pub host_name: Option<String>,
    pub mtu: Option<u16>,
    /// Seconds after `obtained`: when to ask its server, when to ask any server, and the end.
    pub t1: u32,
    pub t2: u32,
    pub lifetime: u32,
    /// CLOCK_BOOTTIME: it goes on while the host sleeps.
    pub obtained: Duration,
}

impl Lease {
    /// How long it is until `seconds` after the lease began.
    pub fn until(&self, seconds: u32) -> Duration {
        let obtained = match self {
            Self::V4(lease) => lease.obtained,
            Self::V6(lease) => lease.obtained,
        };
        (obtained + Duration::from_secs(seconds.into())).saturating_sub(now())
    }

    /// Seconds after it began: when to ask its server, when to ask any server, and the end.
    pub fn times(&self) -> [u32; 3] {
        match self {
            Self::V4(Lease4 { t1, t2, lifetime, .. }) | Self::V6(Lease6 { t1, t2, lifetime, .. }) => {
                [*t1, *t2, *lifetime]
            }
        }
    }

    pub fn address(&self) -> IpNet {
        match self {
            Self::V4(lease) => lease.address.into(),
            Self::V6(lease) => IpNet::from(std::net::IpAddr::V6(lease.address)),
        }
    }

    /// Of its default route.
    pub fn gateway(&self) -> Option<Ipv4Addr> {
        match self {
            Self::V4(lease) => lease.gateways.first().copied(),
            Self::V6(_) => None,
        }
    }
}

/// CLOCK_BOOTTIME.
pub(super) fn now() -> Duration {
    // Fails for unknown clocks only.
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}
