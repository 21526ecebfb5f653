//! Addresses and networks as the maps have them: IPv4 is mapped into IPv6.

use ipnet::IpNet;
use netpath_common::addr::Addr;
use std::net::IpAddr;

pub(super) fn mapped(address: IpAddr) -> Addr {
    match address {
        IpAddr::V4(a) => Addr::v4(a.octets()),
        IpAddr::V6(a) => Addr::v6(a.octets()),
    }
}

/// The length and the base of a prefix over the mapped address.
pub(super) fn prefix(net: &IpNet) -> (u32, [u8; 16]) {
    let bits = u32::from(net.prefix_len()) + if net.addr().is_ipv4() { 96 } else { 0 };
    (bits, mapped(net.network()).0)
}
