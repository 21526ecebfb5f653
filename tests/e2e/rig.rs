//! Shared by the end-to-end tests: a host that is checked for leftovers at its end, and a list of expectations that are all
//! tried before the test fails.

use anyhow::{Context, Result, ensure};
use netpath_common::reason::Reason;
use serde_json::Value;
use std::cell::Cell;
use std::net::IpAddr;
use support::expect::Expect;
use support::filter::Filter;
use support::host::Netns;
use support::need;
use support::netavark::{Document, Netavark, Network, Rung};
use support::residue::{Residue, netfilter};
use support::topology::{Container, Topology};
use support::traffic::{ANY, Proto, Server};

/// A host on one rung.
pub(crate) struct Rig<'t> {
    pub topology: &'t Topology,
    pub netavark: Netavark<'t>,
    expect: Expect,
    /// SCTP ports that programs cannot translate: they have netfilter rules, on the eBPF rung too.
    pub moves_sctp: Cell<bool>,
}

/// The network option for the path of packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Path {
    /// Not set.
    Auto,
    /// Bypasses the host's stack.
    Offload,
}

/// A rung, and the path of its packets through the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Way {
    pub rung: Rung,
    pub path: Path,
    /// The host tracks forwarded connections, and drops packets that belong to none.
    pub tracked: bool,
}

impl Way {
    /// Every run takes all tests over TCX, nftables and iptables. The other ways use the same programs and rules: clsact if the
    /// kernel has TCX, a host that tracks connections, and legacy iptables. They are distributed among the tests of a group, so
    /// that each group meets each way.
    pub(crate) fn turn(self, test: &str, group: &[&str]) -> need::Need {
        let number = match (self.rung, self.tracked) {
            (Rung::Tcx, true) => 0,
            (Rung::Nftables, true) => 1,
            (Rung::Iptables, true) => 2,
            (Rung::IptablesLegacy, _) => 3,
            (Rung::Clsact, _) if need::tcx().is_ok() => 4,
            _ => return Ok(()),
        };
        let test = group.iter().position(|name| *name == test).unwrap_or_default();
        if is_assigned(number, test, group.len()) || need::is_full() {
            return Ok(());
        }
        Err("NETPATH_SOAK=full: other tests of this group take this way".to_owned())
    }

    /// Requirements besides the rung.
    pub(crate) fn need(self) -> need::Need {
        if self.path != Path::Auto {
            need::netpath()?;
        }
        if self.tracked { need::program("nft") } else { Ok(()) }
    }

    /// [`Network::dual`] with the option for that path.
    pub(crate) fn network(self, n: u8) -> Network {
        let network = Network::dual(n);
        match self.path {
            Path::Auto => network,
            Path::Offload => network.option("netpath.path", "offload"),
        }
    }

    /// Containers send frames of Ethernet's size, whatever the host's uplink takes.
    pub(crate) fn wide_network(self, n: u8) -> Network {
        self.network(n).option("mtu", "1500")
    }

    /// Host `host` of that network, on port 8080 for both protocols.
    pub(crate) fn published(self, n: u8, host: u8) -> Document {
        let document = Document::new().on_dual(&self.wide_network(n), "eth0", n, host);
        document.publish("", 8080, 80, "tcp").publish("", 8080, 80, "udp")
    }
}

/// Number of ways that are distributed.
const DISTRIBUTED: usize = 5;

/// Whether this one of [`DISTRIBUTED`] ways is assigned to this one of `tests` tests.
fn is_assigned(way: usize, test: usize, tests: usize) -> bool {
    (0..tests.max(DISTRIBUTED)).any(|n| n % DISTRIBUTED == way && n % tests == test)
}

#[test]
fn each_group_covers_each_way() {
    for tests in 1..20 {
        let count = |way| (0..tests).filter(|test| is_assigned(way, *test, tests)).count();
        assert!(
            (0..DISTRIBUTED).all(|way| count(way) >= 1 && count(way) <= tests.div_ceil(DISTRIBUTED)),
            "{tests} tests"
        );
    }
}

