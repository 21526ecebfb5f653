//! Outbound traffic of containers: ports, echo, fixed source addresses, and packets that are dropped.

use crate::rig::{rig, serve};
use anyhow::{Context, Result};
use netpath_common::layout::{PROTO_TCP, PROTO_UDP};
use netpath_common::reason::Reason;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use support::agent::{kill_all, the_agent};
use support::echo::{Pinger, Watcher};
use support::host::SOON;
use support::need;
use support::netavark::{Document, Network, Rung};
use support::topology::{Family, Topology};
use support::traffic::{ANY, Dial, Proto, again};

on_every_rung!(
    icmp_echo_goes_out_and_comes_back,
    a_free_source_port_is_kept,
    two_containers_with_one_source_port_are_distinguished,
    a_port_of_the_host_is_not_taken,
    a_published_port_is_its_containers_own_while_the_engine_holds_it,
    outbound_addresses_are_used,
    replies_are_accepted_and_other_packets_dropped,
    packets_without_a_free_port_are_dropped_and_counted,
);

fn icmp_echo_goes_out_and_comes_back(rung: Rung) -> Result<()> {
    rig(Topology::with_far(), rung, |rig| {
        let app = rig.up("app", Document::new().on_dual(&Network::dual(7), "eth0", 7, 5))?;
        let other = rig.up("other", Document::new().on_dual(&Network::dual(7), "eth0", 7, 6))?;
        for family in Family::BOTH {
            for (netns, target, source) in [
                (&rig.topology.client, family.client(), family.host()),
                (&rig.topology.client, family.outside(), family.host()),
                (rig.topology.far(), family.far(), family.host_far()),
            ] {
                let watcher = Watcher::new(netns, family)?;
                for bytes in [0, 56, 1_400] {
                    for container in [&app.0, &other.0] {
                        // Both containers use one identifier, repeatedly.
                        for sequence in 0..3 {
                            let echo = Pinger::new(container, family, 4_711)?.ping(target, sequence, bytes);
                            rig.note(echo.is_ok(), || format!("echo of {bytes} bytes to {target}: {echo:?}"));
                        }
                    }
                }
                let seen = watcher.sources();
                rig.note(seen == [source].into(), || format!("{target} saw {seen:?}, expected {source}"));
            }
        }
        Ok(vec![app, other])
    })
}

fn a_free_source_port_is_kept(rung: Rung) -> Result<()> {
    rig(Topology::new(), rung, |rig| {
        let app = rig.up("app", Document::new().on_dual(&Network::dual(7), "eth0", 7, 5))?;
        let _server = serve(&rig.topology.client, 9000, "near")?;
        for family in Family::BOTH {
            for proto in Proto::BOTH {
                let dial = Dial::new(proto, family.client(), 9000).from(family.container(7, 5), 23_456);
                let seen = rig.sees("kept", &app.0, &dial, "near", family.host());
                rig.note(seen.as_ref().is_some_and(|s| s.client.port() == 23_456), || format!("{dial}: {seen:?}"));
            }
        }
        Ok(vec![app])
    })
}

fn two_containers_with_one_source_port_are_distinguished(rung: Rung) -> Result<()> {
    rig(Topology::new(), rung, |rig| {
        let [app, other] = [("app", 5), ("other", 6)]
            .map(|(name, host)| rig.up(name, Document::new().on_dual(&Network::dual(7), "eth0", 7, host)));
        let (app, other) = (app?, other?);
        let _server = serve(&rig.topology.client, 9000, "near")?;
        for family in Family::BOTH {
            let dial = |host| Dial::new(Proto::Tcp, family.client(), 9000).from(family.container(7, host), 23_456);
            let mut first = app.0.run(|| dial(5).connect_stream()).context("first")?;
            let mut second = other.0.run(|| dial(6).connect_stream()).context("second")?;
            let mut peers = Vec::new();
            for stream in [&mut first, &mut second] {
                peers.push(support::traffic::exchange(stream, b"who am I")?.1);
            }
            let so = peers[0].port() == 23_456 && peers[1].port() != 23_456;
            rig.note(so && peers.iter().all(|p| p.ip() == family.host()), || format!("tcp: {peers:?}"));
            for (container, host) in [(&app.0, 5), (&other.0, 6), (&app.0, 5), (&other.0, 6)] {
                let dial = Dial::new(Proto::Udp, family.client(), 9000).from(family.container(7, host), 23_456);
                rig.sees("udp", container, &dial, "near", family.host());
            }
        }
        Ok(vec![app, other])
    })
}

