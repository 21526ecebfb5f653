//! Protocols other than TCP, UDP and echo.

use crate::rig::{Way, rig_on};
use anyhow::{Context, Result, ensure};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;
use support::host::{Netns, SOON};
use support::netavark::Document;
use support::raw::{Raw, crc32c};
use support::topology::{Family, Topology};

on_every_way!(
    a_protocol_without_ports_goes_out_and_is_answered,
    sctp_reaches_a_published_port_of_the_same_number,
    sctp_reaches_a_published_port_of_another_number,
    sctp_on_another_port_asks_the_allow_list,
);

const GRE: i32 = 47;

/// Its header does not matter: the kernel passes the packet to any listener of the protocol.
fn a_protocol_without_ports_goes_out_and_is_answered(way: Way) -> Result<()> {
    rig_on(Topology::new(), way, |rig| {
        let app = rig.up("app", Document::new().on_dual(&way.network(7), "eth0", 7, 5))?;
        for family in Family::BOTH {
            let (inside, outside) = (Raw::new(&app.0, family, GRE)?, Raw::new(&rig.topology.client, family, GRE)?);
            // A GRE header without options for an unused protocol (RFC 2784 §2).
            let (question, answer) = (b"\0\0\x88\xb5question".as_slice(), b"\0\0\x88\xb5answer".as_slice());
            inside.send(family.client(), question)?;
            let heard = outside.receive(SOON, |b| b == question).context("the question");
            if let Some((from, _)) = rig.met(&format!("{family:?}"), heard) {
                rig.note(from == family.host(), || format!("{family:?}: seen from {from}"));
            }
            outside.send(family.host(), answer)?;
            let heard = inside.receive(SOON, |b| b == answer).context("the answer");
            if let Some((from, _)) = rig.met(&format!("{family:?}"), heard) {
                rig.note(from == family.client(), || format!("{family:?}: answered by {from}"));
            }
        }
        Ok(vec![app])
    })
}

pub(crate) const PORT: u16 = 38_412;

