//! Sockets that go from one server to the next: queries that arrive in between wait in them.
//!
//! The process that replaces a server takes copies of its listening sockets ([`of_process`]) and hands them to the new one as
//! descriptors, whose numbers are in [`VARIABLE`].

use socket2::{Socket, Type};
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Numbers separated by commas.
pub const VARIABLE: &str = "NETPATH_DNS_SOCKETS";

/// The sockets that a process listens on at one of these ports. None where the kernel lacks the call (before 5.6) or denies it.
pub fn of_process(pid: u32, pidfd: BorrowedFd<'_>, ports: &[u16]) -> Vec<OwnedFd> {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let is_socket = |link: std::path::PathBuf| link.to_string_lossy().starts_with("socket:");
    let sockets = fds.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(is_socket));
    let copies = sockets.filter_map(|fd| {
        let number: RawFd = fd.file_name().to_str()?.parse().ok()?;
        // SAFETY: takes numbers only.
        let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) };
        // SAFETY: a new descriptor, owned here alone.
        (copy >= 0).then(|| unsafe { OwnedFd::from_raw_fd(copy as RawFd) })
    });
    copies
        .map(Socket::from)
        .filter(|socket| listening_at(socket).is_some_and(|(at, _)| ports.contains(&at.port())))
        .map(OwnedFd::from)
        .collect()
}

/// `None`: it is connected, or not of the internet.
fn listening_at(socket: &Socket) -> Option<(SocketAddr, bool)> {
    let at = socket.local_addr().ok()?.as_socket()?;
    match socket.r#type().ok()? {
        Type::DGRAM if socket.peer_addr().is_err() => Some((at, true)),
        Type::STREAM if socket.is_listener().is_ok_and(|is| is) => Some((at, false)),
        _ => None,
    }
}

/// What this process was handed, by address and whether it is UDP.
#[derive(Default)]
pub struct Inherited(RefCell<HashMap<(SocketAddr, bool), Socket>>);

impl Inherited {
    /// To be called once, before other descriptors are opened.
    pub fn of_this_process() -> Self {
        let numbers = std::env::var(VARIABLE).unwrap_or_default();
        let sockets = numbers.split(',').filter_map(|number| {
            let number: RawFd = number.parse().ok().filter(|n| *n > 2)?;
            let link = std::fs::read_link(format!("/proc/self/fd/{number}")).ok()?;
            if !link.to_string_lossy().starts_with("socket:") {
                return None;
            }
            // SAFETY: the starting process has opened it for this one, in which nothing else owns it.
            let socket = unsafe { Socket::from_raw_fd(number) };
            socket.set_cloexec(true).ok()?;
            Some((listening_at(&socket)?, socket))
        });
        Self(RefCell::new(sockets.collect()))
    }

    pub(super) fn take(&self, at: SocketAddr, is_udp: bool) -> Option<Socket> {
        self.0.borrow_mut().remove(&(at, is_udp))
    }

    /// Closes what no server has taken.
    pub(super) fn clear(&self) {
        self.0.borrow_mut().clear();
    }
}
