//! The compared variants: the wire, plain routing, Netavark, and netpath's rungs and paths.

use anyhow::{Result, bail};

/// One column of the tables.
#[derive(Debug)]
pub struct Variant {
    pub key: &'static str,
    pub title: &'static str,
    place: Place,
    pub kind: Kind,
    pub environment: Words,
    /// Options of the network.
    pub options: Words,
}

type Words = &'static [(&'static str, &'static str)];

/// Where a variant is measured: in namespaces of this host (`cargo xtask bench`), or between virtual machines (`vm perf`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    Host,
    Guests,
    Both,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Client and container joined by one veth: the limit.
    Direct,
    /// The host routes without translation; the client dials the container's own address.
    Routed,
    /// The same, but two programs of a few instructions redirect the packets past the host's stack: the minimum cost of a host
    /// in between.
    Hop,
    /// A program with the command line of Netavark.
    Backend(Program),
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
/// The peer of the comparison, on the host and in guests.
pub const PEER: &str = "netavark-nft";
pub const PEER_IN_GUESTS: &str = "netavark";

/// The environment variable of the rung, and the network options of the path and of XDP.
pub const RUNG: &str = "NETPATH_DATAPATH";
pub const PATH: &str = "netpath.path";
pub const XDP: &str = "netpath.xdp";

const EBPF: (&str, &str) = (RUNG, "ebpf");
const TCX: Words = &[EBPF, ("NETPATH_TC", "")];
const CLSACT: Words = &[EBPF, ("NETPATH_TC", "clsact")];
const NFTABLES: Words = &[(RUNG, "nftables")];
const IPTABLES: Words = &[(RUNG, "iptables")];
const OFFLOAD: (&str, &str) = (PATH, "offload");
const NETPATH: Kind = Kind::Backend(Program::Netpath);
const NETAVARK: Kind = Kind::Backend(Program::Netavark);
const OLD_NETAVARK: Kind = Kind::Backend(Program::OldNetavark);

/// To add a variant, add a line: another path through the host is netpath with another network option.
pub const ALL: &[Variant] = &[
    of(DIRECT, "direct", Place::Host, Kind::Direct, &[], &[]),
    of("routed", "routed", Place::Host, Kind::Routed, &[], &[]),
    of("hop", "hop", Place::Host, Kind::Hop, &[], &[]),
    of(PEER, "netavark 2.1 nft", Place::Host, NETAVARK, &[("NETAVARK_FW", "nftables")], &[]),
    of("netavark-iptables", "netavark 1.4 iptables", Place::Host, OLD_NETAVARK, &[("NETAVARK_FW", "iptables")], &[]),
    of("netpath-tcx", "netpath ebpf tcx", Place::Host, NETPATH, TCX, &[]),
    of("netpath-offload", "netpath offload", Place::Guests, NETPATH, TCX, &[OFFLOAD]),
    of("netpath-xdp", "netpath XDP", Place::Both, NETPATH, TCX, &[OFFLOAD, (XDP, "on")]),
    of("netpath-clsact", "netpath ebpf clsact", Place::Host, NETPATH, CLSACT, &[]),
    of(CHOSEN, "netpath", Place::Host, NETPATH, &[], &[]),
    of("netpath-nftables", "netpath nftables", Place::Both, NETPATH, NFTABLES, &[]),
    of("netpath-iptables", "netpath iptables", Place::Both, NETPATH, IPTABLES, &[]),
    of(PEER_IN_GUESTS, "netavark 2.1", Place::Guests, NETAVARK, &[("NETAVARK_FW", "nftables")], &[]),
];

const fn of(
    key: &'static str,
    title: &'static str,
    place: Place,
    kind: Kind,
    environment: Words,
    options: Words,
) -> Variant {
    Variant { key, title, place, kind, environment, options }
}

impl Variant {
    /// The program, where it has one.
    pub fn program(&self) -> Option<Program> {
        match self.kind {
            Kind::Backend(program) => Some(program),
            Kind::Direct | Kind::Routed | Kind::Hop => None,
        }
    }

    /// Whether the goals apply: to netpath without options.
    pub fn is_judged(&self) -> bool {
        self.kind == NETPATH && self.options.is_empty()
    }

    pub fn is_ebpf(&self) -> bool {
        self.environment.contains(&EBPF)
    }

    /// Whether the kernel must have TCX.
    pub fn is_tcx(&self) -> bool {
        self.kind == Kind::Hop || self.environment == TCX
    }

    /// Whether packets must have complete checksums, as over a wire: XDP cannot handle others.
    pub fn is_as_over_a_wire(&self) -> bool {
        self.options.contains(&(XDP, "on"))
    }
}

/// The named variants of a place, in the order of [`ALL`]; without a name, those that `is_default` accepts.
///
/// # Errors
/// An unknown name.
pub fn chosen(place: Place, names: &[String], is_default: impl Fn(&Variant) -> bool) -> Result<Vec<&'static Variant>> {
    let all: Vec<&'static Variant> = ALL.iter().filter(|v| [place, Place::Both].contains(&v.place)).collect();
    if let Some(unknown) = names.iter().find(|n| !all.iter().any(|v| v.key == **n)) {
        let known: Vec<_> = all.iter().map(|v| v.key).collect();
        bail!("--variants {unknown}: there is {}", known.join(", "));
    }
    let is_wanted = |v: &Variant| if names.is_empty() { is_default(v) } else { names.iter().any(|n| n == v.key) };
    Ok(all.into_iter().filter(|v| is_wanted(v)).collect())
}

/// Their keys, for a help text.
pub fn keys(place: Place) -> String {
    let of_place = ALL.iter().filter(|v| [place, Place::Both].contains(&v.place));
    of_place.map(|v| v.key).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_are_chosen_by_name_and_an_unknown_name_is_refused() {
        let keys = |place, names: &[&str]| -> Result<Vec<&str>> {
            let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
            Ok(chosen(place, &names, |v| v.key != CHOSEN)?.iter().map(|v| v.key).collect())
        };
        assert_eq!(vec!["direct", "netpath-tcx"], keys(Place::Host, &["netpath-tcx", "direct"]).expect("both"));
        assert!(!keys(Place::Host, &[]).expect("all but one").contains(&CHOSEN));
        let guests = ["netpath-offload", "netpath-xdp", "netpath-nftables", "netpath-iptables", "netavark"];
        assert_eq!(guests.to_vec(), keys(Place::Guests, &[]).expect("all"));
        let error = keys(Place::Guests, &["netpath-tcx"]).expect_err("not in guests").to_string();
        assert!(error.contains("netpath-tcx") && error.contains("netavark"), "{error}");
    }
}
