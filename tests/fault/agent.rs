//! The agent: it starts with the first container, follows the host, ends with the last one, and is not required.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::net::IpAddr;
use std::process::{Command, Output};
use support::agent::{agents, kill_all, the_agent as agent, watching};
use support::host::{SOON, wait_for};
use support::long_lived::{LongLived, all_answer, idle};
use support::need;
use support::netavark::{Document, Netavark, Network, Rung, binary};
use support::residue::Residue;
use support::topology::{CLIENT4, Container, HOST4, Topology};
use support::traffic::{ANY, Dial, Proto, Server};

fn document(host: u8) -> Document {
    Document::new().on_dual(&Network::dual(7), "eth0", 7, host).publish("", 8000 + u16::from(host), 80, "tcp")
}

fn call(topology: &Topology, args: &[&str]) -> Result<Output> {
    let mut command = Command::new(binary()?);
    command.args(args);
    topology.host.output(command, b"")
}

fn json(topology: &Topology, args: &[&str]) -> Result<Value> {
    let out = call(topology, args)?;
    ensure!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).with_context(|| format!("{args:?}: no JSON"))
}

fn answers(topology: &Topology, address: &str, port: u16) -> Result<()> {
    let dial = Dial::new(Proto::Tcp, address.parse()?, port);
    wait_for(&format!("an answer of {address}"), SOON, || dial.ask(&topology.client).ok().map(drop))
}

on_every_rung!(
    the_agent_starts_with_the_first_container_and_ends_with_the_last,
    the_agent_may_be_killed_at_any_moment,
    addresses_and_uplinks_that_come_are_followed_without_a_command,
);

fn the_agent_starts_with_the_first_container_and_ends_with_the_last(rung: Rung) -> Result<()> {
    need!(need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::on(&topology, rung)?;
    let (web, other) = (topology.container("web")?, topology.container("other")?);
    // `setup` reads the output to its end: it would hang if the agent held it open.
    netavark.setup(&web, &document(5))?;
    let pid = agent(&topology)?;
    netavark.setup(&other, &document(6))?;
    ensure!(pid == agent(&topology)?, "the second container has another agent");
    ensure!(json(&topology, &["status", "--json"])?["agent"]["pid"] == pid, "status does not show pid {pid}");
    // On iptables it runs programs now and then, whose output comes through pipes.
    wait_for("the agent to hold no pipe of its caller", SOON, || {
        let mut fds = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
        let is_pipe = |place: std::path::PathBuf| place.to_string_lossy().starts_with("pipe:");
        (!fds.any(|fd| std::fs::read_link(fd.path()).is_ok_and(is_pipe))).then_some(())
    })?;
    ensure!(std::fs::read_link(format!("/proc/{pid}/cwd"))?.as_os_str() == "/", "it keeps a directory busy");
    netavark.teardown(&web, &document(5))?;
    ensure!(pid == agent(&topology)?, "it did not stay for the other container");
    netavark.teardown(&other, &document(6))?;
    ensure!(agents(&topology).is_empty(), "teardown of the last container did not wait for it");
    residue.nothing_left(&topology, &[&web, &other])
}

#[test]
fn of_many_agents_started_at_once_one_stays() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let containers: Vec<(Container, Document)> =
        (5..13).map(|n| Ok((topology.container(&format!("c{n}"))?, document(n)))).collect::<Result<_>>()?;
    support::host::at_once(8, &containers, |(c, d)| netavark.setup(c, d).map(drop))?;
    let pid = watching(&topology)?;
    for foreground in [&["agent"][..], &["agent", "--foreground"]] {
        let second = call(&topology, foreground)?;
        let text = String::from_utf8_lossy(&second.stderr).into_owned();
        ensure!(!second.status.success() && text.contains(&format!("pid {pid}")), "{text}");
    }
    kill_all(&topology)?;
    support::host::at_once(8, &[(); 8], |()| call(&topology, &["gc"]).map(drop))?;
    let again = watching(&topology)?;
    ensure!(again != pid && agents(&topology) == [again], "{:?}", agents(&topology));
    support::host::at_once(8, &containers, |(c, d)| netavark.teardown(c, d))?;
    residue.nothing_left(&topology, &containers.iter().map(|(c, _)| c).collect::<Vec<_>>())
}

fn the_agent_may_be_killed_at_any_moment(rung: Rung) -> Result<()> {
    need!(need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::on(&topology, rung)?;
    let (web, other) = (topology.container("web")?, topology.container("other")?);
    netavark.setup(&web, &document(5))?;
    let _server = Server::echo(&web, Proto::Tcp, ANY, 80, "web")?;
    for moment in [0_u64, 1, 3, 10, 30, 100, 130, 300] {
        agent(&topology)?;
        topology.host.ip(&format!("addr add 192.0.2.{}/24 dev eth0\n", 100 + moment % 90))?;
        std::thread::sleep(std::time::Duration::from_millis(moment));
        kill_all(&topology)?;
        answers(&topology, "192.0.2.1", 8005)?;
        topology.host.ip(&format!("addr del 192.0.2.{}/24 dev eth0\n", 100 + moment % 90))?;
        // Any command starts the agent again.
        netavark.setup(&other, &document(6))?;
        agent(&topology)?;
        netavark.teardown(&other, &document(6))?;
    }
    kill_all(&topology)?;
    netavark.teardown(&web, &document(5))?;
    residue.nothing_left(&topology, &[&web, &other])
}

#[test]
fn the_agent_ends_on_sigterm() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let web = topology.container("web")?;
    netavark.setup(&web, &document(5))?;
    kill(Pid::from_raw(watching(&topology)?), Signal::SIGTERM)?;
    wait_for("its end", SOON, || agents(&topology).is_empty().then_some(()))?;
    netavark.teardown(&web, &document(5))?;
    residue.nothing_left(&topology, &[&web])
}

