//! Neighbour questions in the kernel's place, for IPv6.
//!
//! The kernel asks with the source of the packet that waits, if that is an address of the link, else with the link's
//! link-local address, and not at all while that is not sure (`net/ipv6/ndisc.c, ndisc_solicit()`): a second or two after the link
//! came up. On the edge path the packet that waits still has a container's address. The answer finds the neighbour that
//! waits, also to a question of another sender (`ndisc_recv_na()`).

use crate::model::HostLink;
use crate::model::error::{Context, Result};
use ipnet::Ipv6Net;
use socket2::{Domain, Protocol, Socket, Type};
use std::net::{Ipv6Addr, SocketAddrV6};

/// A receiver drops one with less, which came through a router (RFC 4861 §7.1.1).
const HOP_LIMIT: u32 = 255;
/// RFC 4861 §4.3, §4.6.1.
const NEIGHBOR_SOLICITATION: u8 = 135;
const SOURCE_LINK_LAYER_ADDRESS: u8 = 1;

/// Asks who has `targets` on a link whose kernel cannot ask yet, with addresses of its own that can be used, which are among
/// `sure` ([`super::Rtnl::sure_addresses`]). Returns for how many. Needs CAP_NET_RAW.
///
/// # Errors
/// The kernel's first, after all have been asked for.
pub fn solicit(link: &HostLink, sure: &[Ipv6Net], targets: &[Ipv6Addr]) -> Result<usize> {
    let Some(mac) = link.mac else { return Ok(0) };
    // With its link-local address the kernel asks by itself.
    if sure.iter().any(|net| net.addr().is_unicast_link_local()) {
        return Ok(0);
    }
    let (mut asked, mut result) = (0, Ok(()));
    for target in targets {
        let Some(source) = source(sure, *target) else { continue };
        match ask(link, source, *target, mac.bytes()) {
            Ok(()) => asked += 1,
            Err(e) => {
                let what = || format!("cannot ask for neighbour {target} on {} with {source}", link.name);
                result = result.and(Err(e).context(what));
            }
        }
    }
    result.map(|()| asked)
}

/// Some only listen to who is in one network with them; an address without one is the last choice.
fn source(sure: &[Ipv6Net], target: Ipv6Addr) -> Option<Ipv6Addr> {
    sure.iter().max_by_key(|net| (net.contains(&target), net.prefix_len() < 128)).map(Ipv6Net::addr)
}

fn ask(link: &HostLink, source: Ipv6Addr, target: Ipv6Addr, mac: [u8; 6]) -> std::io::Result<()> {
    // The kernel fills in the checksum (`net/ipv6/raw.c, rawv6_push_pending_frames()`).
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.set_nonblocking(true)?;
    // The address may be on another link as well, and a member of a VRF has it there only.
    socket.bind_device(Some(link.name.as_str().as_bytes()))?;
    socket.bind(&SocketAddrV6::new(source, 0, 0, 0).into())?;
    socket.set_multicast_hops_v6(HOP_LIMIT)?;
    // As the kernel's own.
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
    fn who_is_in_one_network_with_the_target_asks() {
        let sure = ["2001:db8:1::1/64", "2001:db8:2::1/64", "2001:db8:3::1/128"].map(|n| n.parse().expect("a network"));
        let of =
            |sure: &[Ipv6Net], target: &str| source(sure, target.parse().expect("an address")).map(|ip| ip.to_string());
        assert_eq!(Some("2001:db8:1::1".to_owned()), of(&sure, "2001:db8:1::7"));
        assert_eq!(Some("2001:db8:2::1".to_owned()), of(&sure, "2001:db8:2::7"));
        assert_ne!(Some("2001:db8:3::1".to_owned()), of(&sure, "fe80::1"));
        assert_eq!(Some("2001:db8:3::1".to_owned()), of(&sure[2..], "fe80::1"));
        assert_eq!(None, of(&[], "fe80::1"));
    }

    #[test]
    fn a_question_goes_to_the_nodes_that_may_have_the_address() {
        let target: Ipv6Addr = "2001:db8::aa12:3456".parse().expect("an address");
        assert_eq!("ff02::1:ff12:3456", solicited_node(target).to_string());
        let message = message(target, [2, 0, 0, 0, 0, 7]);
        assert_eq!((32, 135), (message.len(), message[0]));
        assert_eq!((&target.octets()[..], &[1, 1, 2, 0, 0, 0, 0, 7][..]), (&message[8..24], &message[24..]));
    }
}
