//! Notices of whatever may change the way of packets or the rules that they meet.

use super::flows::Promoted;
use crate::datapath::promote::rules::changes;
use crate::link;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Bytes of one message.
const MESSAGE: usize = 32 * 1_024;

pub(super) struct Watch {
    /// Every message is a change.
    any: Vec<OwnedFd>,
    neighbours: OwnedFd,
    /// Of what sends no notification.
    silent: Option<u64>,
}

impl Watch {
    /// # Errors
    /// The kernel's.
    pub(super) fn start() -> io::Result<Self> {
        let mut any = changes::watch()?;
        any.push(link::watch_ways()?);
        Ok(Self { any, neighbours: link::watch_neighbours()?, silent: None })
    }

    pub(super) fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.any.iter().chain([&self.neighbours]).map(AsFd::as_fd)
    }

    /// Takes all messages. Lost ones count as a change.
    pub(super) fn has_changed(&self, promoted: &Promoted) -> bool {
        let mut changed = false;
        for socket in &self.any {
            changed |= take(socket, |_| true);
        }
        changed
            | take(&self.neighbours, |message| {
                link::neighbour(message).is_some_and(|(index, address, mac)| promoted.is_moved(index, address, mac))
            })
    }

    /// Whether rules that send no notification are others than at the last call.
    ///
    /// # Errors
    /// They cannot be read.
    pub(super) fn has_changed_silently(&mut self) -> io::Result<bool> {
        let now = Some(changes::digest()?);
        let changed = now != self.silent;
        self.silent = now;
        Ok(changed)
    }
}

/// Reads all messages; whether one of them matters, or some were lost.
fn take(socket: &OwnedFd, matters: impl Fn(&[u8]) -> bool) -> bool {
    let mut found = false;
    let mut buffer = vec![0; MESSAGE];
    loop {
        match nix::sys::socket::recv(socket.as_raw_fd(), &mut buffer, nix::sys::socket::MsgFlags::MSG_DONTWAIT) {
            Ok(length) => found |= matters(&buffer[..length]),
            Err(nix::errno::Errno::EAGAIN) => return found,
            Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return true,
        }
    }
}
