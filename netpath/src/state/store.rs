//! The records of one host, one file each, and the few values beside them.

use super::files::{self, File, RECORD};
use super::lock::Lock;
use super::names::file_name;
use super::record_file::{self, Key, Phase, StoredEndpoint, Unusable, Versioned};
use crate::model::error::{Context, Error, Result};
use crate::model::{Departed, Desired, Rung};
use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A sysctl of the host that netpath has changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SavedSysctl {
    pub before: String,
    pub written: String,
}

/// Sources of firewalld's zone `trusted`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Trusted {
    /// Those that netpath has added and will remove.
    pub added: BTreeSet<IpNet>,
    /// Subnets that are in another zone, about which a warning was logged.
    pub elsewhere: BTreeMap<IpNet, String>,
}

pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// The store of the host namespace with this cookie. Creates nothing.
    pub fn of(cookie: u64) -> Self {
        Self::at(Path::new("/run/netpath").join(format!("{cookie:x}")))
    }

    pub fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Waits for the lock that every write needs.
    ///
    /// # Errors
    /// It cannot be taken, or `give_up` returned true when a signal arrived.
    pub fn lock(&self, give_up: &dyn Fn() -> bool) -> Result<Lock> {
        Lock::take(&self.dir, give_up)
    }

    /// The lock, if it is free and the directory exists. Does not wait.
    ///
    /// # Errors
    /// The file cannot be opened or locked.
    pub fn try_lock(&self) -> Result<Option<Lock>> {
        Lock::try_take(&self.dir)
    }

    /// The state directory of this host.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// When flows were last expired, and where to continue.
    pub fn expiry<T: DeserializeOwned>(&self) -> Option<(SystemTime, T)> {
        let path = self.path(File::Expiry);
        let when = std::fs::metadata(&path).and_then(|m| m.modified()).ok()?;
        Some((when, files::read(&path).ok().flatten()?))
    }

    /// Does not wait for the disk, and a failure is ignored: it costs one expiry more.
    pub fn keep_expiry(&self, _lock: &Lock, progress: &impl Serialize) {
        if let Ok(bytes) = serde_json::to_vec(progress) {
            let _ = std::fs::write(self.path(File::Expiry), bytes);
        }
    }

    /// The state of the host that the datapath was made for: [`HostView::digest`](crate::model::HostView::digest). `None` also
    /// while a command makes the datapath, and after that command was killed.
    pub fn served(&self) -> Option<u64> {
        files::read(&self.path(File::Served)).ok().flatten()
    }

    /// # Errors
    /// The earlier value cannot be removed. A value that cannot be written is no error: the agent then reconciles once more.
    pub fn keep_served(&self, _lock: &Lock, digest: Option<u64>) -> Result<()> {
        match digest {
            Some(digest) => drop(std::fs::write(self.path(File::Served), digest.to_string())),
            None => drop(files::remove(&self.path(File::Served))?),
        }
        Ok(())
    }

    /// All records, oldest first. A damaged one is logged and left out: it must not stop every other container.
    ///
    /// # Errors
    /// The directory cannot be read, or a record is of a later schema: what the caller would do without that record could
    /// destroy its endpoint. A directory that does not exist is an empty store.
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
            if !path.to_string_lossy().ends_with(RECORD) {
                continue;
            }
            match record_file::read(&path) {
                Ok(Some(stored)) => all.push(stored),
                Ok(None) => {}
                Err(Unusable::Newer(e)) => return Err(e),
                Err(Unusable::Damaged(e) | Unusable::Unreadable(e)) => tracing::error!("a record is left out: {e}"),
            }
        }
        all.sort_by(|a, b| a.record.order.cmp(&b.record.order).then_with(|| a.key().cmp(&b.key())));
        Ok(all)
    }

    /// The desired state of this host.
    ///
    /// # Errors
    /// As [`Store::all`].
    pub fn desired(&self) -> Result<Desired> {
        Ok(Desired { records: self.all()?.into_iter().map(|k| k.record).collect() })
    }

    /// One record. A damaged one is logged and counts as absent, so that it can be replaced or removed.
    ///
    /// # Errors
    /// It cannot be opened, or is of a later schema.
    pub fn get(&self, key: &Key) -> Result<Option<StoredEndpoint>> {
        match self.at_path(key, &self.file(key))? {
            Some(stored) => Ok(Some(stored)),
            None => self.at_path(key, &self.old_file(key)),
        }
    }

    fn at_path(&self, key: &Key, path: &Path) -> Result<Option<StoredEndpoint>> {
        match record_file::read(path) {
            Ok(stored) => Ok(stored.filter(|k| k.key() == *key)),
            Err(Unusable::Damaged(e)) => {
                tracing::error!("{e}");
                Ok(None)
            }
            Err(unusable) => Err(unusable.into_error()),
        }
    }

    /// Writes a record, new or changed. That of a complete setup is on the disk afterwards.
    ///
    /// # Errors
    /// It cannot be written; the earlier record, if any, is unchanged.
    pub fn put(&self, _lock: &Lock, stored: &StoredEndpoint) -> Result<()> {
        let path = self.adopt(&stored.key())?;
        match stored.phase {
            Phase::Up => files::write_through(&path, &Versioned::of(stored)),
            Phase::Creating | Phase::Removing => files::write(&path, &Versioned::of(stored)),
        }
    }

    /// Whether there is no record at all, read or not.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn is_empty(&self) -> Result<bool> {
        match std::fs::read_dir(&self.dir) {
            Ok(mut entries) => Ok(!entries.any(|e| e.is_ok_and(|e| e.file_name().to_string_lossy().ends_with(RECORD)))),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(true),
            Err(e) => Err(Error::new(format!("cannot read state in {}", self.dir.display())).because(e)),
        }
    }

    /// Removes a record; `false` = it was absent.
    ///
    /// # Errors
    /// It cannot be removed, or is of a later schema.
    pub fn forget(&self, _lock: &Lock, key: &Key) -> Result<bool> {
        let path = self.adopt(key)?;
        files::remove(&path)
    }

    /// The file of a record, which may be replaced or removed. A file with a name of version 0.1 gets its new name, also a
    /// damaged one, whose name identifies it.
    ///
    /// # Errors
    /// The file is of a later schema, or cannot be renamed.
    fn adopt(&self, key: &Key) -> Result<PathBuf> {
        let (old, path) = (self.old_file(key), self.file(key));
        record_file::refuse_newer(&path)?;
        match record_file::read(&old) {
            Ok(None) => {}
            Ok(Some(stored)) if stored.key() != *key => {}
            Err(Unusable::Newer(e)) => return Err(e),
            _ => std::fs::rename(&old, &path).context(|| format!("cannot rename {}", old.display()))?,
        }
        Ok(path)
    }

    /// The rung that the containers of this host use.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn rung(&self) -> Result<Option<Rung>> {
        files::read(&self.path(File::Rung))
    }

    /// The rung is no rejected one from now on.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep_rung(&self, _lock: &Lock, rung: Rung) -> Result<()> {
        if self.rung().ok().flatten() == Some(rung) {
            return Ok(());
        }
        let mut rejected = self.rejected_rungs()?;
        if rejected.iter().any(|(r, _)| *r == rung) {
            rejected.retain(|(r, _)| *r != rung);
            files::write(&self.path(File::RejectedRungs), &rejected)?;
        }
        files::write(&self.path(File::Rung), &rung)
    }

    /// The rungs, old and new, of a change-over that was interrupted: both may have something in the kernel.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn change(&self) -> Result<Option<[Rung; 2]>> {
        files::read(&self.path(File::Change))
    }

    /// Called before and after a change-over.
    ///
    /// # Errors
    /// It cannot be written or removed.
    pub fn keep_change(&self, _lock: &Lock, rungs: Option<[Rung; 2]>) -> Result<()> {
        match rungs {
            Some(rungs) => files::write(&self.path(File::Change), &rungs),
            None => files::remove(&self.path(File::Change)).map(drop),
        }
    }

    /// Whether the rung in use serves because of rules of others or of a network that asks for netfilter, or as an
    /// [interim](Self::is_interim), so that a better one can serve without these reasons.
    pub fn has_given_way(&self) -> bool {
        self.path(File::GaveWay).exists()
    }

    /// # Errors
    /// It cannot be written or removed.
    pub fn keep_given_way(&self, _lock: &Lock, given_way: bool) -> Result<()> {
        self.mark(File::Interim, false)?;
        self.mark(File::GaveWay, given_way)
    }

    /// Whether the rung in use serves until the agent has loaded the programs of the best one.
    pub fn is_interim(&self) -> bool {
        self.path(File::Interim).exists()
    }

    /// # Errors
    /// It cannot be written.
    pub fn keep_interim(&self, lock: &Lock) -> Result<()> {
        self.keep_given_way(lock, true)?;
        self.mark(File::Interim, true)
    }

    /// Rungs that were tried for these containers and failed, with the reason.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn rejected_rungs(&self) -> Result<Vec<(Rung, String)>> {
        Ok(files::read(&self.path(File::RejectedRungs))?.unwrap_or_default())
    }

    /// # Errors
    /// It cannot be written.
    pub fn reject_rung(&self, _lock: &Lock, rung: Rung, why: String) -> Result<()> {
        let mut all = self.rejected_rungs()?;
        all.retain(|(r, _)| *r != rung);
        all.push((rung, why));
        files::write(&self.path(File::RejectedRungs), &all)
    }

    /// The host's own values of sysctls that were changed for containers.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn sysctls(&self) -> Result<BTreeMap<String, SavedSysctl>> {
        Ok(files::read(&self.path(File::Sysctls))?.unwrap_or_default())
    }

    /// # Errors
    /// They cannot be written.
    pub fn keep_sysctls(&self, _lock: &Lock, saved: &BTreeMap<String, SavedSysctl>) -> Result<()> {
        files::write(&self.path(File::Sysctls), saved)
    }

    /// What the datapath has cached, so that its next call reads less from the kernel. An error counts as no cache: the cache
    /// holds nothing that cannot be read anew.
    pub fn generation_cache<T: DeserializeOwned>(&self) -> Option<T> {
        files::read(&self.path(File::GenerationCache)).ok().flatten()
    }

    /// `None` removes it.
    ///
    /// # Errors
    /// It cannot be written or removed.
    pub fn keep_generation_cache(&self, _lock: &Lock, cache: Option<&impl Serialize>) -> Result<()> {
        match cache {
            Some(cache) => files::write(&self.path(File::GenerationCache), cache),
            None => files::remove(&self.path(File::GenerationCache)).map(drop),
        }
    }

    /// Whether a command has forced the rung in use, so that it stays whatever rules other software adds.
    pub fn is_forced(&self) -> bool {
        self.path(File::Forced).exists()
    }

    /// # Errors
    /// It cannot be written or removed.
    pub fn keep_forced(&self, _lock: &Lock, forced: bool) -> Result<()> {
        if forced {
            self.mark(File::Interim, false)?;
        }
        self.mark(File::Forced, forced)
    }

    /// Whether rules of netfilter may exist beside the programs of the eBPF rung.
    pub fn uses_netfilter(&self) -> bool {
        self.path(File::Netfilter).exists()
    }

    /// Called before the first rule is written, and after the last one is removed.
    ///
    /// # Errors
    /// It cannot be written or removed.
    pub fn keep_netfilter(&self, _lock: &Lock, used: bool) -> Result<()> {
        self.mark(File::Netfilter, used)
    }

    /// A file that tells by being there.
    fn mark(&self, file: File, exists: bool) -> Result<()> {
        let path = self.path(file);
        match exists {
            true if path.exists() => Ok(()),
            true => files::write(&path, &true),
            false => files::remove(&path).map(drop),
        }
    }

    /// The sources in firewalld's zone. A file that cannot be read counts as none: at worst a source stays in the zone.
    pub fn trusted(&self) -> Trusted {
        files::read(&self.path(File::Firewalld)).ok().flatten().unwrap_or_default()
    }

    /// # Errors
    /// It cannot be written or removed.
    pub fn keep_trusted(&self, _lock: &Lock, trusted: &Trusted) -> Result<()> {
        let path = self.path(File::Firewalld);
        if *trusted == Trusted::default() { files::remove(&path).map(drop) } else { files::write(&path, trusted) }
    }

    /// A list that cannot be read counts as empty: the connections end with their time-outs.
    pub fn departed(&self) -> Vec<Departed> {
        files::read(&self.path(File::Departed)).ok().flatten().unwrap_or_default()
    }

    /// # Errors
    /// It cannot be written or removed.
    pub fn keep_departed(&self, _lock: &Lock, departed: &[Departed]) -> Result<()> {
        let path = self.path(File::Departed);
        if departed.is_empty() { files::remove(&path).map(drop) } else { files::write(&path, &departed) }
    }

    /// How many seconds programs stay loaded after the last container, as a command has last said.
    pub fn seconds_loaded(&self) -> Option<u64> {
        files::read(&self.path(File::KeepLoaded)).ok().flatten()
    }

    /// # Errors
    /// It cannot be written.
    pub fn keep_seconds_loaded(&self, _lock: &Lock, seconds: u64) -> Result<()> {
        if self.seconds_loaded() == Some(seconds) {
            return Ok(());
        }
        files::write(&self.path(File::KeepLoaded), &seconds)
    }

    /// Removes all records, damaged ones too.
    ///
    /// # Errors
    /// One cannot be removed, or is of a later schema; in that case none is removed.
    pub fn forget_all(&self, _lock: &Lock) -> Result<()> {
        let what = || format!("cannot read state in {}", self.dir.display());
        let mut records = Vec::new();
        for entry in std::fs::read_dir(&self.dir).context(what)? {
            let path = entry.context(what)?.path();
            if path.to_string_lossy().ends_with(RECORD) {
                record_file::refuse_newer(&path)?;
                records.push(path);
            }
        }
        records.iter().try_for_each(|path| files::remove(path).map(drop))
    }

    /// Without any record left: removes the other files and the directory, and the lock with it.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn close(&self, lock: Lock) -> Result<()> {
        if !self.is_empty()? {
            return Ok(());
        }
        self.remove_files(File::goes_with_last_record)?;
        lock.remove_with_directory();
        Ok(())
    }

    /// The same with an agent that stays: its files, the lock and the directory are kept.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn clear(&self, _lock: &Lock) -> Result<()> {
        self.remove_files(|name| File::goes_with_last_record(name) && !File::is_of_agent(name))
    }

    fn remove_files(&self, is_stale: impl Fn(&str) -> bool) -> Result<()> {
        let what = || format!("cannot clean up {}", self.dir.display());
        for entry in std::fs::read_dir(&self.dir).context(what)? {
            let entry = entry.context(what)?;
            if is_stale(&entry.file_name().to_string_lossy()) {
                files::remove(&entry.path())?;
            }
        }
        Ok(())
    }

    fn path(&self, file: File) -> PathBuf {
        file.path(&self.dir)
    }

    fn file(&self, key: &Key) -> PathBuf {
        self.dir.join(file_name(&[&key.container, &key.network, key.interface.as_str()]) + RECORD)
    }

    /// The file of version 0.1, in which a container had one endpoint on a network.
    fn old_file(&self, key: &Key) -> PathBuf {
        self.dir.join(file_name(&[&key.container, &key.network]) + RECORD)
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
