//! Containers that start and stop concurrently: no failure, nothing left, and each as if alone.

use anyhow::{Context, Result, ensure};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;
use support::host::at_once;
use support::need;
use support::netavark::{Document, Netavark, Network, Rung};
use support::residue::Residue;
use support::topology::{CLIENT4, Container, HOST4, Topology};
use support::traffic::{ANY, Dial, Proto, Server};

/// Three times as many as run at a time, so that each stage meets every other; more where programs and their maps are shared.
fn count_on(rung: Rung) -> u8 {
    if rung.is_ebpf() || need::is_full() { 60 } else { 24 }
}

const WIDTH: usize = 8;

on_every_rung!(containers_come_and_go_eight_at_a_time);

fn containers_come_and_go_eight_at_a_time(rung: Rung) -> Result<()> {
    need!(need::netpath(), need::best_hooks(rung));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::on(&topology, rung)?;
    let mut containers = Vec::new();
    let count = count_on(rung);
    for n in 0..count {
        // On three networks, so that bridges come and go in between too.
        let net = 7 + n % 3;
        let document = Document::new()
            .on_dual(&Network::dual(net), "eth0", net, 10 + n)
            .publish("", 8000 + u16::from(n), 80, "tcp")
            .publish("", 8000 + u16::from(n), 80, "udp");
        containers.push((n, topology.container(&format!("c{n}"))?, document));
    }

    let begun = Instant::now();
    at_once(WIDTH, &containers, |(_, c, document)| netavark.setup(c, document).map(drop).context(c.name.clone()))?;
    let up = begun.elapsed();

    for (n, container, _) in &containers {
        let _server = Server::echo(container, Proto::Tcp, ANY, 80, &container.name)?;
        let seen = Dial::new(Proto::Tcp, HOST4, 8000 + u16::from(*n)).ask(&topology.client)?;
        ensure!((&seen.server, seen.client.ip()) == (&container.name, CLIENT4), "{}: {seen:?}", container.name);
    }

    let begun = Instant::now();
    at_once(WIDTH, &containers, |(_, c, document)| netavark.teardown(c, document).context(c.name.clone()))?;
    let down = begun.elapsed();
    need::say(&format!(
        "{rung:?}: {count} containers, {WIDTH} at a time: up in {} ms, down in {} ms, no failure",
        up.as_millis(),
        down.as_millis()
    ));
    residue.nothing_left(&topology, &containers.iter().map(|(_, c, _)| c).collect::<Vec<_>>())
}

/// The second one joins a bridge that has no port yet, and so the MTU of a new bridge: the first is stopped at that point.
#[test]
fn a_container_that_joins_a_bridge_without_a_port_has_the_mtu_of_the_way_out() -> Result<()> {
    need!(need::rung(Rung::Iptables));
    let topology = Topology::new()?.narrow_uplink(1400)?;
    let netavark = Netavark::with(&topology, &[("NETPATH_DATAPATH", "iptables"), ("NETPATH_AGENT", "off")])?;
    let containers = [topology.container("first")?, topology.container("second")?];
    let documents = [10, 11].map(|n| Document::new().on_dual(&Network::dual(7), "eth0", 7, n));
    let mut met = 0;
    for round in 0..40 {
        let mut first = Stopped::at_bridge(&topology, &netavark, &containers[0], &documents[0])?;
        let ports = topology.host.command("ip", &["-o", "link", "show", "master", "podman7"]).unwrap_or_default();
        if ports.is_empty() && !is_locked(&topology) {
            netavark.setup(&containers[1], &documents[1])?;
            let link = containers[1].ip_json(&["link", "show", "dev", "eth0"])?;
            ensure!(link[0]["mtu"] == 1400, "round {round}: MTU {}", link[0]["mtu"]);
            met += 1;
        }
        first.goes_on()?;
        for (container, document) in containers.iter().zip(&documents).rev() {
            netavark.teardown(container, document)?;
        }
        if met == 3 {
            return Ok(());
        }
    }
    ensure!(met > 0, "no setup was stopped between its bridge and its veth");
    Ok(())
}

