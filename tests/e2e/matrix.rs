//! Every path to a published port and outbound: {v4, v6} × {tcp, udp} × the client's place × the path through the host.

use crate::rig::{Rig, Way, rig_on, serve, serve_at, web};
use anyhow::Result;
use std::net::{IpAddr, SocketAddr};
use support::host::Netns;
use support::need;
use support::netavark::Document;
use support::topology::{Family, HOST4, Topology};
use support::traffic::{Dial, Proto};

on_every_way!(
    external,
    external_on_the_second_address,
    localhost,
    own_address,
    ipv4_addresses_dialled_by_ipv6_sockets,
    hairpin_same_container,
    hairpin_same_network,
    hairpin_other_network,
    hairpin_by_the_gateway,
    masquerade,
    container_to_container,
);

/// Enough for several TCP segments that offloads merge, and a datagram that fills a frame.
fn dials(ip: IpAddr, port: u16) -> Vec<Dial> {
    vec![
        Dial::new(Proto::Tcp, ip, port).bytes(300_000),
        Dial::new(Proto::Udp, ip, port).bytes(1_400),
        Dial::new(Proto::Udp, ip, port).unconnected(),
    ]
}

/// Clients in `netns` dial port 8080 of `target` and the container must see `source`.
fn all(rig: &Rig<'_>, netns: &Netns, target: fn(Family) -> IpAddr, source: fn(Family) -> IpAddr) {
    for family in Family::BOTH {
        for dial in dials(target(family), 8080) {
            rig.sees(&format!("{family:?}"), netns, &dial, "web", source(family));
        }
    }
}

fn external(way: Way) -> Result<()> {
    rig_on(Topology::new(), way, |rig| {
        let (web, _servers) = web(rig, way.published(7, 5))?;
        all(rig, &rig.topology.client, Family::host, Family::client);
        Ok(vec![web])
    })
}

fn external_on_the_second_address(way: Way) -> Result<()> {
    rig_on(Topology::new(), way, |rig| {
        let (web, _servers) = web(rig, way.published(7, 5))?;
        all(rig, &rig.topology.client, Family::host_second, Family::client);
        Ok(vec![web])
    })
}

fn localhost(way: Way) -> Result<()> {
    rig_on(Topology::new(), way, |rig| {
        let (web, _servers) = web(rig, way.published(7, 5))?;
        // netfilter cannot translate ::1: the kernel has no route_localnet for IPv6.
        let families = if way.rung.is_ebpf() { &Family::BOTH[..] } else { &[Family::V4] };
        for family in families {
            for dial in dials(family.localhost(), 8080) {
                rig.sees(&format!("{family:?}"), &rig.topology.host, &dial, "web", family.gateway(7));
            }
        }
        Ok(vec![web])
    })
}

/// A socket served at connect time is routed to the bridge; with netfilter it keeps the address that it had before translation.
fn own_address(way: Way) -> Result<()> {
    rig_on(Topology::new(), way, |rig| {
        let (web, _servers) = web(rig, way.published(7, 5))?;
        let source = if way.rung.is_ebpf() { |f: Family| f.gateway(7) } else { Family::host };
        all(rig, &rig.topology.host, Family::host, source);
        Ok(vec![web])
    })
}

/// A dual-stack socket has IPv4 addresses mapped into IPv6 (RFC 4291 section 2.5.5.2), as Java's: the kernel calls the IPv6
/// programs, or for sendto() the IPv4 ones, and continues as IPv4.
fn ipv4_addresses_dialled_by_ipv6_sockets(way: Way) -> Result<()> {
    rig_on(Topology::new(), way, |rig| {
        let (web, _servers) = web(rig, way.published(7, 5))?;
        let gateway = Family::V4.gateway(7);
        let own = if way.rung.is_ebpf() { gateway } else { HOST4 };
        for (ip, source) in [(Family::V4.localhost(), gateway), (HOST4, own)] {
            let IpAddr::V4(v4) = ip else { continue };
            for dial in dials(v4.to_ipv6_mapped().into(), 8080) {
                let seen = dial.ask(&rig.topology.host);
                let got = seen.as_ref().map(|s| (s.server.as_str(), s.client.ip(), s.peer)).ok();
                // The socket reports the address without the mapping.
                let expected = Some(("web", source, SocketAddr::new(ip, 8080)));
                rig.note(got == expected, || format!("{dial}: expected {expected:?}, got {seen:?}"));
            }
        }
        Ok(vec![web])
    })
}

