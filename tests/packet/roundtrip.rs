//! Translated there and back, a packet is unchanged: each class of packets with random ports, payload and headers. Checksums
//! are recomputed by tests/support.

use crate::{at_host, client, host, into, outside};
use anyhow::{Result, ensure};
use netpath_common::addr::Addr;
use netpath_common::layout::program::{BRIDGE_IN, UPLINK_IN};
use std::net::IpAddr;
use support::packet::{ACK, BRIDGE_MAC, Frame, L4, Lab, Piece, SYN, WEB_MAC, container};
use support::rng::Rng;

const ROUNDS: u64 = 3_000;

type End = (IpAddr, u16);

/// A packet from one end to the other, and one back.
fn classes(rng: &Rng, from: End, to: End, begun_inside: bool) -> (Frame, Frame) {
    let sctp = |from: End, to: End| Frame::new(from.0, to.0, L4::Sctp { sport: from.1, dport: to.1 });
    let summed = rng.below(4) > 0 || from.0.is_ipv6();
    let udp = |from: End, to: End| Frame::new(from.0, to.0, L4::Udp { sport: from.1, dport: to.1, zero_sum: !summed });
    // Requests that a host may send with a container's address alone.
    let echo =
        |from: End, to: End, request| Frame::new(from.0, to.0, L4::Echo { request, id: request_id(from, to, request) });
    match rng.below(if begun_inside { 5 } else { 3 }) {
        0 => (Frame::tcp(from, to, SYN), Frame::tcp(to, from, SYN | ACK)),
        1 => (udp(from, to), udp(to, from)),
        2 => (sctp(from, to), sctp(to, from)),
        3 => (echo(from, to, true), echo(to, from, false)),
        _ => (Frame::new(from.0, to.0, L4::Raw(47)), Frame::new(to.0, from.0, L4::Raw(47))),
    }
}

/// The identifier belongs to the initiator, in both directions.
fn request_id(from: End, to: End, request: bool) -> u16 {
    if request { from.1 } else { to.1 }
}

/// `frame` with random content and headers, within its class.
fn dressed(rng: &Rng, frame: Frame, fragment: Option<Piece>) -> Frame {
    // All fragments but the last are multiples of eight bytes.
    let len = if fragment.is_some() { 8 * (3 + rng.below(60)) } else { rng.below(1_200) };
    let payload = (0..len).map(|_| rng.below(256) as u8).collect();
    Frame { payload, fragment, options: rng.below(4) as usize, ttl: 2 + rng.below(254) as u8, ..frame }
}

/// The fragments after the first: without ports.
fn rest(rng: &Rng, first: &Frame, proto: u8) -> Frame {
    let piece = first.fragment.map(|p| Piece { offset: 200, more: false, ..p });
    let rest = Frame { l4: L4::Raw(proto), ..first.clone() };
    dressed(rng, rest, piece)
}

struct Walk<'l> {
    lab: &'l mut Lab,
    what: String,
}

impl Walk<'_> {
    fn becomes(&mut self, at: (&str, u32), sent: &Frame, got: &Frame) -> Result<()> {
        let out = self.lab.run(at.0, at.1, &sent.bytes())?;
        let so = out.action == crate::REDIRECTED && out.packet == got.bytes();
        ensure!(so, "{}: {sent:?}\n  should be {got:?}\n  is {out:?}", self.what);
        Ok(())
    }
}

/// An ICMP error about `quoted`, from its receiver to its sender; the quoted packet has a lower hop limit.
fn error(quoted: &Frame) -> Frame {
    let (kind, code) = if quoted.src.is_ipv4() { (3, 3) } else { (1, 4) };
    let mut whole = quoted.quoted();
    // Of TCP only the ports must be quoted; the rest stays as it is.
    if matches!(quoted.l4, L4::Tcp { .. }) {
        whole.truncate(quoted.quoted().len() - quoted.payload.len() - 12);
    }
    Frame { payload: whole, ..Frame::new(quoted.dst, quoted.src, L4::Error { kind, code }) }
}

