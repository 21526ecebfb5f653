//! The compared variants: the wire, plain routing, Netavark with its two drivers, and netpath's rungs.

use anyhow::{Result, bail};
use std::path::PathBuf;
use support::{need, neighbour};

/// One column of the tables.
#[derive(Debug)]
pub struct Variant {
    pub key: &'static str,
    pub title: &'static str,
    pub kind: Kind,
}

#[derive(Debug)]
pub enum Kind {
    /// Client and container joined by one veth: the limit.
    Direct,
    /// The host routes without translation; the client dials the container's own address.
    Routed,
    /// The same, but two programs of a few instructions redirect the packets past the host's stack: the minimum cost of a host
    /// in between.
    Hop,
    /// A program with the command line of Netavark.
    Backend(Recipe),
}

#[derive(Debug)]
pub struct Recipe {
    pub program: Program,
    pub environment: &'static [(&'static str, &'static str)],
    /// Options of the network.
    pub options: &'static [(&'static str, &'static str)],
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Program {
    Netpath,
    /// The current release, built from its crate.
    Netavark,
    /// The distribution's package, which still has an iptables driver.
    OldNetavark,
}

pub const DIRECT: &str = "direct";
/// On the datapath that netpath chooses: measured beside other software, where it differs from that of an empty host.
pub const CHOSEN: &str = "netpath";
/// The peer of the comparison.
pub const PEER: &str = "netavark-nft";

const TCX: &[(&str, &str)] = &[("NETPATH_DATAPATH", "ebpf"), ("NETPATH_TC", "")];
const CLSACT: &[(&str, &str)] = &[("NETPATH_DATAPATH", "ebpf"), ("NETPATH_TC", "clsact")];
const EDGE: (&str, &str) = ("netpath.path", "edge");
const XDP: (&str, &str) = ("netpath.xdp", "on");

/// To add a variant, add a line: another path through the host is netpath with another network option.
pub const ALL: &[Variant] = &[
    Variant { key: DIRECT, title: "direct", kind: Kind::Direct },
    Variant { key: "routed", title: "routed", kind: Kind::Routed },
    Variant { key: "hop", title: "hop", kind: Kind::Hop },
    backend(PEER, "netavark 2.1 nft", Program::Netavark, &[("NETAVARK_FW", "nftables")], &[]),
    backend("netavark-iptables", "netavark 1.4 iptables", Program::OldNetavark, &[("NETAVARK_FW", "iptables")], &[]),
    backend("netpath-tcx", "netpath ebpf tcx", Program::Netpath, TCX, &[]),
    backend("netpath-edge", "netpath ebpf edge", Program::Netpath, TCX, &[EDGE]),
    backend("netpath-xdp", "netpath ebpf xdp", Program::Netpath, TCX, &[XDP]),
    backend("netpath-clsact", "netpath ebpf clsact", Program::Netpath, CLSACT, &[]),
    backend("netpath-clsact-edge", "netpath ebpf clsact edge", Program::Netpath, CLSACT, &[EDGE]),
    backend(CHOSEN, "netpath", Program::Netpath, &[], &[]),
    backend("netpath-iptables", "netpath iptables", Program::Netpath, &[("NETPATH_DATAPATH", "iptables")], &[]),
];

const fn backend(
    key: &'static str,
    title: &'static str,
    program: Program,
    environment: &'static [(&'static str, &'static str)],
    options: &'static [(&'static str, &'static str)],
) -> Variant {
    Variant { key, title, kind: Kind::Backend(Recipe { program, environment, options }) }
}

impl Variant {
    pub fn recipe(&self) -> Option<&Recipe> {
        match &self.kind {
            Kind::Backend(recipe) => Some(recipe),
            Kind::Direct | Kind::Routed | Kind::Hop => None,
        }
    }

    /// Whether the goals apply: to netpath without options.
    pub fn is_judged(&self) -> bool {
        self.recipe().is_some_and(|r| r.program == Program::Netpath && r.options.is_empty())
    }

    pub fn is_ebpf(&self) -> bool {
        self.recipe().is_some_and(|r| r.environment.contains(&("NETPATH_DATAPATH", "ebpf")))
    }

    /// Whether packets must have complete checksums, as over a wire: XDP cannot handle others.
    pub fn is_as_over_a_wire(&self) -> bool {
        self.recipe().is_some_and(|r| r.options.contains(&XDP))
    }

    /// # Errors
    /// A requirement of the variant that this machine lacks.
    pub fn is_possible(&self, places: &Places) -> Result<(), String> {
        if matches!(self.kind, Kind::Hop) {
            need::tcx()?;
        }
        let Some(recipe) = self.recipe() else { return Ok(()) };
        let program = places.of(recipe.program);
        if !program.is_file() {
            return Err(format!("the program {}", program.display()));
        }
        if self.is_ebpf() {
            need::bpf()?;
        }
        if recipe.environment.contains(&("NETPATH_TC", "")) {
            need::tcx()?;
        }
        Ok(())
    }
}

/// The named variants, in the order of [`ALL`]. Without a name: all but netpath's own choice, or, beside other software, that
/// one and its peer.
///
/// # Errors
/// An unknown name.
pub fn chosen(names: &[String], beside: bool) -> Result<Vec<&'static Variant>> {
    let unnamed = |v: &Variant| if beside { [DIRECT, PEER, CHOSEN].contains(&v.key) } else { v.key != CHOSEN };
    if let Some(unknown) = names.iter().find(|n| !ALL.iter().any(|v| v.key == **n)) {
        let known: Vec<_> = ALL.iter().map(|v| v.key).collect();
        bail!("--variants {unknown}: there is {}", known.join(", "));
    }
    let is_wanted = |v: &Variant| if names.is_empty() { unnamed(v) } else { names.iter().any(|n| n == v.key) };
    Ok(ALL.iter().filter(|v| is_wanted(v)).collect())
}

/// Paths of the programs.
#[derive(Clone, Debug, Default)]
pub struct Places {
    pub netpath: PathBuf,
    pub netavark: PathBuf,
    pub old_netavark: PathBuf,
    /// Software that runs on every host with a backend.
    pub beside: Option<neighbour::Kind>,
}

impl Places {
    pub fn of(&self, program: Program) -> &PathBuf {
        match program {
            Program::Netpath => &self.netpath,
            Program::Netavark => &self.netavark,
            Program::OldNetavark => &self.old_netavark,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_are_chosen_by_name_and_an_unknown_name_is_refused() {
        let two = chosen(&["netpath-tcx".to_owned(), "direct".to_owned()], false).expect("both are there");
        assert_eq!(vec!["direct", "netpath-tcx"], two.iter().map(|v| v.key).collect::<Vec<_>>());
        assert_eq!(ALL.len() - 1, chosen(&[], false).expect("all").len());
        let beside: Vec<_> = chosen(&[], true).expect("some").iter().map(|v| v.key).collect();
        assert_eq!(vec![DIRECT, PEER, CHOSEN], beside);
        let error = chosen(&["docker".to_owned()], false).expect_err("no such variant").to_string();
        assert!(error.contains("docker") && error.contains("netavark-nft"), "{error}");
    }
}