fn addresses_and_uplinks_that_come_are_followed_without_a_command(rung: Rung) -> Result<()> {
    need!(need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::on(&topology, rung)?;
    let web = topology.container("web")?;
    netavark.setup(&web, &document(5))?;
    let _server = Server::echo(&web, Proto::Tcp, ANY, 80, "web")?;
    watching(&topology)?;

    topology.host.ip("addr add 192.0.2.77/24 dev eth0\n")?;
    answers(&topology, "192.0.2.77", 8005)?;

    topology.host.ip(&format!(
        "link add up2 type veth peer name up2 netns {}\naddr add 198.51.100.9/24 dev up2\nlink set up2 up\n",
        topology.client.path().display()
    ))?;
    topology.client.ip("addr add 198.51.100.8/24 dev up2\nlink set up2 up\n")?;
    answers(&topology, "198.51.100.9", 8005)?;
    if rung == Rung::Tcx {
        wait_for("programs at the new uplink", SOON, || {
            topology.host.tcx_ingress("up2").ok().filter(|p| !p.is_empty())
        })?;
    }

    topology.host.ip("link del up2\naddr del 192.0.2.77/24 dev eth0\n")?;
    answers(&topology, "192.0.2.1", 8005)?;
    netavark.teardown(&web, &document(5))?;
    residue.nothing_left(&topology, &[&web])
}

/// Another program flushes all rules, including those of netpath: they come back, and connections go on, also those that
/// send in between.
fn flushed(rung: Rung, flush: &str) -> Result<()> {
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::on(&topology, rung)?;
    let web = topology.container("web")?;
    netavark.setup(&web, &document(5))?;
    let _servers =
        [Server::echo_for(&web, 30, ANY, 80, "web")?, Server::echo_for(&topology.client, 30, ANY, 9000, "near")?];
    let dials = [(&topology.client, Dial::new(Proto::Tcp, HOST4, 8005)), (&*web, Dial::new(Proto::Tcp, CLIENT4, 9000))];
    let (mut sending, mut waiting) = (Vec::new(), Vec::new());
    for (netns, dial) in &dials {
        waiting.extend(idle(netns, dial, 10)?);
        sending.push(LongLived::start(netns, dial)?);
    }
    watching(&topology)?;
    wait_for("the agent to hold connections", SOON, || {
        topology.host.command("nft", &["list", "table", "inet", "netpath_hold"]).ok()
    })?;
    topology.host.command("sh", &["-ec", flush])?;
    answers(&topology, "192.0.2.1", 8005)?;
    sending.into_iter().try_for_each(|connection| connection.goes_on().and_then(|()| connection.finish()))?;
    all_answer(&mut waiting)?;
    netavark.teardown(&web, &document(5))?;
    residue.nothing_left(&topology, &[&web])
}

#[test]
fn flushed_rules_of_nftables_come_back() -> Result<()> {
    need!(need::netpath(), need::rung(Rung::Nftables), need::program("nft"));
    flushed(Rung::Nftables, "nft flush ruleset")?;
    flushed(Rung::Nftables, "nft flush table inet netpath")
}

#[test]
fn flushed_rules_of_iptables_come_back() -> Result<()> {
    need!(need::netpath(), need::rung(Rung::Iptables), need::program("nft"));
    flushed(Rung::Iptables, "nft flush ruleset")?;
    flushed(Rung::Iptables, "iptables -F; iptables -t nat -F; iptables -t mangle -F")
}

#[test]
fn a_flapping_link_causes_no_load() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let web = topology.container("web")?;
    netavark.setup(&web, &document(5))?;
    let _server = Server::echo(&web, Proto::Tcp, ANY, 80, "web")?;
    let pid = watching(&topology)?;
    let before = ticks(pid)?;
    let begun = std::time::Instant::now();
    let flap = "addr add 192.0.2.99/24 dev eth0\naddr del 192.0.2.99/24 dev eth0\n".repeat(200);
    while begun.elapsed() < std::time::Duration::from_secs(3) {
        topology.host.ip(&flap)?;
    }
    let share = (ticks(pid)? - before) as f64 / 100.0 / begun.elapsed().as_secs_f64();
    need::say(&format!("the agent took {:.1} % of a processor while an address flapped", share * 100.0));
    ensure!(share < 0.25, "the agent took {share:.2} of a processor");
    topology.host.ip("addr add 192.0.2.98/24 dev eth0\n")?;
    answers(&topology, "192.0.2.98", 8005)?;
    topology.host.ip("addr del 192.0.2.98/24 dev eth0\n")?;
    netavark.teardown(&web, &document(5))?;
    residue.nothing_left(&topology, &[&web])
}

/// Processor time of a process, in hundredths of a second.
fn ticks(pid: i32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("no name")?.1.split_whitespace().collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

#[test]
fn without_the_agent_everything_works_too() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[("NETPATH_AGENT", "off")])?;
    let web = topology.container("web")?;
    netavark.setup(&web, &document(5))?;
    let _server = Server::echo(&web, Proto::Tcp, ANY, 80, "web")?;
    let seen = Dial::new(Proto::Tcp, "192.0.2.1".parse::<IpAddr>()?, 8005).ask(&topology.client)?;
    ensure!(seen.client.ip() == CLIENT4, "{seen:?}");
    ensure!(agents(&topology).is_empty(), "an agent runs");
    ensure!(json(&topology, &["status", "--json"])?["agent"].is_null(), "status shows one");
    netavark.teardown(&web, &document(5))?;
    residue.nothing_left(&topology, &[&web])
}
