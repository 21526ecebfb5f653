//! Private namespaces of the bench: a mount namespace with an empty /run and a bpffs of its own, and a PID namespace.
//!
//! So two parallel runs share no lock, record or pin, and when this process ends in any way, the kernel removes everything:
//! netpath's agents, mounts, namespaces, programs, maps.

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, setsid};
use std::fs;

const NICE: i32 = -10;

/// Continues there as the first process; the caller waits outside for its end. Must be called before the first thread is
/// started: threads and children inherit the namespaces.
///
/// # Errors
/// Not root, or the kernel refuses a mount.
pub(crate) fn enter() -> Result<()> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID)
        .context("cannot make namespaces of mounts and processes: the bench needs root")?;
    // SAFETY: there is no other thread.
    if let ForkResult::Parent { child } = unsafe { fork() }.context("cannot start a process")? {
        wait_outside(child);
    }
    set_pdeathsig(Signal::SIGKILL).context("cannot ask to end with the process that waits")?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("cannot make mounts private")?;
    mount(Some("bench"), "/proc", Some("proc"), MsFlags::empty(), none).context("cannot mount a private /proc")?;
    // For xtables.lock, records of the backends, mounts of namespaces.
    mount(Some("bench"), "/run", Some("tmpfs"), MsFlags::empty(), none).context("cannot mount a private /run")?;
    mount(Some("bench"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none)
        .context("cannot mount a private bpffs on /sys/fs/bpf")
}

/// Ends as `child` ends; earlier, together with `child`, on the end of its parent or by a signal.
fn wait_outside(child: Pid) -> ! {
    let _ = set_pdeathsig(Signal::SIGKILL);
    let status = loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, status)) => break status,
            Ok(WaitStatus::Signaled(_, signal, _)) => break 128 + signal as i32,
            Err(Errno::EINTR) | Ok(_) => {}
            Err(_) => break 1,
        }
    };
    std::process::exit(status)
}

/// Raises the priority of this process and its children: figures vary less on a busy machine. Without effect where the kernel
/// denies it.
pub(crate) fn go_first() {
    // SAFETY: three numbers.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    // With autogroups a priority counts within a session only, and the session itself has one. In a session of its own the
    // bench does not receive Ctrl-C: it ends with the process that waits outside.
    if setsid().is_ok() {
        let _ = fs::write("/proc/self/autogroup", NICE.to_string());
    }
}
