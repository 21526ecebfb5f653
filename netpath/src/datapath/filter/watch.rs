//! Being told of changes in nf_tables.

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

/// `include/uapi/linux/netfilter/nfnetlink.h, enum nfnetlink_groups`
const NFNLGRP_NFTABLES: u32 = 7;

/// A socket that can be read when rules of the calling thread's namespace have changed. It does not block. Legacy tables
/// tell nobody.
///
/// # Errors
/// A kernel without nfnetlink.
pub fn watch() -> io::Result<OwnedFd> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.set_non_blocking(true)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    socket.add_membership(NFNLGRP_NFTABLES)?;
    // SAFETY: the descriptor is open, and this is now its one owner.
    Ok(unsafe { OwnedFd::from_raw_fd(socket.into_raw_fd()) })
}
