//! A netlink socket on which the kernel reports changes. A message only means that the host has to be read again; those that cannot
//! matter are ignored.

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use tokio::io::unix::AsyncFd;

/// The longest batch of messages of nf_tables (NLMSG_GOODSIZE). A longer one is judged by its beginning.
const MAX_MESSAGE: usize = 16 * 1024;

pub(super) struct Events {
    socket: AsyncFd<OwnedFd>,
    pub(super) matters: fn(&[u8]) -> bool,
}

impl Events {
    /// Every message of a socket that does not block.
    pub(super) fn all(socket: OwnedFd) -> io::Result<Self> {
        Self::matching(socket, |_| true)
    }

    /// Only the messages for which `matters` returns true.
    pub(super) fn matching(socket: OwnedFd, matters: fn(&[u8]) -> bool) -> io::Result<Self> {
        // SAFETY: the descriptor is open, is owned here alone, and stays the same until it is dropped.
        let socket = unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)?;
        Ok(Self { socket, matters })
    }

    /// Waits for the next change.
    pub(super) async fn changed(&self) {
        loop {
            let Ok(mut guard) = self.socket.readable().await else { return std::future::pending().await };
            while let Some(matters) = self.take() {
                if matters {
                    return;
                }
            }
            guard.clear_ready();
        }
    }

    /// Discards the messages that have arrived.
    pub(super) fn drain(&self) {
        while self.take().is_some() {}
    }

    /// Whether the next message matters; `None`: no message has arrived.
    fn take(&self) -> Option<bool> {
        let mut bytes = [0_u8; MAX_MESSAGE];
        match recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC) {
            Ok(length) => Some(bytes.get(..length).is_none_or(self.matters)),
            // ENOBUFS: the kernel has dropped messages.
            Err(Errno::ENOBUFS | Errno::EINTR) => Some(true),
            Err(_) => None,
        }
    }
}
