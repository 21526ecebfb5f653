//! `podman network reload`: teardown and setup of the same container in the same namespace with the same addresses. Its connections
//! go on; another container with its address gets none of them.

use crate::rig::serve;
use anyhow::{Context, Result, ensure};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;
use support::agent::{agents, watching};
use support::host::{Netns, SOON, patience, wait_for};
use support::need;
use support::netavark::{Document, Netavark, Network, Rung};
use support::residue::Residue;
use support::topology::{Container, Family, Topology};
use support::traffic::{again, free};

on_every_rung!(
    connections_of_a_lone_container_go_on,
    connections_of_one_of_two_containers_go_on,
    another_container_with_its_address_gets_nothing_of_it,
    another_container_with_its_port_gets_the_datagrams_of_open_sockets,
);

fn on(topology: &Topology, rung: Rung) -> Result<Netavark<'_>> {
    Netavark::with(topology, &[rung.environment(), vec![("NETPATH_KEEP_LOADED", "600")]].concat())
}

fn app() -> Document {
    let document = Document::new().on_dual(&Network::dual(7), "eth0", 7, 5);
    document.publish("", 8080, 80, "tcp").publish("", 8080, 80, "udp")
}

/// Both ends of a TCP connection.
fn connected(server: &Netns, listen: SocketAddr, client: &Netns, to: SocketAddr) -> Result<[TcpStream; 2]> {
    let listener = server.run(|| free(|| TcpListener::bind(listen)))?;
    let dialled = client.run(|| TcpStream::connect_timeout(&to, SOON))?;
    let (accepted, _) = listener.accept()?;
    for stream in [&dialled, &accepted] {
        stream.set_read_timeout(Some(SOON))?;
    }
    Ok([dialled, accepted])
}

fn passes(from: &mut TcpStream, to: &mut TcpStream, what: &str) -> Result<()> {
    let (sent, mut got) = (what.as_bytes(), vec![0; what.len()]);
    from.write_all(sent).with_context(|| format!("{what}: sending"))?;
    to.read_exact(&mut got).with_context(|| format!("{what}: receiving"))?;
    ensure!(got == sent, "{what}: other bytes");
    Ok(())
}

/// A connection in each direction and family.
struct Lasting {
    /// The client, then the container.
    inbound: Vec<[TcpStream; 2]>,
    /// The container, then the server outside.
    outbound: Vec<[TcpStream; 2]>,
}

impl Lasting {
    fn begin(topology: &Topology, container: &Container) -> Result<Self> {
        let any = |family: Family| family.pick(IpAddr::from([0; 4]), IpAddr::from([0; 16]));
        let (mut inbound, mut outbound) = (Vec::new(), Vec::new());
        for family in Family::BOTH {
            let published = SocketAddr::new(family.host(), 8080);
            inbound.push(connected(
                container,
                SocketAddr::new(family.container(7, 5), 80),
                &topology.client,
                published,
            )?);
            let outside = SocketAddr::new(family.client(), 9000);
            outbound.push(connected(&topology.client, SocketAddr::new(any(family), 9000), container, outside)?);
        }
        Ok(Self { inbound, outbound })
    }

    /// The peers outside speak first, then the container.
    fn go_on(&mut self) -> Result<()> {
        for [client, container] in &mut self.inbound {
            passes(client, container, "client to container")?;
            passes(container, client, "container to client")?;
        }
        for [container, server] in &mut self.outbound {
            passes(server, container, "server to container")?;
            passes(container, server, "container to server")?;
        }
        Ok(())
    }

    /// Peers that send between teardown and setup, which must not be answered by the host.
    fn send_in_between(&mut self) -> Result<()> {
        let ends = self.inbound.iter_mut().map(|[client, _]| client).chain(self.outbound.iter_mut().map(|[_, s]| s));
        for stream in ends {
            stream.write_all(b"now")?;
        }
        // An answer of the host would arrive now.
        std::thread::sleep(Duration::from_millis(100));
        Ok(())
    }

    /// What was sent in between comes by retransmission.
    fn receive_what_was_sent(&mut self) -> Result<()> {
        let ends = self.inbound.iter_mut().map(|[_, c]| c).chain(self.outbound.iter_mut().map(|[c, _]| c));
        for stream in ends {
            let mut got = [0; 3];
            stream.read_exact(&mut got).context("what was sent between teardown and setup")?;
            ensure!(&got == b"now", "other bytes");
        }
        Ok(())
    }
}

fn connections_of_a_lone_container_go_on(rung: Rung) -> Result<()> {
    go_on(rung, false)
}

fn connections_of_one_of_two_containers_go_on(rung: Rung) -> Result<()> {
    go_on(rung, true)
}

