//! Programs and empty maps that stay loaded without a container.

use anyhow::{Result, ensure};
use aya::programs::loaded_programs;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use support::agent::{agents, kill_all, watching};
use support::host::{patience, wait_for};
use support::need;
use support::netavark::{Document, Netavark, Network, binary};
use support::residue::{Residue, Snapshot};
use support::topology::{HOST4, Topology};
use support::traffic::{ANY, Dial, Proto, Server};

const LONG: [(&str, &str); 2] = [("NETPATH_KEEP_LOADED", "600"), ("NETPATH_DATAPATH", "ebpf")];

fn document(host: u8) -> Document {
    Document::new()
        .on_dual(&Network::dual(7), "eth0", 7, host)
        .publish("", 8000, 80, "tcp")
        .publish("", 8001, 81, "udp")
}

pub(crate) fn netpath(topology: &Topology, args: &[&str]) -> Result<String> {
    let mut command = Command::new(binary()?);
    command.args(args);
    let out = topology.host.output(command, b"")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(out.status.success(), "{args:?}: {}", text(&out.stderr));
    Ok(text(&out.stdout))
}

/// Trees of pins of this host, in use or not.
fn trees(topology: &Topology, prefix: &str) -> Vec<PathBuf> {
    let name = format!("{prefix}{:x}", topology.host.cookie());
    let versions = std::fs::read_dir("/sys/fs/bpf/netpath").into_iter().flatten().flatten();
    versions.map(|v| v.path().join(&name)).filter(|tree| tree.is_dir()).collect()
}

/// The ids of the loaded programs of this host.
fn programs(topology: &Topology) -> BTreeSet<u32> {
    let pins = [trees(topology, ""), trees(topology, "idle-")].concat();
    let of = |tree: &PathBuf| std::fs::read_dir(tree.join("prog")).into_iter().flatten().flatten();
    let pinned = pins.iter().flat_map(of).filter_map(|pin| aya::programs::ProgramInfo::from_pin(pin.path()).ok());
    pinned.map(|info| info.id()).collect()
}

/// Until then the last container may come back.
fn put_aside(topology: &Topology) -> Result<()> {
    wait_for("the pins to be put aside", Duration::from_secs(8) * patience(), || {
        (trees(topology, "").is_empty() && trees(topology, "idle-").len() == 1).then_some(())
    })
}

fn is_loaded(id: u32) -> bool {
    loaded_programs().flatten().any(|p| p.id() == id)
}

#[test]
fn the_next_first_container_finds_the_programs_and_empty_maps() -> Result<()> {
    need!(need::root(), need::netpath(), need::bpf());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let (web, late) = (topology.container("web")?, topology.container("late")?);
    // Forwarding stays on after the first container.
    let unkept = Netavark::with(&topology, &LONG[1..])?;
    unkept.setup(&web, &document(5))?;
    unkept.teardown(&web, &document(5))?;
    let bare = Snapshot::take(&topology, &[])?;
    let netavark = Netavark::with(&topology, &LONG)?;
    netavark.setup(&web, &document(5))?;
    let dials = [Dial::new(Proto::Tcp, HOST4, 8000), Dial::new(Proto::Udp, HOST4, 8001)];
    let serve = |container| -> Result<_> {
        Ok([Server::echo(container, Proto::Tcp, ANY, 80, "web")?, Server::echo(container, Proto::Udp, ANY, 81, "web")?])
    };
    let servers = serve(&web)?;
    dials.iter().try_for_each(|dial| dial.ask(&topology.client).map(drop))?;
    let (loaded, agent) = (programs(&topology), vec![watching(&topology)?]);
    ensure!(loaded.len() > 5, "{loaded:?}");
    ensure!(netpath(&topology, &["flows", "--json"])?.contains("8000"), "positive control: no flow is listed");
    drop(servers);
    netavark.teardown(&web, &document(5))?;

    put_aside(&topology)?;
    ensure!(loaded == programs(&topology), "other programs are loaded");
    ensure!(agent == agents(&topology), "the agent is another one");
    // Only pins, the agent and its files are there: nothing is attached, no setting is changed.
    let left = bare.difference(&Snapshot::take(&topology, &[])?);
    let is_expected = |line: &String| ["+ bpf ", "+ state ", "+ process "].iter().any(|kind| line.starts_with(kind));
    ensure!(left.iter().all(is_expected), "{left:#?}");
    ensure!(netpath(&topology, &["doctor"])?.contains("stay loaded"), "doctor does not show them");

    netavark.setup(&late, &document(6))?;
    ensure!(loaded == programs(&topology), "the programs are loaded again");
    ensure!(agent == agents(&topology), "another agent is started");
    let flows = netpath(&topology, &["flows", "--json"])?;
    ensure!(!flows.contains("8000"), "a flow of the last container is left: {flows}");
    let servers = serve(&late)?;
    dials.iter().try_for_each(|dial| dial.ask(&topology.client).map(drop))?;
    drop(servers);
    netavark.teardown(&late, &document(6))?;
    ensure!(netpath(&topology, &["gc"])?.contains("nothing to remove"), "gc removes what is to stay");
    ensure!(loaded == programs(&topology), "gc has removed programs");
    put_aside(&topology)?;
    ensure!(netpath(&topology, &["gc", "--all"])?.contains("stayed loaded"), "gc --all does not say what it removed");
    wait_for("the end of the programs", support::host::SOON, || {
        (!loaded.iter().any(|id| is_loaded(*id))).then_some(())
    })?;
    residue.nothing_left(&topology, &[&web, &late])
}

