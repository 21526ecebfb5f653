//! A port that is published on an address which the host does not have, as a standby of keepalived: the machine that has the
//! address answers, until it is the host's.

use anyhow::{Result, ensure};
use std::net::IpAddr;
use support::host::wait_for;
use support::need;
use support::netavark::{Document, Netavark, Network, Rung};
use support::residue::Residue;
use support::topology::{Family, Topology};
use support::traffic::{ANY, Dial, Proto, Server};

on_every_rung!(the_machine_that_has_the_address_answers);

/// Moves between the client and the host.
fn shared(family: Family) -> IpAddr {
    family.pick([198, 51, 100, 7].into(), [0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 7].into())
}

fn the_machine_that_has_the_address_answers(rung: Rung) -> Result<()> {
    need!(need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::on(&topology, rung)?;
    let (web, other) = (topology.container("web")?, topology.container("other")?);
    let mut document = Document::new().on_dual(&Network::dual(7), "eth0", 7, 5);
    for family in Family::BOTH {
        document = document.publish(&shared(family).to_string(), 8080, 80, "tcp");
        document = document.publish(&shared(family).to_string(), 8080, 80, "udp");
        topology.client.ip(&format!("address add {}{} dev lo\n", shared(family), family.pick("/32", "/128")))?;
    }
    netavark.setup(&web, &document)?;
    netavark.setup(&other, &Document::new().on_dual(&Network::dual(7), "eth0", 7, 6))?;
    let mut servers = Vec::new();
    for proto in [Proto::Tcp, Proto::Udp] {
        servers.push(Server::echo(&web, proto, ANY, 80, "container")?);
        for family in Family::BOTH {
            servers.push(Server::echo(&topology.client, proto, shared(family), 8080, "elsewhere")?);
        }
        for family in Family::BOTH {
            let dial = Dial::new(proto, shared(family), 8080);
            for (from, name) in [(&topology.host, "host"), (&*web, "web"), (&*other, "other")] {
                let seen = dial.ask(from)?;
                ensure!(seen.server == "elsewhere", "{proto:?} {family:?} from {name}: {seen:?}");
            }
        }
    }
    for family in Family::BOTH {
        let (prefix, address) = (family.pick("/32", "/128"), shared(family));
        topology.client.ip(&format!(
            "address del {address}{prefix} dev lo\nroute add {address}{prefix} via {}\n",
            family.host()
        ))?;
        topology.host.ip(&format!("address add {address}{prefix} dev eth0\n"))?;
        let dial = Dial::new(Proto::Tcp, address, 8080);
        for (from, name) in [(&topology.client, "client"), (&topology.host, "host"), (&*other, "other")] {
            wait_for(&format!("an answer of the container to {name}, {family:?}"), support::host::SOON, || {
                dial.ask(from).ok().filter(|seen| seen.server == "container").map(drop)
            })?;
        }
    }
    drop(servers);
    netavark.teardown(&other, &Document::new().on_dual(&Network::dual(7), "eth0", 7, 6))?;
    netavark.teardown(&web, &document)?;
    for family in Family::BOTH {
        topology.host.ip(&format!("address del {}{} dev eth0\n", shared(family), family.pick("/32", "/128")))?;
    }
    residue.nothing_left(&topology, &[&web, &other])
}
