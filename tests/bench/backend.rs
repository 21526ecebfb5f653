//! The backend of a variant: its program, environment and network options, on the host of a topology.

use anyhow::{Context, Result};
use report::variants::{Program, Variant};
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;
use support::harness::KEEP_LOADED;
use support::need;
use support::neighbour::{Kind, Neighbour};
use support::netavark::{Document, Network};
use support::topology::{Container, Topology};

/// The network that containers are put on, as [`Network::dual`] numbers it.
pub(crate) const NETWORK: u8 = 7;

/// Paths of the programs.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Places {
    pub netpath: PathBuf,
    pub netavark: PathBuf,
    pub old_netavark: PathBuf,
    /// Software that runs on every host with a backend.
    #[serde(skip)]
    pub beside: Option<Kind>,
}

impl Places {
    fn of(&self, program: Program) -> &PathBuf {
        match program {
            Program::Netpath => &self.netpath,
            Program::Netavark => &self.netavark,
            Program::OldNetavark => &self.old_netavark,
        }
    }

    /// # Errors
    /// A requirement of the variant that this machine lacks.
    pub(crate) fn have(&self, variant: &Variant) -> need::Need {
        if let Some(program) = variant.program().map(|program| self.of(program)).filter(|program| !program.is_file()) {
            return Err(format!("the program {}", program.display()));
        }
        if variant.is_ebpf() {
            need::bpf()?;
        }
        if variant.is_tcx() { need::tcx() } else { Ok(()) }
    }
}

pub(crate) struct Backend {
    variant: &'static Variant,
    program: support::backend::Backend,
    /// Kept until the last call of the backend.
    _beside: Option<Neighbour>,
}

impl Backend {
    /// For the host of `topology`, after starting the software to measure beside.
    ///
    /// # Errors
    /// That software does not run, or the link by which the program is called cannot be made.
    pub(crate) fn new(variant: &'static Variant, places: &Places, topology: &Topology) -> Result<Self> {
        let program = variant.program().with_context(|| format!("{} has no backend", variant.key))?;
        let aardvark = places.netavark.with_file_name("aardvark-dns");
        let beside = places.beside.map(|kind| start(kind, topology)).transpose()?;
        let of_neighbour = beside.as_ref().map(Neighbour::environment).unwrap_or_default();
        let environment = variant.environment.iter().copied().chain(of_neighbour);
        let environment = environment.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        let program = support::backend::Backend::new(places.of(program), &aardvark, environment, topology.dir())?;
        Ok(Self { variant, program, _beside: beside })
    }

    /// A document for a container at host part `host` of the network, with nothing published yet.
    pub(crate) fn document(&self, host: u8) -> Document {
        let options = self.variant.options.iter();
        let network = options.fold(Network::dual(NETWORK), |network, (key, value)| network.option(key, value));
        Document::new().on_dual(&network, "eth0", NETWORK, host)
    }

    /// How long programs stay loaded after later calls.
    pub(crate) fn keep_loaded(&mut self, seconds: &str) {
        self.program.set(KEEP_LOADED, seconds);
    }

    /// # Errors
    /// The program failed.
    pub(crate) fn setup(&self, topology: &Topology, container: &Container, document: &Document) -> Result<Duration> {
        self.program.call("setup", &topology.host, container.path(), &document.json(container))
    }

    /// # Errors
    /// The program failed.
    pub(crate) fn teardown(&self, topology: &Topology, container: &Container, document: &Document) -> Result<Duration> {
        self.program.call("teardown", &topology.host, container.path(), &document.json(container))
    }
}

/// Its rules must accept forwarded packets: where iptables drops them by policy, Netavark, which has a table of its own, serves
/// nothing measurable.
fn start(kind: Kind, topology: &Topology) -> Result<Neighbour> {
    // Docker sets that policy where it finds forwarding off.
    topology.host.set_sysctl("net/ipv4/ip_forward", "1")?;
    let neighbour = kind.start(&topology.host, &topology.dir().join("beside"))?;
    if let Neighbour::Ufw(ufw) = &neighbour {
        ufw.command("default allow routed")?;
    }
    Ok(neighbour)
}
