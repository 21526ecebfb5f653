//! Sockets that go from one server to the next: queries that arrive in between wait in them.
//!
//! The process that replaces a server takes copies of its listening sockets ([`of_process`]) and hands them to the new one as
//! descriptors, whose numbers are in [`VARIABLE`].

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use socket2::{Socket, Type};
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

/// What leads queries to them.
const LINK: &str = "anon_inode:bpf_link";
/// Numbers separated by commas.
pub const VARIABLE: &str = "NETPATH_DNS_SOCKETS";

/// The sockets that a process listens on at one of these ports or at an address of their own, and what leads queries to the latter. None where the kernel lacks the call (before 5.6) or denies it.
pub fn of_process(pid: u32, pidfd: BorrowedFd<'_>, ports: &[u16]) -> Vec<OwnedFd> {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let copies = fds.filter_map(|fd| {
        let is_link = is_link(&fd.path())?;
        let number: RawFd = fd.file_name().to_str()?.parse().ok()?;
        // SAFETY: takes numbers only.
        let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) };
        // SAFETY: a new descriptor, owned here alone.
        let copy = (copy >= 0).then(|| unsafe { OwnedFd::from_raw_fd(copy as RawFd) })?;
        if is_link {
            return Some(copy);
        }
        let socket = Socket::from(copy);
        let (at, _) = listening_at(&socket)?;
        let is_named = !at.ip().is_unspecified() && !at.ip().is_loopback();
        (is_named || ports.contains(&at.port())).then(|| socket.into())
    });
    copies.collect()
}

/// Whether a descriptor is [such](LINK), or a socket; otherwise none.
fn is_link(fd: &Path) -> Option<bool> {
    let to = std::fs::read_link(fd).ok()?;
    let to = to.to_string_lossy();
    (to == LINK || to.starts_with("socket:")).then(|| to == LINK)
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
pub struct Inherited {
    sockets: RefCell<HashMap<(SocketAddr, bool), Socket>>,
    links: RefCell<Vec<OwnedFd>>,
}

impl Inherited {
    /// To be called once, before other descriptors are opened.
    pub fn of_this_process() -> Self {
        let inherited = Self::default();
        for number in std::env::var(VARIABLE).unwrap_or_default().split(',') {
            let Some(number) = number.parse().ok().filter(|n: &RawFd| *n > 2) else { continue };
            let Some(is_link) = is_link(Path::new(&format!("/proc/self/fd/{number}"))) else { continue };
            // SAFETY: the starting process has opened it for this one, in which nothing else owns it.
            let fd = unsafe { OwnedFd::from_raw_fd(number) };
            let _ = fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
            if is_link {
                inherited.links.borrow_mut().push(fd);
                continue;
            }
            let socket = Socket::from(fd);
            if let Some(at) = listening_at(&socket) {
                inherited.sockets.borrow_mut().insert(at, socket);
            }
        }
        inherited
    }

    pub(super) fn take(&self, at: SocketAddr, is_udp: bool) -> Option<Socket> {
        self.sockets.borrow_mut().remove(&(at, is_udp))
    }

    /// The one at another port than these.
    pub(super) fn take_led(&self, address: IpAddr, ports: &[u16], is_udp: bool) -> Option<Socket> {
        let mut sockets = self.sockets.borrow_mut();
        let is_led =
            |(at, of_udp): &&(SocketAddr, bool)| at.ip() == address && *of_udp == is_udp && !ports.contains(&at.port());
        let key = sockets.keys().find(is_led).copied()?;
        sockets.remove(&key)
    }

    /// Closes what no server has taken.
    pub(super) fn clear(&self) {
        self.sockets.borrow_mut().clear();
        self.links.borrow_mut().clear();
    }
}
