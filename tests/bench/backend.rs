//! A network backend called as Podman calls it, and timed as a whole process from fork to exit.

use crate::variants::{Places, Recipe};
use anyhow::{Context, Result, bail};
use kit::host::Netns;
use kit::netavark::{Document, Network};
use kit::topology::{Container, Topology};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// The network that containers are put on, as [`Network::dual`] numbers it.
pub const NETWORK: u8 = 7;

pub struct Backend {
    recipe: &'static Recipe,
    link: PathBuf,
    aardvark: PathBuf,
}

impl Backend {
    /// For the host of `topology`.
    ///
    /// # Errors
    /// The link by which the program is called cannot be made.
    pub fn new(recipe: &'static Recipe, places: &Places, topology: &Topology) -> Result<Self> {
        let program = places.of(recipe.program);
        // netpath is a backend under this name only.
        let link = topology.dir().join("netavark");
        symlink(program, &link).with_context(|| format!("cannot link {} to {}", link.display(), program.display()))?;
        Ok(Self { recipe, link, aardvark: places.netavark.with_file_name("aardvark-dns") })
    }

    /// A document for a container at host part `host` of the network, with nothing published yet.
    pub fn document(&self, host: u8) -> Document {
        let options = self.recipe.options.iter();
        let network = options.fold(Network::dual(NETWORK), |network, (key, value)| network.option(key, value));
        Document::new().on_dual(&network, "eth0", NETWORK, host)
    }

    /// # Errors
    /// The program failed.
    pub fn setup(&self, topology: &Topology, container: &Container, document: &Document) -> Result<Duration> {
        self.call("setup", &topology.host, container, document)
    }

    /// # Errors
    /// The program failed.
    pub fn teardown(&self, topology: &Topology, container: &Container, document: &Document) -> Result<Duration> {
        self.call("teardown", &topology.host, container, document)
    }

    fn call(&self, verb: &str, host: &Netns, container: &Container, document: &Document) -> Result<Duration> {
        let mut command = Command::new(&self.link);
        let config = self.link.with_file_name("config");
        command.arg("--config").arg(config).arg("--rootless=false").arg("--aardvark-binary").arg(&self.aardvark);
        command.arg(verb).arg(container.path());
        for name in ["NETPATH_DATAPATH", "NETPATH_TC", "NETAVARK_FW", "RUST_LOG"] {
            command.env_remove(name);
        }
        command.envs(self.recipe.environment.iter().copied());
        let input = document.json(container).to_string();
        let begun = Instant::now();
        let out = host.output(command, input.as_bytes())?;
        let took = begun.elapsed();
        if !out.status.success() {
            let said = [out.stdout, out.stderr].concat();
            bail!("{verb} of {}: {}: {}", container.name, out.status, String::from_utf8_lossy(&said).trim());
        }
        Ok(took)
    }
}
