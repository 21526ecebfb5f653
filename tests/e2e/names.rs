//! The agent answers DNS at the gateways, at once after setup, also where its port is another one than 53, and a published port 53
//! or the host's own server has that one.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::agent::{agents, kill_all, the_agent};
use support::dns::{Resolver, Type, query};
use support::host::{SOON, patience};
use support::need;
use support::netavark::{Document, Netavark, Network, Rung};
use support::residue::Residue;
use support::topology::{Container, Family, Topology, state_dirs};
use support::traffic::{Dial, Proto, Server};

fn network() -> Network {
    Network::dual(7).set("dns_enabled", true)
}

fn resolver<'c>(container: &'c Container, family: Family, host: u8) -> Resolver<'c> {
    let server = SocketAddr::new(family.gateway(7), 53);
    let mut resolver = Resolver::new(&container.netns, family.container(7, host), server);
    resolver.limit = SOON / 4;
    resolver
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

on_every_rung!(
    names_are_known_as_soon_as_setup_returns,
    no_query_is_lost_when_netpath_is_upgraded,
    names_of_others_outlive_the_last_container
);

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

/// UDP and TCP sockets of the host at port 53, as an engine's for a published port, or those of the host's own server.
fn listen(topology: &Topology, address: IpAddr) -> Result<(UdpSocket, TcpListener)> {
    let bound =
        topology.host.run(|| -> Result<_> { Ok((UdpSocket::bind((address, 53))?, TcpListener::bind((address, 53))?)) });
    let (udp, tcp) = bound.with_context(|| format!("port 53 of {address} is taken"))?;
    udp.set_nonblocking(true)?;
    tcp.set_nonblocking(true)?;
    Ok((udp, tcp))
}

fn gets_nothing((udp, tcp): &(UdpSocket, TcpListener)) -> Result<()> {
    let got = [udp.recv(&mut [0; 64]).map(drop), tcp.accept().map(drop)].map(|got| got.map_err(|e| e.kind()));
    ensure!(got == [Err(ErrorKind::WouldBlock); 2], "the host's sockets: {got:?}");
    Ok(())
}

/// Port 53 is published on all addresses, and an engine holds it there as Podman's conmon does; then the host's own server takes it
/// at the gateway. Containers ask netpath's server nevertheless.
fn port_53_stays_free(rung: Rung) -> Result<()> {
    need!(need::netpath());
    let topology = Topology::new()?;
    rung.prepare(&topology.host)?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::on(&topology, rung)?;
    let (app, web) = (topology.container("app")?, topology.container("web")?);
    let document = Document::new().on_dual(&network(), "eth0", 7, 6);
    netavark.setup(&app, &document)?;
    // After the network has a server.
    let engine = listen(&topology, Ipv6Addr::UNSPECIFIED.into())?;
    let publish =
        Document::new().on_dual(&network(), "eth0", 7, 5).publish("", 53, 53, "udp").publish("", 53, 53, "tcp");
    netavark.setup(&web, &publish)?;
    let servers = Family::BOTH.into_iter().flat_map(|family| {
        [Proto::Udp, Proto::Tcp].map(|proto| Server::echo(&web.netns, proto, family.container(7, 5), 53, "web"))
    });
    let servers = servers.collect::<Result<Vec<_>>>()?;
    let names_are_known = || -> Result<()> {
        for (container, host) in [(&app, 6), (&web, 5)] {
            is_told(container, host, "web.", 5)?;
            is_told(container, host, "app.dns.podman.", 6)?;
        }
        Ok(())
    };
    names_are_known()?;
    for family in Family::BOTH {
        for proto in [Proto::Udp, Proto::Tcp] {
            let at = Dial::new(proto, family.host(), 53);
            ensure!(at.ask(&topology.client)?.server == "web", "{proto:?} {family:?} from outside");
            ensure!(at.ask(&app.netns)?.server == "web", "{proto:?} {family:?} by the host's address");
        }
    }
    gets_nothing(&engine)?;
    drop(engine);
    // A process that another test starts has the sockets until it executes its program.
    let own =
        support::host::wait_for("port 53 of the gateway", SOON, || listen(&topology, Family::V4.gateway(7)).ok())?;
    names_are_known()?;
    gets_nothing(&own)?;
    // Control: the query would reach it.
    kill_all(&topology)?;
    let question = query("web.", Type::A)?.to_vec()?;
    let asker = app.netns.run(|| UdpSocket::bind((Family::V4.container(7, 6), 0)))?;
    support::host::wait_for("the query at the host's server", SOON, || {
        let _ = asker.send_to(&question, (Family::V4.gateway(7), 53));
        own.0.recv(&mut [0; 64]).ok()
    })?;
    drop(servers);
    netavark.teardown(&web, &publish)?;
    support::host::wait_for("names after the agent was killed", SOON, || is_told(&app, 6, "app.", 6).ok())?;
    netavark.teardown(&app, &document)?;
    drop(own);
    residue.nothing_left(&topology, &[&web, &app])
}

