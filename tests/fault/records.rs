//! Records that another version of netpath has written, or that are damaged.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Output};
use support::need;
use support::netavark::{Document, Netavark, Network, Rung, binary};
use support::residue::Residue;
use support::topology::{CLIENT4, HOST4, Topology, state_dirs};
use support::traffic::{ANY, Dial, Proto, Server};

fn document(host: u8) -> Document {
    Document::new().on_dual(&Network::dual(7), "eth0", 7, host).publish("", 8000 + u16::from(host), 80, "tcp")
}

/// The file of the only record.
fn record(topology: &Topology) -> Result<PathBuf> {
    let state = &state_dirs(&format!("{:x}", topology.host.cookie()))[0];
    let mut files = std::fs::read_dir(state)?.flatten().map(|e| e.path());
    files.find(|p| p.extension().is_some_and(|e| e == "json")).context("no record")
}

fn change(topology: &Topology, by: impl Fn(&mut Value)) -> Result<PathBuf> {
    let file = record(topology)?;
    let mut value = serde_json::from_slice(&std::fs::read(&file)?)?;
    by(&mut value);
    std::fs::write(&file, value.to_string())?;
    Ok(file)
}

fn netpath(topology: &Topology, verb: &str) -> Result<Output> {
    let mut command = Command::new(binary()?);
    command.arg(verb).env("NETPATH_AGENT", "off");
    topology.host.output(command, b"")
}

/// After a downgrade: the container goes on, and a command of the later version can end it.
#[test]
fn a_record_of_a_later_version_is_refused_and_its_container_goes_on() -> Result<()> {
    need!(need::netpath(), need::rung(Rung::best_hooks()));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::on(&topology, Rung::best_hooks())?;
    let (web, other) = (topology.container("web")?, topology.container("other")?);
    netavark.setup(&web, &document(5))?;
    let _server = Server::echo(&web, Proto::Tcp, ANY, 80, "web")?;
    let file = change(&topology, |record| record["schema"] = 999.into())?;
    let written = std::fs::read(&file)?;

    let gc = netpath(&topology, "gc")?;
    let told = String::from_utf8_lossy(&gc.stderr).into_owned();
    ensure!(!gc.status.success(), "gc succeeds");
    let refusals = [
        told,
        netavark.try_setup(&other, &document(6).json(&other))?.error()?,
        netavark.try_teardown(&web, &document(5).json(&web))?.error()?,
    ];
    for text in refusals {
        ensure!(text.contains(&file.display().to_string()) && text.contains("schema 999"), "{text}");
        ensure!(text.contains("install the later version again"), "no next step: {text}");
    }
    ensure!(std::fs::read(&file)? == written, "the record has changed");
    let seen = Dial::new(Proto::Tcp, HOST4, 8005).ask(&topology.client)?;
    ensure!(seen.client.ip() == CLIENT4, "{seen:?}");

    change(&topology, |record| record["schema"] = 1.into())?;
    netavark.setup(&other, &document(6))?;
    netavark.teardown(&other, &document(6))?;
    netavark.teardown(&web, &document(5))?;
    residue.nothing_left(&topology, &[&web, &other])
}

/// After an upgrade from version 0.1, whose records have no schema and a name without the interface.
#[test]
fn a_record_of_version_0_1_goes_on() -> Result<()> {
    need!(need::netpath(), need::rung(Rung::best_hooks()));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::on(&topology, Rung::best_hooks())?;
    let (web, other) = (topology.container("web")?, topology.container("other")?);
    netavark.setup(&web, &document(5))?;
    let _server = Server::echo(&web, Proto::Tcp, ANY, 80, "web")?;
    let file = change(&topology, |record| drop(record.as_object_mut().map(|r| r.remove("schema"))))?;
    let name = file.file_name().context("no name")?.to_string_lossy().replace(".eth0.json", ".json");
    std::fs::rename(&file, file.with_file_name(name))?;
    netavark.setup(&other, &document(6))?;
    netavark.teardown(&other, &document(6))?;
    let seen = Dial::new(Proto::Tcp, HOST4, 8005).ask(&topology.client)?;
    ensure!(seen.client.ip() == CLIENT4, "{seen:?}");
    netavark.teardown(&web, &document(5))?;
    residue.nothing_left(&topology, &[&web, &other])
}
