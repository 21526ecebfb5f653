//! The records of one host, one file each.

use super::agent;
use super::lock::Lock;
use super::names::file_name;
use crate::model::error::{Context, Error, Result};
use crate::model::{Desired, IfName, Record, Rung};
use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What a record is found by.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Key {
    pub container: String,
    pub network: String,
    /// Inside the container.
    pub interface: IfName,
}

impl Key {
    pub fn of(record: &Record) -> Self {
        let (container, network) = (record.container.id.clone(), record.network.name.clone());
        Self { container, network, interface: record.endpoint.interface.clone() }
    }
}

/// How far an endpoint is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Its setup has begun and has not ended.
    #[serde(alias = "coming")]
    Creating,
    /// Its setup has ended well.
    Up,
    /// Its teardown has begun.
    #[serde(alias = "going")]
    Removing,
}

/// A process, and when it began, since numbers come again.
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

    /// A process that this one has started.
    pub fn of(pid: u32) -> Self {
        Self { pid, started: started(pid).unwrap_or(0) }
    }

    pub fn is_alive(self) -> bool {
        started(self.pid) == Some(self.started)
    }
}

fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, and may itself hold blanks and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    // It has ended and waits for its parent to notice.
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// A record and how far it is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoredEndpoint {
    pub record: Record,
    pub phase: Phase,
    /// Who works on it while it is coming or going.
    pub writer: ProcessId,
}

impl StoredEndpoint {
    pub fn key(&self) -> Key {
        Key::of(&self.record)
    }
}

pub struct Store {
    dir: PathBuf,
}

/// A value of the host's that was changed, by its path below /proc/sys.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SavedSysctl {
    pub before: String,
    pub written: String,
}

/// Sources of firewalld's zone `trusted`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Trusted {
    /// Those that netpath has put there and takes out again.
    pub added: BTreeSet<IpNet>,
    /// Subnets that are in another zone, which was said.
    pub elsewhere: BTreeMap<IpNet, String>,
}

const RUNG: &str = "rung";
const SYSCTLS: &str = "sysctls";
const MEMORY: &str = "memory";
const PASSED_OVER: &str = "passed-over";
const SWEPT: &str = "swept";
const SERVED: &str = "served";
const NETFILTER: &str = "netfilter";
const FIREWALLD: &str = "firewalld";
const ENDPOINT: &str = ".json";
const HALF: &str = ".new";

impl Store {
    /// The store of the host namespace with this cookie. Nothing is made yet.
    pub fn of(cookie: u64) -> Self {
        Self::at(Path::new("/run/netpath").join(format!("{cookie:x}")))
    }

    pub fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Waits for the lock that every writing call needs.
    ///
    /// # Errors
    /// It cannot be taken, or `give_up` said so when a signal arrived.
    pub fn lock(&self, give_up: &dyn Fn() -> bool) -> Result<Lock> {
        Lock::take(&self.dir, give_up)
    }

    /// The lock if it is free, and only where there is a state to lock: the caller never waits.
    ///
    /// # Errors
    /// It cannot be tried.
    pub fn try_lock(&self) -> Result<Option<Lock>> {
        Lock::try_take(&self.dir)
    }

    /// Where everything of this host lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// When flows were last swept, and where to go on.
    pub fn expiry<T: DeserializeOwned>(&self) -> Option<(SystemTime, T)> {
        let path = self.dir.join(SWEPT);
        let when = std::fs::metadata(&path).and_then(|m| m.modified()).ok()?;
        Some((when, read(&path).ok().flatten()?))
    }

    /// Without the lock and without waiting for a disk: the worst that can become of it is one sweep more. Nothing is
    /// written where nothing is kept.
    pub fn keep_expiry(&self, progress: &impl Serialize) {
        if self.is_empty().is_ok_and(|empty| !empty)
            && let Ok(bytes) = serde_json::to_vec(progress)
        {
            let _ = std::fs::write(self.dir.join(SWEPT), bytes);
        }
    }

    /// What the datapath was last made for: [`HostView::digest`](crate::model::HostView::digest). `None` also while it is
    /// being made, and after the command that made it was killed.
    pub fn served(&self) -> Option<u64> {
        read(&self.dir.join(SERVED)).ok().flatten()
    }

    /// # Errors
    /// What was written before cannot be removed; that nothing could be written makes the next look a longer one.
    pub fn keep_served(&self, _lock: &Lock, digest: Option<u64>) -> Result<()> {
        match digest {
            Some(digest) => drop(std::fs::write(self.dir.join(SERVED), digest.to_string())),
            None => drop(remove(&self.dir.join(SERVED))?),
        }
        Ok(())
    }