#[test]
fn the_agent_removes_them_in_time() -> Result<()> {
    need!(need::root(), need::netpath(), need::bpf());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[("NETPATH_KEEP_LOADED", "2"), LONG[1]])?;
    let web = topology.container("web")?;
    netavark.setup(&web, &document(5))?;
    netavark.teardown(&web, &document(5))?;
    ensure!(!programs(&topology).is_empty() && agents(&topology).len() == 1, "they do not stay at all");
    wait_for("the end of the agent", Duration::from_secs(10), || agents(&topology).is_empty().then_some(()))?;
    residue.nothing_left(&topology, &[&web])
}

/// Without an agent nothing would remove them.
#[test]
fn they_do_not_stay_without_an_agent() -> Result<()> {
    need!(need::root(), need::netpath(), need::bpf());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let off = Netavark::with(&topology, &[LONG[0], LONG[1], ("NETPATH_AGENT", "off")])?;
    let web = topology.container("web")?;
    off.setup(&web, &document(5))?;
    off.teardown(&web, &document(5))?;
    residue.nothing_left(&topology, &[&web])?;

    let netavark = Netavark::with(&topology, &LONG)?;
    netavark.setup(&web, &document(5))?;
    netavark.teardown(&web, &document(5))?;
    kill_all(&topology)?;
    ensure!(!programs(&topology).is_empty(), "positive control: they are gone already");
    netpath(&topology, &["gc"])?;
    residue.nothing_left(&topology, &[&web])
}

#[test]
fn a_first_setup_that_fails_leaves_nothing() -> Result<()> {
    need!(need::root(), need::netpath(), need::bpf());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &LONG)?;
    let web = topology.container("web")?;
    // The second network is refused after the first one is attached.
    topology.host.ip("link add podman8 type veth peer name other8\n")?;
    let broken = document(5).on_dual(&Network::dual(8), "eth1", 8, 5);
    netavark.try_setup(&web, &broken.json(&web))?.error()?;
    topology.host.ip("link del podman8\n")?;
    residue.nothing_left(&topology, &[&web])
}

#[test]
fn preloaded_programs_stay_until_they_are_unloaded() -> Result<()> {
    need!(need::root(), need::netpath(), need::bpf());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let said = netpath(&topology, &["preload"])?;
    ensure!(said.contains("are loaded;"), "{said}");
    let loaded = programs(&topology);
    ensure!(!loaded.is_empty() && agents(&topology).is_empty(), "{loaded:?}");
    ensure!(netpath(&topology, &["preload"])?.contains("already"), "they are loaded twice");
    // With 0, programs that are not preloaded do not stay.
    let netavark = Netavark::with(&topology, &[LONG[1]])?;
    let web = topology.container("web")?;
    for _ in 0..2 {
        netavark.setup(&web, &document(5))?;
        ensure!(loaded == programs(&topology), "preloaded programs are not used");
        netavark.teardown(&web, &document(5))?;
        ensure!(loaded == programs(&topology), "preloaded programs do not stay");
        netpath(&topology, &["gc"])?;
    }
    ensure!(loaded == programs(&topology) && agents(&topology).is_empty(), "gc has removed preloaded programs");
    netpath(&topology, &["gc", "--all"])?;
    residue.nothing_left(&topology, &[&web])
}

#[test]
fn preload_beside_rules_of_others_says_that_there_is_nothing_to_load() -> Result<()> {
    need!(need::root(), need::netpath(), need::bpf(), need::program("nft"));
    let topology = Topology::new()?;
    topology.host.command(
        "nft",
        &["add table ip other { chain f { type filter hook forward priority 0; ip saddr 203.0.113.9 drop; }; }"],
    )?;
    let said = netpath(&topology, &["preload"])?;
    ensure!(said.contains("nothing to load") && said.contains("other"), "{said}");
    ensure!(programs(&topology).is_empty(), "programs are loaded all the same");
    Ok(())
}
