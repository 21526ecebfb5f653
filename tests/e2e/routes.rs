//! Routes and rules of the host that depend on protocol, ports and size: containers' packets go as the host's own would.

use crate::rig::{rig, serve};
use anyhow::{Context, Result};
use nix::errno::Errno;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;
use support::agent::watching;
use support::host::{Netns, SOON, wait_for};
use support::need;
use support::netavark::{Document, Network, Rung};
use support::raw::Probe;
use support::topology::{CLIENT4, CLIENT6, FAR4, FAR6, Family, HOST4, HOST6, OUTSIDE4, OUTSIDE6, Topology};
use support::traffic::{Dial, Proto, again};

on_every_rung!(
    rules_by_protocol_and_port_choose_the_uplink,
    connections_are_spread_over_uplinks_as_the_hosts_own,
    the_mtu_of_a_route_is_reported_to_the_container,
    the_locked_mtu_of_a_route_is_reported_to_the_container,
    the_mtu_that_a_route_gets_is_reported_from_then_on,
    an_address_on_lo_answers_by_the_hosts_route,
);

/// The same address behind both uplinks, as of a service that either way leads to.
fn two_ways() -> Result<Topology> {
    let topology = Topology::with_far()?;
    topology.far().ip(&format!("addr add {OUTSIDE4}/32 dev lo\naddr add {OUTSIDE6}/128 dev lo\n"))?;
    Ok(topology)
}

/// As [`two_ways`], with TCP to port 9443 by the second uplink.
fn ruled() -> Result<Topology> {
    let topology = two_ways()?;
    let host = &topology.host;
    host.ip(&format!("route add default via {FAR4} table 100\nroute add default via {FAR6} dev eth1 table 100\n"))?;
    for family in ["-4", "-6"] {
        let words = format!("{family} rule add iif podman7 ipproto tcp dport 9443 lookup 100");
        host.command("ip", &words.split(' ').collect::<Vec<_>>())?;
    }
    Ok(topology)
}

fn rules_by_protocol_and_port_choose_the_uplink(rung: Rung) -> Result<()> {
    rig(ruled(), rung, |rig| {
        let app = rig.up("app", Document::new().on_dual(&Network::dual(7), "eth0", 7, 5))?;
        let mut servers = Vec::new();
        for (netns, name) in [(&rig.topology.client, "near"), (rig.topology.far(), "far")] {
            for port in [9_000, 9_443] {
                servers.extend(serve(netns, port, name)?);
            }
        }
        for family in Family::BOTH {
            for (port, server, source) in [(9_443, "far", family.host_far()), (9_000, "near", family.host())] {
                rig.sees("by rule", &app.0, &Dial::new(Proto::Tcp, family.outside(), port), server, source);
            }
        }
        Ok(vec![app])
    })
}

/// As [`two_ways`], with the default routes over both uplinks, by ports.
fn spread() -> Result<Topology> {
    let topology = two_ways()?;
    for family in ["ipv4", "ipv6"] {
        topology.host.set_sysctl(&format!("net/{family}/fib_multipath_hash_policy"), "1")?;
    }
    topology.host.ip(&format!(
        "route replace default nexthop via {CLIENT4} nexthop via {FAR4}\n\
         route del default via {CLIENT6} dev eth0\n\
         route add default nexthop via {CLIENT6} dev eth0 nexthop via {FAR6} dev eth1\n"
    ))?;
    Ok(topology)
}

fn connections_are_spread_over_uplinks_as_the_hosts_own(rung: Rung) -> Result<()> {
    rig(spread(), rung, |rig| {
        let app = rig.up("app", Document::new().on_dual(&Network::dual(7), "eth0", 7, 5))?;
        let _servers = (serve(&rig.topology.client, 9_000, "near")?, serve(rig.topology.far(), 9_000, "far")?);
        for family in Family::BOTH {
            let mut reached = BTreeSet::new();
            for port in 24_000..24_024 {
                let dial = Dial::new(Proto::Tcp, family.outside(), 9_000).from(family.container(7, 5), port);
                let Some(seen) = rig.met("spread", dial.ask(&app.0)) else { continue };
                let source = if seen.server == "far" { family.host_far() } else { family.host() };
                rig.note(seen.client.ip() == source, || format!("{dial}: {seen:?}"));
                reached.insert(seen.server);
            }
            rig.note(reached.len() == 2, || format!("{family:?}: 24 connections reached {reached:?}"));
        }
        Ok(vec![app])
    })
}

const TAKES: u32 = 1_300;

/// A route that takes smaller packets than its device.
fn narrow(host: &Netns, lock: &str) -> Result<()> {
    host.ip(&format!(
        "route replace {OUTSIDE4}/32 via {CLIENT4} mtu {lock} {TAKES}\n\
         route replace {OUTSIDE6}/128 via {CLIENT6} dev eth0 mtu {lock} {TAKES}\n"
    ))
}

fn the_mtu_of_a_route_is_reported_to_the_container(rung: Rung) -> Result<()> {
    reports(rung, "")
}

