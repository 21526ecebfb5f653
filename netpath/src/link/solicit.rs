//! Neighbour questions in the kernel's place, for IPv6.
//!
//! The kernel asks with the source of the packet that waits, if that is an address of the link, else with the link's
//! link-local address, and not at all while that is not sure (`net/ipv6/ndisc.c, ndisc_solicit()`): a second or two after the link
//! came up. On the edge path the packet that waits still has a container's address. The answer finds the neighbour that
//! waits, whoever has asked (`ndisc_recv_na()`).

use crate::model::HostLink;
use crate::model::error::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, bind, sendto, setsockopt, socket, sockopt,
};
use std::net::{IpAddr, Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};

/// Whoever receives one with less has it from a router, and drops it (RFC 4861 §7.1.1).
const HOP_LIMIT: i32 = 255;
/// RFC 4861 §4.3, §4.6.1.
const NEIGHBOR_SOLICITATION: u8 = 135;
const SOURCE_LINK_LAYER_ADDRESS: u8 = 1;

/// Asks who has `targets` on a link whose kernel cannot ask yet, with an address of its own that can be used. Returns for how many.
///
/// # Errors
/// The kernel's first, after all have been asked for.
pub fn solicit(link: &HostLink, targets: &[Ipv6Addr]) -> Result<usize> {
    let Some(mac) = link.mac else { return Ok(0) };
    let own = |net: &ipnet::IpNet| if let IpAddr::V6(ip) = net.addr() { Some(ip) } else { None };
    let (local, global): (Vec<_>, Vec<_>) =
        link.addresses.iter().filter_map(own).partition(Ipv6Addr::is_unicast_link_local);
    let is_sure = |ip: Ipv6Addr| socket_of(ip, link.index).map(|socket| socket.is_some());
    for ip in local {
        if is_sure(ip)? {
            return Ok(0);
        }
    }
    let mut asked = 0;
    for ip in global {
        let Some(socket) = socket_of(ip, link.index)? else { continue };
        for target in targets {
            let to = SockaddrIn6::from(SocketAddrV6::new(solicited_node(*target), 0, 0, link.index));
            sendto(socket.as_raw_fd(), &message(*target, mac.bytes()), &to, MsgFlags::empty())
                .context(|| format!("cannot ask for neighbour {target} on {} with {ip}", link.name))?;
            asked += 1;
        }
        break;
    }
    Ok(asked)
}

/// That sends with `source`; `None` while this cannot be used (tentative, RFC 4862 §5.4), or is gone.
fn socket_of(source: Ipv6Addr, index: u32) -> Result<Option<OwnedFd>> {
    let what = || format!("cannot make a socket for neighbour questions with {source}");
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    // The kernel fills in the checksum (`net/ipv6/raw.c, rawv6_push_pending_frames()`).
    let socket = socket(AddressFamily::Inet6, SockType::Raw, flags, SockProtocol::IcmpV6).context(what)?;
    setsockopt(&socket, sockopt::Ipv6MulticastHops, &HOP_LIMIT).context(what)?;
    let scope = if source.is_unicast_link_local() { index } else { 0 };
    match bind(socket.as_raw_fd(), &SockaddrIn6::from(SocketAddrV6::new(source, 0, 0, scope))) {
        Ok(()) => Ok(Some(socket)),
        Err(Errno::EADDRNOTAVAIL) => Ok(None),
        Err(e) => Err(e).context(what),
    }
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
    fn a_question_goes_to_the_nodes_that_may_have_the_address() {
        let target: Ipv6Addr = "2001:db8::aa12:3456".parse().expect("an address");
        assert_eq!("ff02::1:ff12:3456", solicited_node(target).to_string());
        let message = message(target, [2, 0, 0, 0, 0, 7]);
        assert_eq!((32, 135), (message.len(), message[0]));
        assert_eq!((&target.octets()[..], &[1, 1, 2, 0, 0, 0, 0, 7][..]), (&message[8..24], &message[24..]));
    }
}
