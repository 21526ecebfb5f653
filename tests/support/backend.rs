//! A network backend called as Podman calls it; the time is that of the whole process, from fork to exit.

use crate::host::Netns;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

pub struct Backend {
    link: PathBuf,
    aardvark: PathBuf,
    environment: Vec<(String, String)>,
}

impl Backend {
    /// `program`, with its files in `dir`.
    ///
    /// # Errors
    /// The link by which the program is called cannot be made.
    pub fn new(program: &Path, aardvark: &Path, environment: Vec<(String, String)>, dir: &Path) -> Result<Self> {
        // netpath is a backend under this name only.
        let link = dir.join("netavark");
        symlink(program, &link).with_context(|| format!("cannot link {} to {}", link.display(), program.display()))?;
        Ok(Self { link, aardvark: aardvark.to_owned(), environment })
    }

    /// Sets a variable of later calls.
    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// `verb` of the container in the namespace `netns`, called in `host`.
    ///
    /// # Errors
    /// The program failed.
    pub fn call(&self, verb: &str, host: &Netns, netns: &Path, document: &Value) -> Result<Duration> {
        let mut command = Command::new(&self.link);
        let config = self.link.with_file_name("config");
        command.arg("--config").arg(config).arg("--rootless=false").arg("--aardvark-binary").arg(&self.aardvark);
        command.arg(verb).arg(netns);
        for name in ["NETPATH_DATAPATH", "NETPATH_TC", "NETAVARK_FW", "RUST_LOG"] {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().map(|(k, v)| (k, v)));
        let input = document.to_string();
        let begun = Instant::now();
        let out = host.output(command, input.as_bytes())?;
        let took = begun.elapsed();
        if !out.status.success() {
            let said = [out.stdout, out.stderr].concat();
            let name = document["container_name"].as_str().unwrap_or_default();
            bail!("{verb} of {name}: {}: {}", out.status, String::from_utf8_lossy(&said).trim());
        }
        Ok(took)
    }
}
