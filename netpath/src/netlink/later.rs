//! Sockets of netfilter that a command leaves open until after its end.
//!
//! Closing such a socket waits until the kernel has freed what transactions of nf_tables removed before: 10 to 20 ms, in which it
//! commits no other transaction of the network namespace (`net/netfilter/nf_tables_api.c, nft_rcv_nl_event()`). A command therefore
//! keeps its sockets, and a child process has them when the command ends. The child closes them later, when nothing is left to wait
//! for.

use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Several grace periods of RCU, after which the kernel frees.
const SLEEP: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// What the child is called; at most 15 bytes.
const NAME: &std::ffi::CStr = c"netpath-closing";

#[derive(Default)]
struct Kept {
    keeps: bool,
    sockets: Vec<OwnedFd>,
    has_committed: bool,
}

static KEPT: Mutex<Kept> = Mutex::new(Kept { keeps: false, sockets: Vec::new(), has_committed: false });

fn kept() -> MutexGuard<'static, Kept> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends with the command.
#[must_use]
pub struct Closing(());

/// From now on sockets of netfilter stay open until the value is dropped. For short-lived commands only.
pub fn close_later() -> Closing {
    kept().keeps = true;
    Closing(())
}

/// The kernel has something to free after a transaction.
pub(super) fn has_committed() {
    kept().has_committed = true;
}

/// Keeps a socket that would be closed now.
pub(super) fn keep(socket: &impl AsFd) {
    let mut kept = kept();
    // Without a copy it is closed as usual. A socket that owns a table is none of a command: the table would outlive it.
    if kept.keeps
        && let Ok(copy) = socket.as_fd().try_clone_to_owned()
    {
        kept.sockets.push(copy);
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        let Kept { sockets, has_committed, .. } = std::mem::take(&mut *kept());
        if !has_committed || sockets.is_empty() {
            return;
        }
        let mut numbers: Vec<RawFd> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
        numbers.sort_unstable();
        // SAFETY: the child makes only system calls, on memory allocated before the fork, and ends.
        if Errno::result(unsafe { libc::fork() }) == Ok(0) {
            // SAFETY: this is the child, which uses no descriptor but these.
            unsafe { hold(&numbers) }
        }
        // Without a child they are closed here.
    }
}

/// In the child: closes all other descriptors, since the engine waits for its pipes and others may wait for locks, leaves the directory,
/// and sleeps. Ends at once where close_range(2) fails (before 5.9).
///
/// # Safety
/// Closes descriptors of the process, and ends it.
unsafe fn hold(sockets: &[RawFd]) -> ! {
    let mut from = 0;
    // SAFETY: the calls take numbers, and constants that live until the end.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, NAME.as_ptr());
        libc::chdir(c"/".as_ptr());
        for until in sockets.iter().map(|fd| fd.cast_unsigned()).chain([u32::MAX]) {
            if until > from && libc::syscall(libc::SYS_close_range, from, until - 1, 0) != 0 {
                libc::_exit(0)
            }
            from = until.wrapping_add(1);
        }
        let time = SLEEP;
        libc::nanosleep(&raw const time, std::ptr::null_mut());
        libc::_exit(0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Netlink;
    use netlink_packet_netfilter::NetfilterMessage;
    use netlink_sys::protocols::NETLINK_NETFILTER;
    use nix::errno::Errno;
    use nix::sys::wait::{WaitPidFlag, waitpid};
    use std::os::fd::AsFd;

    /// Whether this process has the socket of this inode open.
    fn is_open(inode: u64) -> bool {
        let all = std::fs::read_dir("/proc/self/fd").expect("descriptors");
        let mut targets = all.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok());
        targets.any(|target| target.to_string_lossy() == format!("socket:[{inode}]"))
    }

    fn open_and_close() -> u64 {
        let netlink = Netlink::<NetfilterMessage>::open(NETLINK_NETFILTER).expect("a socket");
        let inode = nix::sys::stat::fstat(netlink.socket.as_fd()).expect("a number").st_ino;
        super::has_committed();
        inode
    }

    #[test]
    #[ignore = "needs root"]
    fn a_command_keeps_its_sockets_and_a_child_closes_them() {
        assert!(!is_open(open_and_close()), "a socket of a process that is no command");
        let closing = super::close_later();
        let kept = open_and_close();
        assert!(is_open(kept), "it is closed at once");
        drop(closing);
        let child = waitpid(None, Some(WaitPidFlag::__WNOTHREAD | WaitPidFlag::WNOHANG));
        assert_ne!(Err(Errno::ECHILD), child, "no child has it");
        assert!(!is_open(kept), "it is still open here");
        waitpid(None, Some(WaitPidFlag::__WNOTHREAD)).expect("the child ends");
    }
}
