//! Docker: a dockerd with an image that contains busybox alone.

use super::{OWN, Pids, Place, unpacked};
use crate::host::{Netns, SOON, wait_for};
use crate::need::{self, Need};
use crate::podman::image;
use anyhow::{Context, Result};
use std::path::Path;

pub struct Docker {
    place: Place,
}

impl Docker {
    pub fn need() -> Need {
        need::program("busybox")?;
        need::program("iptables")?;
        unpacked("usr/sbin/dockerd", &[OWN])
    }

    /// Its files are in `dir`.
    ///
    /// # Errors
    /// It does not run; the error holds its log.
    pub fn start(host: &Netns, dir: &Path) -> Result<Self> {
        let docker = Self { place: Place::new(host, dir, &[OWN], Pids::Own)? };
        let line = format!(
            "dockerd --storage-driver=vfs --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent=/{}",
            docker.place.cgroup
        );
        docker.place.daemon("dockerd", &line)?;
        docker.fill().with_context(|| docker.place.log("dockerd"))?;
        Ok(docker)
    }

    fn fill(&self) -> Result<()> {
        let socket = self.place.root("/run/docker.sock");
        wait_for("dockerd", SOON * 6, || (socket.exists() && self.command(&["info"]).is_ok()).then_some(()))?;
        let import = self.place.command("docker", &["import", "-", "bb"]);
        self.place.finish(import, Some(image::archive(None)?)).map(drop)
    }

    /// `docker` with `args`.
    ///
    /// # Errors
    /// It failed; the error holds its output.
    pub fn command(&self, args: &[&str]) -> Result<String> {
        self.place.run("docker", args).map(|said| said.trim_end().to_owned())
    }

    /// A sleeping container, with additional options of `docker run`; returns its network namespace.
    ///
    /// # Errors
    /// It does not run.
    pub fn container(&self, name: &str, options: &[&str]) -> Result<Netns> {
        let base = ["run", "-d", "--init=false", "--name", name];
        self.command(&[&base, options, &["bb", "sleep", "100000"]].concat())?;
        let key = self.command(&["inspect", "--format", "{{.NetworkSettings.SandboxKey}}", name])?;
        Netns::at(&self.place.root(&key.replace("/var/run/", "/run/")))
    }
}