/// As [`rig`], on a host as described by `way`.
pub(crate) fn rig_on(
    topology: Result<Topology>,
    way: Way,
    test: impl FnOnce(&Rig<'_>) -> Result<Vec<(Container, Document)>>,
) -> Result<()> {
    rig(topology, way.rung, |rig| {
        let _filter = if way.tracked { Some(Filter::stateful(&rig.topology.host)?) } else { None };
        test(rig)
    })
}

/// Runs `test` on a new host; afterwards all expectations must have been met, and nothing may be left. `test` returns the
/// containers that it has torn down.
pub(crate) fn rig(
    topology: Result<Topology>,
    rung: Rung,
    test: impl FnOnce(&Rig<'_>) -> Result<Vec<(Container, Document)>>,
) -> Result<()> {
    let topology = topology?;
    rung.prepare(&topology.host)?;
    let residue = Residue::watch(&topology)?;
    let rig = Rig {
        topology: &topology,
        netavark: Netavark::on(&topology, rung)?,
        expect: Expect::default(),
        moves_sctp: Cell::default(),
    };
    let up = test(&rig)?;
    if rung.is_ebpf() {
        let rules = netfilter(&topology.host)?;
        let forwards = rules.iter().any(|r| r.contains("FORWARD"));
        let expected = rules.is_empty() || rig.moves_sctp.get() && !forwards;
        rig.note(expected, || format!("netfilter rules on the ebpf rung: {rules:?}"));
    }
    let mut failed = rig.expect.take();
    if !failed.is_empty() {
        failed.extend(rig.state());
    }
    for (container, document) in &up {
        if let Err(e) = rig.netavark.teardown(container, document) {
            failed.push(format!("{e:#}"));
        }
    }
    let containers: Vec<&Container> = up.iter().map(|(c, _)| c).collect();
    if let Err(e) = residue.nothing_left(&topology, &containers) {
        failed.push(format!("{e:#}"));
    }
    ensure!(failed.is_empty(), "{} of the expectations on {rung:?}:\n  {}", failed.len(), failed.join("\n  "));
    Ok(())
}

impl std::ops::Deref for Rig<'_> {
    type Target = Expect;
    fn deref(&self) -> &Expect {
        &self.expect
    }
}

impl Rig<'_> {
    /// A new container, set up; the test has to return it.
    pub(crate) fn up(&self, name: &str, document: Document) -> Result<(Container, Document)> {
        let container = self.topology.container(name)?;
        self.netavark.setup(&container, &document).with_context(|| format!("setup of {name}"))?;
        Ok((container, document))
    }

    /// Counters and maps of the programs, for a failure message.
    fn state(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for verb in ["flows", "status", "ports"] {
            if support::netavark::is_incumbent() {
                break;
            }
            let Ok(binary) = support::netavark::binary() else { break };
            let mut command = std::process::Command::new(binary);
            command.arg(verb);
            if let Ok(out) = self.topology.host.output(command, b"") {
                lines.push(format!("netpath {verb}:\n{}", String::from_utf8_lossy(&out.stdout)));
            }
        }
        lines
    }

    /// Output of `netpath status`.
    pub(crate) fn status(&self) -> Result<Value> {
        let mut command = std::process::Command::new(support::netavark::binary()?);
        command.args(["status", "--json"]);
        let out = self.topology.host.output(command, b"")?;
        serde_json::from_slice(&out.stdout).context("netpath status")
    }

    /// Number of packets counted for `reason`.
    pub(crate) fn counted(&self, reason: Reason) -> Result<u64> {
        let status = self.status()?;
        let counters = status["counters"].as_array().context("no counters")?;
        let ours = counters.iter().find(|c| c["reason"] == reason.word());
        Ok(ours.and_then(|c| c["packets"].as_u64()).unwrap_or(0))
    }
}

/// One container with servers for both protocols on port 80.
pub(crate) fn web(rig: &Rig<'_>, document: Document) -> Result<((Container, Document), Vec<Server>)> {
    let up = rig.up("web", document)?;
    let servers = serve(&up.0, 80, "web")?;
    Ok((up, servers))
}

/// Servers for both protocols and families on `port` that answer as `name`.
pub(crate) fn serve(netns: &Netns, port: u16, name: &str) -> Result<Vec<Server>> {
    serve_at(netns, ANY, port, name)
}

/// As [`serve`], on one address.
pub(crate) fn serve_at(netns: &Netns, ip: IpAddr, port: u16, name: &str) -> Result<Vec<Server>> {
    Proto::BOTH.into_iter().map(|proto| Server::echo(netns, proto, ip, port, name)).collect()
}
