//! Repeated, late, unordered and concurrent calls; and setups that fail half-way.

use anyhow::{Context, Result};
use nix::net::if_::if_nametoindex;
use serde_json::json;
use support::host::{Netns, at_once};
use support::need;
use support::netavark::{Document, Netavark, Network};
use support::residue::{Residue, Snapshot};
use support::topology::{CLIENT4, Family, HOST4, Topology};
use support::traffic::{ANY, Dial, Proto, Server};

fn document(host: u8) -> Document {
    Document::new().on_dual(&Network::dual(7), "eth0", 7, host).publish("", 8000 + u16::from(host), 80, "tcp")
}

#[test]
fn teardown_of_what_is_absent_succeeds() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let web = topology.container("web")?;
    netavark.teardown(&web, &document(5)).context("never set up")?;
    netavark.setup(&web, &document(5))?;
    netavark.teardown(&web, &document(5))?;
    netavark.teardown(&web, &document(5)).context("a second time")?;
    residue.nothing_left(&topology, &[&web])
}

#[test]
fn teardown_without_the_namespace_clears_the_host() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let web = topology.container("web")?;
    netavark.setup(&web, &document(5))?;
    let path = web.path().to_string_lossy().into_owned();
    let input = document(5).json(&web).to_string();
    drop(web);
    netavark.call(&["teardown", &path], input.as_bytes())?.done()?;
    residue.nothing_left(&topology, &[])
}

/// The kernel frees the memory of links later, which teardown does not wait for; their names are free at once.
#[test]
fn the_links_are_gone_when_teardown_returns() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let (web, other) = (topology.container("web")?, topology.container("other")?);
    let [v4, v6] = Family::BOTH.map(|f| f.container(7, 5).to_string());
    let options = json!({"interface_name": "eth0", "static_ips": [v4, v6], "options": {"host_interface_name": "vweb"}});
    let named = Document::new().attach(&Network::dual(7), options).publish("", 8005, 80, "tcp");
    let there = |netns: &Netns, name: &str| netns.run(|| if_nametoindex(name)).is_ok();
    for n in 0..10 {
        // Every other time the bridge stays.
        let beside = n % 2 == 1;
        if beside {
            netavark.setup(&other, &document(6))?;
        }
        netavark.setup(&web, &named).with_context(|| format!("setup {n}"))?;
        netavark.teardown(&web, &named)?;
        let left: Vec<&str> = ["vweb", "podman7"].into_iter().filter(|name| there(&topology.host, name)).collect();
        assert_eq!(if beside { vec!["podman7"] } else { vec![] }, left, "{n}");
        assert!(!there(&web, "eth0"), "{n}");
        if beside {
            netavark.teardown(&other, &document(6))?;
        }
    }
    residue.nothing_left(&topology, &[&web, &other])
}

/// An interface of that name exists: it stays, and works.
#[test]
fn a_second_setup_is_refused_and_the_first_stays() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let web = topology.container("web")?;
    netavark.setup(&web, &document(5))?;
    let before = Snapshot::take(&topology, &[&web])?;
    let error = netavark.try_setup(&web, &document(5).json(&web))?.error()?;
    assert!(error.contains("eth0"), "{error}");
    let after = Snapshot::take(&topology, &[&web])?;
    assert_eq!(Vec::<String>::new(), before.difference(&after));
    let _server = Server::echo(&web, Proto::Tcp, ANY, 80, "web")?;
    assert_eq!(CLIENT4, Dial::new(Proto::Tcp, HOST4, 8005).ask(&topology.client)?.client.ip());
    netavark.teardown(&web, &document(5))?;
    residue.nothing_left(&topology, &[&web])
}

/// Podman does not call teardown after a setup that failed.
#[test]
fn a_setup_that_fails_on_its_second_network_undoes_the_first() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let web = topology.container("web")?;
    // The container already has a link of that name, which no check of the document can detect.
    web.ip("link add eth1 type veth peer name other\n")?;
    let before = Snapshot::take(&topology, &[&web])?;
    let both = document(5).on_dual(&Network::dual(8), "eth1", 8, 5);
    let error = netavark.try_setup(&web, &both.json(&web))?.error()?;
    assert!(error.contains("eth1"), "{error}");
    let after = Snapshot::take(&topology, &[&web])?;
    assert_eq!(Vec::<String>::new(), before.difference(&after));
    web.ip("link del eth1\n")?;
    netavark.setup(&web, &both).context("with the way free")?;
    netavark.teardown(&web, &both)?;
    residue.nothing_left(&topology, &[&web])
}

#[test]
fn networks_are_connected_and_disconnected_one_by_one() -> Result<()> {
    need!(need::root());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let web = topology.container("web")?;
    let second = Document::new().on_dual(&Network::dual(8), "eth1", 8, 5).publish("", 8005, 80, "tcp");
    let _server = Server::echo(&web, Proto::Tcp, ANY, 80, "web")?;
    netavark.setup(&web, &document(5))?;
    netavark.setup(&web, &second)?;
    for family in Family::BOTH {
        for n in [7, 8] {
            Dial::new(Proto::Tcp, family.container(n, 5), 80).ask(&topology.host)?;
        }
    }
    netavark.teardown(&web, &second)?;
    Dial::new(Proto::Tcp, HOST4, 8005).ask(&topology.client).context("still published by the first")?;
    let left = web.ip_json(&["link", "show"])?;
    assert!(!left.to_string().contains("eth1"), "{left}");
    netavark.teardown(&web, &document(5))?;
    residue.nothing_left(&topology, &[&web])
}

#[test]
fn setups_and_teardowns_run_at_once() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let containers = (2..10_u8).map(|n| Ok((n, topology.container(&format!("c{n}"))?))).collect::<Result<Vec<_>>>()?;
    for _ in 0..3 {
        at_once(8, &containers, |(n, c)| netavark.setup(c, &document(*n)).map(drop))?;
        for (n, container) in &containers {
            let _server = Server::echo(container, Proto::Tcp, ANY, 80, &container.name)?;
            let seen = Dial::new(Proto::Tcp, HOST4, 8000 + u16::from(*n)).ask(&topology.client)?;
            assert_eq!((&container.name, CLIENT4), (&seen.server, seen.client.ip()));
        }
        at_once(8, &containers, |(n, c)| netavark.teardown(c, &document(*n)))?;
        residue.nothing_left(&topology, &containers.iter().map(|(_, c)| c).collect::<Vec<_>>())?;
    }
    Ok(())
}
