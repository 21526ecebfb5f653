//! The lock that guards writes to one host's state.

use super::files::File as StateFile;
use crate::model::error::{Context, Error, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Locked until it is dropped. The kernel releases it when its process ends, in whatever way. A function that writes state takes
/// a reference to it.
pub struct Lock {
    file: Flock<File>,
    dir: PathBuf,
}

impl Lock {
    /// Waits for the lock of the directory `dir`, which is created if it is absent. `give_up` is called when a signal arrives
    /// in the meantime.
    ///
    /// # Errors
    /// The directory or the file cannot be created, or `give_up` returned true.
    pub fn take(dir: &Path, give_up: &dyn Fn() -> bool) -> Result<Self> {
        let path = StateFile::Lock.path(dir);
        let what = || format!("cannot lock {}", path.display());
        loop {
            DirBuilder::new().recursive(true).mode(0o700).create(dir).context(what)?;
            let opened = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
            let mut file = match opened {
                Ok(file) => file,
                // The previous holder has removed the directory in between.
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
            // The previous holder may have removed the file that this process has waited for.
            if is_at(&file, &path) {
                return Ok(Self { file, dir: dir.to_owned() });
            }
        }
    }

    /// The lock of a directory that exists, if it is free.
    ///
    /// # Errors
    /// The file cannot be opened or locked.
    pub fn try_take(dir: &Path) -> Result<Option<Self>> {
        let path = StateFile::Lock.path(dir);
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
        Ok(is_at(&file, &path).then_some(Self { file, dir: dir.to_owned() }))
    }

    /// Removes the lock and its directory, if that holds nothing else. Processes that wait for the lock then create another.
    pub(super) fn remove_with_directory(self) {
        let path = StateFile::Lock.path(&self.dir);
        if is_alone(&self.dir, &path) {
            let _ = std::fs::remove_file(&path);
            // Each fails harmlessly when there is something in it: another file, another host's directory.
            if std::fs::remove_dir(&self.dir).is_ok()
                && let Some(parent) = self.dir.parent()
            {
                let _ = std::fs::remove_dir(parent);
            }
        }
        drop(self.file);
    }
}

/// Whether `path` still leads to `file`.
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    let id = |m: std::fs::Metadata| (m.dev(), m.ino());
    let (ours, there) = (file.metadata().map(id), std::fs::metadata(path).map(id));
    matches!((ours, there), (Ok(ours), Ok(there)) if ours == there)
}

fn is_alone(dir: &Path, file: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut d| d.all(|e| e.is_ok_and(|e| e.path() == file)))
}
