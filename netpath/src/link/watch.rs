//! Being told of changes.

use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

/// `include/uapi/linux/rtnetlink.h, enum rtnetlink_groups`. Not routes: nothing of netpath's is made of them, the programs
/// ask for each flow's, and a router's may change a thousand times a second.
const GROUPS: [u32; 3] = [1, 5, 9];

/// A socket that can be read when links or addresses of the calling thread's namespace have changed. It does not block.
///
/// # Errors
/// The kernel's.
pub fn watch() -> io::Result<OwnedFd> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.set_non_blocking(true)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    GROUPS.iter().try_for_each(|group| socket.add_membership(*group))?;
    // SAFETY: the descriptor is open, and this is now its one owner.
    Ok(unsafe { OwnedFd::from_raw_fd(socket.into_raw_fd()) })
}
