//! Two `tun` devices connected by a thread: a wire that carries plain IP packets, as a VPN device, without Ethernet.

use crate::host::Netns;
use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::thread::JoinHandle;

pub const DEVICE: &str = "/dev/net/tun";

nix::ioctl_write_ptr_bad!(set_interface, libc::TUNSETIFF, libc::ifreq);

/// Forwards packets until dropped; the devices are removed with it.
pub struct Wire {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Wire {
    /// A device `name` in both namespaces; packets sent into one come out of the other.
    ///
    /// # Errors
    /// The kernel has no tun, or the name is taken.
    pub fn between(one: &Netns, other: &Netns, name: &str) -> Result<Self> {
        let ends = [one, other].map(|netns| netns.run(|| device(name)));
        let [one_end, other_end] = ends;
        let ends = [one_end?, other_end?];
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let seen = Arc::clone(&stop);
        let thread = one.spawn(move || carry(ends, &seen))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A new tun device in the calling thread's namespace, without a header before its packets.
fn device(name: &str) -> Result<File> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE).context(DEVICE)?;
    // SAFETY: ifreq is numbers and bytes, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays NUL.
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the file is open, and the request is what TUNSETIFF reads.
    unsafe { set_interface(file.as_raw_fd(), &raw const request) }
        .with_context(|| format!("cannot make tun device {name}"))?;
    Ok(file)
}

fn carry(mut ends: [File; 2], stop: &EventFd) {
    let mut packet = vec![0; 65_536];
    loop {
        let ready = {
            let [one, other] = &ends;
            let mut fds = [one.as_fd(), other.as_fd(), stop.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            match poll(&mut fds, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                Err(_) => return,
                Ok(_) => fds.map(|fd| fd.revents().is_none_or(|r| r.contains(PollFlags::POLLIN))),
            }
        };
        if ready[2] {
            return;
        }
        for (from, _) in ready.iter().take(2).enumerate().filter(|(_, ready)| **ready) {
            // Reads until the queue is empty. A packet that the other end rejects is lost, as on any wire.
            while let Ok(len @ 1..) = ends[from].read(&mut packet) {
                let _ = ends[1 - from].write(&packet[..len]);
            }
        }
    }
}
