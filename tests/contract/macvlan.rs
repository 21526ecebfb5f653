//! Macvlan networks that cannot be: refused with the reason, and nothing is changed.

use anyhow::{Result, ensure};
use serde_json::Value;
use support::need;
use support::netavark::{Document, Netavark, Network};
use support::residue::Residue;
use support::topology::{CLIENT4, Topology};

fn lan(parent: &str) -> Network {
    Network::new("lan", parent).set("driver", "macvlan").subnet("192.0.2.0/24", &CLIENT4.to_string())
}

fn document(network: &Network, interface: &str) -> Document {
    Document::new().on(network, interface, &["192.0.2.50"])
}

#[test]
fn impossible_requests_are_refused_with_a_reason_and_leave_nothing() -> Result<()> {
    need!(need::netpath(), need::accepted("ip", "link add link v0 name mv0 type macvlan mode bridge"));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let web = topology.container("web")?;
    for (network, expected) in [
        (
            lan("absent0"),
            "cannot create macvlan eth0 on network lan: parent interface absent0 does not exist (this host has eth0); nothing was changed",
        ),
        (lan("eth0").option("mode", "loud"), "network_info.lan.options.mode: invalid macvlan mode \"loud\""),
        (lan("eth0").option("netpath.xdp", "on"), "have no effect on a network of kind macvlan"),
    ] {
        let told = netavark.try_setup(&web, &document(&network, "eth0").json(&web))?.error()?;
        ensure!(told.contains(expected), "expected {expected:?} in {told:?}");
        residue.nothing_left(&topology, &[&web])?;
    }
    Ok(())
}

#[test]
fn a_name_that_the_container_has_is_refused_and_one_that_the_host_has_is_not() -> Result<()> {
    need!(need::netpath(), need::accepted("ip", "link add link v0 name mv0 type macvlan mode bridge"));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let (web, other) = (topology.container("web")?, topology.container("other")?);
    web.ip("link add taken0 type veth peer name taken1\n")?;
    let taken = document(&lan("eth0"), "taken0");
    let told = netavark.try_setup(&web, &taken.json(&web))?.error()?;
    ensure!(
        told.contains("create macvlan interface: interface taken0 already exists on container namespace"),
        "{told}"
    );
    ensure!(told.contains("none left behind"), "{told}");
    let links = |netns: &support::host::Netns| -> Result<usize> {
        Ok(netns.ip_json(&["link", "show", "type", "macvlan"])?.as_array().map_or(0, Vec::len))
    };
    assert_eq!(0, links(&web)?, "not even under another name");

    // The host's own link has this name as well.
    netavark.setup(&other, &document(&lan("eth0"), "eth0"))?;
    let told = netavark.try_setup(&other, &document(&lan("eth0"), "eth0").json(&other))?.error()?;
    ensure!(told.contains("interface eth0 already exists on container namespace"), "{told}");
    assert_eq!(1, links(&other)?, "the first stays");
    netavark.teardown(&other, &document(&lan("eth0"), "eth0"))?;
    netavark.teardown(&other, &document(&lan("eth0"), "eth0"))?;
    web.ip("link del taken0\n")?;
    residue.nothing_left(&topology, &[&web, &other])
}

/// As netavark: it works once the parent is up.
#[test]
fn a_parent_that_is_down_is_taken_with_a_warning() -> Result<()> {
    need!(need::netpath(), need::accepted("ip", "link add link v0 name mv0 type macvlan mode bridge"));
    let topology = Topology::new()?;
    topology.host.ip("link add idle0 type veth peer name idle1\n")?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let web = topology.container("web")?;
    let network = lan("idle0").option("bclim", "-1");
    let answer = netavark.try_setup(&web, &document(&network, "eth0").json(&web))?;
    answer.json()?;
    ensure!(answer.stderr.contains("parent idle0 of network lan is down: ip link set idle0 up"), "{answer}");
    netavark.teardown(&web, &document(&network, "eth0"))?;
    residue.nothing_left(&topology, &[&web])
}

/// The setup was killed before it renamed its macvlan, and before it recorded it.
#[test]
fn a_macvlan_under_its_first_name_goes_with_teardown() -> Result<()> {
    need!(need::netpath(), need::accepted("ip", "link add link v0 name mv0 type macvlan mode bridge"));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let web = topology.container("web")?;
    // FNV-1a of "eth0".
    let first = "eth0".bytes().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    let netns = web.path().display();
    let line = format!("link add link eth0 name npmv-{first:08x} netns {netns} type macvlan mode bridge\n");
    topology.host.ip(&line)?;
    netavark.teardown(&web, &document(&lan("eth0"), "eth0"))?;
    residue.nothing_left(&topology, &[&web])
}

/// Nothing leads from the host to it; its engine has published the port all the same.
#[test]
fn published_ports_warn_where_no_network_serves_them() -> Result<()> {
    need!(need::netpath(), need::accepted("ip", "link add link v0 name mv0 type macvlan mode bridge"));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let (web, both) = (topology.container("web")?, topology.container("both")?);
    let alone = document(&lan("eth0"), "eth0").publish("", 8080, 80, "tcp");
    let beside = alone.clone().on_dual(&Network::dual(7), "eth1", 7, 5);
    let warned = |answer: support::netavark::Answer| -> Result<bool> {
        let _: Value = answer.json()?;
        Ok(answer.stderr.contains("published ports have no effect on network lan: it is no bridge network"))
    };
    ensure!(warned(netavark.try_setup(&web, &alone.json(&web))?)?, "nothing is said");
    netavark.teardown(&web, &alone)?;
    ensure!(!warned(netavark.try_setup(&both, &beside.json(&both))?)?, "its bridge serves them");
    netavark.teardown(&both, &beside)?;
    residue.nothing_left(&topology, &[&web, &both])
}
