//! The messages of netavark's DHCP proxy (`proxy.proto`, package `netavark_proxy`), derived here so that a build needs no `protoc`.
//! Fields above 1000 are netpath's own; netavark ignores them, and sends none.

use super::Lease;
use ipnet::{IpNet, Ipv4Net};
use prost::Message;
use std::net::{IpAddr, Ipv6Addr};

pub const SETUP: &str = "/netavark_proxy.NetavarkProxy/Setup";
pub const TEARDOWN: &str = "/netavark_proxy.NetavarkProxy/Teardown";
pub const CLEAN: &str = "/netavark_proxy.NetavarkProxy/Clean";

/// The interface that is to get or to give back an address.
#[derive(Clone, PartialEq, Message)]
pub struct NetworkConfig {
    /// The parent, or the bridge.
    #[prost(string, tag = "1")]
    pub host_iface: String,
    #[prost(string, tag = "2")]
    pub container_iface: String,
    #[prost(string, tag = "3")]
    pub container_mac_addr: String,
    /// Not sent by netavark.
    #[prost(string, tag = "4")]
    pub domain_name: String,
    #[prost(string, tag = "5")]
    pub host_name: String,
    /// 0: IPv4, 1: IPv6 (DHCPv6; not served by netavark's proxy).
    #[prost(int32, tag = "6")]
    pub version: i32,
    #[prost(string, tag = "7")]
    pub ns_path: String,
    /// Empty in `Teardown`.
    #[prost(string, tag = "8")]
    pub container_id: String,
    /// Of the default route; netavark's is 100.
    #[prost(uint32, optional, tag = "1001")]
    pub metric: Option<u32>,
    #[prost(bool, tag = "1002")]
    pub no_default_route: bool,
}

/// An address that the interface has.
#[derive(Clone, PartialEq, Message)]
pub struct WireLease {
    /// Seconds.
    #[prost(uint32, tag = "1")]
    pub t1: u32,
    #[prost(uint32, tag = "2")]
    pub t2: u32,
    #[prost(uint32, tag = "3")]
    pub lease_time: u32,
    #[prost(uint32, tag = "4")]
    pub mtu: u32,
    #[prost(string, tag = "5")]
    pub domain_name: String,
    #[prost(string, tag = "6")]
    pub mac_address: String,
    #[prost(bool, tag = "10")]
    pub is_v6: bool,
    #[prost(string, tag = "11")]
    pub siaddr: String,
    #[prost(string, tag = "12")]
    pub yiaddr: String,
    #[prost(string, tag = "16")]
    pub srv_id: String,
    #[prost(string, tag = "17")]
    pub subnet_mask: String,
    #[prost(string, tag = "18")]
    pub broadcast_addr: String,
    #[prost(string, repeated, tag = "19")]
    pub dns_servers: Vec<String>,
    #[prost(string, repeated, tag = "20")]
    pub gateways: Vec<String>,
    #[prost(string, repeated, tag = "21")]
    pub ntp_servers: Vec<String>,
    #[prost(string, tag = "22")]
    pub host_name: String,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct OperationResponse {
    #[prost(bool, tag = "1")]
    pub success: bool,
}

impl WireLease {
    pub fn of(lease: &Lease, mac: &str) -> Self {
        let [t1, t2, lease_time] = lease.times();
        let common = Self { t1, t2, lease_time, mac_address: mac.to_owned(), ..Self::default() };
        match lease {
            Lease::V4(lease) => Self {
                mtu: lease.mtu.unwrap_or(0).into(),
                domain_name: lease.domain.clone().unwrap_or_default(),
                siaddr: lease.next_server.to_string(),
                yiaddr: lease.address.addr().to_string(),
                srv_id: lease.server.to_string(),
                subnet_mask: lease.address.netmask().to_string(),
                broadcast_addr: lease.address.broadcast().to_string(),
                dns_servers: texts(&lease.dns_servers),
                gateways: texts(&lease.gateways),
                ntp_servers: texts(&lease.ntp_servers),
                host_name: lease.host_name.clone().unwrap_or_default(),
                ..common
            },
            Lease::V6(lease) => Self {
                is_v6: true,
                domain_name: lease.domain.clone().unwrap_or_default(),
                yiaddr: lease.address.to_string(),
                dns_servers: texts(&lease.dns_servers),
                ..common
            },
        }
    }

    /// The address with its prefix length; `None`: it has none that is valid.
    pub fn address(&self) -> Option<IpNet> {
        if self.is_v6 {
            return self.yiaddr.parse::<Ipv6Addr>().ok().map(|a| IpNet::from(IpAddr::V6(a)));
        }
        Ipv4Net::with_netmask(self.yiaddr.parse().ok()?, self.subnet_mask.parse().ok()?).ok().map(IpNet::V4)
    }
}

fn texts(list: &[impl ToString]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}
