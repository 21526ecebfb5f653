//! Being told of changes.

use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

/// `include/uapi/linux/rtnetlink.h, enum rtnetlink_groups`: links and addresses. Not routes: programs ask for each flow's,
/// and a router's may change a thousand times a second.
const GROUPS: [u32; 3] = [1, 5, 9];
/// Routes and routing rules of both families, and nexthop objects.
const ROUTES: [u32; 5] = [7, 8, 11, 19, 32];

/// A socket that can be read when links or addresses of the calling thread's namespace have changed. It does not block.
///
/// # Errors
/// The kernel's.
pub fn watch() -> io::Result<OwnedFd> {
    watch_groups(&GROUPS)
}

/// The same for what decides which way a packet takes: rules of netfilter are made of it on the iptables rung.
///
/// # Errors
/// The kernel's.
pub fn watch_routes() -> io::Result<OwnedFd> {
    watch_groups(&ROUTES)
}

fn watch_groups(groups: &[u32]) -> io::Result<OwnedFd> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.set_non_blocking(true)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    groups.iter().try_for_each(|group| socket.add_membership(*group))?;
    // SAFETY: the descriptor is open, and this is now its one owner.
    Ok(unsafe { OwnedFd::from_raw_fd(socket.into_raw_fd()) })
}
