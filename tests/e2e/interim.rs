//! The first container of a host does not wait for the verifier: netfilter serves it until the agent has loaded the programs.

use crate::rig::serve;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use support::agent::agents;
use support::host::{Netns, SOON, wait_for};
use support::need;
use support::netavark::{Document, Netavark, Network, Rung};
use support::residue::Residue;
use support::topology::{Family, Topology};
use support::traffic::{Dial, Proto, Seen, exchange};

const KEPT: (&str, &str) = ("NETPATH_KEEP_LOADED", "600");

fn run(topology: &Topology, words: &[&str]) -> Result<Vec<u8>> {
    let mut command = Command::new(support::netavark::binary()?);
    command.args(words);
    Ok(topology.host.output(command, b"")?.stdout)
}

fn status(topology: &Topology) -> Result<Value> {
    serde_json::from_slice(&run(topology, &["status", "--json"])?).context("netpath status")
}

fn rung(topology: &Topology) -> Result<String> {
    Ok(status(topology)?["rung"].as_str().unwrap_or_default().to_owned())
}

fn has_loaded(topology: &Topology) -> Result<()> {
    wait_for("the programs", SOON, || (rung(topology).ok()? == "ebpf").then_some(()))
}

fn unload(topology: &Topology) -> Result<()> {
    run(topology, &["gc", "--all"])?;
    wait_for("the end of the agent", SOON, || agents(topology).is_empty().then_some(()))
}

#[test]
fn connections_pass_while_the_programs_take_the_first_container_over() -> Result<()> {
    need!(need::root(), need::netpath(), need::bpf(), need::rung(Rung::Nftables));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[KEPT])?;
    let [web, db] = [topology.container("web")?, topology.container("db")?];
    let document = Document::new().on_dual(&Network::dual(7), "eth0", 7, 5);
    let document = document.publish("", 8080, 80, "tcp").publish("", 8080, 80, "udp");
    // Served from the first moment on: the listener is there before the port.
    let _inside = serve(&web, 80, "web")?;
    let _outside = serve(&topology.client, 9000, "outside")?;
    netavark.setup(&web, &document)?;
    let first = rung(&topology)?;
    let published = Dial::new(Proto::Tcp, Family::V4.host(), 8080);
    let mut lasting = topology.client.run(|| published.connect_stream())?;
    exchange(&mut lasting, b"first")?;
    let (stop, passed) = (AtomicBool::new(false), AtomicU32::new(0));
    let lost = AtomicBool::new(false);
    let dial_all = || -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            for family in Family::BOTH {
                for proto in Proto::BOTH {
                    let (published, outward) =
                        (Dial::new(proto, family.host(), 8080), Dial::new(proto, family.client(), 9000));
                    // The kernel may drop what a veth is sending while it gets its qdisc (docs/debts.md); TCP sends it again.
                    let again = |asked: Result<Seen>, dial: &Dial, from: &Netns| match asked {
                        Err(_) if proto == Proto::Udp && !lost.swap(true, Ordering::Relaxed) => dial.ask(from),
                        asked => asked,
                    };
                    again(published.ask(&topology.client), &published, &topology.client).context("published")?;
                    again(outward.ask(&web), &outward, &web).context("masqueraded")?;
                }
            }
            Dial::new(Proto::Tcp, Family::V4.host(), 8080).ask(&topology.host).context("from the host")?;
            passed.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    let taken_over = std::thread::scope(|scope| {
        let dialled = scope.spawn(dial_all);
        let taken_over = has_loaded(&topology);
        std::thread::sleep(std::time::Duration::from_millis(300));
        stop.store(true, Ordering::Relaxed);
        let dialled = dialled.join().map_err(|_| anyhow::anyhow!("panicked"))?;
        taken_over.and(dialled)
    });
    taken_over?;
    ensure!(first == "nftables", "{first} was the first: the takeover was not seen");
    ensure!(passed.load(Ordering::Relaxed) > 1, "too few connections");
    exchange(&mut lasting, b"still there")?;
    drop(lasting);
    wait_for("the end of its tables", SOON, || {
        let tables = topology.host.output(nft(), b"").ok()?;
        (!String::from_utf8_lossy(&tables.stdout).contains("netpath")).then_some(())
    })?;
    // A second one, and one that is alone while the programs are loaded, find them.
    let beside = Document::new().on_dual(&Network::dual(7), "eth0", 7, 6);
    netavark.setup(&db, &beside)?;
    ensure!(rung(&topology)? == "ebpf");
    netavark.teardown(&db, &beside)?;
    netavark.teardown(&web, &document)?;
    netavark.setup(&web, &document)?;
    ensure!(rung(&topology)? == "ebpf", "they stay attached for five seconds");
    netavark.teardown(&web, &document)?;
    unload(&topology)?;
    residue.nothing_left(&topology, &[&web, &db])
}

fn nft() -> Command {
    let mut nft = Command::new("nft");
    nft.args(["list", "tables"]);
    nft
}

/// A container may end before its programs are loaded: they serve the next one.
#[test]
fn a_container_that_ends_before_the_programs_are_loaded_leaves_them_to_the_next() -> Result<()> {
    need!(need::root(), need::netpath(), need::bpf(), need::rung(Rung::Nftables));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[KEPT])?;
    let web = topology.container("web")?;
    let document = Document::new().on_dual(&Network::dual(7), "eth0", 7, 5).publish("", 8080, 80, "tcp");
    netavark.setup(&web, &document)?;
    netavark.teardown(&web, &document)?;
    let is_loaded = || {
        let doctor = run(&topology, &["doctor"]).ok()?;
        String::from_utf8_lossy(&doctor).contains("programs stay loaded").then_some(())
    };
    wait_for("programs that stay loaded", SOON, is_loaded)?;
    netavark.setup(&web, &document)?;
    has_loaded(&topology)?;
    let _inside = serve(&web, 80, "web")?;
    Dial::new(Proto::Tcp, Family::V4.host(), 8080).ask(&topology.client)?;
    netavark.teardown(&web, &document)?;
    unload(&topology)?;
    residue.nothing_left(&topology, &[&web])
}

/// Each asks for what an interim does not give.
#[test]
fn who_asks_for_the_programs_waits_for_them() -> Result<()> {
    need!(need::root(), need::netpath(), need::bpf(), need::rung(Rung::Nftables));
    let offload = Network::dual(7).option("netpath.path", "offload");
    for (environment, network) in [
        (&[KEPT, ("NETPATH_DATAPATH", "ebpf")][..], Network::dual(7)),
        (&[KEPT, ("NETPATH_AGENT", "off")], Network::dual(7)),
        (&[("NETPATH_KEEP_LOADED", "0")], Network::dual(7)),
        (&[KEPT], offload),
    ] {
        let topology = Topology::new()?;
        let netavark = Netavark::with(&topology, environment)?;
        let web = topology.container("web")?;
        let document = Document::new().on_dual(&network, "eth0", 7, 5).publish("", 8080, 80, "tcp");
        netavark.setup(&web, &document)?;
        ensure!(rung(&topology)? == "ebpf", "{environment:?}: {}", status(&topology)?);
        netavark.teardown(&web, &document)?;
        unload(&topology)?;
    }
    Ok(())
}
