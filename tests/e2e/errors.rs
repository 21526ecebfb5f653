//! ICMP errors through translation, and path MTU discovery, which depends on them.

use crate::protocols::{INIT, PORT, sctp};
use crate::rig::{Way, rig_on, serve};
use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use std::net::SocketAddr;
use std::time::Duration;
use support::host::{Netns, SOON, at_once, wait_for};
use support::load::{bulk, bulk_server};
use support::netavark::Document;
use support::packet::{Frame, L4};
use support::raw::{Probe, Raw, connect_within};
use support::topology::{Family, Topology};
use support::traffic::{ANY, ANY4, Dial, Proto, wait_until_answered};

on_every_way!(
    a_published_port_without_a_server_refuses_datagrams,
    a_closed_port_outside_refuses_a_containers_datagrams,
    an_expired_ttl_is_reported_by_the_host,
    a_containers_expired_ttl_is_reported_by_each_router,
    large_transfers_pass_a_small_uplink,
    large_transfers_pass_a_small_link_of_the_client,
    a_datagram_too_large_for_the_uplink_is_refused_with_its_mtu,
    a_datagram_too_large_for_a_link_beyond_is_refused_with_its_mtu,
    a_servers_answer_passes_a_small_link_of_the_client,
    a_flow_follows_the_uplink_whose_mtu_shrinks,
    an_error_about_sctp_quotes_what_was_sent,
);

/// Datagrams of an established flow: the first answer that is too large now tells its server the new MTU.
fn a_flow_follows_the_uplink_whose_mtu_shrinks(way: Way) -> Result<()> {
    const OWN_PORT: u16 = 4_000;
    rig_on(Topology::new(), way, |rig| {
        let web = rig.up("web", way.published(7, 5))?;
        let _servers = serve(&web.0, 80, "web")?;
        let dials = Family::BOTH.map(|family| {
            let own = if family == Family::V4 { ANY4 } else { ANY };
            Dial::new(Proto::Udp, family.host(), 8080).from(own, OWN_PORT).bytes(1_400)
        });
        for dial in &dials {
            rig.met("as it was", dial.ask(&rig.topology.client));
        }
        let resize = |mtu: u16| -> Result<()> {
            let ends = [&rig.topology.host, &rig.topology.client];
            ends.into_iter().try_for_each(|netns| netns.ip(&format!("link set eth0 mtu {mtu}\n")))
        };
        resize(1_280)?;
        for dial in &dials {
            let quick = dial.clone().patience(Duration::from_millis(300));
            // The agent may pause after work on a busy machine.
            let answered = wait_for("an answer", SOON * 4, || quick.ask(&rig.topology.client).ok());
            rig.met("with a smaller MTU", answered);
        }
        resize(1_500)?;
        Ok(vec![web])
    })
}

/// Bytes of headers before a datagram's payload.
fn headers(family: Family) -> usize {
    if family == Family::V4 { 28 } else { 48 }
}

fn a_published_port_without_a_server_refuses_datagrams(way: Way) -> Result<()> {
    rig_on(Topology::new(), way, |rig| {
        let web = rig.up("web", way.published(7, 5))?;
        let app = rig.up("app", Document::new().on_dual(&way.wide_network(7), "eth0", 7, 6))?;
        for family in Family::BOTH {
            let to = SocketAddr::new(family.host(), 8080);
            let clients = [("outside", &rig.topology.client), ("on the same network", &*app.0)];
            for (name, netns) in clients {
                if let Some(told) = rig.met(name, Probe::new(netns, to)?.error_of(100)) {
                    let so = told.errno == libc::ECONNREFUSED && told.offender == family.host() && told.to == to;
                    rig.note(so, || format!("{name}: {told:?}"));
                }
            }
        }
        Ok(vec![web, app])
    })
}

fn a_closed_port_outside_refuses_a_containers_datagrams(way: Way) -> Result<()> {
    rig_on(Topology::with_router(None), way, |rig| {
        let app = rig.up("app", Document::new().on_dual(&way.wide_network(7), "eth0", 7, 5))?;
        for family in Family::BOTH {
            for (name, outside) in [("neighbour", family.client()), ("far", family.far())] {
                let to = SocketAddr::new(outside, 9_999);
                if let Some(told) = rig.met(name, Probe::new(&app.0, to)?.error_of(100)) {
                    let so = told.errno == libc::ECONNREFUSED && told.offender == outside && told.to == to;
                    rig.note(so, || format!("{name}: {told:?}"));
                }
            }
        }
        Ok(vec![app])
    })
}

/// Connections with few hops fail. At once: TCP takes the error with its first repetition, after a second.
fn unreachable(dials: &[(&str, &Netns, SocketAddr, i32)]) -> Result<()> {
    at_once(dials.len(), dials, |&(name, netns, to, hops)| {
        let refused = connect_within(netns, to, hops)?;
        ensure!(refused == Errno::EHOSTUNREACH, "{name}, {to}: {refused}");
        Ok(())
    })
}

