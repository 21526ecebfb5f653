//! The flow about which is asked.

use std::net::SocketAddr;

/// Addresses and ports (of ICMP: the identifier) as packets of one direction have them when they arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tuple {
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

/// A flow as conntrack has it, with the interfaces of its original direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow<'a> {
    /// The number of IP.
    pub protocol: u8,
    pub original: Tuple,
    pub reply: Tuple,
    pub ingress: &'a str,
    /// The port of the bridge `ingress`.
    pub ingress_port: Option<&'a str>,
    pub egress: &'a str,
    pub egress_port: Option<&'a str>,
    /// Of conntrack.
    pub mark: u32,
}
