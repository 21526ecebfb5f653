//! 2 GB and 100,000 short connections through a published port and out through masquerade: no error, equal sums.

use crate::scaled;
use anyhow::{Context, Result, ensure};
use std::net::SocketAddr;
use support::host::Netns;
use support::load::{bulk, bulk_server, hammer, hammer_server};
use support::need;
use support::netavark::{Document, Netavark, Network, Rung};
use support::residue::Residue;
use support::topology::{Family, Topology};
use support::traffic::ANY;

on_every_rung!(nothing_is_lost);

fn nothing_is_lost(rung: Rung) -> Result<()> {
    need!(need::best_hooks(rung));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::on(&topology, rung)?;
    let web = topology.container("web")?;
    let document = Document::new()
        .on_dual(&Network::dual(7), "eth0", 7, 5)
        .publish("", 8080, 80, "tcp")
        .publish("", 8081, 81, "tcp");
    netavark.setup(&web, &document)?;
    let servers = [
        bulk_server(&web, ANY, 80)?,
        hammer_server(&web, ANY, 81)?,
        bulk_server(&topology.client, ANY, 9000)?,
        hammer_server(&topology.client, ANY, 9001)?,
    ];
    for family in Family::BOTH {
        through(&format!("{rung:?} {family:?} published"), &topology.client, (family.host(), 8080).into())?;
        through(&format!("{rung:?} {family:?} masqueraded"), &web, (family.client(), 9000).into())?;
    }
    drop(servers);
    netavark.teardown(&web, &document)?;
    residue.nothing_left(&topology, &[&web])
}

/// Half of each bar, since there are two families. The hammer's port is one above the bulk's.
fn through(what: &str, client: &Netns, to: SocketAddr) -> Result<()> {
    let bytes = scaled(1_000_000_000);
    let took = bulk(client, to, bytes).with_context(|| format!("{what}: bulk"))?;
    let gbits = bytes as f64 * 8.0 / 1e9 / took.as_secs_f64();
    let connections = scaled(50_000);
    let seen = hammer(client, SocketAddr::new(to.ip(), to.port() + 1), connections)?;
    let rate = connections as f64 / seen.took.as_secs_f64();
    need::say(&format!(
        "{what}: {} MB, sums equal, {gbits:.1} Gb/s; {connections} connections, {} failed, {} slow, {rate:.0}/s",
        bytes / 1_000_000,
        seen.failed,
        seen.slow
    ));
    ensure!(seen.failed == 0, "{what}: {} of {connections} connections failed: {:?}", seen.failed, seen.errors);
    Ok(())
}
