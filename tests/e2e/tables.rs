//! The tables that iptables makes in nf_tables for netpath: gone with the last container, in whichever order networks go, and the
//! accept in whichever backend drops.

use crate::rig::serve;
use anyhow::{Result, ensure};
use support::need;
use support::netavark::{Document, Netavark, Network, Rung};
use support::residue::Residue;
use support::topology::{Family, Topology};
use support::traffic::{Dial, Proto};

/// A table has nothing to hold once the networks that need it are gone, while others still have rules elsewhere.
#[test]
fn no_table_stays_after_the_last_container_of_networks_of_several_kinds() -> Result<()> {
    need!(need::netpath());
    need!(need::rung(Rung::Iptables));
    need!(need::program("nft"));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::on(&topology, Rung::Iptables)?;
    let containers = [topology.container("open")?, topology.container("direct")?, topology.container("apart")?];
    let networks = [
        Network::dual(7),
        Network::dual(8).option("netpath.direct", "true"),
        Network::dual(9).option("isolate", "true"),
    ];
    let documents: Vec<Document> = networks
        .iter()
        .zip(7..)
        .map(|(net, n)| Document::new().on_dual(net, "eth0", n, 5).publish("", 8000 + u16::from(n), 80, "tcp"))
        .collect();
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1]] {
        for at in order {
            netavark.setup(&containers[at], &documents[at])?;
        }
        for at in order {
            netavark.teardown(&containers[at], &documents[at])?;
        }
        let tables = topology.host.command("nft", &["list", "tables"])?;
        ensure!(tables.is_empty(), "left in the order {order:?}: {tables}");
        residue.nothing_left(&topology, &containers.iter().collect::<Vec<_>>())?;
    }
    Ok(())
}

/// A policy alone is what a host uses a backend for.
#[test]
fn the_backend_whose_policy_drops_is_the_one_that_accepts() -> Result<()> {
    need!(need::netpath());
    need!(need::rung(Rung::Iptables));
    let topology = Topology::new()?;
    let dropped = topology.host.command("iptables-legacy", &["-P", "FORWARD", "DROP"]);
    need!(dropped.map(drop).map_err(|_| "legacy iptables".to_owned()));
    let netavark = Netavark::with(&topology, &[])?;
    let container = topology.container("web")?;
    let document = Document::new().on_dual(&Network::dual(7), "eth0", 7, 5).publish("", 8080, 80, "tcp");
    netavark.setup(&container, &document)?;
    let _servers = serve(&container, 80, "web")?;
    let dial = Dial::new(Proto::Tcp, Family::V4.host(), 8080);
    dial.ask(&topology.client)?;
    netavark.teardown(&container, &document)?;
    let left = topology.host.command("iptables-legacy-save", &[])?;
    ensure!(!left.contains("NETPATH_") && left.contains(":FORWARD DROP"), "{left}");
    Ok(())
}