/// As `traceroute` to a published port: the first hop is the router, the second the host, the third the container.
fn an_expired_ttl_is_reported_by_the_host(way: Way) -> Result<()> {
    rig_on(Topology::with_router(None), way, |rig| {
        let web = rig.up("web", way.published(7, 5))?;
        let _servers = serve(&web.0, 80, "web")?;
        let mut dials = Vec::new();
        for family in Family::BOTH {
            let to = SocketAddr::new(family.host(), 8080);
            for (name, netns, hops, offender) in [
                ("a neighbour", &rig.topology.client, 1, family.host()),
                ("far, first hop", rig.topology.far(), 1, family.host_far()),
                ("far, second hop", rig.topology.far(), 2, family.host()),
            ] {
                if let Some(told) = rig.met(name, Probe::new(netns, to)?.hops(hops)?.error_of(100)) {
                    let so = told.errno == libc::EHOSTUNREACH && told.offender == offender && told.to == to;
                    rig.note(so, || format!("{name}: {told:?}"));
                }
                dials.push((name, netns, to, hops));
            }
        }
        rig.met("TCP", unreachable(&dials));
        Ok(vec![web])
    })
}

fn a_containers_expired_ttl_is_reported_by_each_router(way: Way) -> Result<()> {
    rig_on(Topology::with_router(None), way, |rig| {
        let app = rig.up("app", Document::new().on_dual(&way.wide_network(7), "eth0", 7, 5))?;
        let _servers = serve(rig.topology.far(), 9000, "far")?;
        let mut dials = Vec::new();
        for family in Family::BOTH {
            let to = SocketAddr::new(family.far(), 9000);
            for (name, hops, offender) in [("first hop", 1, family.gateway(7)), ("second hop", 2, family.client())] {
                if let Some(told) = rig.met(name, Probe::new(&app.0, to)?.hops(hops)?.error_of(100)) {
                    let so = told.errno == libc::EHOSTUNREACH && told.offender == offender && told.to == to;
                    rig.note(so, || format!("{name}: {told:?}"));
                }
                dials.push((name, &*app.0, to, hops));
            }
            rig.sees("far enough", &app.0, &Dial::new(Proto::Tcp, family.far(), 9000), "far", family.host());
        }
        rig.met("TCP", unreachable(&dials));
        Ok(vec![app])
    })
}

const BULK: u64 = 8 << 20;

/// In both directions through a published port and outbound, with equal sums at both ends.
fn large_transfers(topology: Result<Topology>, way: Way) -> Result<()> {
    rig_on(topology, way, |rig| {
        let web = rig.up("web", way.published(7, 5))?;
        let _servers = (bulk_server(&web.0, ANY, 80)?, bulk_server(rig.topology.far(), ANY, 9000)?);
        for family in Family::BOTH {
            rig.met("published", bulk(rig.topology.far(), SocketAddr::new(family.host(), 8080), BULK));
            rig.met("masquerade", bulk(&web.0, SocketAddr::new(family.far(), 9000), BULK));
        }
        Ok(vec![web])
    })
}

fn large_transfers_pass_a_small_uplink(way: Way) -> Result<()> {
    large_transfers(Topology::with_router(None).and_then(|t| t.narrow_uplink(1_280)), way)
}

fn large_transfers_pass_a_small_link_of_the_client(way: Way) -> Result<()> {
    large_transfers(Topology::with_router(Some(1_300)), way)
}

fn refused_with(
    topology: Result<Topology>,
    way: Way,
    mtu: u32,
    offender: fn(Family) -> std::net::IpAddr,
) -> Result<()> {
    rig_on(topology, way, |rig| {
        let app = rig.up("app", Document::new().on_dual(&way.wide_network(7), "eth0", 7, 5))?;
        let _servers = serve(rig.topology.far(), 9000, "far")?;
        for family in Family::BOTH {
            let probe = Probe::new(&app.0, SocketAddr::new(family.far(), 9000))?.whole()?;
            let full = 1_500 - headers(family);
            if let Some(told) = rig.met("too large", probe.error_of(full)) {
                let so = told.errno == libc::EMSGSIZE && told.info == mtu && told.offender == offender(family);
                rig.note(so, || format!("expected the MTU {mtu}: {told:?}"));
            }
            let refused = probe.refusal_of(full);
            rig.note(refused == Some(libc::EMSGSIZE), || format!("{family:?}: the next was refused with {refused:?}"));
            // The answer is longer by its first line.
            let fits = mtu as usize - headers(family) - 100;
            rig.sees("fits", &app.0, &Dial::new(Proto::Udp, family.far(), 9000).bytes(fits), "far", family.host());
        }
        Ok(vec![app])
    })
}

