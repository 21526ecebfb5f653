//! The files of aardvark-dns: one per network below `<config>/aardvark-dns`, a lock beside it. Whatever serves them is told of changes.
//!
//! Callers keep this order: [`Names::check`] before any change, [`Names::add`] once the links exist (the server binds
//! the gateways), [`Names::remove`] before they are deleted, which also undoes `add`. All three can be repeated. Files,
//! lock and process are compatible with a netavark that uses the same directory.

use super::files::{INTERNAL, has_networks};
use super::pid_file::NAME as PID_FILE;
use super::process::Process;
use super::zone::{Entry, Zone};
use crate::model::error::{Context, Error, Result};
use crate::model::{Network, Record};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Has the names in a directory served, at these addresses.
pub type Serve<'a> = dyn Fn(&Process<'_>, &[IpAddr]) -> Result<()> + 'a;

/// Where the names of containers are written for whatever answers queries.
pub trait Names {
    /// The port of the server.
    fn port(&self) -> u16;

    /// Rejects upstream servers that would make aardvark-dns forward queries to itself. Changes nothing.
    ///
    /// # Errors
    /// An upstream server of a container or network is a gateway of a network of the same call.
    fn check(&self, records: &[&Record]) -> Result<()>;

    /// Adds entries for the containers of `records`, and has them served: `serve` is given the addresses that must be listened on.
    /// Networks without DNS are skipped.
    ///
    /// # Errors
    /// A file cannot be written, or the server does not start. The entries are removed again.
    fn add(&self, records: &[&Record], serve: &Serve<'_>) -> Result<()>;

    /// Removes the entries of the containers of `records` and reloads the server; stops it after the last entry.
    ///
    /// # Errors
    /// That of the first file that cannot be changed; the others are changed nevertheless.
    fn remove(&self, records: &[&Record]) -> Result<()>;
}

pub struct Aardvark {
    /// Otherwise the engine wants no DNS; nothing is written or started.
    is_wanted: bool,
    config: PathBuf,
    dir: PathBuf,
    port: u16,
    rootless: bool,
}

impl Aardvark {
    /// `config`: the engine's run-time directory. `binary`: what the engine would start; empty if it wants no DNS.
    pub fn new(config: &Path, binary: &Path, port: u16, rootless: bool) -> Self {
        Self {
            is_wanted: !binary.as_os_str().is_empty(),
            config: config.to_owned(),
            dir: config.join("aardvark-dns"),
            port,
            rootless,
        }
    }

    /// Replaces the upstream servers of a network; an empty list clears them. A network without containers is not changed.
    ///
    /// # Errors
    /// An upstream server is a gateway of the network; a file cannot be changed; aardvark-dns cannot be signalled.
    pub fn update(&self, network: &str, servers: &[IpAddr]) -> Result<()> {
        let Some(process) = self.process() else { return Ok(()) };
        if !self.dir.is_dir() {
            return Ok(());
        }
        let _lock = self.lock()?;
        let mut changed = false;
        for internal in [false, true] {
            let path = self.file(network, internal)?;
            let Some(mut zone) = read(&path)? else { continue };
            if let Some(own) = servers.iter().find(|s| zone.listens_on(s)) {
                return Err(Error::new(format!(
                    "cannot use DNS server {own} for network {network}: it is the gateway, which would cause aardvark-dns to forward queries to itself"
                ))
                .next("give another DNS server, or none"));
            }
            let before = zone.clone();
            zone.set_servers(servers);
            if before != zone {
                self.write(&path, &zone)?;
                changed = true;
            }
        }
        self.remove_lock();
        if changed {
            process.reload()?;
        }
        Ok(())
    }

    fn process(&self) -> Option<Process<'_>> {
        self.is_wanted.then_some(Process { dir: &self.dir, port: self.port, rootless: self.rootless })
    }

    fn lock(&self) -> Result<Flock<File>> {
        let path = self.lock_file();
        let what = || format!("cannot lock {}", path.display());
        loop {
            let mut file = File::options().create(true).truncate(false).write(true).open(&path).context(what)?;
            // The lock is held for milliseconds, so signals can wait.
            let lock = loop {
                match Flock::lock(file, FlockArg::LockExclusive) {
                    Ok(lock) => break lock,
                    Err((same, Errno::EINTR)) => file = same,
                    Err((_, e)) => return Err(Error::new(what()).because(e)),
                }
            };
            // The previous holder may have removed the file.
            let locked = lock.metadata().context(what)?;
            if std::fs::metadata(&path).is_ok_and(|now| now.ino() == locked.ino() && now.dev() == locked.dev()) {
                return Ok(lock);
            }
        }
    }

    /// Removes the lock file if the directory is gone. The caller holds the lock; waiting processes check for removal.
    fn remove_lock(&self) {
        if !self.dir.exists() {
            let _ = std::fs::remove_file(self.lock_file());
        }
    }

    fn lock_file(&self) -> PathBuf {
        self.config.join("aardvark.lock")
    }

    fn add_entry(&self, record: &Record) -> Result<()> {
        let network = &record.network;
        let entry = Entry::of(record)?;
        // The network may have been recreated with another `internal`.
        self.remove_from(&network.name, !network.internal, &record.container.id)?;
        let path = self.file(&network.name, network.internal)?;
        let before = read(&path)?;
        let mut zone = before.clone().unwrap_or_default();
        zone.set_header(&gateways(network).collect::<Vec<_>>(), &network.dns_servers, network.dns_ttl);
        zone.put(&entry);
        if before.as_ref() == Some(&zone) { Ok(()) } else { self.write(&path, &zone) }
    }

