//! The agent's lock: a file that is locked as long as the agent lives, and names its process. A command that starts an agent
//! locks the file first and hands it over, so that there is never a second agent.

use super::files::File as StateFile;
use super::lock::is_at;
use super::process::ProcessId;
use crate::model::error::{Context, Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// The process that runs as the agent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Holder {
    pub process: ProcessId,
    /// Of its binary: an agent of another build would undo what this build's commands do.
    pub build: String,
}

/// Locked until it is dropped and every process that it was handed over to has ended.
pub struct AgentLock {
    file: File,
}

impl AgentLock {
    /// Takes the lock in the directory `dir`; `None` = it is taken, or there is no such directory.
    ///
    /// # Errors
    /// The file cannot be created or locked.
    pub fn take(dir: &Path) -> Result<Option<Self>> {
        let path = StateFile::AgentLock.path(dir);
        let opened = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(&path);
        match opened {
            Ok(file) => Self::over(file, &path),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::new(format!("cannot open {}", path.display())).because(e)),
        }
    }

    /// The lock that the parent process has handed over as standard input.
    ///
    /// # Errors
    /// Standard input cannot be used.
    pub fn handed_over(dir: &Path) -> Result<Option<Self>> {
        // Another descriptor, which is closed when a program is executed: no child of the agent keeps the lock.
        let file = std::io::stdin().as_fd().try_clone_to_owned().map(File::from);
        let file = file.context(|| "cannot use standard input".to_owned())?;
        let path = StateFile::AgentLock.path(dir);
        if is_at(&file, &path) { Self::over(file, &path) } else { Ok(None) }
    }

    fn over(file: File, path: &Path) -> Result<Option<Self>> {
        // Not nix's `Flock`, which unlocks when it is dropped, for all who share the descriptor.
        // SAFETY: takes numbers only.
        let answer = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
        match std::io::Error::last_os_error() {
            _ if answer == 0 => Ok(is_at(&file, path).then_some(Self { file })),
            e if e.kind() == ErrorKind::WouldBlock => Ok(None),
            e => Err(Error::new(format!("cannot lock {}", path.display())).because(e)),
        }
    }

    /// # Errors
    /// It cannot be written.
    pub fn write(&self, holder: &Holder) -> Result<()> {
        let what = || "cannot name the agent in its lock".to_owned();
        let bytes = serde_json::to_vec(holder).context(what)?;
        self.clear()?;
        self.file.write_all_at(&bytes, 0).context(what)
    }

    /// Until [`AgentLock::write`] it names no agent.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn clear(&self) -> Result<()> {
        self.file.set_len(0).context(|| "cannot clear the agent's lock".to_owned())
    }

    /// A descriptor for the process that is to hold the lock.
    ///
    /// # Errors
    /// This process has no descriptor left.
    pub fn hand_over(&self) -> Result<File> {
        self.file.try_clone().context(|| "cannot hand over the agent's lock".to_owned())
    }
}

/// The process that the lock names, if it is alive.
pub fn holder(dir: &Path) -> Option<Holder> {
    let bytes = std::fs::read(StateFile::AgentLock.path(dir)).ok()?;
    serde_json::from_slice::<Holder>(&bytes).ok().filter(|h| h.process.is_alive())
}

/// The agent's log. It is emptied when it has grown to [`LogFile::LIMIT`]: on most machines it is in memory.
pub struct LogFile(File);

impl LogFile {
    const LIMIT: u64 = 256 * 1024;

    /// # Errors
    /// It cannot be opened.
    pub fn open(_lock: &AgentLock, dir: &Path) -> Result<Self> {
        Self::at(&StateFile::AgentLog.path(dir))
    }

    /// # Errors
    /// It cannot be opened.
    pub fn at(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
        file.map(Self).context(|| format!("cannot open {}", path.display()))
    }
}

impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        if self.0.metadata()?.len() > Self::LIMIT {
            self.0.set_len(0)?;
        }
        self.0.write(line)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn directory(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("netpath-lock-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        dir
    }

    #[test]
    fn the_lock_has_one_holder_and_names_it() {
        let dir = directory("one");
        let lock = AgentLock::take(&dir).expect("a lock").expect("a free lock");
        assert!(AgentLock::take(&dir).expect("a lock").is_none(), "a second one");
        assert_eq!(None, holder(&dir), "no agent is named");
        let us = Holder { process: ProcessId::this_process(), build: "7".into() };
        lock.write(&Holder { build: "a longer one".into(), ..us.clone() }).expect("written");
        lock.write(&us).expect("written");
        assert_eq!(Some(us), holder(&dir));
        lock.write(&Holder { process: ProcessId { pid: 1, started: 3 }, build: "7".into() }).expect("written");
        assert_eq!(None, holder(&dir), "another process of the same number");
        let handed = lock.hand_over().expect("a descriptor");
        drop(lock);
        assert!(AgentLock::take(&dir).expect("a lock").is_none(), "handed over");
        drop(handed);
        assert!(AgentLock::take(&dir).expect("a lock").is_some(), "free again");
        std::fs::remove_dir_all(&dir).expect("clean up");
        assert!(AgentLock::take(&dir).expect("no error").is_none(), "no directory");
    }

    #[test]
    fn a_log_has_a_limit() {
        let dir = directory("log");
        let lock = AgentLock::take(&dir).expect("a lock").expect("a free lock");
        let mut file = LogFile::open(&lock, &dir).expect("a log");
        for _ in 0..300 {
            file.write_all(&[b'x'; 4096]).expect("written");
        }
        assert!(std::fs::metadata(StateFile::AgentLog.path(&dir)).expect("a file").len() <= LogFile::LIMIT + 4096);
        std::fs::remove_dir_all(&dir).expect("clean up");
    }
}