/// The stopped setup has chosen the programs; rules of others appear, and another setup changes over to netfilter.
#[test]
fn a_setup_that_chose_before_another_changed_over_serves_with_the_rung_in_use() -> Result<()> {
    need!(need::netpath(), need::rung(Rung::best_hooks()), need::program("nft"));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[("NETPATH_AGENT", "off")])?;
    let containers = [topology.container("stopped")?, topology.container("first")?, topology.container("third")?];
    let documents = [(7, 10), (8, 10), (8, 11)].map(|(net, n)| {
        let document = Document::new().on_dual(&Network::dual(net), "eth0", net, n);
        document.publish("", 8000 + u16::from(10 * net + n), 80, "tcp")
    });
    let status = || -> Result<serde_json::Value> {
        let mut command = std::process::Command::new(support::netavark::binary()?);
        command.args(["status", "--json"]);
        Ok(serde_json::from_slice(&topology.host.output(command, b"")?.stdout)?)
    };
    let mut met = false;
    for _ in 0..40 {
        netavark.setup(&containers[1], &documents[1])?;
        let mut stopped = Stopped::at_bridge(&topology, &netavark, &containers[0], &documents[0])?;
        let ports = topology.host.command("ip", &["-o", "link", "show", "master", "podman7"]).unwrap_or_default();
        met = ports.is_empty() && !is_locked(&topology);
        if met {
            let rule = "nft add table inet a; nft add chain inet a f '{ type filter hook forward priority 0 ; }'; \
                        nft add rule inet a f counter";
            topology.host.command("sh", &["-ec", rule])?;
            netavark.setup(&containers[2], &documents[2])?;
            ensure!(status()?["rung"] == "nftables", "no change-over: {}", status()?);
            stopped.goes_on()?;
            let after = status()?;
            let mut hooks = after["hooks"].as_array().into_iter().flatten();
            ensure!(after["rung"] == "nftables" && hooks.all(|h| h["side"] == "sockets"), "{after}");
            let _server = Server::echo(&containers[0], Proto::Tcp, ANY, 80, "stopped")?;
            let seen = Dial::new(Proto::Tcp, HOST4, 8080).ask(&topology.client)?;
            ensure!(seen.server == "stopped", "{seen:?}");
            ensure!(!Path::new("/sys/fs/bpf/netpath").join(format!("{:x}", topology.host.cookie())).exists());
            topology.host.command("nft", &["delete", "table", "inet", "a"])?;
        } else {
            stopped.goes_on()?;
        }
        for (container, document) in containers.iter().zip(&documents) {
            netavark.teardown(container, document)?;
        }
        if met {
            break;
        }
    }
    ensure!(met, "no setup was stopped between its bridge and its veth");
    residue.nothing_left(&topology, &containers.iter().collect::<Vec<_>>())
}

/// A setup that is stopped once its bridge exists and it has released the lock.
struct Stopped(std::process::Child);

impl Stopped {
    fn at_bridge(
        topology: &Topology,
        netavark: &Netavark<'_>,
        container: &Container,
        document: &Document,
    ) -> Result<Self> {
        let mut command = netavark.command(&["setup", &container.path().to_string_lossy()]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let json = document.json(container).to_string();
        topology.host.run(|| {
            let mut child = command.spawn().context("cannot start setup")?;
            child.stdin.take().context("its input")?.write_all(json.as_bytes())?;
            while nix::net::if_::if_nametoindex("podman7").is_err() && child.try_wait()?.is_none() {}
            // Otherwise other commands would wait for it.
            while is_locked(topology) {}
            let stopped = Self(child);
            stopped.signal(Signal::SIGSTOP)?;
            Ok(stopped)
        })
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.0.id() as i32), signal)?)
    }

    fn goes_on(&mut self) -> Result<()> {
        self.signal(Signal::SIGCONT)?;
        let ended = self.0.wait()?;
        ensure!(ended.success(), "the first setup: {ended}");
        Ok(())
    }
}

/// Whether a command holds the lock of the host's state.
fn is_locked(topology: &Topology) -> bool {
    let lock = Path::new("/run/netpath").join(format!("{:x}", topology.host.cookie())).join("lock");
    let Ok(file) = File::open(lock) else { return false };
    Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err()
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
