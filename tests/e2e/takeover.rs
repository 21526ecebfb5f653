//! Rules of other software that appear and go while containers run: netfilter takes over from the programs, and the programs
//! from netfilter; every connection that the rules let through goes on.

use crate::chosen::{THIRD_PARTY, says};
use crate::rig::serve;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::{Duration, Instant};
use support::generator::bulk::{Stream, server};
use support::host::Netns;
use support::host::{SOON, patience, wait_for};
use support::long_lived::{LongLived, all_answer, idle};
use support::need;
use support::netavark::{Document, Netavark, Network, Rung};
use support::residue::{Residue, netfilter};
use support::rng::Rng;
use support::topology::{Container, Family, Topology};
use support::traffic::{ANY, Dial, Proto, Server, exchange};

/// Connections for each of: family, direction.
const IDLE: usize = 25;

fn document(host: u8) -> Document {
    let document = Document::new().on_dual(&Network::dual(7), "eth0", 7, host);
    if host == 5 { document.publish("", 8080, 80, "tcp").publish("", 8080, 80, "udp") } else { document }
}

fn status(topology: &Topology) -> Result<Value> {
    says(topology, "status")
}

fn waits_for(topology: &Topology, rung: &str) -> Result<()> {
    let is_taken = || status(topology).ok().filter(|s| s["rung"] == rung).map(|_| ());
    wait_for(&format!("the agent to change over to {rung}"), SOON * 2, is_taken)
}