fn the_locked_mtu_of_a_route_is_reported_to_the_container(rung: Rung) -> Result<()> {
    reports(rung, "lock")
}

fn reports(rung: Rung, lock: &str) -> Result<()> {
    let topology = Topology::new()?;
    narrow(&topology.host, lock)?;
    rig(Ok(topology), rung, |rig| {
        let app = rig.up("app", Document::new().on_dual(&Network::dual(7).option("mtu", "1500"), "eth0", 7, 5))?;
        if need::netpath().is_ok() {
            watching(rig.topology)?;
        }
        let _server = serve(&rig.topology.client, 9_000, "near")?;
        for family in Family::BOTH {
            let probe = Probe::new(&app.0, SocketAddr::new(family.outside(), 9_000))?.whole()?;
            let told = rig.met(&format!("{family:?}"), probe.error_of(1_400));
            let expected = (Errno::EMSGSIZE as i32, TAKES);
            let is_host = |by: IpAddr| [family.gateway(7), family.host()].contains(&by);
            let so = told.as_ref().is_some_and(|t| (t.errno, t.info) == expected && is_host(t.offender));
            rig.note(so, || format!("{family:?}: expected {expected:?} of the host, got {told:?}"));
            let dial = Dial::new(Proto::Tcp, family.outside(), 9_000).bytes(100_000);
            rig.sees("a large request", &app.0, &dial, "near", family.host());
        }
        Ok(vec![app])
    })
}

fn the_mtu_that_a_route_gets_is_reported_from_then_on(rung: Rung) -> Result<()> {
    need!(need::netpath());
    rig(Topology::new(), rung, |rig| {
        let Topology { client, host, .. } = rig.topology;
        let app = rig.up("app", Document::new().on_dual(&Network::dual(7).option("mtu", "1500"), "eth0", 7, 5))?;
        let _server = serve(client, 9_000, "near")?;
        watching(rig.topology)?;
        let probes = Family::BOTH
            .map(|family| Probe::new(&app.0, SocketAddr::new(family.outside(), 9_000)).and_then(Probe::whole));
        for probe in &probes {
            let told =
                probe.as_ref().map_err(|e| anyhow::anyhow!("{e:#}"))?.error_within(Duration::from_millis(400), 1_400);
            rig.note(told.is_err(), || format!("positive control: {told:?}"));
        }
        narrow(host, "")?;
        for probe in probes.into_iter().flatten() {
            let told = wait_for("the MTU of the route", SOON, || probe.error_of(1_400).ok());
            let got = rig.met("from then on", told).map(|t| (t.errno, t.info));
            rig.note(got == Some((Errno::EMSGSIZE as i32, TAKES)), || format!("{got:?}"));
        }
        host.ip(&format!("route del {OUTSIDE4}/32\nroute del {OUTSIDE6}/128\n"))?;
        Ok(vec![app])
    })
}

/// As [`two_ways`], with addresses on `lo` that only the client knows, and routes to it by the other uplink.
fn returns_elsewhere() -> Result<Topology> {
    let topology = two_ways()?;
    topology.host.ip(&format!(
        "addr add {ON_LO4}/32 dev lo\n\
         addr add {ON_LO6}/128 dev lo\n\
         route add {OUTSIDE4}/32 via {FAR4}\n\
         route add {OUTSIDE6}/128 via {FAR6} dev eth1\n"
    ))?;
    topology.client.ip(&format!("route add {ON_LO4}/32 via {HOST4}\nroute add {ON_LO6}/128 via {HOST6} dev eth0\n"))?;
    for interface in ["all", "eth0"] {
        topology.host.set_sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "0")?;
    }
    Ok(topology)
}

const ON_LO4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 77));
const ON_LO6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 1));

/// LVS, direct return: the director hands on what it received for the address; answers take the host's own way.
fn an_address_on_lo_answers_by_the_hosts_route(rung: Rung) -> Result<()> {
    rig(returns_elsewhere(), rung, |rig| {
        let document = Document::new().on_dual(&Network::dual(7), "eth0", 7, 5);
        let web = rig.up("web", document.publish("", 8080, 80, "udp"))?;
        let _servers = serve(&web.0, 80, "web")?;
        for (family, on_lo) in [(Family::V4, ON_LO4), (Family::V6, ON_LO6)] {
            let at = (family.outside(), 24_100);
            let asks = rig.topology.client.run(|| UdpSocket::bind(at))?;
            let hears = rig.topology.far().run(|| UdpSocket::bind(at))?;
            hears.set_read_timeout(Some(SOON))?;
            asks.send_to(b"question", (on_lo, 8080))?;
            let heard = again(|| hears.recv_from(&mut [0; 200])).context("no answer by the other uplink");
            let from = rig.met(&format!("{family:?}"), heard).map(|(_, from)| from);
            rig.note(from == Some((on_lo, 8080).into()), || format!("{family:?}: an answer from {from:?}"));
        }
        Ok(vec![web])
    })
}