#[test]
fn port_53_stays_free_on_tcx() -> Result<()> {
    need!(need::rung(Rung::Tcx));
    port_53_stays_free(Rung::Tcx)
}

#[test]
fn port_53_stays_free_on_clsact() -> Result<()> {
    need!(need::rung(Rung::Clsact));
    port_53_stays_free(Rung::Clsact)
}

/// A real Netavark's containers are in files that netpath's agent serves, and outlive the last one of netpath's.
fn names_of_others_outlive_the_last_container(rung: Rung) -> Result<()> {
    need!(need::netpath());
    let topology = Topology::new()?;
    rung.prepare(&topology.host)?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::on(&topology, rung)?;
    let web = topology.container("web")?;
    let document = Document::new().on_dual(&network(), "eth0", 7, 5);
    netavark.setup(&web, &document)?;
    let agent = the_agent(&topology)?;
    let dir = topology.dir().join("config/aardvark-dns");
    let hang_up = || -> Result<()> {
        let pid = std::fs::read_to_string(dir.join("aardvark.pid"))?.parse()?;
        Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGHUP)?)
    };
    // As Netavark writes it, and tells the server.
    let other = dir.join("other");
    std::fs::write(&other, "192.0.2.1\nbbbbbbbbbbbb1111 10.90.0.3  old,bbbbbbbbbbbb\n")?;
    hang_up()?;
    let mut client = Resolver::new(&topology.client, support::topology::CLIENT4, (support::topology::HOST4, 53).into());
    client.limit = SOON / 10;
    let is_known = || client.addresses("old.", Type::A).ok().filter(|found| found.contains("10.90.0.3"));
    support::host::wait_for("the name of the other container", SOON, is_known)?;
    netavark.teardown(&web, &document)?;
    std::thread::sleep(SOON / 5);
    ensure!(is_known().is_some(), "not known after the last container of netpath");
    ensure!(the_agent(&topology)? == agent, "another agent");
    netavark.setup(&web, &document)?;
    is_told(&web, 5, "web.", 5)?;
    ensure!(is_known().is_some() && the_agent(&topology)? == agent, "not known beside a new one");
    netavark.teardown(&web, &document)?;
    std::fs::remove_file(&other)?;
    hang_up()?;
    support::host::wait_for("the end of the agent", SOON, || agents(&topology).is_empty().then_some(()))?;
    let _ = std::fs::remove_dir(&dir);
    let _ = std::fs::remove_file(topology.dir().join("config/aardvark.lock"));
    residue.nothing_left(&topology, &[&web])
}

/// The command of netpath-agent.service, which systemd starts again after a kill.
#[test]
fn names_are_back_within_a_second_of_a_kill() -> Result<()> {
    let rung = Rung::best_hooks();
    need!(need::netpath(), need::rung(rung));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::on(&topology, rung)?;
    let web = topology.container("web")?;
    let document = Document::new().on_dual(&network(), "eth0", 7, 5);
    netavark.setup(&web, &document)?;
    let standby = || -> Result<Child> {
        let mut command = Command::new(support::netavark::binary()?);
        command.args(["agent", "--standby"]);
        Ok(topology.host.run(|| command.spawn())?)
    };
    let mut agent = standby()?;
    let first = the_agent(&topology)?;
    let is_back = || {
        support::host::wait_for("names after a kill", Duration::from_secs(1) * patience(), || {
            let mut client = resolver(&web, Family::V4, 5);
            client.limit = Duration::from_millis(100);
            client.addresses("web.", Type::A).ok()
        })
    };
    kill_all(&topology)?;
    is_back()?;
    ensure!(the_agent(&topology)? != first && the_agent(&topology)? == agent.id() as i32, "another process");
    agent.kill()?;
    agent.wait()?;
    agent = standby()?;
    is_back()?;
    // The agent ends with the last container, and the standby with it.
    netavark.teardown(&web, &document)?;
    ensure!(agent.wait()?.success(), "it fails at its end");
    residue.nothing_left(&topology, &[&web])
}