/// The host uses a port for the same service: a container with that source port gets another.
fn a_port_of_the_host_is_not_taken(rung: Rung) -> Result<()> {
    rig(Topology::new(), rung, |rig| {
        let app = rig.up("app", Document::new().on_dual(&Network::dual(7), "eth0", 7, 5))?;
        let _server = serve(&rig.topology.client, 9000, "near")?;
        for family in Family::BOTH {
            let own = Dial::new(Proto::Tcp, family.client(), 9000).from(family.host(), 23_457);
            let mut own = rig.topology.host.run(|| own.connect_stream())?;
            let dial = Dial::new(Proto::Tcp, family.client(), 9000).from(family.container(7, 5), 23_457);
            let seen = rig.sees("drawn", &app.0, &dial, "near", family.host());
            rig.note(seen.as_ref().is_some_and(|s| s.client.port() != 23_457), || format!("{dial}: {seen:?}"));
            support::traffic::exchange(&mut own, b"still mine")?;
        }
        Ok(vec![app])
    })
}

/// Podman's conmon keeps a socket bound to each published port. A container that speaks first from its published port (SIP,
/// WireGuard) keeps it.
fn a_published_port_is_its_containers_own_while_the_engine_holds_it(rung: Rung) -> Result<()> {
    const PORT: u16 = 5_060;
    rig(Topology::new(), rung, |rig| {
        let document = |host| Document::new().on_dual(&Network::dual(7), "eth0", 7, host);
        let publishes = document(5).publish("", PORT, PORT, "tcp").publish("", PORT, PORT, "udp");
        let app = rig.up("app", publishes)?;
        let other = rig.up("other", document(6))?;
        let _near = serve(&rig.topology.client, 9000, "near")?;
        let _held = rig.topology.host.run(|| -> std::io::Result<_> {
            Ok((std::net::TcpListener::bind((ANY, PORT))?, std::net::UdpSocket::bind((ANY, PORT))?))
        })?;
        for family in Family::BOTH {
            for proto in Proto::BOTH {
                let ask = |what: &str, container, host| {
                    let dial = Dial::new(proto, family.client(), 9000).from(family.container(7, host), PORT);
                    rig.sees(what, container, &dial, "near", family.host()).map(|seen| seen.client.port())
                };
                let port = ask("its own", &app.0, 5);
                rig.note(port == Some(PORT), || format!("{family:?} {proto:?}: left from {port:?}"));
                let port = ask("another container", &other.0, 6);
                rig.note(port != Some(PORT), || format!("{family:?} {proto:?}: took a published port"));
            }
        }
        let _served = serve(&app.0, PORT, "app")?;
        for family in Family::BOTH {
            for proto in Proto::BOTH {
                let dial = Dial::new(proto, family.host(), PORT);
                rig.sees("published", &rig.topology.client, &dial, "app", family.client());
            }
        }
        Ok(vec![app, other])
    })
}

fn outbound_addresses_are_used(rung: Rung) -> Result<()> {
    need!(need::netpath());
    rig(Topology::new(), rung, |rig| {
        let net = Network::dual(7)
            .option("outbound_addr4", &Family::V4.host_second().to_string())
            .option("outbound_addr6", &Family::V6.host_second().to_string());
        let app = rig.up("app", Document::new().on_dual(&net, "eth0", 7, 5))?;
        let _server = serve(&rig.topology.client, 9000, "near")?;
        for family in Family::BOTH {
            for proto in Proto::BOTH {
                let dial = Dial::new(proto, family.client(), 9000);
                rig.sees("outbound", &app.0, &dial, "near", family.host_second());
            }
        }
        Ok(vec![app])
    })
}

