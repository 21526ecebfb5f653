//! The lock that guards writes to one host's state.

use crate::model::error::{Context, Error, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Held as long as it lives. The kernel lets go of it when its process ends, in whatever way.
pub struct Lock {
    file: Flock<File>,
    path: PathBuf,
}

impl Lock {
    /// Waits for the lock of the directory `dir`, which is made when it is absent. `give_up` is asked when a signal
    /// arrives in the meantime.
    ///
    /// # Errors
    /// The directory or the file cannot be made, or `give_up` said so.
    pub fn take(dir: &Path, give_up: &dyn Fn() -> bool) -> Result<Self> {
        let path = dir.join("lock");
        let what = || format!("cannot lock {}", path.display());
        loop {
            DirBuilder::new().recursive(true).mode(0o700).create(dir).context(what)?;
            let opened = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
            let mut file = match opened {
                Ok(file) => file,
                // The last holder removed the directory in between.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::new(what()).because(e)),
            };
            let file = loop {
                match Flock::lock(file, FlockArg::LockExclusive) {
                    Ok(locked) => break locked,
                    Err((back, Errno::EINTR)) if !give_up() => file = back,
                    Err((_, Errno::EINTR)) => return Err(Error::new(what()).because("interrupted by a signal")),
                    Err((_, e)) => return Err(Error::new(what()).because(e)),
                }
            };
            // The holder before us may have removed the file that we have waited for.
            if is_at(&file, &path) {
                return Ok(Self { file, path });
            }
        }
    }

    /// The lock of a directory that exists, if it is free.
    ///
    /// # Errors
    /// The file cannot be opened or locked.
    pub fn try_take(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join("lock");
        let what = || format!("cannot lock {}", path.display());
        let opened = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::new(what()).because(e)),
        };
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, e)) => return Err(Error::new(what()).because(e)),
        };
        Ok(is_at(&file, &path).then_some(Self { file, path }))
    }

    /// Removes the lock with its directory, if nothing else is in there. Others who wait for it start anew.
    pub fn remove_with_directory(self) {
        if let Some(dir) = self.path.parent()
            && is_alone(dir, &self.path)
        {
            let _ = std::fs::remove_file(&self.path);
            // Each fails harmlessly when there is something in it: another file, another host's directory.
            if std::fs::remove_dir(dir).is_ok()
                && let Some(parent) = dir.parent()
            {
                let _ = std::fs::remove_dir(parent);
            }
        }
        drop(self.file);
    }
}

/// Whether `file` is the one that lies at `path` now.
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    let id = |m: std::fs::Metadata| (m.dev(), m.ino());
    let (ours, there) = (file.metadata().map(id), std::fs::metadata(path).map(id));
    matches!((ours, there), (Ok(ours), Ok(there)) if ours == there)
}

fn is_alone(dir: &Path, file: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut d| d.all(|e| e.is_ok_and(|e| e.path() == file)))
}
