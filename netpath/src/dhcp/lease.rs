//! What a server has granted.

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;
use std::time::Duration;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lease {
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
        (self.obtained + Duration::from_secs(seconds.into())).saturating_sub(now())
    }

    pub fn gateway(&self) -> Option<Ipv4Addr> {
        self.gateways.first().copied()
    }
}

/// CLOCK_BOOTTIME.
pub(super) fn now() -> Duration {
    // Fails for unknown clocks only.
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}