    /// All records in the order in which they came. A file that cannot be read is reported and left out: one damaged
    /// record must not stop every other container.
    ///
    /// # Errors
    /// The directory cannot be read; that there is none is an empty store.
    pub fn all(&self) -> Result<Vec<StoredEndpoint>> {
        let what = || format!("cannot read state in {}", self.dir.display());
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::new(what()).because(e)),
        };
        let mut all = Vec::new();
        for entry in entries {
            let path = entry.context(what)?.path();
            if !path.to_string_lossy().ends_with(ENDPOINT) {
                continue;
            }
            match read::<StoredEndpoint>(&path) {
                Ok(Some(kept)) => all.push(kept),
                Ok(None) => {}
                Err(e) => {
                    tracing::error!(file = %path.display(), error = %e, "a record cannot be read and is left out");
                }
            }
        }
        all.sort_by(|a, b| a.record.order.cmp(&b.record.order).then_with(|| a.key().cmp(&b.key())));
        Ok(all)
    }

    /// What should be on this host, as a datapath wants to know it.
    ///
    /// # Errors
    /// As [`Store::all`].
    pub fn desired(&self) -> Result<Desired> {
        Ok(Desired { records: self.all()?.into_iter().map(|k| k.record).collect() })
    }

    /// One record. A damaged one is reported and counts as absent, so that it can be written anew or removed.
    ///
    /// # Errors
    /// It is there and cannot be opened.
    pub fn get(&self, key: &Key) -> Result<Option<StoredEndpoint>> {
        match self.at_path(key, &self.file(key))? {
            Some(kept) => Ok(Some(kept)),
            None => self.at_path(key, &self.old_file(key)),
        }
    }

    fn at_path(&self, key: &Key, path: &Path) -> Result<Option<StoredEndpoint>> {
        match std::fs::read(path) {
            Ok(bytes) => match serde_json::from_slice::<StoredEndpoint>(&bytes) {
                Ok(kept) => Ok(Some(kept).filter(|k| k.key() == *key)),
                Err(e) => {
                    tracing::error!(file = %path.display(), error = %e, "a record cannot be read");
                    Ok(None)
                }
            },
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::new(format!("cannot read {}", path.display())).because(e)),
        }
    }

    /// Writes a record, new or changed.
    ///
    /// # Errors
    /// It cannot be written; the one before it, if any, still stands.
    pub fn put(&self, _lock: &Lock, kept: &StoredEndpoint) -> Result<()> {
        self.adopt(&kept.key())?;
        self.write(&self.file(&kept.key()), kept)
    }

    /// Whether there is no record at all.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn is_empty(&self) -> Result<bool> {
        match std::fs::read_dir(&self.dir) {
            Ok(mut entries) => {
                Ok(!entries.any(|e| e.is_ok_and(|e| e.file_name().to_string_lossy().ends_with(ENDPOINT))))
            }
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(true),
            Err(e) => Err(Error::new(format!("cannot read state in {}", self.dir.display())).because(e)),
        }
    }

    /// Removes a record; `false` = there was none.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn forget(&self, _lock: &Lock, key: &Key) -> Result<bool> {
        self.adopt(key)?;
        remove(&self.file(key))
    }

    /// Gives the file of version 0.1 its new name, also a damaged one: its name tells whose it is.
    fn adopt(&self, key: &Key) -> Result<()> {
        let old = self.old_file(key);
        match read::<StoredEndpoint>(&old) {
            Ok(None) => Ok(()),
            Ok(Some(kept)) if kept.key() != *key => Ok(()),
            _ => std::fs::rename(&old, self.file(key)).context(|| format!("cannot rename {}", old.display())),
        }
    }

    /// The rung that the containers of this host use.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn rung(&self) -> Result<Option<Rung>> {
        read(&self.dir.join(RUNG))
    }

    /// # Errors
    /// It cannot be written.
    pub fn keep_rung(&self, _lock: &Lock, rung: Rung) -> Result<()> {
        if self.rung().ok().flatten() == Some(rung) {
            return Ok(());
        }
        self.write(&self.dir.join(RUNG), &rung)
    }

    /// Rungs that were tried for these containers and failed, with the reason.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn rejected_rungs(&self) -> Result<Vec<(Rung, String)>> {
        Ok(read(&self.dir.join(PASSED_OVER))?.unwrap_or_default())
    }

    /// # Errors
    /// It cannot be written.
    pub fn reject_rung(&self, _lock: &Lock, rung: Rung, why: String) -> Result<()> {
        let mut all = self.rejected_rungs()?;
        all.retain(|(r, _)| *r != rung);
        all.push((rung, why));
        self.write(&self.dir.join(PASSED_OVER), &all)
    }

    /// The host's own values of sysctls that were changed for containers.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn sysctls(&self) -> Result<BTreeMap<String, SavedSysctl>> {
        Ok(read(&self.dir.join(SYSCTLS))?.unwrap_or_default())
    }

    /// # Errors
    /// They cannot be written.
    pub fn keep_sysctls(&self, _lock: &Lock, saved: &BTreeMap<String, SavedSysctl>) -> Result<()> {
        self.write(&self.dir.join(SYSCTLS), saved)
    }

    /// What the datapath has written down for its next call, to save it a look at the kernel. Whatever is wrong with it,
    /// there is none: it never holds what the records do not tell.
    pub fn memory<T: DeserializeOwned>(&self) -> Option<T> {
        read(&self.dir.join(MEMORY)).ok().flatten()
    }

    /// The caller holds the lock. `None` forgets.
    ///
    /// # Errors
    /// It cannot be written or removed.
    pub fn keep_memory(&self, memory: Option<&impl Serialize>) -> Result<()> {
        match memory {
            Some(memory) => self.write(&self.dir.join(MEMORY), memory),
            None => remove(&self.dir.join(MEMORY)).map(drop),
        }
    }

    /// Whether rules of netfilter may be there beside the programs of the eBPF rung.
    pub fn uses_netfilter(&self) -> bool {
        self.dir.join(NETFILTER).exists()
    }

    /// The caller holds the lock: before the first rule is written, and once the last is gone.
    ///
    /// # Errors
    /// It cannot be written or removed.
    pub fn keep_netfilter(&self, used: bool) -> Result<()> {
        let path = self.dir.join(NETFILTER);
        match used {
            true if path.exists() => Ok(()),
            true => self.write(&path, &true),
            false => remove(&path).map(drop),
        }
    }

    /// What is known of firewalld's zone. A file that cannot be read is as none: the worst is a source that stays.
    pub fn trusted(&self) -> Trusted {
        read(&self.dir.join(FIREWALLD)).ok().flatten().unwrap_or_default()
    }

    /// # Errors
    /// It cannot be written or removed.
    pub fn keep_trusted(&self, _lock: &Lock, trusted: &Trusted) -> Result<()> {
        let path = self.dir.join(FIREWALLD);
        if *trusted == Trusted::default() { remove(&path).map(drop) } else { self.write(&path, trusted) }
    }

    /// Removes everything but records, and with no record left the directory, which ends the lock.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub fn close(&self, lock: Lock) -> Result<()> {
        let what = || format!("cannot clean up {}", self.dir.display());
        for entry in std::fs::read_dir(&self.dir).context(what)? {
            let entry = entry.context(what)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // A half-written file has lost its writer: every writer holds the lock.
            const FILES: [&str; 10] =
                [RUNG, SYSCTLS, MEMORY, PASSED_OVER, SWEPT, SERVED, NETFILTER, FIREWALLD, agent::SEAT, agent::LOG];
            if FILES.contains(&name.as_str()) || name.ends_with(HALF) {
                remove(&entry.path())?;
            }
        }
        lock.remove_with_directory();
        Ok(())
    }

    fn file(&self, key: &Key) -> PathBuf {
        self.dir.join(file_name(&[&key.container, &key.network, key.interface.as_str()]) + ENDPOINT)
    }

    /// Where version 0.1 kept a record: a container had one endpoint on a network.
    fn old_file(&self, key: &Key) -> PathBuf {
        self.dir.join(file_name(&[&key.container, &key.network]) + ENDPOINT)
    }

    fn write(&self, path: &Path, value: &impl Serialize) -> Result<()> {
        let what = || format!("cannot write {}", path.display());
        let half = PathBuf::from(format!("{}{HALF}", path.display()));
        let bytes = serde_json::to_vec(value).context(what)?;
        let written = std::fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&half)
            .and_then(|mut f| f.write_all(&bytes).and_then(|()| f.sync_all()))
            .and_then(|()| std::fs::rename(&half, path))
            .and_then(|()| std::fs::File::open(&self.dir)?.sync_all());
        if written.is_err() {
            let _ = std::fs::remove_file(&half);
        }
        written.context(what)
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let what = || format!("cannot read {}", path.display());
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).context(what),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::new(what()).because(e)),
    }
}

fn remove(path: &Path) -> Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::new(format!("cannot remove {}", path.display())).because(e)),
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