/// A new connection in each direction and family.
fn are_served(topology: &Topology, container: &Container) -> Result<()> {
    for (inward, dial) in dials() {
        let seen = dial.ask(if inward { &topology.client } else { container })?;
        let expected = if inward { "web" } else { "near" };
        ensure!(seen.server == expected, "a new connection: {seen:?}");
    }
    Ok(())
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

/// Two containers that send from one port to one server: the second gets another port, by which its server knows it.
struct Twins {
    streams: Vec<(TcpStream, SocketAddr)>,
    datagrams: Vec<(Netns, Dial, SocketAddr)>,
    _servers: [Server; 2],
}

impl Twins {
    /// `twins`: the containers with host part 5 and 7.
    fn start(topology: &Topology, twins: [&Container; 2]) -> Result<Self> {
        let servers = [Proto::Tcp, Proto::Udp].map(|proto| Server::echo(&topology.client, proto, ANY, 9_001, "server"));
        let [one, other] = servers;
        let (mut streams, mut datagrams) = (Vec::new(), Vec::new());
        for family in Family::BOTH {
            for (twin, host) in twins.into_iter().zip([5, 7]) {
                let dial = |proto| Dial::new(proto, family.client(), 9_001).from(family.container(7, host), 40_000);
                let mut stream = twin.run(|| dial(Proto::Tcp).connect_stream())?;
                let (_, seen) = exchange(&mut stream, b"first")?;
                streams.push((stream, seen));
                let dial = dial(Proto::Udp);
                let seen = dial.ask(twin)?.client;
                datagrams.push((Netns::at(twin.path())?, dial, seen));
            }
        }
        let seen = || streams.iter().map(|(_, s)| s).chain(datagrams.iter().map(|(.., s)| s));
        ensure!(
            seen().filter(|s| s.port() != 40_000).count() == 4,
            "each second twin: {:?}",
            seen().collect::<Vec<_>>()
        );
        Ok(Self { streams, datagrams, _servers: [one?, other?] })
    }

    fn go_on(&mut self) -> Result<()> {
        for (stream, before) in &mut self.streams {
            let (_, seen) = exchange(stream, b"again")?;
            ensure!(seen == *before, "a connection from {before} comes from {seen}");
        }
        for (netns, dial, before) in &self.datagrams {
            let seen = dial.ask(netns)?.client;
            ensure!(seen == *before, "datagrams from {before} come from {seen}");
        }
        Ok(())
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
        waits_for(topology, "nftables")?;
    } else {
        netavark.setup(&second, &document(6))?;
        ensure!(status(topology)?["rung"] == "nftables", "{}", status(topology)?);
    }
    traffic.goes_on()?;
    are_served(topology, &container)?;
    let hooks = status(topology)?["hooks"].clone();
    let is_of_sockets = |hooks: &Vec<Value>| !hooks.is_empty() && hooks.iter().all(|h| h["side"] == "sockets");
    ensure!(hooks.as_array().is_some_and(is_of_sockets), "expected programs at sockets alone: {hooks}");
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

const GONE: [&str; 4] = ["delete", "table", "inet", "a"];

/// The last rule of others goes: the programs take over from netfilter, which then has nothing of netpath's.
fn taken_back(topology: &Topology, agent: bool) -> Result<()> {
    let residue = Residue::watch(topology)?;
    let environment: &[(&str, &str)] = if agent { &[] } else { &[("NETPATH_AGENT", "off")] };
    let netavark = Netavark::with(topology, environment)?;
    let container = topology.container("web")?;
    topology.host.command("sh", &["-ec", THIRD_PARTY])?;
    netavark.setup(&container, &document(5))?;
    ensure!(status(topology)?["rung"] == "nftables", "{}", status(topology)?);
    let twin = topology.container("twin")?;
    netavark.setup(&twin, &document(7))?;
    let mut traffic = Traffic::start(topology, &container)?;
    let mut twins = Twins::start(topology, [&container, &twin])?;
    traffic.goes_on()?;
    topology.host.command("nft", &GONE)?;
    let second = topology.container("second")?;
    if agent {
        waits_for(topology, "ebpf")?;
    } else {
        netavark.setup(&second, &document(6))?;
        ensure!(status(topology)?["rung"] == "ebpf", "{}", status(topology)?);
    }
    traffic.goes_on()?;
    twins.go_on()?;
    are_served(topology, &container)?;
    let left = || netfilter(&topology.host).is_ok_and(|rules| rules.is_empty()).then_some(());
    wait_for("no rule of netfilter", SOON, left)?;
    let after = status(topology)?;
    ensure!(after["rejected_rungs"].as_array().is_none_or(Vec::is_empty), "{after}");
    if need::program("conntrack").is_ok() {
        let tracked = topology.host.command("conntrack", &["-L", "-p", "tcp"])?;
        ensure!(tracked.trim().is_empty(), "connections are left in connection tracking: {tracked}");
    }
    traffic.goes_on()?;
    traffic.finish()?;
    drop(twins);
    if !agent {
        netavark.teardown(&second, &document(6))?;
    }
    netavark.teardown(&twin, &document(7))?;
    netavark.teardown(&container, &document(5))?;
    residue.nothing_left(topology, &[&container, &second, &twin])
}

#[test]
fn the_agent_hands_connections_back_when_the_last_rule_of_others_goes() -> Result<()> {
    need!(need::netpath());
    need!(need::rung(Rung::best_hooks()));
    need!(need::program("nft"));
    taken_back(&Topology::new()?, true)
}

#[test]
fn without_the_agent_the_next_container_hands_them_back() -> Result<()> {
    need!(need::netpath());
    need!(need::rung(Rung::best_hooks()));
    need!(need::program("nft"));
    taken_back(&Topology::new()?, false)
}

/// A service that restarts removes its rules and adds them again.
#[test]
fn rules_that_come_again_at_once_change_nothing() -> Result<()> {
    need!(need::netpath());
    need!(need::rung(Rung::best_hooks()));
    need!(need::program("nft"));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let container = topology.container("web")?;
    topology.host.command("sh", &["-ec", THIRD_PARTY])?;
    netavark.setup(&container, &document(5))?;
    for _ in 0..3 {
        topology.host.command("nft", &GONE)?;
        // Longer than the agent takes to look, shorter than it waits.
        std::thread::sleep(Duration::from_millis(400));
        topology.host.command("sh", &["-ec", THIRD_PARTY])?;
        let until = Instant::now() + Duration::from_millis(1_200);
        while Instant::now() < until {
            ensure!(status(&topology)?["rung"] == "nftables", "{}", status(&topology)?);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    let log = says(&topology, "status")?["agent"].clone();
    ensure!(log["pid"].is_number(), "no agent: {log}");
    topology.host.command("nft", &GONE)?;
    waits_for(&topology, "ebpf")?;
    netavark.teardown(&container, &document(5))?;
    residue.nothing_left(&topology, &[&container])
}

/// SIGKILL at random moments of a change in either direction: the next command completes it or takes it back, and connections
/// go on.
#[test]
fn a_change_that_is_killed_is_completed_by_the_next_command() -> Result<()> {
    need!(need::netpath());
    need!(need::rung(Rung::best_hooks()));
    need!(need::program("nft"));
    let rng = Rng::new();
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[("NETPATH_AGENT", "off")])?;
    let container = topology.container("web")?;
    netavark.setup(&container, &document(5))?;
    let mut traffic = Traffic::start(&topology, &container)?;
    let reload = || netavark.command(&["firewall-reload"]);
    let mut cut = 0;
    for round in 0..8 {
        let (rung, whole_ms) = if round % 2 == 0 {
            topology.host.command("sh", &["-ec", THIRD_PARTY])?;
            ("nftables", 100)
        } else {
            topology.host.command("nft", &GONE)?;
            ("ebpf", 1_000)
        };
        let after = Duration::from_millis(rng.below(whole_ms));
        let mut killed = topology.host.run(|| reload().stdin(Stdio::null()).stderr(Stdio::null()).spawn())?;
        std::thread::sleep(after);
        killed.kill()?;
        cut += usize::from(!killed.wait()?.success());
        traffic.goes_on().with_context(|| format!("killed after {after:?} of a change to {rung} ({rng})"))?;
        topology.host.output(reload(), b"")?;
        ensure!(status(&topology)?["rung"] == rung, "{rung}, {after:?} ({rng}): {}", status(&topology)?);
        traffic.goes_on().with_context(|| format!("after a killed change to {rung}, {after:?} ({rng})"))?;
        are_served(&topology, &container)?;
        let rules = netfilter(&topology.host)?;
        ensure!(rung == "nftables" || rules.is_empty(), "{after:?} ({rng}): {rules:?}");
    }
    need::say(&format!("{cut} of 8 changes were killed before their end"));
    traffic.finish()?;
    netavark.teardown(&container, &document(5))?;
    residue.nothing_left(&topology, &[&container])
}

/// Port of iperf3.
const BULK: u16 = 5_201;

#[test]
fn a_stream_and_a_hundred_idle_connections_survive_ten_changes_in_a_minute() -> Result<()> {
    need!(need::netpath());
    need!(need::rung(Rung::best_hooks()));
    need!(need::program("nft"));
    need!(need::program("iperf3"));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let container = topology.container("web")?;
    let document = document(5).publish("", BULK, BULK, "tcp");
    netavark.setup(&container, &document)?;
    let twin = topology.container("twin")?;
    netavark.setup(&twin, &self::document(7))?;
    let mut twins = Twins::start(&topology, [&container, &twin])?;
    let mut traffic = Traffic::start(&topology, &container)?;
    let bulk = server(&container, BULK)?;
    let stream = Stream::start(&topology.client, SocketAddr::new(Family::V4.host(), BULK))?;
    let begun = Instant::now();
    for change in 1..=10 {
        let rung = if change % 2 == 1 {
            topology.host.command("sh", &["-ec", THIRD_PARTY])?;
            "nftables"
        } else {
            topology.host.command("nft", &GONE)?;
            "ebpf"
        };
        waits_for(&topology, rung)?;
        traffic.goes_on()?;
        twins.go_on()?;
        are_served(&topology, &container)?;
    }
    let took = begun.elapsed();
    ensure!(took <= Duration::from_secs(60) * patience(), "ten changes took {took:?}");
    let seconds = stream.finish()?;
    drop(bulk);
    let pause = seconds.split(|bytes| *bytes > 0.0).map(<[f64]>::len).max().unwrap_or(0);
    ensure!(pause <= patience() as usize, "the bytes of the stream, second by second: {seconds:?}");
    traffic.finish()?;
    drop(twins);
    netavark.teardown(&twin, &self::document(7))?;
    netavark.teardown(&container, &document)?;
    residue.nothing_left(&topology, &[&container, &twin])
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
