//! Access to unpublished addresses, allowed sources of containers, and allow lists.

use crate::rig::{Rig, Way, rig_on, serve};
use anyhow::Result;
use netpath_common::reason::Reason;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;
use support::echo::Pinger;
use support::need;
use support::netavark::Document;
use support::packet::Frame;
use support::raw::Raw;
use support::topology::{Container, Family, Topology};
use support::traffic::{Dial, Proto, Server};

on_every_way!(
    a_containers_own_address_is_not_reached,
    with_direct_it_is,
    a_spoofed_source_does_not_leave,
    an_allow_list_admits_its_clients,
    a_port_can_have_a_list_of_its_own,
    without_masquerade_a_container_is_seen_as_it_is,
);

fn routes_to_containers(rig: &Rig<'_>) -> Result<()> {
    for (family, prefix) in [(Family::V4, 24), (Family::V6, 64)] {
        let net = family.container(7, 0);
        rig.topology.client.ip(&format!("route add {net}/{prefix} via {}\n", family.host()))?;
    }
    Ok(())
}

/// Whether drops are counted by reason.
fn counts(way: Way) -> bool {
    !way.rung.is_iptables()
}

fn counted(rig: &Rig<'_>, way: Way, reason: Reason) -> Result<()> {
    if counts(way) && rig.counted(reason)? == 0 {
        rig.note(false, || format!("no packet was counted for {}", reason.word()));
    }
    Ok(())
}

fn up(rig: &Rig<'_>, document: Document) -> Result<((Container, Document), Vec<Server>)> {
    routes_to_containers(rig)?;
    let up = rig.up("web", document)?;
    let servers = serve(&up.0, 80, "web")?;
    Ok((up, servers))
}

fn a_containers_own_address_is_not_reached(way: Way) -> Result<()> {
    need!(need::netpath());
    rig_on(Topology::new(), way, |rig| {
        let (web, _servers) = up(rig, way.published(7, 5))?;
        let client = &rig.topology.client;
        let mut direct = Vec::new();
        for family in Family::BOTH {
            for proto in Proto::BOTH {
                // The published port first: it must not open access to the container's own port.
                rig.sees("published", client, &Dial::new(proto, family.host(), 8080), "web", family.client());
                direct
                    .extend([80, 8080].map(|port| ("direct", client, Dial::new(proto, family.container(7, 5), port))));
            }
            let ping = Pinger::new(client, family, 4_711)?;
            let answered = ping.ping_within(Duration::from_millis(400), family.container(7, 5), 1, 56);
            rig.note(answered.is_err(), || format!("{family:?}: the container answered to echo"));
            rig.met("the host", ping.ping(family.host(), 2, 56));
        }
        rig.all_silent(&direct);
        counted(rig, way, Reason::DropDirect)?;
        Ok(vec![web])
    })
}

fn with_direct_it_is(way: Way) -> Result<()> {
    need!(need::netpath());
    rig_on(Topology::new(), way, |rig| {
        let net = way.network(7).option("netpath.direct", "true");
        let document = Document::new().on_dual(&net, "eth0", 7, 5).publish("", 8080, 80, "tcp");
        let (web, _servers) = up(rig, document)?;
        let client = &rig.topology.client;
        let _near = serve(client, 9000, "near")?;
        for family in Family::BOTH {
            for proto in Proto::BOTH {
                let dial = Dial::new(proto, family.container(7, 5), 80).bytes(1_300);
                rig.sees("direct", client, &dial, "web", family.client());
                rig.sees("out", &web.0, &Dial::new(proto, family.client(), 9000), "near", family.host());
            }
            let published = Dial::new(Proto::Tcp, family.host(), 8080);
            rig.sees("published", client, &published, "web", family.client());
            rig.met("echo", Pinger::new(client, family, 4_711)?.ping(family.container(7, 5), 1, 56));
        }
        Ok(vec![web])
    })
}

fn a_spoofed_source_does_not_leave(way: Way) -> Result<()> {
    need!(need::netpath());
    rig_on(Topology::new(), way, |rig| {
        let (web, _servers) = up(rig, way.published(7, 5))?;
        let counted = |rig: &Rig<'_>| if counts(way) { rig.counted(Reason::DropSpoofed) } else { Ok(0) };
        for (family, other) in [
            (Family::V4, IpAddr::V4(Ipv4Addr::new(203, 0, 113, 77))),
            (Family::V6, IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 0x77))),
        ] {
            let heard = rig.topology.client.run(|| UdpSocket::bind((family.client(), 9_001)))?;
            heard.set_read_timeout(Some(Duration::from_millis(400)))?;
            let before = counted(rig)?;
            let raw = Raw::new(&web.0, family, libc::IPPROTO_RAW)?;
            let (own, to) = (family.container(7, 5), family.client());
            raw.send(to, &Frame::udp((own, 9_003), (to, 9_001)).quoted())?;
            let mut data = [0; 100];
            let heard_own = support::traffic::again(|| heard.recv_from(&mut data));
            rig.note(heard_own.is_ok(), || format!("{family:?}: with its own address: {heard_own:?}"));
            for source in [other, family.client()] {
                raw.send(family.client(), &Frame::udp((source, 9_002), (family.client(), 9_001)).quoted())?;
            }
            let heard = support::traffic::again(|| heard.recv_from(&mut data));
            rig.note(heard.is_err(), || format!("{family:?}: it arrived: {heard:?}"));
            let more = counted(rig)? - before;
            rig.note(more == 2 || !counts(way), || {
                format!("{family:?}: {more} spoofed packets were counted, expected 2")
            });
        }
        Ok(vec![web])
    })
}