#[test]
fn a_packet_translated_there_and_back_is_unchanged() -> Result<()> {
    let rng = Rng::new();
    let mut lab = Lab::new(&[UPLINK_IN, BRIDGE_IN])?;
    lab.publish(1, Addr::ANY, 8080, 7)?;
    let (uplink, bridge) = (lab.uplink, lab.bridge);
    for round in 0..ROUNDS {
        let (v4, inside) = (rng.below(2) == 0, rng.below(2) == 0);
        let port = 1_024 + rng.below(60_000) as u16;
        let (web, seen) = if inside {
            ((container(7, v4), port), (host(v4), port))
        } else {
            ((container(7, v4), 80), (host(v4), 8080))
        };
        let far = (if inside { outside(v4) } else { client(v4) }, 1 + rng.below(65_535) as u16);
        let (there, answer) = if inside { classes(&rng, web, far, true) } else { classes(&rng, far, seen, false) };
        // SCTP keeps its port, so it would have to be published on the same one.
        if matches!(there.l4, L4::Sctp { .. }) && !inside {
            continue;
        }
        let fragment = (rng.below(4) == 0).then_some(Piece { id: round as u16, ..Piece::FIRST });
        let proto = match there.l4 {
            L4::Tcp { .. } => 6,
            L4::Udp { .. } => 17,
            L4::Sctp { .. } => 132,
            L4::Raw(proto) => proto,
            _ if v4 => 1,
            _ => 58,
        };
        lab.forget()?;
        let mut walk = Walk { lab: &mut lab, what: format!("{rng} round {round}") };
        let (there, answer) = (dressed(&rng, there, fragment), dressed(&rng, answer, fragment));
        // The container's outbound packets at the bridge and outside; inbound ones likewise.
        let out =
            |f: Frame| (f.clone().macs(BRIDGE_MAC, WEB_MAC), aged(&as_sent(&f, seen, far)).macs(BRIDGE_MAC, WEB_MAC));
        let back = |f: Frame| (at_host(f.clone()), into(&aged(&as_sent(&f, far, web)), WEB_MAC, BRIDGE_MAC));
        let (outward, inward) = if inside { (there, answer) } else { (answer, there) };
        let (outward, inward) = (out(as_sent(&outward, web, far)), back(as_sent(&inward, far, seen)));
        let order = if inside { [0, 1, 0] } else { [1, 0, 1] };
        for turn in order {
            let (at, (sent, got)) =
                if turn == 0 { ((BRIDGE_IN, bridge), &outward) } else { ((UPLINK_IN, uplink), &inward) };
            walk.becomes(at, sent, got)?;
            if fragment.is_some() {
                let piece = rest(&rng, sent, proto);
                let moved = Frame { src: got.src, dst: got.dst, ..aged(&piece) }.macs(got.dmac, got.smac);
                walk.becomes(at, &piece, &moved)?;
            }
        }
        // Fragments are not quoted; options of the outer header are left alone.
        if fragment.is_none() && !matches!(outward.0.l4, L4::Raw(_)) {
            let told = Frame { ttl: 64, ..at_host(error(&outward.1)) };
            let restored = Frame { ttl: outward.1.ttl, ..outward.0.clone() };
            let reads = Frame { ttl: 63, ..into(&error(&restored), WEB_MAC, BRIDGE_MAC) };
            walk.becomes((UPLINK_IN, uplink), &told, &reads)?;
        }
    }
    Ok(())
}

fn aged(frame: &Frame) -> Frame {
    Frame { ttl: frame.ttl - 1, ..frame.clone() }
}

/// Between these two ends: a container's answer uses the addresses of its own side.
fn as_sent(frame: &Frame, from: End, to: End) -> Frame {
    let mut sent = Frame { src: from.0, dst: to.0, ..frame.clone() };
    if let L4::Tcp { sport, dport, .. } | L4::Udp { sport, dport, .. } | L4::Sctp { sport, dport } = &mut sent.l4 {
        (*sport, *dport) = (from.1, to.1);
    }
    sent
}
