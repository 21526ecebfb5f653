//! The directory of the DHCP proxy: its socket, its leases, and the lock by which there is one proxy.

use super::files;
use super::lock::is_at;
use super::process::ProcessId;
use crate::model::error::{Context, Error, Result};
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// As netavark's proxy.
const DEFAULT: &str = "/run/podman";
const VARIABLE: &str = "NETAVARK_PROXY_RUN_DIR_ENV";

pub struct ProxyDir(PathBuf);

impl ProxyDir {
    /// `given`: by a command line. Otherwise the environment decides.
    pub fn new(given: Option<&Path>) -> Self {
        let variable = std::env::var_os(VARIABLE).filter(|dir| !dir.is_empty()).map(PathBuf::from);
        Self(variable.or(given.map(Path::to_owned)).unwrap_or_else(|| DEFAULT.into()))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn socket(&self) -> PathBuf {
        self.0.join("nv-proxy.sock")
    }

    /// Of a proxy that a command has started.
    pub fn log(&self) -> PathBuf {
        self.0.join("nv-proxy.log")
    }

    fn leases(&self) -> PathBuf {
        self.0.join("nv-proxy.lease")
    }

    fn lock_file(&self) -> PathBuf {
        self.0.join("nv-proxy.lock")
    }

    /// # Errors
    /// It cannot be created.
    pub fn create(&self) -> Result<()> {
        std::fs::create_dir_all(&self.0).context(|| format!("cannot create {}", self.0.display()))
    }

    /// Held while a socket is made, so that no command removes the one of another.
    ///
    /// # Errors
    /// It cannot be locked.
    pub fn hold(&self) -> Result<Flock<File>> {
        let what = || format!("cannot lock {}", self.0.display());
        let dir = File::open(&self.0).context(what)?;
        Flock::lock(dir, FlockArg::LockExclusive).map_err(|(_, e)| Error::new(what()).because(e))
    }

    /// Whether a proxy has left leases.
    pub fn has_leases(&self) -> bool {
        self.leases().exists()
    }

    /// # Errors
    /// They cannot be read, or are no leases of netpath's.
    pub fn read_leases<T: DeserializeOwned>(&self) -> Result<Vec<T>> {
        Ok(files::read(&self.leases())?.unwrap_or_default())
    }

    /// Without leases there is no file.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn write_leases(&self, _lock: &ProxyLock, leases: &[impl Serialize]) -> Result<()> {
        match leases {
            [] => files::remove(&self.leases()).map(drop),
            _ => files::write(&self.leases(), &leases),
        }
    }

    /// `None`: another process has it.
    ///
    /// # Errors
    /// The file cannot be opened or written.
    pub fn lock(&self) -> Result<Option<ProxyLock>> {
        let path = self.lock_file();
        let what = || format!("cannot lock {}", path.display());
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(&path);
        let Ok(file) = Flock::lock(file.context(what)?, FlockArg::LockExclusiveNonblock) else { return Ok(None) };
        // The last holder may have removed it meanwhile.
        if !is_at(&file, &path) {
            return Ok(None);
        }
        file.set_len(0).context(what)?;
        let process = serde_json::to_vec(&ProcessId::this_process()).context(what)?;
        file.write_all_at(&process, 0).context(what)?;
        Ok(Some(ProxyLock { _file: file, path }))
    }

    /// The proxy that runs.
    pub fn holder(&self) -> Option<ProcessId> {
        let bytes = std::fs::read(self.lock_file()).ok()?;
        serde_json::from_slice::<ProcessId>(&bytes).ok().filter(|p| p.is_alive())
    }
}

/// The lock of the proxy, which it removes when it ends.
pub struct ProxyLock {
    _file: Flock<File>,
    path: PathBuf,
}

impl Drop for ProxyLock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
