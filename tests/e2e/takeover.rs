//! Rules of other software that appear while containers run: netfilter takes over from the programs, and every connection
//! that the rules let through goes on.

use crate::chosen::{THIRD_PARTY, says};
use crate::rig::serve;
use anyhow::{Result, ensure};
use serde_json::Value;
use std::net::TcpStream;
use support::host::{SOON, wait_for};
use support::long_lived::{LongLived, all_answer, idle};
use support::need;
use support::netavark::{Document, Netavark, Network, Rung};
use support::residue::Residue;
use support::topology::{Container, Family, Topology};
use support::traffic::{ANY, Dial, Proto, Server};

/// Connections for each of: family, direction.
const IDLE: usize = 25;

fn document(host: u8) -> Document {
    let document = Document::new().on_dual(&Network::dual(7), "eth0", 7, host);
    if host == 5 { document.publish("", 8080, 80, "tcp").publish("", 8080, 80, "udp") } else { document }
}

fn status(topology: &Topology) -> Result<Value> {
    says(topology, "status")
}

fn dials() -> impl Iterator<Item = (bool, Dial)> {
    Family::BOTH.into_iter().flat_map(|family| {
        [(true, Dial::new(Proto::Tcp, family.host(), 8080)), (false, Dial::new(Proto::Tcp, family.client(), 9000))]
    })
}

struct Traffic {
    long_lived: Vec<LongLived>,
    idle: Vec<TcpStream>,
    _servers: [Server; 2],
}

impl Traffic {
    fn start(topology: &Topology, container: &Container) -> Result<Self> {
        let servers = [
            Server::echo_for(container, 2 * IDLE + 10, ANY, 80, "web")?,
            Server::echo_for(&topology.client, 2 * IDLE + 10, ANY, 9000, "near")?,
        ];
        let (mut long_lived, mut waiting) = (Vec::new(), Vec::new());
        for (inward, dial) in dials() {
            let netns = if inward { &topology.client } else { &**container };
            long_lived.push(LongLived::start(netns, &dial)?);
            waiting.extend(idle(netns, &dial, IDLE)?);
        }
        Ok(Self { long_lived, idle: waiting, _servers: servers })
    }

    fn goes_on(&mut self) -> Result<()> {
        self.long_lived.iter().try_for_each(LongLived::goes_on)?;
        all_answer(&mut self.idle)
    }

    fn finish(self) -> Result<()> {
        self.long_lived.into_iter().try_for_each(LongLived::finish)
    }
}

fn taken_over(topology: &Topology, agent: bool) -> Result<()> {
    let residue = Residue::watch(topology)?;
    let environment: &[(&str, &str)] = if agent { &[] } else { &[("NETPATH_AGENT", "off")] };
    let netavark = Netavark::with(topology, environment)?;
    let container = topology.container("web")?;
    netavark.setup(&container, &document(5))?;
    ensure!(status(topology)?["rung"] == "ebpf", "{}", status(topology)?);
    let mut traffic = Traffic::start(topology, &container)?;
    traffic.goes_on()?;
    topology.host.command("sh", &["-ec", THIRD_PARTY])?;
    let second = topology.container("second")?;
    if agent {
        wait_for("the agent to change over", SOON * 2, || {
            status(topology).ok().filter(|s| s["rung"] == "nftables").map(|_| ())
        })?;
    } else {
        netavark.setup(&second, &document(6))?;
        ensure!(status(topology)?["rung"] == "nftables", "{}", status(topology)?);
    }
    traffic.goes_on()?;
    for (inward, dial) in dials() {
        let netns = if inward { &topology.client } else { &*container };
        let seen = dial.ask(netns)?;
        let expected = if inward { "web" } else { "near" };
        ensure!(seen.server == expected, "a new connection: {seen:?}");
    }
    let hooks = status(topology)?["hooks"].clone();
    ensure!(hooks.as_array().is_some_and(Vec::is_empty), "programs are attached: {hooks}");
    traffic.finish()?;
    // A rule that closes the port holds.
    let close = "nft add chain inet a p '{ type filter hook prerouting priority -300 ; }'; \
                 nft add rule inet a p iifname eth0 tcp dport 8080 drop";
    topology.host.command("sh", &["-ec", close])?;
    ensure!(Dial::new(Proto::Tcp, Family::V4.host(), 8080).ask(&topology.client).is_err(), "the port is closed");
    topology.host.command("nft", &["delete", "chain", "inet", "a", "p"])?;
    if !agent {
        netavark.teardown(&second, &document(6))?;
    }
    netavark.teardown(&container, &document(5))?;
    topology.host.command("nft", &["delete", "table", "inet", "a"])?;
    residue.nothing_left(topology, &[&container, &second])
}

#[test]
fn the_agent_hands_connections_over_when_rules_of_others_appear() -> Result<()> {
    need!(need::netpath());
    need!(need::rung(Rung::best_hooks()));
    need!(need::program("nft"));
    taken_over(&Topology::new()?, true)
}

#[test]
fn without_the_agent_the_next_container_hands_them_over() -> Result<()> {
    need!(need::netpath());
    need!(need::rung(Rung::best_hooks()));
    need!(need::program("nft"));
    taken_over(&Topology::new()?, false)
}

/// A forced rung, and a network that asks for offload, keep the programs.
#[test]
fn who_asks_for_the_programs_keeps_them() -> Result<()> {
    need!(need::netpath());
    need!(need::rung(Rung::best_hooks()));
    need!(need::program("nft"));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let container = topology.container("web")?;
    let offload = Document::new()
        .on_dual(&Network::dual(7).option("netpath.path", "offload"), "eth0", 7, 5)
        .publish("", 8080, 80, "tcp");
    for (environment, document) in [(&[("NETPATH_DATAPATH", "ebpf")][..], document(5)), (&[], offload)] {
        let netavark = Netavark::with(&topology, environment)?;
        netavark.setup(&container, &document)?;
        let servers = serve(&container, 80, "web")?;
        topology.host.command("sh", &["-ec", THIRD_PARTY])?;
        // A command of another wish is no reason to change either.
        let second = topology.container("second")?;
        let other = Netavark::with(&topology, &[])?;
        other.setup(&second, &self::document(6))?;
        ensure!(status(&topology)?["rung"] == "ebpf", "{environment:?}: {}", status(&topology)?);
        let seen = Dial::new(Proto::Tcp, Family::V4.host(), 8080).ask(&topology.client)?;
        ensure!(seen.server == "web", "{seen:?}");
        drop(servers);
        other.teardown(&second, &self::document(6))?;
        netavark.teardown(&container, &document)?;
        topology.host.command("nft", &["delete", "table", "inet", "a"])?;
        residue.nothing_left(&topology, &[&container, &second])?;
    }
    Ok(())
}
