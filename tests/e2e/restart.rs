//! Datagrams to a published port whose container was replaced: none may go to the removed one.

use crate::rig::{Way, rig_on, serve};
use anyhow::{Context, Result};
use std::net::UdpSocket;
use support::host::SOON;
use support::need;
use support::netavark::Document;
use support::topology::{Family, Topology};
use support::traffic::{Dial, Proto, again};

on_every_way!(
    a_restarted_container_answers_a_client_that_keeps_its_port,
    a_restarted_container_answers_a_socket_that_stays_open,
);

const CONTAINERS: [(&str, u8); 3] = [("first", 5), ("second", 6), ("third", 5)];

/// With a stale conntrack entry for the old container, datagrams of an old client would be lost.
fn a_restarted_container_answers_a_client_that_keeps_its_port(way: Way) -> Result<()> {
    need!(need::netpath());
    rig_on(Topology::new(), way, |rig| {
        let keeper = rig.up("keeper", Document::new().on_dual(&way.network(7), "eth0", 7, 9))?;
        for (name, host) in CONTAINERS {
            let up = rig.up(name, way.published(7, host))?;
            let _servers = serve(&up.0, 80, name)?;
            for family in Family::BOTH {
                for dial in [Dial::new(Proto::Udp, family.host(), 8080), Dial::new(Proto::Tcp, family.host(), 8080)] {
                    let external = dial.clone().from(family.client(), 40_000);
                    rig.sees(name, &rig.topology.client, &external, name, family.client());
                }
                let local = Dial::new(Proto::Udp, family.host(), 8080).from(family.host(), 40_001);
                let seen = local.ask(&rig.topology.host);
                rig.note(seen.as_ref().is_ok_and(|s| s.server == name), || format!("{name}: {local}: {seen:?}"));
            }
            rig.netavark.teardown(&up.0, &up.1)?;
        }
        Ok(vec![keeper])
    })
}

/// One datagram each; the sockets see no interruption.
fn a_restarted_container_answers_a_socket_that_stays_open(way: Way) -> Result<()> {
    need!(need::netpath());
    rig_on(Topology::new(), way, |rig| {
        let keeper = rig.up("keeper", Document::new().on_dual(&way.network(7), "eth0", 7, 9))?;
        let mut sockets = Vec::new();
        for family in Family::BOTH {
            for connected in [true, false] {
                let socket = rig.topology.client.run(|| UdpSocket::bind((family.client(), 0)))?;
                socket.set_read_timeout(Some(SOON))?;
                if connected {
                    rig.topology.client.run(|| socket.connect((family.host(), 8080)))?;
                }
                sockets.push((family, connected, socket));
            }
        }
        for (name, host) in CONTAINERS {
            let up = rig.up(name, way.published(7, host))?;
            let _servers = serve(&up.0, 80, name)?;
            for (family, connected, socket) in &sockets {
                let ask = || -> Result<String> {
                    match connected {
                        true => socket.send(b"hello"),
                        false => socket.send_to(b"hello", (family.host(), 8080)),
                    }
                    .context("send")?;
                    let mut answer = [0; 200];
                    let len = again(|| socket.recv(&mut answer)).context("receive")?;
                    Ok(String::from_utf8_lossy(&answer[..len]).into_owned())
                };
                let heard = ask();
                let so = heard.as_ref().is_ok_and(|a| a.starts_with(&format!("{name} ")));
                rig.note(so, || format!("{family:?}, connected: {connected}, to the {name}: {heard:?}"));
            }
            rig.netavark.teardown(&up.0, &up.1)?;
        }
        Ok(vec![keeper])
    })
}
