//! 60 containers up, 8 at a time, and down again: no failure, nothing left.

use anyhow::{Context, Result, ensure};
use kit::host::at_once;
use kit::need;
use kit::netavark::{Document, Netavark, Network, Rung};
use kit::residue::Residue;
use kit::topology::{CLIENT4, HOST4, Topology};
use kit::traffic::{ANY, Dial, Proto, Server};
use std::time::Instant;

const CONTAINERS: u8 = 60;
const WIDTH: usize = 8;

#[test]
fn sixty_containers_with_tcx() -> Result<()> {
    sixty(Rung::Tcx)
}

#[test]
fn sixty_containers_with_clsact() -> Result<()> {
    sixty(Rung::Clsact)
}

#[test]
fn sixty_containers_with_iptables() -> Result<()> {
    sixty(Rung::Iptables)
}

fn sixty(rung: Rung) -> Result<()> {
    need!(need::netpath(), need::rung(rung));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::on(&topology, rung)?;
    let mut containers = Vec::new();
    for n in 0..CONTAINERS {
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
        "{rung:?}: {CONTAINERS} containers, {WIDTH} at a time: up in {} ms, down in {} ms, no failure",
        up.as_millis(),
        down.as_millis()
    ));
    residue.nothing_left(&topology, &containers.iter().map(|(_, c, _)| c).collect::<Vec<_>>())
}