    fn remove_entry(&self, record: &Record) -> Result<bool> {
        let mut changed = false;
        for internal in [false, true] {
            changed |= self.remove_from(&record.network.name, internal, &record.container.id)?;
        }
        Ok(changed)
    }

    fn remove_from(&self, network: &str, internal: bool, id: &str) -> Result<bool> {
        let path = self.file(network, internal)?;
        let Some(mut zone) = read(&path)? else { return Ok(false) };
        let changed = zone.remove(id);
        if zone.is_empty() {
            std::fs::remove_file(&path).context(|| format!("cannot remove {}", path.display()))?;
            return Ok(true);
        }
        if changed {
            self.write(&path, &zone)?;
        }
        Ok(changed)
    }

    /// After entries were removed: reloads the server, or stops it and removes its directory if no network is left.
    fn reload_or_stop(&self, process: &Process<'_>) {
        if has_networks(&self.dir) {
            if let Err(e) = process.reload() {
                tracing::warn!("{e}");
            }
            return;
        }
        process.stop();
        let _ = std::fs::remove_file(self.temporary());
        // Fails if the directory is not empty.
        let _ = std::fs::remove_dir(&self.dir);
    }

    fn file(&self, network: &str, internal: bool) -> Result<PathBuf> {
        if network.is_empty() || network.contains(['/', '\0', '%']) || matches!(network, "." | ".." | PID_FILE) {
            return Err(Error::new(format!("cannot name a DNS file after network {network:?}"))
                .because("the name is empty, reserved, or contains a slash or per cent sign"));
        }
        Ok(self.dir.join(if internal { format!("{network}{INTERNAL}") } else { network.to_owned() }))
    }

    /// Outside the server's directory, where the server reads every file as a network.
    fn temporary(&self) -> PathBuf {
        self.config.join("aardvark.tmp")
    }

    /// Replaces a file atomically, since the server may read it at any time. The caller holds the lock.
    fn write(&self, path: &Path, zone: &Zone) -> Result<()> {
        let temporary = self.temporary();
        let what = || format!("cannot write {}", path.display());
        let mut file = File::create(&temporary).context(what)?;
        file.write_all(zone.text().as_bytes()).and_then(|()| file.sync_all()).context(what)?;
        std::fs::rename(&temporary, path).context(what)
    }
}

impl Names for Aardvark {
    fn port(&self) -> u16 {
        self.port
    }

    fn check(&self, records: &[&Record]) -> Result<()> {
        let gateways: Vec<IpAddr> =
            records.iter().filter(|r| r.network.dns).flat_map(|r| gateways(&r.network)).collect();
        for record in records.iter().filter(|r| r.network.dns) {
            for server in record.endpoint.dns_servers.iter().chain(&record.network.dns_servers) {
                if gateways.contains(server) {
                    return Err(Error::new(format!(
                        "cannot use DNS server {server} for {} on network {}: it is the gateway, which would cause aardvark-dns to forward queries to itself",
                        record.container.label(),
                        record.network.name
                    ))
                    .next("give another DNS server, or none"));
                }
            }
        }
        Ok(())
    }

    fn add(&self, records: &[&Record], serve: &Serve<'_>) -> Result<()> {
        let records: Vec<&Record> =
            records.iter().copied().filter(|r| r.network.dns && has_gateway(&r.network)).collect();
        let Some(process) = self.process().filter(|_| !records.is_empty()) else { return Ok(()) };
        std::fs::create_dir_all(&self.config).context(|| format!("cannot create {}", self.config.display()))?;
        let _lock = self.lock()?;
        // Under the lock: removing the last entry removes the directory.
        std::fs::create_dir_all(&self.dir).context(|| format!("cannot create {}", self.dir.display()))?;
        let listen: Vec<IpAddr> = records.iter().flat_map(|r| gateways(&r.network)).collect();
        let added = records.iter().try_for_each(|r| self.add_entry(r)).and_then(|()| serve(&process, &listen));
        if added.is_err() {
            for record in &records {
                if let Err(e) = self.remove_entry(record) {
                    tracing::warn!("{e}");
                }
            }
            self.reload_or_stop(&process);
            self.remove_lock();
        }
        added
    }

    fn remove(&self, records: &[&Record]) -> Result<()> {
        let Some(process) = self.process() else { return Ok(()) };
        // A command that was killed while it removed the last entry leaves the lock without the directory.
        if !self.dir.is_dir() && !self.lock_file().exists() {
            return Ok(());
        }
        let _lock = self.lock()?;
        let mut result = Ok(());
        let mut changed = false;
        for record in records {
            match self.remove_entry(record) {
                Ok(c) => changed |= c,
                Err(e) if result.is_ok() => result = Err(e),
                Err(e) => tracing::warn!("{e}"),
            }
        }
        // Also without a change: a killed command may have removed the entry without reloading the server.
        if changed || records.iter().any(|r| r.network.dns) {
            self.reload_or_stop(&process);
        }
        self.remove_lock();
        result
    }
}

fn gateways(network: &Network) -> impl Iterator<Item = IpAddr> + '_ {
    network.dns_addresses().into_iter()
}

fn has_gateway(network: &Network) -> bool {
    !network.dns_addresses().is_empty()
}

fn read(path: &Path) -> Result<Option<Zone>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(Zone::parse(&text))),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::new(format!("cannot read {}", path.display())).because(e)),
    }
}
