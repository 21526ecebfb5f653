//! Packet sockets: whole frames of an interface (packet(7)).

use crate::host::Netns;
use anyhow::{Context, Result};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike, bind, sendto, socket,
};
use std::os::fd::{AsRawFd, OwnedFd};

/// In this namespace. It receives frames of all interfaces, or with `at` those of one.
///
/// # Errors
/// Not root, or there is no such interface.
pub fn open(netns: &Netns, at: Option<&str>) -> Result<OwnedFd> {
    netns.run(|| {
        let opened = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll);
        let opened = opened.context("cannot open a packet socket")?;
        if let Some(name) = at {
            bind(opened.as_raw_fd(), &address(name)?).with_context(|| format!("bind a packet socket to {name}"))?;
        }
        Ok(opened)
    })
}

/// Sends this frame by the interface of the socket's namespace.
///
/// # Errors
/// The kernel's.
pub fn send(netns: &Netns, from: &OwnedFd, interface: &str, frame: &[u8]) -> Result<()> {
    let to = netns.run(|| address(interface))?;
    let sent = sendto(from.as_raw_fd(), frame, &to, MsgFlags::empty()).context("send a frame")?;
    anyhow::ensure!(sent == frame.len(), "a part was sent");
    Ok(())
}

/// Of an interface of the calling thread's namespace.
fn address(interface: &str) -> Result<LinkAddr> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: if_nametoindex(interface).with_context(|| format!("no interface {interface}"))? as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: a whole `sockaddr_ll` with its length, which is copied.
    unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(len)) }.context("no address of a packet socket")
}
