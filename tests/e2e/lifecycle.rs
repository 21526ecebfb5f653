//! Clients while containers start and stop.

use crate::rig::{rig, serve, web};
use anyhow::Result;
use support::netavark::{Document, Network, Rung};
use support::topology::{Family, Topology};
use support::traffic::{Dial, Proto};

on_every_rung!(
    an_established_connection_survives_another_containers_coming_and_going,
    a_withdrawn_port_is_the_hosts_again,
    an_address_that_the_host_gets_later_is_published_too,
);

fn document(host: u8) -> Document {
    Document::new()
        .on_dual(&Network::dual(7), "eth0", 7, host)
        .publish("", 8080, 80, "tcp")
        .publish("", 8080, 80, "udp")
}

fn an_established_connection_survives_another_containers_coming_and_going(rung: Rung) -> Result<()> {
    rig(Topology::new(), rung, |rig| {
        let (web, _servers) = web(rig, document(5))?;
        for family in Family::BOTH {
            let (external, local) = [&rig.topology.client, &rig.topology.host]
                .map(|netns| netns.run(|| Dial::new(Proto::Tcp, family.host(), 8080).connect_stream()))
                .into();
            let mut streams = [external?, local?];
            let app =
                rig.up("app", Document::new().on_dual(&Network::dual(7), "eth0", 7, 6).publish("", 9090, 80, "tcp"))?;
            for stream in &mut streams {
                support::traffic::exchange(stream, b"while it is there")?;
            }
            rig.netavark.teardown(&app.0, &app.1)?;
            for stream in &mut streams {
                support::traffic::exchange(stream, b"when it is gone")?;
            }
        }
        Ok(vec![web])
    })
}

fn a_withdrawn_port_is_the_hosts_again(rung: Rung) -> Result<()> {
    rig(Topology::new(), rung, |rig| {
        let keeper = rig.up("keeper", Document::new().on_dual(&Network::dual(7), "eth0", 7, 9))?;
        let (web, servers) = web(rig, document(5))?;
        let _own = serve(&rig.topology.host, 8080, "host")?;
        for family in Family::BOTH {
            let dial = Dial::new(Proto::Tcp, family.host(), 8080);
            rig.sees("published", &rig.topology.client, &dial, "web", family.client());
        }
        drop(servers);
        rig.netavark.teardown(&web.0, &web.1)?;
        for family in Family::BOTH {
            for proto in Proto::BOTH {
                let dial = Dial::new(proto, family.host(), 8080);
                rig.sees("withdrawn", &rig.topology.client, &dial, "host", family.client());
                rig.sees("withdrawn, locally", &rig.topology.host, &dial, "host", family.host());
            }
        }
        Ok(vec![keeper])
    })
}

fn an_address_that_the_host_gets_later_is_published_too(rung: Rung) -> Result<()> {
    rig(Topology::new(), rung, |rig| {
        let (web, _servers) = web(rig, document(5))?;
        rig.topology.host.ip("addr add 192.0.2.77/24 dev eth0\naddr add 2001:db8:1::77/64 dev eth0 nodad\n")?;
        for (address, family) in [("192.0.2.77", Family::V4), ("2001:db8:1::77", Family::V6)] {
            for proto in Proto::BOTH {
                let dial = Dial::new(proto, address.parse()?, 8080);
                rig.sees("a new address", &rig.topology.client, &dial, "web", family.client());
                let seen = dial.ask(&rig.topology.host);
                rig.note(seen.as_ref().is_ok_and(|s| s.server == "web"), || format!("locally: {dial}: {seen:?}"));
            }
        }
        rig.topology.host.ip("addr del 192.0.2.77/24 dev eth0\naddr del 2001:db8:1::77/64 dev eth0\n")?;
        Ok(vec![web])
    })
}
