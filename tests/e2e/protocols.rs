//! Protocols other than TCP, UDP and echo.

use crate::rig::{Way, rig_on};
use anyhow::{Context, Result};
use kit::host::SOON;
use kit::netavark::Document;
use kit::raw::{Raw, crc32c};
use kit::topology::{Family, Topology};

on_every_way!(a_protocol_without_ports_goes_out_and_is_answered, sctp_reaches_a_published_port_of_the_same_number);

const GRE: i32 = 47;

/// No header of its own matters: the kernel hands it to whoever listens to the protocol.
fn a_protocol_without_ports_goes_out_and_is_answered(way: Way) -> Result<()> {
    rig_on(Topology::new(), way, |rig| {
        let app = rig.up("app", Document::new().on_dual(&way.network(7), "eth0", 7, 5))?;
        for family in Family::BOTH {
            let (inside, outside) = (Raw::new(&app.0, family, GRE)?, Raw::new(&rig.topology.client, family, GRE)?);
            // A GRE header without options for a protocol that nobody has (RFC 2784 §2).
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

const PORT: u16 = 38_412;

/// A packet with one chunk that begins an association, or accepts one (RFC 9260 §3.3.2, §3.3.3).
fn sctp(kind: u8, sport: u16, dport: u16, tag: u32) -> Vec<u8> {
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

fn sctp_reaches_a_published_port_of_the_same_number(way: Way) -> Result<()> {
    const INIT: u8 = 1;
    const INIT_ACK: u8 = 2;
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
