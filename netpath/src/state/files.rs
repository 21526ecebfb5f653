//! The files of a state directory: each kind has one name here, and is written and removed through it.

use crate::model::error::{Context, Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Declares the enum, the names and the list of all of them together, so that no kind can be missing from the list.
macro_rules! files {
    ($($(#[$doc:meta])* $kind:ident = $name:literal,)*) => {
        /// Every file that is there once per host. Records are beside them, one per endpoint, and end in [`RECORD`].
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(super) enum File { $($(#[$doc])* $kind,)* }

        impl File {
            const ALL: &[File] = &[$(File::$kind,)*];

            const fn name(self) -> &'static str {
                match self { $(File::$kind => $name,)* }
            }
        }
    };
}

files! {
    /// Guards every write. Removed last, together with the directory.
    Lock = "lock",
    /// The rung in use.
    Rung = "rung",
    /// Exists while the rung in use is one that a command has forced.
    Forced = "forced",
    /// Exists while the rung in use serves because of rules of others, or of a network that asks for netfilter.
    GaveWay = "gave-way",
    /// Exists while the rung in use serves until the programs of the best one are loaded.
    Interim = "interim",
    /// The two rungs of a change-over that has not ended.
    Change = "change",
    /// Rungs that were tried and failed, with the reasons.
    RejectedRungs = "passed-over",
    /// The host's own values of sysctls.
    Sysctls = "sysctls",
    /// The rules of netfilter as of one generation.
    GenerationCache = "memory",
    /// When flows were expired last, and where to continue.
    Expiry = "swept",
    /// The state of the host that the datapath was made for.
    Served = "served",
    /// Exists while the eBPF rung has rules of netfilter beside its programs.
    Netfilter = "netfilter",
    /// Sources in firewalld's zone.
    Firewalld = "firewalld",
    /// Endpoints whose connections stay for a while.
    Departed = "departed",
    /// How many seconds programs stay loaded after the last container, if a command has said so.
    KeepLoaded = "keep-loaded",
    /// Locked by the agent while it lives.
    AgentLock = "agent",
    AgentLog = "agent.log",
    /// The directories whose names the agent serves.
    Dns = "dns",
    /// The agent listens on it.
    AgentSocket = "agent.sock",
}

/// The end of a record's name.
pub(super) const RECORD: &str = ".json";
/// The end of the name of a file that is not written in full yet.
const UNFINISHED: &str = ".new";

impl File {
    pub(super) fn path(self, dir: &Path) -> PathBuf {
        dir.join(self.name())
    }

    /// Whether the file of this name is removed with the last record. An unfinished file has lost its writer: every writer
    /// holds the lock, and so does the caller.
    pub(super) fn goes_with_last_record(name: &str) -> bool {
        name.ends_with(UNFINISHED) || Self::ALL.iter().any(|file| *file != Self::Lock && file.name() == name)
    }

    pub(super) fn is_of_agent(name: &str) -> bool {
        [Self::AgentLock, Self::AgentLog, Self::AgentSocket, Self::Dns].iter().any(|file| file.name() == name)
    }
}

/// `None`: there is no such file, or an empty one: its content was lost with the power.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let what = || format!("cannot read {}", path.display());
    match fs::read(path) {
        Ok(bytes) if bytes.is_empty() => Ok(None),
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).context(what),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::new(what()).because(e)),
    }
}

/// Replaces the file as a whole, so that a reader without the lock never sees a part of it. It outlives every process; a loss of
/// power takes the kernel objects with it that it describes.
pub(super) fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    write_and(path, value, |_| Ok(()))
}

/// The same, and waits until it is on the disk: milliseconds where `/run` is no tmpfs.
pub(super) fn write_through(path: &Path, value: &impl Serialize) -> Result<()> {
    write_and(path, value, fs::File::sync_all)
}

fn write_and(path: &Path, value: &impl Serialize, finish: impl Fn(&fs::File) -> std::io::Result<()>) -> Result<()> {
    let what = || format!("cannot write {}", path.display());
    let unfinished = PathBuf::from(format!("{}{UNFINISHED}", path.display()));
    let bytes = serde_json::to_vec(value).context(what)?;
    let written = fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&unfinished)
        .and_then(|mut f| f.write_all(&bytes).and_then(|()| finish(&f)))
        .and_then(|()| fs::rename(&unfinished, path))
        .and_then(|()| finish(&fs::File::open(path.parent().unwrap_or(path))?));
    if written.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    written.context(what)
}

/// `false`: there was no such file.
pub(super) fn remove(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::new(format!("cannot remove {}", path.display())).because(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_but_the_lock_goes_with_the_last_record_and_no_record_does() {
        let goes = |name: &str| File::goes_with_last_record(name);
        for file in File::ALL {
            assert_eq!(*file != File::Lock, goes(file.name()), "{file:?}");
            assert!(!file.name().ends_with(RECORD), "{file:?} would be taken for a record");
        }
        assert!(goes(&format!("5d2f.front.eth0{RECORD}{UNFINISHED}")));
        assert!(!goes(&format!("5d2f.front.eth0{RECORD}")));
        assert!(!goes("notes"), "a file that is not netpath's");
    }
}
