//! A socket on which the kernel says that something has changed. What it was is not read: whoever looks at the host sees it.

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use tokio::io::unix::AsyncFd;

pub struct Events(AsyncFd<OwnedFd>);

impl Events {
    /// Over a socket that does not block.
    pub fn over(socket: OwnedFd) -> io::Result<Self> {
        // SAFETY: the descriptor is open, is owned here alone, and stays the same until it is dropped.
        unsafe { AsyncFd::register(socket) }.map(Self).map_err(io::Error::from)
    }

    /// Waits until something has changed.
    pub async fn any(&self) {
        loop {
            let Ok(mut guard) = self.0.readable().await else { return std::future::pending().await };
            if self.take() {
                return;
            }
            guard.clear_ready();
        }
    }

    /// Forgets what has come so far.
    pub fn drain(&self) {
        while self.take() {}
    }

    fn take(&self) -> bool {
        let mut little = [0_u8; 16];
        match recv(self.0.as_raw_fd(), &mut little, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC) {
            // ENOBUFS: more has changed than the socket could hold.
            Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => true,
            Err(_) => false,
        }
    }
}
