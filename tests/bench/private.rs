//! A place of the bench's own: a mount namespace with an empty /run and a bpffs that nobody else sees.
//!
//! So two runs side by side share no lock, record or pin, and when this process ends, however it ends, the kernel takes
//! back all of it: mounts, namespaces, programs, maps.

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::setsid;
use std::fs;

const NICE: i32 = -10;

/// To be called before the first thread is started: threads and children inherit it.
///
/// # Errors
/// Not root, or the kernel refuses a mount.
pub fn enter() -> Result<()> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace: the bench needs root")?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("cannot make mounts private")?;
    // xtables.lock, records of the backends, mounts of namespaces.
    mount(Some("bench"), "/run", Some("tmpfs"), MsFlags::empty(), none).context("cannot mount a private /run")?;
    mount(Some("bench"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none)
        .context("cannot mount a private bpffs on /sys/fs/bpf")
}

/// Before what else the machine does, for this process and all that it starts: on a machine that others use, figures are
/// steadier by it. Where it is refused, they are less steady.
pub fn go_first() {
    // SAFETY: three numbers.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    // With autogroups a priority counts within a session only, and the session itself has one. In a session of its own
    // the bench no longer hears Ctrl-C: it ends with the process that started it.
    if setsid().is_ok() {
        let _ = set_pdeathsig(Signal::SIGKILL);
        let _ = fs::write("/proc/self/autogroup", NICE.to_string());
    }
}
