//! IPv6 neighbour solicitations that the kernel cannot send yet.
//!
//! The kernel solicits from the source address of the queued packet if that is an address of the link, else from the
//! link-local address, and not while that is tentative (`net/ipv6/ndisc.c, ndisc_solicit()`): for one or two seconds
//! after the link came up. A packet of a network without masquerade has a container's address. The kernel accepts an
//! advertisement whichever source has solicited it (`ndisc_recv_na()`).

use crate::model::HostLink;
use crate::model::error::{Context, Result};
use ipnet::Ipv6Net;
use socket2::{Domain, Protocol, Socket, Type};
use std::net::{Ipv6Addr, SocketAddrV6};

/// Receivers drop solicitations with a lower one, which must have passed a router (RFC 4861 §7.1.1).
const HOP_LIMIT: u32 = 255;
/// RFC 4861 §4.3, §4.6.1.
const NEIGHBOR_SOLICITATION: u8 = 135;
const SOURCE_LINK_LAYER_ADDRESS: u8 = 1;

/// Solicits `targets` on a link whose link-local address is still tentative. `usable`: the link's addresses that are not
/// tentative ([`super::Rtnl::usable_addresses`]). Returns the number of solicitations. Needs CAP_NET_RAW.
///
/// # Errors
/// The kernel's first, after all targets were tried.
pub fn solicit(link: &HostLink, usable: &[Ipv6Net], targets: &[Ipv6Addr]) -> Result<usize> {
    let Some(mac) = link.mac else { return Ok(0) };
    // With a usable link-local address the kernel solicits itself.
    if usable.iter().any(|net| net.addr().is_unicast_link_local()) {
        return Ok(0);
    }
    let (mut sent, mut result) = (0, Ok(()));
    for target in targets {
        let Some(source) = source(usable, *target) else { continue };
        match send(link, source, *target, mac.bytes()) {
            Ok(()) => sent += 1,
            Err(e) => {
                let what = || format!("cannot solicit neighbour {target} on {} from {source}", link.name);
                result = result.and(Err(e).context(what));
            }
        }
    }
    result.map(|()| sent)
}

/// Some hosts answer only sources of their own subnet; a /128 is the last choice.
fn source(usable: &[Ipv6Net], target: Ipv6Addr) -> Option<Ipv6Addr> {
    usable.iter().max_by_key(|net| (net.contains(&target), net.prefix_len() < 128)).map(Ipv6Net::addr)
}

fn send(link: &HostLink, source: Ipv6Addr, target: Ipv6Addr, mac: [u8; 6]) -> std::io::Result<()> {
    // The kernel fills in the checksum (`net/ipv6/raw.c, rawv6_push_pending_frames()`).
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.set_nonblocking(true)?;
    // Another link may have the same address, and `bind` finds addresses in a VRF only through its device.
    socket.bind_device(Some(link.name.as_str().as_bytes()))?;
    socket.bind(&SocketAddrV6::new(source, 0, 0, 0).into())?;
    socket.set_multicast_hops_v6(HOP_LIMIT)?;
    // As for the kernel's own solicitations.
    socket.set_multicast_loop_v6(false)?;
    socket.send_to(&message(target, mac), &SocketAddrV6::new(solicited_node(target), 0, 0, link.index).into()).map(drop)
}

/// RFC 4291 §2.7.1.
fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

fn message(target: Ipv6Addr, mac: [u8; 6]) -> Vec<u8> {
    // Type, code, checksum, reserved; the option's length is in units of 8 bytes.
    let head = [NEIGHBOR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    [&head[..], &target.octets(), &[SOURCE_LINK_LAYER_ADDRESS, 1], &mac].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_in_the_targets_subnet_is_the_source() {
        let usable =
            ["2001:db8:1::1/64", "2001:db8:2::1/64", "2001:db8:3::1/128"].map(|n| n.parse().expect("a network"));
        let of = |usable: &[Ipv6Net], target: &str| {
            source(usable, target.parse().expect("an address")).map(|ip| ip.to_string())
        };
        assert_eq!(Some("2001:db8:1::1".to_owned()), of(&usable, "2001:db8:1::7"));
        assert_eq!(Some("2001:db8:2::1".to_owned()), of(&usable, "2001:db8:2::7"));
        assert_ne!(Some("2001:db8:3::1".to_owned()), of(&usable, "fe80::1"));
        assert_eq!(Some("2001:db8:3::1".to_owned()), of(&usable[2..], "fe80::1"));
        assert_eq!(None, of(&[], "fe80::1"));
    }

    #[test]
    fn a_solicitation_goes_to_the_solicited_node_address() {
        let target: Ipv6Addr = "2001:db8::aa12:3456".parse().expect("an address");
        assert_eq!("ff02::1:ff12:3456", solicited_node(target).to_string());
        let message = message(target, [2, 0, 0, 0, 0, 7]);
        assert_eq!((32, 135), (message.len(), message[0]));
        assert_eq!((&target.octets()[..], &[1, 1, 2, 0, 0, 0, 0, 7][..]), (&message[8..24], &message[24..]));
    }
}
