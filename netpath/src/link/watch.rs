//! Sockets that receive the kernel's notifications of changes.

use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

/// Links and addresses (`include/uapi/linux/rtnetlink.h, enum rtnetlink_groups`). Routes are left out: the programs look
/// up the route of each flow, and those of a router may change a thousand times a second.
const LINKS: [u32; 3] = [1, 5, 9];
/// Routes and routing rules of both families, and nexthop objects.
const ROUTES: [u32; 5] = [7, 8, 11, 19, 32];

/// A non-blocking socket that becomes readable when links or addresses of the calling thread's namespace change.
///
/// # Errors
/// The kernel's.
pub fn watch() -> io::Result<OwnedFd> {
    watch_groups(&LINKS)
}

/// The same for routes and routing rules, from which the netfilter rungs derive rules.
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
    // SAFETY: the descriptor is open, and `into_raw_fd` has given up its ownership.
    Ok(unsafe { OwnedFd::from_raw_fd(socket.into_raw_fd()) })
}
