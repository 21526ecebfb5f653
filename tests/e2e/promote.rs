//! Flows that last are carried by programs on a host whose netfilter translates, and obey its rules all the same.

use crate::rig::serve;
use anyhow::{Context, Result, bail, ensure};
use std::net::{TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::agent::{kill_all, watching};
use support::host::{Netns, SOON, patience, wait_for};
use support::need;
use support::netavark::{Document, Netavark, Network, Rung};
use support::residue::Residue;
use support::topology::{Container, Family, Topology, state_dirs};
use support::traffic::{Dial, Proto, again, exchange};

/// Packets of netfilter's sight are counted; everything is accepted.
const RULES: &str = "table inet other {
  chain forward { type filter hook forward priority 0; policy accept;
    ct state established counter accept
  }
}";

pub(crate) struct World<'a> {
    pub topology: &'a Topology,
    residue: Residue,
    netavark: Netavark<'a>,
    pub web: Container,
    document: Document,
}

impl<'a> World<'a> {
    pub(crate) fn new(topology: &'a Topology, network: &Network) -> Result<Self> {
        let residue = Residue::watch(topology)?;
        topology.host.feed("nft", &["-f", "-"], RULES)?;
        let netavark = Netavark::with(topology, &[("NETPATH_KEEP_LOADED", "0"), ("RUST_LOG", "netpath=debug")])?;
        let web = topology.container("web")?;
        let document = Document::new().on_dual(network, "eth0", 7, 5);
        let document = document.publish("", 8080, 80, "tcp").publish("", 8080, 80, "udp");
        netavark.setup(&web, &document)?;
        watching(topology)?;
        Ok(Self { topology, residue, netavark, web, document })
    }

    /// Packets of established connections that netfilter has seen.
    fn seen(&self) -> Result<u64> {
        let listed = self.topology.host.command("nft", &["list", "chain", "inet", "other", "forward"])?;
        let (_, after) = listed.split_once("counter packets ").context("no counter")?;
        let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
        Ok(digits.parse()?)
    }

    /// Waits until most packets of a conversation pass netfilter by.
    pub(crate) fn is_promoted(&self, talk: &mut Talk) -> Result<()> {
        let begun = Instant::now();
        loop {
            talk.rounds(ROUNDS)?;
            let before = self.seen()?;
            talk.rounds(ROUNDS)?;
            let seen = self.seen()? - before;
            if seen < ROUNDS as u64 / 4 {
                return Ok(());
            }
            if begun.elapsed() > SOON * 4 * patience() {
                let why = self.refusals();
                bail!("netfilter has seen {seen} packets of {ROUNDS} questions and their answers\n{why}");
            }
        }
    }

    /// What the agent says of flows that are not promoted.
    fn refusals(&self) -> String {
        let logs = state_dirs(&format!("{:x}", self.topology.host.cookie())).into_iter();
        let logs: Vec<String> = logs.filter_map(|dir| std::fs::read_to_string(dir.join("agent.log")).ok()).collect();
        logs.concat().lines().filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
    }

    fn is_seen(&self, talk: &mut Talk) -> Result<()> {
        talk.rounds(ROUNDS)?;
        std::thread::sleep(Duration::from_secs(1));
        let before = self.seen()?;
        talk.rounds(ROUNDS)?;
        let seen = self.seen()? - before;
        ensure!(
            seen >= 2 * ROUNDS as u64,
            "netfilter has seen {seen} packets of {ROUNDS} questions and their answers: {}",
            self.topology.host.command("nft", &["list", "ruleset"])?
        );
        Ok(())
    }

    pub(crate) fn end(self) -> Result<()> {
        let Self { topology, residue, netavark, web, document } = self;
        netavark.teardown(&web, &document)?;
        topology.host.command("nft", &["delete", "table", "inet", "other"])?;
        residue.nothing_left(topology, &[&web])
    }
}

pub(crate) const ROUNDS: usize = 200;
const CHANGES: usize = 24;

/// One connection on which questions and answers go back and forth.
pub(crate) enum Talk {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Talk {
    pub(crate) fn start(
        netns: &Netns,
        dial: &Dial,
        proto: Proto,
        family: Family,
        to: (std::net::IpAddr, u16),
    ) -> Result<Self> {
        let limit = Some(Duration::from_secs(2));
        Ok(match proto {
            Proto::Tcp => {
                let stream = netns.run(|| dial.connect_stream())?;
                stream.set_read_timeout(limit)?;
                stream.set_nodelay(true)?;
                Self::Tcp(stream)
            }
            _ => {
                let socket = netns.run(|| -> Result<UdpSocket> {
                    let socket = UdpSocket::bind(family.pick("0.0.0.0:0", "[::]:0"))?;
                    socket.connect(to)?;
                    Ok(socket)
                })?;
                socket.set_read_timeout(limit)?;
                Self::Udp(socket)
            }
        })
    }

