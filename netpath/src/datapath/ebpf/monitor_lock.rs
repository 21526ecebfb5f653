//! The lock of a running monitor: while it is held, other programs than the pinned ones are attached, and commands leave
//! them there.

use super::pins::Pins;
use super::sys;
use crate::model::error::{Context, Error, Result};
use aya::programs::ProgramFd;
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

/// Mark: the filters of all marked veths run the program with the id that follows.
pub(super) const SHORTCUTS: &str = "shortcuts-";

const TAKE_TRIES: usize = 20;
const TAKE_PAUSE: Duration = Duration::from_millis(2);

/// Held by `netpath monitor` while its own programs replace the pinned ones.
pub(super) struct MonitorLock {
    dir: Flock<File>,
    path: PathBuf,
}

impl MonitorLock {
    /// `None` = another monitor holds it.
    ///
    /// # Errors
    /// The pins cannot be opened or locked.
    pub(super) fn take(pins: &Pins) -> Result<Option<Self>> {
        let path = pins.root().join("prog");
        let mut dir = File::open(&path).context(|| format!("cannot open {}", path.display()))?;
        // A command that tests for a running monitor holds the lock for microseconds.
        for _ in 0..TAKE_TRIES {
            dir = match Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
                Ok(dir) => {
                    // After a kill, the next command checks every hook.
                    doubt_shortcuts(pins)?;
                    return Ok(Some(Self { dir, path }));
                }
                Err((dir, nix::errno::Errno::EWOULDBLOCK)) => dir,
                Err((_, e)) => return Err(Error::new(format!("cannot lock {}", path.display())).because(e)),
            };
            std::thread::sleep(TAKE_PAUSE);
        }
        Ok(None)
    }

    /// Whether the pins are still those that were locked. They are replaced, with other maps, after the last
    /// container.
    pub(super) fn holds(&self) -> bool {
        let id = |m: std::fs::Metadata| (m.dev(), m.ino());
        match (self.dir.metadata(), std::fs::metadata(&self.path)) {
            (Ok(ours), Ok(there)) => id(ours) == id(there),
            _ => false,
        }
    }
}

pub(super) fn monitor_is_alive(pins: &Pins) -> bool {
    let Ok(dir) = File::open(pins.root().join("prog")) else { return false };
    matches!(Flock::lock(dir, FlockArg::LockSharedNonblock), Err((_, nix::errno::Errno::EWOULDBLOCK)))
}

/// The next reconcile reads every filter.
pub(super) fn doubt_shortcuts(pins: &Pins) -> Result<()> {
    pins.marks(SHORTCUTS).iter().try_for_each(|id| pins.unmark(&format!("{SHORTCUTS}{id}")))
}

/// Another program runs there: an older build's, or a monitor's. A running monitor keeps its own.
pub(super) fn update(pins: &Pins, name: &str, link: &OwnedFd, runs: u32, prog: &ProgramFd, id: u32) -> Result<usize> {
    if runs == id || monitor_is_alive(pins) {
        return Ok(0);
    }
    sys::link_update(link, prog).context(|| format!("cannot replace {name} in place"))?;
    Ok(1)
}
