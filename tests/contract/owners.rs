//! A port of a host address belongs to one container.

use anyhow::{Context, Result, anyhow};
use std::fs::File;
use std::time::Duration;
use support::need;
use support::netavark::{Document, Netavark, Network};
use support::residue::{Residue, Snapshot};
use support::topology::{CLIENT4, Family, HOST4, Topology};
use support::traffic::{ANY, Dial, Proto, Server};

fn on(host: u8) -> Document {
    Document::new().on_dual(&Network::dual(7), "eth0", 7, host)
}

#[test]
fn a_port_of_a_living_container_is_refused_and_both_are_named() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let (web, late) = (topology.container("web")?, topology.container("late")?);
    let owner = on(5).publish_range("", 8000, 80, 100, "tcp").publish("127.0.0.1", 9000, 80, "udp");
    netavark.setup(&web, &owner)?;
    let before = Snapshot::take(&topology, &[&web, &late])?;
    for (wanted, port) in [
        (on(6).publish("", 8050, 80, "tcp"), "8050/tcp"),
        (on(6).publish("0.0.0.0", 8099, 80, "tcp"), "8099/tcp"),
        (on(6).publish("::", 8000, 80, "tcp"), "8000/tcp"),
        (on(6).publish("", 80, 80, "tcp").publish_range("", 7990, 1, 11, "tcp"), "8000/tcp"),
        (on(6).publish("127.0.0.1", 9000, 80, "udp"), "9000/udp"),
    ] {
        let error = netavark.try_setup(&late, &wanted.json(&late))?.error()?;
        for word in ["web", "net7", port, "nothing was changed"] {
            assert!(error.contains(word), "{word} is not in {error}");
        }
        let after = Snapshot::take(&topology, &[&web, &late])?;
        assert_eq!(Vec::<String>::new(), before.difference(&after));
    }
    netavark.teardown(&web, &owner)?;
    let late_document = on(6).publish("", 8050, 80, "tcp");
    netavark.setup(&late, &late_document).context("after the owner's teardown")?;
    netavark.teardown(&late, &late_document)?;
    residue.nothing_left(&topology, &[&web, &late])
}

#[test]
fn other_places_are_no_conflict() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let (web, late) = (topology.container("web")?, topology.container("late")?);
    let owner = on(5).publish("", 8000, 80, "tcp");
    netavark.setup(&web, &owner)?;
    let wanted = on(6)
        .publish(&HOST4.to_string(), 8000, 80, "tcp")
        .publish("127.0.0.1", 8000, 80, "tcp")
        .publish("", 8000, 80, "udp")
        .publish("", 8001, 80, "tcp");
    netavark.setup(&late, &wanted)?;
    let _servers = [Server::echo(&web, Proto::Tcp, ANY, 80, "web")?, Server::echo(&late, Proto::Tcp, ANY, 80, "late")?];
    let (shared, other) = (Dial::new(Proto::Tcp, HOST4, 8000), Dial::new(Proto::Tcp, Family::V6.host(), 8000));
    assert_eq!("late", shared.ask(&topology.client)?.server, "one address before all");
    assert_eq!("web", other.ask(&topology.client)?.server);
    netavark.teardown(&late, &wanted)?;
    assert_eq!("web", shared.ask(&topology.client)?.server, "the wildcard publish serves it again");
    netavark.setup(&late, &wanted)?;
    netavark.teardown(&web, &owner)?;
    assert_eq!("late", shared.ask(&topology.client)?.server, "it stays where it was");
    other.must_fail(&topology.client)?;
    netavark.teardown(&late, &wanted)?;
    residue.nothing_left(&topology, &[&web, &late])
}

/// Podman restarts a container without a teardown, and connects it to further networks.
#[test]
fn a_container_is_no_conflict_with_itself() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let web = topology.container("web")?;
    let first = on(5).publish("", 8000, 80, "tcp");
    let second = Document::new().on_dual(&Network::dual(8), "eth1", 8, 5).publish("", 8000, 80, "tcp");
    netavark.setup(&web, &first)?;
    netavark.setup(&web, &second)?;
    netavark.teardown(&web, &second)?;
    // Its interface is deleted with another namespace, without a teardown.
    web.ip("link del eth0\n")?;
    netavark.setup(&web, &first).context("again")?;
    netavark.teardown(&web, &first)?;
    residue.nothing_left(&topology, &[&web])
}

#[test]
fn a_container_that_is_gone_owns_nothing() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let (web, late) = (topology.container("web")?, topology.container("late")?);
    netavark.setup(&web, &on(5).publish("", 8000, 80, "tcp"))?;
    web.ip("link del eth0\n")?;
    let wanted = on(6).publish("", 8000, 80, "tcp");
    netavark.setup(&late, &wanted)?;
    let _server = Server::echo(&late, Proto::Tcp, ANY, 80, "late")?;
    let seen = Dial::new(Proto::Tcp, HOST4, 8000).ask(&topology.client)?;
    assert_eq!(("late", CLIENT4), (seen.server.as_str(), seen.client.ip()));
    netavark.teardown(&late, &wanted)?;
    residue.nothing_left(&topology, &[&web, &late])
}

/// The kernel removes the interfaces of a namespace some time after its last user has gone.
#[test]
fn a_container_whose_interfaces_are_being_removed_owns_nothing() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let (web, late) = (topology.container("web")?, topology.container("late")?);
    netavark.setup(&web, &on(5).publish("", 8000, 80, "tcp"))?;
    let keeps_its_interfaces = File::open(web.path())?;
    drop(web);
    let wanted = on(6).publish("", 8000, 80, "tcp");
    let end = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(700));
        drop(keeps_its_interfaces);
    });
    netavark.setup(&late, &wanted)?;
    end.join().map_err(|_| anyhow!("the thread panicked"))?;
    let _server = Server::echo(&late, Proto::Tcp, ANY, 80, "late")?;
    assert_eq!("late", Dial::new(Proto::Tcp, HOST4, 8000).ask(&topology.client)?.server);
    netavark.teardown(&late, &wanted)?;
    residue.nothing_left(&topology, &[&late])
}