fn an_allow_list_admits_its_clients(way: Way) -> Result<()> {
    need!(need::netpath());
    rig_on(Topology::new(), way, |rig| {
        let [v4, v6] = Family::BOTH.map(Family::client);
        let net = way.network(7).option("netpath.allow", &format!("{v4}/32,{v6}"));
        let document =
            Document::new().on_dual(&net, "eth0", 7, 5).publish("", 8080, 80, "tcp").publish("", 8080, 80, "udp");
        let web = rig.up("web", document)?;
        let _servers = serve(&web.0, 80, "web")?;
        let client = &rig.topology.client;
        let mut strangers = Vec::new();
        for family in Family::BOTH {
            for proto in Proto::BOTH {
                let dial = Dial::new(proto, family.host(), 8080);
                strangers.push(("not on the list", client, dial.clone().from(family.outside(), 0)));
                rig.sees("on the list", client, &dial.from(family.client(), 0), "web", family.client());
            }
        }
        rig.all_silent(&strangers);
        counted(rig, way, Reason::DropNotAllowed)?;
        Ok(vec![web])
    })
}

fn a_port_can_have_a_list_of_its_own(way: Way) -> Result<()> {
    need!(need::netpath());
    rig_on(Topology::new(), way, |rig| {
        let [v4, v6] = Family::BOTH.map(Family::client);
        let [other4, other6] = Family::BOTH.map(Family::outside);
        let net = way
            .network(7)
            .option("netpath.allow", &format!("{v4}/32,{v6}"))
            .option("netpath.allow.8081/tcp", &format!("{other4},{other6}/128"))
            .option("netpath.allow.8105-8199", "0.0.0.0/0,::/0");
        let document = (8080..=8081).fold(Document::new().on_dual(&net, "eth0", 7, 5), |document, port| {
            Proto::BOTH.into_iter().fold(document, |d, proto| d.publish("", port, 80, proto.name()))
        });
        let document = document.publish_range("", 8100, 80, 10, "tcp");
        let web = rig.up("web", document)?;
        let _servers = serve(&web.0, 80, "web")?;
        let _ranged = Server::echo(&web.0, Proto::Tcp, support::traffic::ANY, 85, "ranged")?;
        let client = &rig.topology.client;
        let mut strangers = Vec::new();
        for family in Family::BOTH {
            let (listed, other) = (family.client(), family.outside());
            for (proto, port, who) in [
                (Proto::Tcp, 8080, listed),
                (Proto::Udp, 8080, listed),
                (Proto::Tcp, 8081, other),
                (Proto::Udp, 8081, listed),
            ] {
                let dial = Dial::new(proto, family.host(), port);
                let stranger = if who == listed { other } else { listed };
                strangers.push(("not on the port's list", client, dial.clone().from(stranger, 0)));
                rig.sees("on the port's list", client, &dial.from(who, 0), "web", who);
            }
            let dial = Dial::new(Proto::Tcp, family.host(), 8105);
            rig.sees("a part of the range is open", client, &dial.from(other, 0), "ranged", other);
            let dial = Dial::new(Proto::Tcp, family.host(), 8100);
            strangers.push(("the other part is not", client, dial.from(other, 0)));
        }
        rig.all_silent(&strangers);
        Ok(vec![web])
    })
}

/// Answers to a container's flows are let in; other packets are not.
fn without_masquerade_a_container_is_seen_as_it_is(way: Way) -> Result<()> {
    need!(need::netpath());
    rig_on(Topology::new(), way, |rig| {
        let net = way.network(7).option("netpath.masquerade", "false");
        let document = Document::new().on_dual(&net, "eth0", 7, 5).publish("", 8080, 80, "tcp");
        let (web, _servers) = up(rig, document)?;
        let client = &rig.topology.client;
        let _near = serve(client, 9000, "near")?;
        let mut direct = Vec::new();
        for family in Family::BOTH {
            for proto in Proto::BOTH {
                let dial = Dial::new(proto, family.client(), 9000).bytes(1_300);
                rig.sees("as it is", &web.0, &dial, "near", family.container(7, 5));
                direct.push(("direct", client, Dial::new(proto, family.container(7, 5), 80)));
            }
            rig.met("echo", Pinger::new(&web.0, family, 4_711)?.ping(family.client(), 1, 56));
            let published = Dial::new(Proto::Tcp, family.host(), 8080);
            rig.sees("published", client, &published, "web", family.client());
        }
        rig.all_silent(&direct);
        Ok(vec![web])
    })
}