fn go_on(rung: Rung, beside: bool) -> Result<()> {
    need!(need::netpath());
    let topology = Topology::new()?;
    rung.prepare(&topology.host)?;
    let residue = Residue::watch(&topology)?;
    let netavark = on(&topology, rung)?;
    let (container, other) = (topology.container("app")?, topology.container("other")?);
    let document = Document::new().on_dual(&Network::dual(7), "eth0", 7, 6);
    if beside {
        netavark.setup(&other, &document)?;
    }
    netavark.setup(&container, &app())?;
    watching(&topology)?;
    let mut lasting = Lasting::begin(&topology, &container)?;
    lasting.go_on().context("before")?;
    for round in 0..2 {
        netavark.teardown(&container, &app())?;
        lasting.send_in_between()?;
        netavark.setup(&container, &app())?;
        lasting.receive_what_was_sent().with_context(|| format!("reload {round}"))?;
        lasting.go_on().with_context(|| format!("after reload {round}"))?;
    }
    drop(lasting);
    netavark.teardown(&container, &app())?;
    if beside {
        netavark.teardown(&other, &document)?;
    }
    ends(&topology, residue, &[&container, &other])
}

/// Everything is gone after the time in which a container may come back, except what stays loaded.
fn ends(topology: &Topology, residue: Residue, containers: &[&Container]) -> Result<()> {
    let dir = format!("/run/netpath/{:x}/departed", topology.host.cookie());
    wait_for("the end of the connections", Duration::from_secs(8) * patience(), || {
        (!std::path::Path::new(&dir).exists()).then_some(())
    })?;
    let mut gc = std::process::Command::new(support::netavark::binary()?);
    gc.args(["gc", "--all"]);
    topology.host.output(gc, b"")?;
    wait_for("the end of the agent", SOON, || agents(topology).is_empty().then_some(()))?;
    residue.nothing_left(topology, containers)
}

fn another_container_with_its_address_gets_nothing_of_it(rung: Rung) -> Result<()> {
    need!(need::netpath());
    let topology = Topology::new()?;
    rung.prepare(&topology.host)?;
    let residue = Residue::watch(&topology)?;
    let netavark = on(&topology, rung)?;
    let (first, second) = (topology.container("first")?, topology.container("second")?);
    let quiet = Document::new().on_dual(&Network::dual(7), "eth0", 7, 5);
    netavark.setup(&first, &quiet)?;
    watching(&topology)?;
    for family in Family::BOTH {
        let outside = SocketAddr::new(family.client(), 9000);
        let server = topology.client.run(|| free(|| UdpSocket::bind(outside)))?;
        server.set_read_timeout(Some(SOON))?;
        let own = SocketAddr::new(family.container(7, 5), 7777);
        let begin = |container: &Container| -> Result<(UdpSocket, SocketAddr)> {
            let socket = container.run(|| free(|| UdpSocket::bind(own)))?;
            socket.set_read_timeout(Some(Duration::from_millis(300) * patience()))?;
            socket.send_to(b"hello", outside)?;
            let mut buffer = [0; 16];
            Ok((socket, again(|| server.recv_from(&mut buffer))?.1))
        };
        let (socket, seen_as) = begin(&first)?;
        netavark.teardown(&first, &quiet)?;
        netavark.setup(&first, &quiet)?;
        server.send_to(b"reloaded", seen_as)?;
        let mut buffer = [0; 16];
        let (length, _) = again(|| socket.recv_from(&mut buffer)).context("positive control: the same container")?;
        ensure!(&buffer[..length] == b"reloaded", "other bytes");

        netavark.teardown(&first, &quiet)?;
        netavark.setup(&second, &quiet)?;
        let other = second.run(|| free(|| UdpSocket::bind(own)))?;
        other.set_read_timeout(Some(Duration::from_millis(300) * patience()))?;
        server.send_to(b"stale", seen_as)?;
        ensure!(
            again(|| other.recv_from(&mut buffer)).is_err(),
            "{family:?}: another container got a packet of the first one"
        );
        netavark.teardown(&second, &quiet)?;
        netavark.setup(&first, &quiet)?;
    }
    netavark.teardown(&first, &quiet)?;
    ends(&topology, residue, &[&first, &second])
}

fn another_container_with_its_port_gets_the_datagrams_of_open_sockets(rung: Rung) -> Result<()> {
    need!(need::netpath());
    let topology = Topology::new()?;
    rung.prepare(&topology.host)?;
    let residue = Residue::watch(&topology)?;
    let netavark = on(&topology, rung)?;
    let clients = Family::BOTH.map(|family| {
        let socket = topology.client.run(|| UdpSocket::bind((family.client(), 0)))?;
        socket.set_read_timeout(Some(SOON))?;
        Ok((family, socket))
    });
    let clients: Vec<_> = clients.into_iter().collect::<Result<_>>()?;
    let mut containers = Vec::new();
    for (name, host) in [("first", 5), ("second", 6)] {
        let document = Document::new().on_dual(&Network::dual(7), "eth0", 7, host).publish("", 8080, 80, "udp");
        let container = topology.container(name)?;
        netavark.setup(&container, &document)?;
        watching(&topology)?;
        let servers = serve(&container, 80, name)?;
        for (family, socket) in &clients {
            socket.send_to(b"hello", (family.host(), 8080))?;
            let mut answer = [0; 200];
            let length = again(|| socket.recv(&mut answer)).with_context(|| format!("{family:?}: {name}"))?;
            let answer = String::from_utf8_lossy(&answer[..length]);
            ensure!(answer.starts_with(&format!("{name} ")), "{family:?}: {answer}");
        }
        drop(servers);
        netavark.teardown(&container, &document)?;
        containers.push(container);
    }
    ends(&topology, residue, &containers.iter().collect::<Vec<_>>())
}
