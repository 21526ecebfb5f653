//! A process that stays the same one when its number is used again.

use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProcessId {
    pub pid: u32,
    /// Ticks since boot: field 22 of `/proc/<pid>/stat`.
    pub started: u64,
}

impl ProcessId {
    pub fn this_process() -> Self {
        Self::of(std::process::id())
    }

    /// A child of this process.
    pub fn of(pid: u32) -> Self {
        Self { pid, started: started(pid).unwrap_or(0) }
    }

    pub fn is_alive(self) -> bool {
        started(self.pid) == Some(self.started)
    }
}

/// A descriptor of the process with this number, readable once it has ended (5.3). `None`: there is none.
///
/// # Errors
/// The kernel's.
pub fn pidfd(pid: u32) -> io::Result<Option<OwnedFd>> {
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        let e = io::Error::last_os_error();
        return if e.raw_os_error() == Some(libc::ESRCH) { Ok(None) } else { Err(e) };
    }
    // SAFETY: the call has just made this descriptor, which has no other owner; descriptors fit into 31 bits.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
}

fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, and may itself hold blanks and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    // It has ended, and its parent has not waited for it yet.
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_identified_by_number_and_start_time() {
        let here = ProcessId::this_process();
        assert!(here.is_alive());
        assert!(!ProcessId { started: here.started + 1, ..here }.is_alive(), "another process of the same number");
    }
}
