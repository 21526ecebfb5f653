//! The host and its containers together against one address and port: nothing is lost or misdelivered, and no two senders are
//! seen with one source port.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;
use support::host::{Netns, at_once};
use support::load::{hammer_as, hammer_server};
use support::need;
use support::netavark::{Document, Netavark, Network, Rung};
use support::residue::Residue;
use support::topology::{Family, Topology};
use support::traffic::{ANY, Dial, Proto, Server, again, exchange};

on_every_rung!(host_and_containers_against_one_port);

/// Over all senders, protocols and families.
fn connections() -> u64 {
    if need::is_full() { 1_000_000 } else { 10_000 }
}

/// Sockets per sender that are open at the same time, on the same ports.
const OPEN: u16 = 150;

fn host_and_containers_against_one_port(rung: Rung) -> Result<()> {
    need!(need::best_hooks(rung));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::on(&topology, rung)?;
    let mut up = Vec::new();
    for (name, n, host) in [("one", 7, 5), ("two", 7, 6), ("three", 8, 5)] {
        let (container, document) =
            (topology.container(name)?, Document::new().on_dual(&Network::dual(n), "eth0", n, host));
        netavark.setup(&container, &document)?;
        up.push((container, document));
    }
    let client = &topology.client;
    let mut servers =
        vec![hammer_server(client, ANY, 9001)?, Server::echo_for(client, 4 * usize::from(OPEN), ANY, 9002, "near")?];
    for family in Family::BOTH {
        // Not on all addresses: the kernel keeps all sockets of a port with one address in a hash chain, which a socket leaves
        // when it connects; a concurrent lookup in that chain may then miss the server (`net/ipv4/udp.c, udp_lib_rehash()`).
        for port in [9001, 9002] {
            servers.push(Server::echo(client, Proto::Udp, family.client(), port, "near")?);
        }
    }
    let senders: Vec<&Netns> = std::iter::once(&topology.host).chain(up.iter().map(|(c, _)| &c.netns)).collect();
    for family in Family::BOTH {
        for proto in Proto::BOTH {
            let what = format!("{rung:?} {family:?} {}", proto.name());
            seen_apart(&senders, proto, family).with_context(|| what.clone())?;
            let before = dropped_in_backlogs();
            let lost = nothing_is_lost(&what, &senders, proto, SocketAddr::new(family.client(), 9001));
            lost.with_context(|| {
                let backlogs = dropped_in_backlogs() - before;
                format!("{backlogs} packets of this machine were dropped in full backlogs\n{}", counted(&topology.host))
            })?;
        }
    }
    drop(servers);
    for (container, document) in &up {
        netavark.teardown(container, document)?;
    }
    let containers: Vec<_> = up.iter().map(|(c, _)| c).collect();
    residue.nothing_left(&topology, &containers)
}

/// Counters of `netpath status`.
fn counted(host: &Netns) -> String {
    let status = support::netavark::binary().and_then(|binary| {
        let mut command = std::process::Command::new(binary);
        command.arg("status");
        host.output(command, b"")
    });
    status.map_or_else(|e| e.to_string(), |out| String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Packets that all processors have dropped ahead of any stack since boot, as they were too busy (`net/core/net-procfs.c,
/// softnet_seq_show()`, the second column).
fn dropped_in_backlogs() -> u64 {
    let table = std::fs::read_to_string("/proc/net/softnet_stat").unwrap_or_default();
    table.lines().filter_map(|l| u64::from_str_radix(l.split(' ').nth(1)?, 16).ok()).sum()
}

/// Short connections from all senders at once, each with a request that names its sender.
fn nothing_is_lost(what: &str, senders: &[&Netns], proto: Proto, to: SocketAddr) -> Result<()> {
    let each = connections() / (4 * senders.len() as u64);
    let numbers: Vec<u16> = (0..senders.len() as u16).collect();
    let begun = Instant::now();
    at_once(senders.len(), &numbers, |n| {
        let seen = hammer_as(senders[usize::from(*n)], n + 1, proto, to, each)?;
        ensure!(seen.failed == 0, "{what}: sender {n}: {} of {each} failed: {:?}", seen.failed, seen.errors);
        Ok(())
    })?;
    let all = each * senders.len() as u64;
    let rate = all as f64 / begun.elapsed().as_secs_f64();
    need::say(&format!("{what}: {all} connections of {} senders to one port, 0 failed, {rate:.0}/s", senders.len()));
    Ok(())
}

/// All senders have sockets open on the same ports to the same service: it sees each source port once.
fn seen_apart(senders: &[&Netns], proto: Proto, family: Family) -> Result<()> {
    let seen = Mutex::new(BTreeMap::<SocketAddr, Vec<(usize, u16)>>::new());
    let open = Mutex::new(Vec::new());
    let all: Vec<(usize, u16)> = (0..senders.len()).flat_map(|s| (0..OPEN).map(move |n| (s, n))).collect();
    at_once(8, &all, |&(sender, n)| {
        let (at, held) = senders[sender].run(|| first_words(proto, family, 15_000 + n, sender as u16))?;
        seen.lock().unwrap_or_else(PoisonError::into_inner).entry(at).or_default().push((sender, n));
        open.lock().unwrap_or_else(PoisonError::into_inner).push(held);
        Ok(())
    })?;
    let seen = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
    let twice: Vec<_> = seen.iter().filter(|(_, who)| who.len() > 1).collect();
    ensure!(twice.is_empty(), "seen with one source port: {twice:?}");
    ensure!(seen.len() == all.len() && seen.keys().all(|at| at.ip() == family.host()), "seen as {:?}", seen.keys());
    Ok(())
}

/// A socket that is kept open until dropped.
type Held = Box<dyn Send>;

/// The source that the service sees of a socket on `port`.
fn first_words(proto: Proto, family: Family, port: u16, sender: u16) -> Result<(SocketAddr, Held)> {
    let any: IpAddr = if family == Family::V4 { "0.0.0.0" } else { "::" }.parse()?;
    let to = SocketAddr::new(family.client(), 9002);
    let words = format!("sender {sender} on {port}");
    if proto == Proto::Tcp {
        let mut stream = Dial::new(Proto::Tcp, to.ip(), to.port()).from(any, port).connect_stream()?;
        let (_, at) = exchange(&mut stream, words.as_bytes())?;
        return Ok((at, Box::new(stream)));
    }
    let socket = UdpSocket::bind((any, port))?;
    socket.set_read_timeout(Some(support::host::SOON))?;
    socket.connect(to)?;
    socket.send(words.as_bytes())?;
    let mut answer = [0; 200];
    let len = again(|| socket.recv(&mut answer)).context("receive")?;
    let answer = String::from_utf8_lossy(&answer[..len]).into_owned();
    let (line, echoed) = answer.split_once('\n').context("an answer of one line")?;
    ensure!(echoed == words, "another sender's payload: {echoed}");
    let at = line.split(' ').nth(1).and_then(|at| at.parse().ok()).context("an answer without a peer")?;
    Ok((at, Box::new(socket)))
}
