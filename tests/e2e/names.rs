//! The agent answers DNS at the gateways, at once after setup, also where its port is another one than 53, and a published port 53
//! or the host's own server has that one.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use support::agent::{kill_all, the_agent};
use support::dns::{Resolver, Type, query};
use support::host::SOON;
use support::need;
use support::netavark::{Document, Netavark, Network, Rung};
use support::residue::Residue;
use support::topology::{Container, Family, Topology, state_dirs};

fn network() -> Network {
    Network::dual(7).set("dns_enabled", true)
}

fn resolver<'c>(container: &'c Container, family: Family, host: u8) -> Resolver<'c> {
    let server = SocketAddr::new(family.gateway(7), 53);
    Resolver::new(&container.netns, family.container(7, host), server)
}

/// Whether the container is told the address of `name`, by UDP and TCP and at both gateways.
fn is_told(container: &Container, host: u8, name: &str, address: u8) -> Result<()> {
    for family in Family::BOTH {
        let client = resolver(container, family, host);
        let expected: BTreeSet<String> = [Family::V4.container(7, address).to_string()].into();
        ensure!(client.addresses(name, Type::A)? == expected, "{name} at {}", client.server);
        let answers = client.pipelined(&[query(name, Type::A)?])?;
        ensure!(support::dns::data(&answers[0]) == expected, "{name} by TCP at {}", client.server);
    }
    Ok(())
}

fn names_are_known_as_soon_as_setup_returns(rung: Rung) -> Result<()> {
    let topology = Topology::new()?;
    rung.prepare(&topology.host)?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::on(&topology, rung)?;
    let (web, app) = (topology.container("web")?, topology.container("app")?);
    let document = |host| Document::new().on_dual(&network(), "eth0", 7, host);
    netavark.setup(&web, &document(5))?;
    is_told(&web, 5, "web.", 5)?;
    netavark.setup(&app, &document(6))?;
    is_told(&web, 5, "app.dns.podman.", 6)?;
    is_told(&app, 6, "web.", 5)?;
    let pid = the_agent(&topology)?;
    kill_all(&topology)?;
    netavark.teardown(&app, &document(6))?;
    ensure!(the_agent(&topology)? != pid, "the same agent");
    support::host::wait_for("names after the agent was killed", SOON, || is_told(&web, 5, "web.", 5).ok())?;
    netavark.teardown(&web, &document(5))?;
    residue.nothing_left(&topology, &[&web, &app])
}

on_every_rung!(names_are_known_as_soon_as_setup_returns);

/// As with `dns_bind_port` in containers.conf.
fn another_port(environment: &[(&str, &str)]) -> Result<()> {
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    // The host's own server, on all addresses.
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let own =
        topology.host.run(|| -> Result<_> { Ok((UdpSocket::bind((any, 53))?, TcpListener::bind((any, 53))?)) })?;
    let environment = [environment, &[("NETAVARK_DNS_PORT", "1053")]].concat();
    let netavark = Netavark::with(&topology, &environment)?;
    let (web, app) = (topology.container("web")?, topology.container("app")?);
    let publish =
        Document::new().on_dual(&network(), "eth0", 7, 5).publish("", 53, 53, "udp").publish("", 53, 53, "tcp");
    netavark.setup(&web, &publish)?;
    let document = Document::new().on_dual(&network(), "eth0", 7, 6);
    netavark.setup(&app, &document)?;
    is_told(&app, 6, "web.", 5)?;
    is_told(&web, 5, "app.", 6)?;
    netavark.teardown(&web, &publish)?;
    is_told(&app, 6, "app.", 6)?;
    netavark.teardown(&app, &document)?;
    drop(own);
    residue.nothing_left(&topology, &[&web, &app])
}

#[test]
fn another_port_is_no_obstacle_by_default() -> Result<()> {
    need!(need::root(), need::netpath());
    another_port(&[])
}

#[test]
fn another_port_is_no_obstacle_on_iptables() -> Result<()> {
    need!(need::netpath(), need::rung(Rung::Iptables));
    another_port(&Rung::Iptables.environment())
}

#[test]
fn without_an_agent_a_process_of_its_own_answers() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[("NETPATH_AGENT", "off")])?;
    let web = topology.container("web")?;
    let document = Document::new().on_dual(&network(), "eth0", 7, 5);
    netavark.setup(&web, &document)?;
    is_told(&web, 5, "web.", 5)?;
    let servers: Vec<_> = topology.host.processes().into_iter().filter(|(_, name)| name == "aardvark-dns").collect();
    ensure!(servers.len() == 1, "{servers:?}");
    // An agent takes over from it.
    let other = Netavark::with(&topology, &[])?;
    let app = topology.container("app")?;
    let second = Document::new().on_dual(&network(), "eth0", 7, 6);
    other.setup(&app, &second)?;
    is_told(&web, 5, "app.", 6)?;
    ensure!(!topology.host.processes().iter().any(|(_, name)| name == "aardvark-dns"), "both serve");
    other.teardown(&app, &second)?;
    other.teardown(&web, &document)?;
    residue.nothing_left(&topology, &[&web, &app])
}

/// The sockets go from the old agent to the new one, and queries wait in them meanwhile.
#[test]
fn no_query_is_lost_when_netpath_is_upgraded() -> Result<()> {
    need!(need::netpath(), need::rung(Rung::Nftables));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::on(&topology, Rung::Nftables)?;
    let (web, app) = (topology.container("web")?, topology.container("app")?);
    let document = |host| Document::new().on_dual(&network(), "eth0", 7, host);
    netavark.setup(&web, &document(5))?;
    let before = the_agent(&topology)?;
    let state = state_dirs(&format!("{:x}", topology.host.cookie())).into_iter().next().context("no state")?;
    let agent: serde_json::Value = serde_json::from_slice(&std::fs::read(state.join("agent"))?)?;
    let digest = agent["build"].as_str().and_then(|b| b.split('-').nth(1)).context("no build")?;
    let newer = Netavark::newer(&topology, Rung::Nftables, digest)?;
    let ends = AtomicBool::new(false);
    let asked = std::thread::scope(|scope| -> Result<u32> {
        let asker = scope.spawn(|| -> Result<u32> {
            let (mut asked, mut client) = (0, resolver(&web, Family::V4, 5));
            client.limit = SOON;
            while !ends.load(Ordering::Relaxed) {
                client.ask("web.", Type::A)?;
                asked += 1;
            }
            Ok(asked)
        });
        let upgraded = newer.setup(&app, &document(6));
        ends.store(true, Ordering::Relaxed);
        let asked = asker.join().map_err(|_| anyhow::anyhow!("the client has panicked"))??;
        upgraded.map(|_| asked)
    })?;
    ensure!(asked > 10, "{asked} queries");
    ensure!(the_agent(&topology)? != before, "the same agent");
    is_told(&web, 5, "app.", 6)?;
    newer.teardown(&app, &document(6))?;
    newer.teardown(&web, &document(5))?;
    residue.nothing_left(&topology, &[&web, &app])
}
