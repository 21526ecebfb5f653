//! Routes and rules of the host that depend on protocol, ports and size: containers' packets go as the host's own would.

use crate::rig::{rig, serve};
use anyhow::Result;
use nix::errno::Errno;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use support::netavark::{Document, Network, Rung};
use support::raw::Probe;
use support::topology::{CLIENT4, CLIENT6, FAR4, FAR6, Family, OUTSIDE4, OUTSIDE6, Topology};
use support::traffic::{Dial, Proto};

on_every_rung!(
    rules_by_protocol_and_port_choose_the_uplink,
    connections_are_spread_over_uplinks_as_the_hosts_own,
    the_mtu_of_a_route_is_reported_to_the_container,
);

/// The same address behind both uplinks, as of a service that either way leads to.
fn two_ways() -> Result<Topology> {
    let topology = Topology::with_far()?;
    topology.far().ip(&format!("addr add {OUTSIDE4}/32 dev lo\naddr add {OUTSIDE6}/128 dev lo\n"))?;
    Ok(topology)
}

fn rules_by_protocol_and_port_choose_the_uplink(rung: Rung) -> Result<()> {
    rig(two_ways(), rung, |rig| {
        let (host, app) =
            (&rig.topology.host, rig.up("app", Document::new().on_dual(&Network::dual(7), "eth0", 7, 5))?);
        let mut servers = Vec::new();
        for (netns, name) in [(&rig.topology.client, "near"), (rig.topology.far(), "far")] {
            for port in [9_000, 9_443] {
                servers.extend(serve(netns, port, name)?);
            }
        }
        host.ip(&format!("route add default via {FAR4} table 100\nroute add default via {FAR6} dev eth1 table 100\n"))?;
        let rules = |verb: &str| {
            ["-4", "-6"].into_iter().try_for_each(|family| {
                let words = format!("{family} rule {verb} iif podman7 ipproto tcp dport 9443 lookup 100");
                host.command("ip", &words.split(' ').collect::<Vec<_>>()).map(drop)
            })
        };
        rules("add")?;
        for family in Family::BOTH {
            let near = ("near", family.host());
            for (proto, port, (server, source)) in
                [(Proto::Tcp, 9_443, ("far", family.host_far())), (Proto::Udp, 9_443, near), (Proto::Tcp, 9_000, near)]
            {
                rig.sees("by rule", &app.0, &Dial::new(proto, family.outside(), port), server, source);
            }
        }
        rules("del")?;
        host.ip("route flush table 100\n")?;
        host.command("ip", &["-6", "route", "flush", "table", "100"])?;
        Ok(vec![app])
    })
}

fn connections_are_spread_over_uplinks_as_the_hosts_own(rung: Rung) -> Result<()> {
    rig(two_ways(), rung, |rig| {
        let host = &rig.topology.host;
        for family in ["ipv4", "ipv6"] {
            host.set_sysctl(&format!("net/{family}/fib_multipath_hash_policy"), "1")?;
        }
        host.ip(&format!(
            "route replace default nexthop via {CLIENT4} nexthop via {FAR4}\n\
             route del default via {CLIENT6} dev eth0\n\
             route add default nexthop via {CLIENT6} dev eth0 nexthop via {FAR6} dev eth1\n"
        ))?;
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

fn the_mtu_of_a_route_is_reported_to_the_container(rung: Rung) -> Result<()> {
    const TAKES: u32 = 1_300;
    rig(Topology::new(), rung, |rig| {
        let app = rig.up("app", Document::new().on_dual(&Network::dual(7).option("mtu", "1500"), "eth0", 7, 5))?;
        rig.topology.host.ip(&format!(
            "route add {OUTSIDE4}/32 via {CLIENT4} mtu lock {TAKES}\nroute add {OUTSIDE6}/128 via {CLIENT6} dev eth0 mtu lock {TAKES}\n"
        ))?;
        let _server = serve(&rig.topology.client, 9_000, "near")?;
        for family in Family::BOTH {
            let probe = Probe::new(&app.0, SocketAddr::new(family.outside(), 9_000))?.whole()?;
            let told = rig.met(&format!("{family:?}"), probe.error_of(1_400));
            let expected = Some((Errno::EMSGSIZE as i32, family.gateway(7), TAKES));
            let got = told.map(|t| (t.errno, t.offender, t.info));
            rig.note(got == expected, || format!("{family:?}: expected {expected:?}, got {got:?}"));
            let dial = Dial::new(Proto::Tcp, family.outside(), 9_000).bytes(100_000);
            rig.sees("a large request", &app.0, &dial, "near", family.host());
        }
        Ok(vec![app])
    })
}