    fn round(&mut self) -> Result<()> {
        match self {
            Self::Tcp(stream) => drop(exchange(stream, b"question")?),
            Self::Udp(socket) => {
                let mut answer = [0; 2048];
                socket.send(b"question")?;
                again(|| socket.recv(&mut answer))?;
            }
        }
        Ok(())
    }

    pub(crate) fn rounds(&mut self, count: usize) -> Result<()> {
        (0..count).try_for_each(|n| {
            // Without TCX the kernel may drop a packet while a qdisc is added (docs/debts.md).
            let may_lose = matches!(self, Self::Udp(_)) && need::tcx().is_err();
            let asked = self.round();
            let asked = if asked.is_err() && may_lose { self.round() } else { asked };
            asked.map_err(|e| {
                let again: Vec<String> =
                    (0..3).map(|_| format!("{:?}", self.round().map_err(|e| e.to_string()))).collect();
                e.context(format!("question {n}; again: {again:?}"))
            })
        })
    }
}

pub(crate) fn ready() -> need::Need {
    need::root()?;
    need::netpath()?;
    need::bpf()?;
    need::rung(Rung::Nftables)?;
    need::program("nft")
}

/// From the client to the published port, and from the container to the client.
fn talks(world: &World<'_>) -> Result<Vec<(String, Talk)>> {
    let mut talks = Vec::new();
    for family in Family::BOTH {
        for proto in Proto::BOTH {
            for (what, netns, to) in [
                ("published", &world.topology.client, (family.host(), 8080)),
                ("masqueraded", &*world.web, (family.client(), 9000)),
            ] {
                let dial = Dial::new(proto, to.0, to.1);
                let talk = Talk::start(netns, &dial, proto, family, to)?;
                talks.push((format!("{what} {proto:?} {family:?}"), talk));
            }
        }
    }
    Ok(talks)
}

#[test]
fn flows_that_last_pass_netfilter_by_and_a_ban_ends_them() -> Result<()> {
    need!(ready());
    let topology = Topology::new()?;
    let world = World::new(&topology, &Network::dual(7))?;
    let _inside = serve(&world.web, 80, "web")?;
    let _outside = serve(&world.topology.client, 9000, "outside")?;
    let mut talks = talks(&world)?;
    for (what, talk) in &mut talks {
        world.is_promoted(talk).with_context(|| what.clone())?;
    }
    // A rule that all of them meet.
    world
        .topology
        .host
        .command("nft", &["insert", "rule", "inet", "other", "forward", "meta", "l4proto", "{tcp, udp}", "drop"])?;
    std::thread::sleep(Duration::from_secs(1));
    for (what, talk) in &mut talks {
        ensure!(talk.round().is_err(), "{what}: it goes on in spite of the rule");
    }
    world.end()
}

/// A banned client that goes on sending is reported like any other, and must not be promoted by rules that are not evaluated.
#[test]
fn a_banned_client_that_goes_on_sending_stays_banned() -> Result<()> {
    need!(ready());
    let topology = Topology::new()?;
    let world = World::new(&topology, &Network::dual(7))?;
    let _inside = serve(&world.web, 80, "web")?;
    let to = (Family::V4.host(), 8080);
    for rule in ["ip saddr 192.0.2.2 drop", "meta mark 0 ip saddr 192.0.2.2 drop", "iif eth0 udp dport 80 drop"] {
        let mut talk = Talk::start(&topology.client, &Dial::new(Proto::Udp, to.0, to.1), Proto::Udp, Family::V4, to)?;
        world.is_promoted(&mut talk).with_context(|| format!("before {rule}"))?;
        let Talk::Udp(socket) = &talk else { bail!("not UDP") };
        let words: Vec<&str> =
            ["insert", "rule", "inet", "other", "forward"].into_iter().chain(rule.split(' ')).collect();
        topology.host.command("nft", &words)?;
        socket.set_nonblocking(true)?;
        let ask_for = |time: Duration| -> Result<usize> {
            let (begun, mut answers, mut answer) = (Instant::now(), 0, [0; 2048]);
            while begun.elapsed() < time {
                socket.send(b"question")?;
                while socket.recv(&mut answer).is_ok() {
                    answers += 1;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            Ok(answers)
        };
        ask_for(Duration::from_secs(1))?;
        // Answers that were under way, and those that wait for this thread to have a processor.
        std::thread::sleep(Duration::from_millis(200));
        let mut answer = [0; 2048];
        while socket.recv(&mut answer).is_ok() {}
        let late = ask_for(Duration::from_secs(3))?;
        ensure!(late == 0, "{rule}: {late} answers in spite of it");
        topology.host.command("nft", &["flush", "chain", "inet", "other", "forward"])?;
        let counted = ["add", "rule", "inet", "other", "forward", "ct", "state", "established", "counter", "accept"];
        topology.host.command("nft", &counted)?;
    }
    world.end()
}

#[test]
fn an_entry_that_is_deleted_ends_the_promotion() -> Result<()> {
    need!(ready(), need::program("conntrack"));
    let topology = Topology::new()?;
    let world = World::new(&topology, &Network::dual(7))?;
    let _inside = serve(&world.web, 80, "web")?;
    let to = (Family::V4.host(), 8080);
    let mut talk = Talk::start(&world.topology.client, &Dial::new(Proto::Tcp, to.0, to.1), Proto::Tcp, Family::V4, to)?;
    world.is_promoted(&mut talk)?;
    let list = || world.topology.host.command("conntrack", &["-L", "-p", "tcp", "--orig-port-dst", "8080"]);
    ensure!(list()?.contains("ESTABLISHED"), "{}", list()?);
    // New connections are refused, so that conntrack does not pick this one up again.
    world.topology.host.command("nft", &["add", "rule", "inet", "other", "forward", "ct", "state", "new", "drop"])?;
    world.is_promoted(&mut talk)?;
    world.topology.host.command("conntrack", &["-D", "-p", "tcp", "--orig-port-dst", "8080"])?;
    std::thread::sleep(Duration::from_secs(1) * patience());
    ensure!(talk.round().is_err(), "it goes on without an entry");
    world.end()
}

#[test]
fn without_the_agent_nothing_is_carried() -> Result<()> {
    need!(ready());
    let topology = Topology::new()?;
    let world = World::new(&topology, &Network::dual(7))?;
    let _inside = serve(&world.web, 80, "web")?;
    let to = (Family::V4.host(), 8080);
    let mut talk = Talk::start(&world.topology.client, &Dial::new(Proto::Udp, to.0, to.1), Proto::Udp, Family::V4, to)?;
    world.is_promoted(&mut talk)?;
    kill_all(world.topology)?;
    world.is_seen(&mut talk).context("after the agent has ended")?;
    // The next command starts another one.
    let db = world.topology.container("db")?;
    let beside = Document::new().on_dual(&Network::dual(7), "eth0", 7, 6);
    world.netavark.setup(&db, &beside)?;
    watching(world.topology)?;
    world.is_promoted(&mut talk).context("with the next agent")?;
    world.netavark.teardown(&db, &beside)?;
    world.end()
}

#[test]
fn rules_that_count_packets_and_a_network_that_asks_for_netfilter_are_not_passed_by() -> Result<()> {
    need!(ready());
    let to = (Family::V4.host(), 8080);
    for (what, rule, network) in [
        ("a limit", "add rule inet other forward limit rate over 1000000/second drop", Network::dual(7)),
        (
            "netpath.path=kernel",
            "add rule inet other forward ct state invalid drop",
            Network::dual(7).option("netpath.path", "kernel"),
        ),
    ] {
        let topology = Topology::new()?;
        let world = World::new(&topology, &network)?;
        world.topology.host.command("nft", &["flush", "chain", "inet", "other", "forward"])?;
        world.topology.host.feed("nft", &["-f", "-"], rule)?;
        world.topology.host.command(
            "nft",
            &["add", "rule", "inet", "other", "forward", "ct", "state", "established", "counter", "accept"],
        )?;
        let _inside = serve(&world.web, 80, "web")?;
        let mut talk =
            Talk::start(&world.topology.client, &Dial::new(Proto::Tcp, to.0, to.1), Proto::Tcp, Family::V4, to)?;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(2) {
            talk.rounds(ROUNDS)?;
        }
        world.is_seen(&mut talk).context(what)?;
        if what == "a limit" {
            // Without it the same flow is carried.
            world.topology.host.command("nft", &["flush", "chain", "inet", "other", "forward"])?;
            world.topology.host.command(
                "nft",
                &["add", "rule", "inet", "other", "forward", "ct", "state", "established", "counter", "accept"],
            )?;
            world.is_promoted(&mut talk)?;
        }
        world.end()?;
    }
    Ok(())
}

/// The first question without an answer.
fn asks((what, talk): &mut (String, Talk), stop: &AtomicBool) -> Option<String> {
    let mut asked = 0;
    while !stop.load(Ordering::Relaxed) {
        asked += 1;
        if let Err(e) = talk.round() {
            return Some(format!("{what}, question {asked}: {e:#}"));
        }
    }
    None
}

/// While rules change, flows go to and fro between programs and netfilter, and no datagram is lost.
#[test]
fn changes_of_rules_lose_nothing() -> Result<()> {
    need!(ready());
    let topology = Topology::new()?;
    let world = World::new(&topology, &Network::dual(7))?;
    let _inside = serve(&world.web, 80, "web")?;
    let _outside = serve(&topology.client, 9000, "outside")?;
    let mut talks = talks(&world)?;
    for (what, talk) in &mut talks {
        world.is_promoted(talk).with_context(|| what.clone())?;
    }
    let stop = AtomicBool::new(false);
    let lost = std::thread::scope(|scope| -> Result<Vec<String>> {
        let threads: Vec<_> = talks.iter_mut().map(|talk| scope.spawn(|| asks(talk, &stop))).collect();
        let (begun, mut carried) = (Instant::now(), 0);
        let before = world.seen()?;
        for n in 0..CHANGES {
            world
                .topology
                .host
                .command("nft", &["add", "set", "inet", "other", &format!("s{n}"), "{ type ipv4_addr; }"])?;
            std::thread::sleep(Duration::from_millis(if n % 4 == 3 { 1_500 } else { 100 }));
            carried = world.seen()? - before;
        }
        stop.store(true, Ordering::Relaxed);
        let lost = threads.into_iter().filter_map(|t| t.join().unwrap_or(Some("panicked".into()))).collect();
        eprintln!("netfilter has seen {carried} packets in {:?}", begun.elapsed());
        Ok(lost)
    })?;
    ensure!(lost.is_empty(), "{}", lost.join("; "));
    world.end()
}

/// A rule that appears makes netfilter take flows over from the programs, and those that last come back to them.
#[test]
fn flows_that_netfilter_has_taken_over_are_promoted() -> Result<()> {
    need!(ready());
    let topology = Topology::new()?;
    let world = World::new(&topology, &Network::dual(7))?;
    let _inside = serve(&world.web, 80, "web")?;
    let _outside = serve(&topology.client, 9000, "outside")?;
    topology.host.command("nft", &["flush", "chain", "inet", "other", "forward"])?;
    rung_is(&topology, "ebpf")?;
    let mut talks = talks(&world)?;
    for (what, talk) in &mut talks {
        talk.rounds(ROUNDS).with_context(|| format!("{what}, carried by programs alone"))?;
    }
    topology.host.command("nft", &words("add rule inet other forward ct state established counter accept"))?;
    rung_is(&topology, "nftables")?;
    for (what, talk) in &mut talks {
        world.is_promoted(talk).with_context(|| what.clone())?;
    }
    world.end()
}

fn words(text: &str) -> Vec<&str> {
    text.split(' ').collect()
}

fn rung_is(topology: &Topology, rung: &str) -> Result<()> {
    wait_for(&format!("{rung} to serve"), SOON * 4, || {
        let status = crate::chosen::says(topology, "status").ok()?;
        (status["rung"] == rung).then_some(())
    })
}

/// Connections end as conntrack sees them end, and the tables are balanced.
#[test]
fn an_ended_connection_leaves_conntrack_as_any_other() -> Result<()> {
    need!(ready(), need::program("conntrack"));
    let topology = Topology::new()?;
    let world = World::new(&topology, &Network::dual(7))?;
    let _inside = serve(&world.web, 80, "web")?;
    let to = (Family::V4.host(), 8080);
    let mut talk = Talk::start(&world.topology.client, &Dial::new(Proto::Tcp, to.0, to.1), Proto::Tcp, Family::V4, to)?;
    world.is_promoted(&mut talk)?;
    drop(talk);
    wait_for("the end of the connection in conntrack", SOON, || {
        let listed = world.topology.host.command("conntrack", &["-L", "-p", "tcp", "--orig-port-dst", "8080"]).ok()?;
        (!listed.contains("ESTABLISHED")).then_some(())
    })?;
    world.end()
}
