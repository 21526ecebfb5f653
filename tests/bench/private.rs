//! A place of the bench's own: a mount namespace with an empty /run and a bpffs that nobody else sees, and a namespace
//! of processes.
//!
//! So two runs side by side share no lock, record or pin, and when this process ends, however it ends, the kernel takes
//! back all of it: the agents that netpath has started, mounts, namespaces, programs, maps.

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

/// Goes on there, as the first process, with the one that called waiting outside for its end. To be called before the
/// first thread is started: threads and children inherit it.
///
/// # Errors
/// Not root, or the kernel refuses a mount.
pub fn enter() -> Result<()> {
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
    // xtables.lock, records of the backends, mounts of namespaces.
    mount(Some("bench"), "/run", Some("tmpfs"), MsFlags::empty(), none).context("cannot mount a private /run")?;
    mount(Some("bench"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none)
        .context("cannot mount a private bpffs on /sys/fs/bpf")
}

/// Ends as `child` ends; before that with the process that started it, or by a signal, and `child` with it.
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

/// Before what else the machine does, for this process and all that it starts: on a machine that others use, figures are
/// steadier by it. Where it is refused, they are less steady.
pub fn go_first() {
    // SAFETY: three numbers.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    // With autogroups a priority counts within a session only, and the session itself has one. In a session of its own
    // the bench no longer hears Ctrl-C: it ends with the process that waits outside.
    if setsid().is_ok() {
        let _ = fs::write("/proc/self/autogroup", NICE.to_string());
    }
}