/// A container's flow admits its peer's address and port only.
fn replies_are_accepted_and_other_packets_dropped(rung: Rung) -> Result<()> {
    rig(Topology::new(), rung, |rig| {
        let app = rig.up("app", Document::new().on_dual(&Network::dual(7), "eth0", 7, 5))?;
        for family in Family::BOTH {
            let bind = |netns: &support::host::Netns, at: (std::net::IpAddr, u16)| -> Result<std::net::UdpSocket> {
                let socket = netns.run(|| std::net::UdpSocket::bind(at))?;
                socket.set_read_timeout(Some(SOON))?;
                Ok(socket)
            };
            let server = bind(&rig.topology.client, (family.client(), 9001))?;
            let stranger = bind(&rig.topology.client, (family.client(), 9002))?;
            let inside = bind(&app.0, (family.container(7, 5), 23_458))?;
            let mut data = [0; 100];
            inside.send_to(b"question", (family.client(), 9001))?;
            let (_, seen) = again(|| server.recv_from(&mut data)).context("the question")?;
            stranger.send_to(b"strange", seen)?;
            server.send_to(b"answer", seen)?;
            let (len, from) = again(|| inside.recv_from(&mut data)).context("the answer")?;
            rig.note(&data[..len] == b"answer" && from.port() == 9001, || format!("{family:?}: heard {from}"));
            // The other host's datagram was sent first: it would have arrived by now.
            inside.set_read_timeout(Some(Duration::from_millis(400)))?;
            let more = again(|| inside.recv_from(&mut data));
            rig.note(more.is_err(), || format!("{family:?}: a stranger was let in: {more:?}"));
        }
        Ok(vec![app])
    })
}

/// All ports for a flow to one service are taken: the packet is dropped and counted, and `netpath status` reports it.
fn packets_without_a_free_port_are_dropped_and_counted(rung: Rung) -> Result<()> {
    need!(need::netpath());
    need!(need::programs(rung));
    rig(Topology::new(), rung, |rig| {
        let app = rig.up("app", Document::new().on_dual(&Network::dual(7), "eth0", 7, 5))?;
        let _servers = (serve(&rig.topology.client, 9000, "near")?, serve(&rig.topology.client, 9001, "beside")?);
        let pins = support::maps::pins(Path::new("/sys/fs/bpf"), Some(rig.topology.host.cookie()))?;
        let own = 23_459;
        // A starting or running agent would rewrite its port range.
        the_agent(rig.topology)?;
        kill_all(rig.topology)?;
        support::maps::set_ports(&pins, 61_000..=62_000)?;
        for family in Family::BOTH {
            for (proto, number) in [(Proto::Tcp, PROTO_TCP), (Proto::Udp, PROTO_UDP)] {
                let dial = |port| Dial::new(proto, family.client(), port).from(family.container(7, 5), own);
                let ports = std::iter::once(own).chain(61_000..=62_000);
                let peer = SocketAddr::new(family.client(), 9000);
                support::maps::take_ports(&pins, number, peer, family.host(), ports)?;
                let before = rig.counted(Reason::DropPortsExhausted)?;
                rig.silent("no port is left", &app.0, &dial(9000));
                let more = rig.counted(Reason::DropPortsExhausted)? - before;
                rig.note(more > 0, || format!("{family:?} {proto:?}: no drop was counted"));
                rig.sees("another service", &app.0, &dial(9001), "beside", family.host());
            }
        }
        let mut command = Command::new(support::netavark::binary()?);
        command.arg("status");
        let told = String::from_utf8(rig.topology.host.output(command, b"")?.stdout)?;
        let line = told.lines().find(|l| l.starts_with(Reason::DropPortsExhausted.word()));
        rig.note(line.is_some(), || format!("status does not report it:\n{told}"));
        Ok(vec![app])
    })
}
