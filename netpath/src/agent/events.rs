//! A socket on which the kernel says that something has changed. What it was, a look at the host tells; only messages that
//! cannot matter are left out.

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use tokio::io::unix::AsyncFd;

/// As long as the longest batch of messages of nf_tables (NLMSG_GOODSIZE); what is longer counts as it begins.
const MOST: usize = 16 * 1024;

pub(super) struct Events {
    socket: AsyncFd<OwnedFd>,
    matters: fn(&[u8]) -> bool,
}

impl Events {
    /// Over a socket that does not block.
    pub(super) fn over(socket: OwnedFd) -> io::Result<Self> {
        Self::of(socket, |_| true)
    }

    /// The same for messages that matter alone.
    pub(super) fn of(socket: OwnedFd, matters: fn(&[u8]) -> bool) -> io::Result<Self> {
        // SAFETY: the descriptor is open, is owned here alone, and stays the same until it is dropped.
        let socket = unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)?;
        Ok(Self { socket, matters })
    }

    /// Waits until something has changed.
    pub(super) async fn any(&self) {
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

    /// Forgets what has come so far.
    pub(super) fn drain(&self) {
        while self.take().is_some() {}
    }

    /// Whether the next message matters; `None`: there is none.
    fn take(&self) -> Option<bool> {
        let mut bytes = [0_u8; MOST];
        match recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC) {
            Ok(length) => Some(bytes.get(..length).is_none_or(self.matters)),
            // ENOBUFS: more has changed than the socket could hold.
            Err(Errno::ENOBUFS | Errno::EINTR) => Some(true),
            Err(_) => None,
        }
    }
}