/// Netavark fails here: with br_netfilter, a bridge port without hairpin mode drops frames back to itself.
fn hairpin_same_container(way: Way) -> Result<()> {
    need!(need::netpath());
    rig_on(Topology::new(), way, |rig| {
        let (web, _servers) = web(rig, way.published(7, 5))?;
        all(rig, &web.0, Family::host, |f| f.gateway(7));
        Ok(vec![web])
    })
}

fn hairpin_same_network(way: Way) -> Result<()> {
    rig_on(Topology::new(), way, |rig| {
        let (web, _servers) = web(rig, way.published(7, 5))?;
        let app = rig.up("app", Document::new().on_dual(&way.network(7), "eth0", 7, 6))?;
        all(rig, &app.0, Family::host, |f| f.gateway(7));
        Ok(vec![app, web])
    })
}

fn hairpin_other_network(way: Way) -> Result<()> {
    rig_on(Topology::new(), way, |rig| {
        let (web, _servers) = web(rig, way.published(7, 5))?;
        let app = rig.up("app", Document::new().on_dual(&way.network(8), "eth0", 8, 6))?;
        all(rig, &app.0, Family::host, |f| f.gateway(7));
        Ok(vec![app, web])
    })
}

fn hairpin_by_the_gateway(way: Way) -> Result<()> {
    rig_on(Topology::new(), way, |rig| {
        let (web, _servers) = web(rig, way.published(7, 5))?;
        let app = rig.up("app", Document::new().on_dual(&way.network(7), "eth0", 7, 6))?;
        all(rig, &app.0, |f| f.gateway(7), |f| f.gateway(7));
        Ok(vec![app, web])
    })
}

/// Outbound to the host's neighbour and beyond its default router, with the address of the outgoing route.
fn masquerade(way: Way) -> Result<()> {
    rig_on(Topology::with_far(), way, |rig| {
        let app = rig.up("app", Document::new().on_dual(&way.network(7), "eth0", 7, 5))?;
        let _near = serve(&rig.topology.client, 9000, "near")?;
        // Bound to their addresses: for datagrams of a wildcard socket the kernel selects the address of the return route.
        let _outside = serve_at(&rig.topology.client, Family::V4.outside(), 9001, "outside")?;
        let _outside6 = serve_at(&rig.topology.client, Family::V6.outside(), 9001, "outside")?;
        let _far = serve(rig.topology.far(), 9000, "far")?;
        for family in Family::BOTH {
            for dial in dials(family.client(), 9000) {
                rig.sees("neighbour", &app.0, &dial, "near", family.host());
            }
            for dial in dials(family.outside(), 9001) {
                rig.sees("outside", &app.0, &dial, "outside", family.host());
            }
            for dial in dials(family.far(), 9000) {
                rig.sees("second uplink", &app.0, &dial, "far", family.host_far());
            }
        }
        Ok(vec![app])
    })
}

/// On one bridge: no translation.
fn container_to_container(way: Way) -> Result<()> {
    rig_on(Topology::new(), way, |rig| {
        let (web, _servers) = web(rig, way.published(7, 5))?;
        let app = rig.up("app", Document::new().on_dual(&way.network(7), "eth0", 7, 6))?;
        for family in Family::BOTH {
            for dial in dials(family.container(7, 5), 80) {
                rig.sees(&format!("{family:?}"), &app.0, &dial, "web", family.container(7, 6));
            }
        }
        Ok(vec![app, web])
    })
}