/// Although it has loaded the programs' object, of which memory of ten times that size is free afterwards.
#[test]
fn the_agent_is_small() -> Result<()> {
    let rung = Rung::best_hooks();
    need!(need::netpath(), need::rung(rung));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::on(&topology, rung)?;
    let web = topology.container("web")?;
    let document = Document::new().on_dual(&network(), "eth0", 7, 5);
    netavark.setup(&web, &document)?;
    let status = format!("/proc/{}/status", support::agent::watching(&topology)?);
    let own_kb = || -> Option<u64> {
        let status = std::fs::read_to_string(&status).ok()?;
        let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"))?;
        line.trim().trim_end_matches(" kB").parse().ok()
    };
    support::host::wait_for("less than 8 MB of its own", SOON, || own_kb().filter(|kb| *kb < 8 * 1024))?;
    netavark.teardown(&web, &document)?;
    residue.nothing_left(&topology, &[&web])
}

/// Larger than the network's MTU: the answer is marked as truncated, and whole over TCP.
#[test]
fn an_answer_that_is_larger_than_the_mtu_comes_over_tcp() -> Result<()> {
    let rung = Rung::best_hooks();
    need!(need::netpath(), need::rung(rung));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::on(&topology, rung)?;
    let web = topology.container("web")?;
    let network = Network::new("net7", "br7").subnet("10.89.7.0/24", "10.89.7.1").option("mtu", "300");
    let aliases: Vec<String> = (0..15).map(|n| format!("a-name-of-some-length-{n}")).collect();
    let options = serde_json::json!({ "interface_name": "eth0", "static_ips": ["10.89.7.5"], "aliases": aliases });
    let document = Document::new().attach(&network.set("dns_enabled", true), options);
    netavark.setup(&web, &document)?;
    let client = resolver(&web, Family::V4, 5);
    let asked = support::dns::with_edns(query("5.7.89.10.in-addr.arpa.", Type::PTR)?, 1232);
    let by_udp = client.send(&asked)?;
    ensure!(by_udp.metadata.truncation && by_udp.answers.is_empty(), "{by_udp:?}");
    let by_tcp = client.pipelined(&[asked])?;
    ensure!(by_tcp[0].answers.len() > 15, "{:?}", by_tcp[0]);
    netavark.teardown(&web, &document)?;
    residue.nothing_left(&topology, &[&web])
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
fn no_query_is_lost_when_netpath_is_upgraded(rung: Rung) -> Result<()> {
    need!(need::netpath());
    let topology = Topology::new()?;
    rung.prepare(&topology.host)?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::on(&topology, rung)?;
    let (web, app) = (topology.container("web")?, topology.container("app")?);
    let document = |host| Document::new().on_dual(&network(), "eth0", 7, host);
    netavark.setup(&web, &document(5))?;
    let before = the_agent(&topology)?;
    let state = state_dirs(&format!("{:x}", topology.host.cookie())).into_iter().next().context("no state")?;
    let agent: serde_json::Value = serde_json::from_slice(&std::fs::read(state.join("agent"))?)?;
    let digest = agent["build"].as_str().and_then(|b| b.split('-').nth(1)).context("no build")?;
    let newer = Netavark::newer(&topology, rung, digest)?;
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
    ensure!(asked > 2, "{asked} queries");
    ensure!(the_agent(&topology)? != before, "the same agent");
    is_told(&web, 5, "app.", 6)?;
    newer.teardown(&app, &document(6))?;
    newer.teardown(&web, &document(5))?;
    residue.nothing_left(&topology, &[&web, &app])
}