/// A packet with one chunk that starts an association, or accepts one (RFC 9260 §3.3.2, §3.3.3).
pub(crate) fn sctp(kind: u8, sport: u16, dport: u16, tag: u32) -> Vec<u8> {
    let mut packet = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
    packet.extend(tag.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend([kind, 0, 0, 20]);
    for word in [0x0102_0304_u32, 65_536, 0x0001_0001, 7] {
        packet.extend(word.to_be_bytes());
    }
    let sum = crc32c(&packet);
    packet[8..12].copy_from_slice(&sum);
    packet
}

pub(crate) const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const TAG: u32 = 0x0102_0304;

/// Whether a packet has these ports, is otherwise as sent, and has a valid checksum.
fn is_between(packet: &[u8], sent: &[u8], sport: u16, dport: u16) -> bool {
    let ports = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
    let mut unsummed = packet.to_vec();
    if let Some(sum) = unsummed.get_mut(8..12) {
        sum.fill(0);
    }
    packet.starts_with(&ports)
        && packet.get(12..) == sent.get(12..)
        && packet.get(8..12) == Some(crc32c(&unsummed).as_slice())
}

/// `asker` starts an association with `to`, which `server` answers from its port [`INSIDE`]; returns the source seen there.
fn associate(asker: &Netns, sport: u16, to: (IpAddr, u16), server: &Netns) -> Result<IpAddr> {
    let family = if to.0.is_ipv4() { Family::V4 } else { Family::V6 };
    let outside = Raw::new(asker, family, libc::IPPROTO_SCTP)?;
    let inside = Raw::new(server, family, libc::IPPROTO_SCTP)?;
    let question = sctp(INIT, sport, to.1, 0);
    outside.send(to.0, &question)?;
    let is_question = |b: &[u8]| b.get(2..4) == Some(&INSIDE.to_be_bytes()) && b.get(12) == Some(&INIT);
    let (seen, heard) = inside.receive(SOON, is_question).context("the question")?;
    let seen_port = u16::from_be_bytes([heard[0], heard[1]]);
    ensure!(is_between(&heard, &question, seen_port, INSIDE), "the question came as {heard:x?}");
    let answer = sctp(INIT_ACK, INSIDE, seen_port, TAG);
    inside.send(seen, &answer)?;
    let is_answer = |b: &[u8]| is_between(b, &answer, to.1, sport);
    let (by, _) = outside.receive(SOON, is_answer).context("the answer")?;
    ensure!(by == to.0, "answered by {by}");
    Ok(seen)
}

const INSIDE: u16 = 5_000;

fn sctp_reaches_a_published_port_of_another_number(way: Way) -> Result<()> {
    rig_on(Topology::new(), way, |rig| {
        rig.moves_sctp.set(true);
        let document = Document::new()
            .on_dual(&way.network(7), "eth0", 7, 5)
            .publish("", PORT, INSIDE, "sctp")
            .publish_range("", 6_000, 4_999, 3, "sctp")
            .publish("127.0.0.1", 7_000, INSIDE, "sctp");
        let web = rig.up("web", document)?;
        let other = rig.up("other", Document::new().on_dual(&way.network(8), "eth0", 8, 6))?;
        let Topology { client, host, .. } = rig.topology;
        for family in Family::BOTH {
            let mut sport = 23_000;
            let mut meets = |what: &str, asker: &Netns, to: (IpAddr, u16), seen_as: IpAddr| {
                sport += 1;
                let seen = associate(asker, sport, to, &web.0);
                rig.note(seen.as_ref().is_ok_and(|s| *s == seen_as), || {
                    format!("{family:?}, {what} to {to:?}: {seen:?}, expected {seen_as}")
                });
            };
            meets("from outside", client, (family.host(), PORT), family.client());
            meets("again", client, (family.host(), PORT), family.client());
            meets("to one of a range", client, (family.host(), 6_001), family.client());
            meets("from the host", host, (family.host(), PORT), family.host());
            meets("from another network", &other.0, (family.host(), PORT), family.gateway(7));
            meets("from itself", &web.0, (family.host(), PORT), family.gateway(7));
            if family == Family::V4 {
                let localhost = Ipv4Addr::LOCALHOST.into();
                meets("over localhost", host, (localhost, PORT), family.gateway(7));
                meets("on localhost alone", host, (localhost, 7_000), family.gateway(7));
            }
            // Its own outbound associations are masqueraded as usual.
            let (inside, outside) =
                (Raw::new(&web.0, family, libc::IPPROTO_SCTP)?, Raw::new(client, family, libc::IPPROTO_SCTP)?);
            let question = sctp(INIT, 24_000, 24_001, 0);
            inside.send(family.client(), &question)?;
            let heard = outside.receive(SOON, |b| b == question).context("a question of its own");
            if let Some((from, _)) = rig.met("out", heard) {
                rig.note(from == family.host(), || format!("{family:?}: seen from {from}"));
            }
            let answer = sctp(INIT_ACK, 24_001, 24_000, TAG);
            outside.send(family.host(), &answer)?;
            let heard = inside.receive(SOON, |b| b == answer).context("the answer to it");
            rig.met("and back", heard);
        }
        Ok(vec![web, other])
    })
}

fn sctp_on_another_port_asks_the_allow_list(way: Way) -> Result<()> {
    rig_on(Topology::new(), way, |rig| {
        rig.moves_sctp.set(true);
        let [others, clients] = [Family::outside, Family::client].map(|who| {
            let [v4, v6] = Family::BOTH.map(who);
            format!("{v4},{v6}")
        });
        let network = way.network(7).option(&format!("netpath.allow.{PORT}/sctp"), &others);
        let network = network.option("netpath.allow.6000", &clients);
        let document = Document::new()
            .on_dual(&network, "eth0", 7, 5)
            .publish("", PORT, INSIDE, "sctp")
            .publish("", 6_000, INSIDE, "sctp");
        let web = rig.up("web", document)?;
        let Topology { client, host, .. } = rig.topology;
        for family in Family::BOTH {
            let inside = Raw::new(&web.0, family, libc::IPPROTO_SCTP)?;
            let question = sctp(INIT, 23_100, PORT, 0);
            Raw::new(client, family, libc::IPPROTO_SCTP)?.send(family.host(), &question)?;
            let heard = inside.receive(Duration::from_millis(300), |b| b.get(12) == Some(&INIT));
            rig.note(heard.is_err(), || format!("{family:?}: a client that is on no list was heard: {heard:?}"));
            for (what, asker, port, seen_as) in
                [("a client of the list", client, 6_000, family.client()), ("from the host", host, PORT, family.host())]
            {
                let seen = associate(asker, 23_101, (family.host(), port), &web.0);
                rig.note(seen.as_ref().is_ok_and(|s| *s == seen_as), || format!("{family:?}, {what}: {seen:?}"));
            }
        }
        Ok(vec![web])
    })
}

fn sctp_reaches_a_published_port_of_the_same_number(way: Way) -> Result<()> {
    rig_on(Topology::new(), way, |rig| {
        let document = Document::new().on_dual(&way.network(7), "eth0", 7, 5).publish("", PORT, PORT, "sctp");
        let web = rig.up("web", document)?;
        for family in Family::BOTH {
            let outside = Raw::new(&rig.topology.client, family, libc::IPPROTO_SCTP)?;
            let inside = Raw::new(&web.0, family, libc::IPPROTO_SCTP)?;
            let question = sctp(INIT, 23_462, PORT, 0);
            outside.send(family.host(), &question)?;
            let heard = inside.receive(SOON, |b| b == question).context("the question");
            if let Some((from, _)) = rig.met(&format!("{family:?}"), heard) {
                rig.note(from == family.client(), || format!("{family:?}: seen from {from}"));
            }
            let answer = sctp(INIT_ACK, PORT, 23_462, 0x0102_0304);
            inside.send(family.client(), &answer)?;
            let heard = outside.receive(SOON, |b| b == answer).context("the answer");
            if let Some((from, _)) = rig.met(&format!("{family:?}"), heard) {
                rig.note(from == family.host(), || format!("{family:?}: answered by {from}"));
            }
        }
        Ok(vec![web])
    })
}