fn a_datagram_too_large_for_the_uplink_is_refused_with_its_mtu(way: Way) -> Result<()> {
    let topology = Topology::with_router(None).and_then(|t| t.narrow_uplink(1_280));
    refused_with(topology, way, 1_280, |f| f.gateway(7))
}

fn a_datagram_too_large_for_a_link_beyond_is_refused_with_its_mtu(way: Way) -> Result<()> {
    refused_with(Topology::with_router(Some(1_300)), way, 1_300, Family::client)
}

/// The server's large datagram is lost on the way back, and the container gets an error: the next one is sent in fragments.
///
/// Where br_netfilter passes bridged frames to conntrack, it reassembles the fragments, and the host sends one packet of the
/// original size: the kernel does not keep the size of the fragments.
fn a_servers_answer_passes_a_small_link_of_the_client(way: Way) -> Result<()> {
    rig_on(Topology::with_router(Some(1_300)), way, |rig| {
        const TO_NETFILTER: &str = "net/bridge/bridge-nf-call-ip6tables";
        if rig.topology.host.sysctl(TO_NETFILTER).is_ok() {
            rig.topology.host.set_sysctl(TO_NETFILTER, "0")?;
        }
        let web = rig.up("web", way.published(7, 5))?;
        let _servers = serve(&web.0, 80, "web")?;
        for family in Family::BOTH {
            let dial = Dial::new(Proto::Udp, family.host(), 8080).bytes(1_380);
            rig.met("a large answer", wait_until_answered(rig.topology.far(), &dial));
        }
        Ok(vec![web])
    })
}

/// Whether an ICMP socket received an error of this type that quotes `sent`: addresses, ports, and the rest of eight bytes (RFC
/// 792, RFC 4443 section 3).
fn quotes(heard: &[u8], kind: u8, sent: &Frame) -> bool {
    let (addresses, header) = if sent.src.is_ipv4() { (12, 20) } else { (8, 40) };
    let sent = sent.quoted();
    let quoted = heard.get(8..).unwrap_or_default();
    heard.first() == Some(&kind) && quoted.get(addresses..header + 8) == sent.get(addresses..header + 8)
}

/// SCTP keeps its ports, and its checksum cannot be corrected in a quoted packet.
fn an_error_about_sctp_quotes_what_was_sent(way: Way) -> Result<()> {
    rig_on(Topology::with_router(None), way, |rig| {
        let document = Document::new().on_dual(&way.network(7), "eth0", 7, 5).publish("", PORT, PORT, "sctp");
        let web = rig.up("web", document)?;
        let far = rig.topology.far();
        let begins = |src, dst, hops, packet: &[u8]| Frame {
            ttl: hops,
            payload: packet.to_vec(),
            ..Frame::new(src, dst, L4::Raw(libc::IPPROTO_SCTP as u8))
        };
        for family in Family::BOTH {
            let (icmp, aged, refused) = match family {
                Family::V4 => (libc::IPPROTO_ICMP, 11, (3, 2)),
                // A parameter problem: unknown next header.
                Family::V6 => (libc::IPPROTO_ICMPV6, 3, (4, 1)),
            };
            let (inside, outside) = (Raw::new(&web.0, family, icmp)?, Raw::new(far, family, icmp)?);
            let sends = [&*web.0, far].map(|netns| Raw::new(netns, family, libc::IPPROTO_RAW));
            let [from_inside, from_outside] = sends;
            let (from_inside, from_outside) = (from_inside?, from_outside?);

            let sent = begins(family.container(7, 5), family.far(), 2, &sctp(INIT, 24_000, 24_001, 0));
            from_inside.send(family.far(), &sent.quoted())?;
            let heard = inside.receive(SOON, |b| quotes(b, aged, &sent)).context("of a router");
            if let Some((by, _)) = rig.met(&format!("{family:?}, masqueraded"), heard) {
                rig.note(by == family.client(), || format!("{family:?}, masqueraded: reported by {by}"));
            }

            let hears = Raw::new(&web.0, family, libc::IPPROTO_SCTP)?;
            let question = sctp(INIT, 24_002, PORT, 0);
            let sent = begins(family.far(), family.host(), 64, &question);
            from_outside.send(family.host(), &sent.quoted())?;
            let came = hears.receive(SOON, |b| b == question).context("the question");
            rig.met(&format!("{family:?}, published"), came);
            // As the container's kernel reports it for a protocol without a socket.
            let seen = begins(family.far(), family.container(7, 5), 62, &question);
            let error = Frame::new(seen.dst, seen.src, L4::Error { kind: refused.0, code: refused.1 });
            let error = Frame { payload: seen.quoted(), ..error };
            from_inside.send(family.far(), &error.quoted())?;
            let heard = outside.receive(SOON, |b| quotes(b, refused.0, &sent)).context("of the container");
            if let Some((by, _)) = rig.met(&format!("{family:?}, published"), heard) {
                rig.note(by == family.host(), || format!("{family:?}, published: reported by {by}"));
            }
        }
        Ok(vec![web])
    })
}
