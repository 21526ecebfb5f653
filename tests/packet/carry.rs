//! np_count_in and np_count_out, which lead to np_carry_in and np_carry_out: packets of promoted flows are translated and redirected; whatever the rules or conntrack have to see
//! passes unchanged.

use crate::{REDIRECTED, STACK, at_host, client, host, into, outside};
use anyhow::Result;
use netpath_common::addr::Addr;
use netpath_common::layout::program::{BRIDGE_IN, CARRY_IN, CARRY_OUT, COUNT_IN, COUNT_OUT, UPLINK_IN};
use netpath_common::layout::{PROTO_TCP, SIDE_UPLINK};
use support::packet::{ACK, BRIDGE_MAC, FIN, Frame, Lab, RST, SYN, WEB_MAC, container};

const EPOCH: u32 = 7;
/// In ticks.
const FOREVER: i32 = 10_000;

#[track_caller]
fn carries(lab: &mut Lab, what: &str, at: (&str, u32), sent: &Frame, got: &Frame) -> Result<()> {
    let out = lab.run(at.0, at.1, &sent.bytes())?;
    assert_eq!((REDIRECTED, got.bytes()), (out.action, out.packet), "{what}");
    Ok(())
}

#[track_caller]
fn passes(lab: &mut Lab, what: &str, at: (&str, u32), sent: &Frame) -> Result<()> {
    let out = lab.run(at.0, at.1, &sent.bytes())?;
    assert_eq!((STACK, sent.bytes()), (out.action, out.packet), "{what}");
    Ok(())
}

/// A packet at its hook, and what becomes of it.
type Way = ((&'static str, u32), Frame, Frame);

/// A published connection, promoted: both directions.
fn published(lab: &mut Lab, v4: bool) -> Result<[Way; 2]> {
    lab.forget()?;
    let (from, to, web) = ((client(v4), 40_000), (host(v4), 8080), (container(7, v4), 80));
    let uplink = lab.uplink;
    lab.run(UPLINK_IN, uplink, &at_host(Frame::tcp(from, to, SYN)).bytes())?;
    lab.promote(v4, EPOCH, FOREVER)?;
    let question = at_host(Frame::tcp(from, to, ACK));
    let answer = Frame::tcp(web, from, ACK).macs(BRIDGE_MAC, WEB_MAC);
    let becomes = into(&question.becomes(from, web), WEB_MAC, BRIDGE_MAC);
    let back = answer.becomes(to, from);
    Ok([((COUNT_IN, uplink), question, becomes), ((COUNT_OUT, lab.web), answer, back)])
}

#[test]
fn promoted_flows_are_carried_both_ways() -> Result<()> {
    let mut lab = Lab::new(&[UPLINK_IN, BRIDGE_IN, COUNT_IN, COUNT_OUT, CARRY_IN, CARRY_OUT])?;
    lab.publish(1, Addr::ANY, 8080, 7)?;
    for v4 in [true, false] {
        for (at, sent, got) in published(&mut lab, v4)? {
            carries(&mut lab, at.0, at, &sent, &got)?;
        }
        lab.forget()?;
        let (app, there, seen) = ((container(7, v4), 40_001), (outside(v4), 53), (host(v4), 40_001));
        let question = Frame::udp(app, there).macs(BRIDGE_MAC, WEB_MAC);
        let (bridge, uplink, web) = (lab.bridge, lab.uplink, lab.web);
        lab.run(BRIDGE_IN, bridge, &question.bytes())?;
        lab.promote(v4, EPOCH, FOREVER)?;
        carries(&mut lab, "a question", (COUNT_OUT, web), &question, &question.becomes(seen, there))?;
        let answer = at_host(Frame::udp(there, seen));
        let got = into(&answer.becomes(there, app), WEB_MAC, BRIDGE_MAC);
        carries(&mut lab, "its answer", (COUNT_IN, uplink), &answer, &got)?;
    }
    Ok(())
}

#[test]
fn what_the_rules_or_conntrack_have_to_see_passes() -> Result<()> {
    let mut lab = Lab::new(&[UPLINK_IN, COUNT_IN, COUNT_OUT, CARRY_IN, CARRY_OUT])?;
    lab.publish(1, Addr::ANY, 8080, 7)?;
    for v4 in [true, false] {
        for way in 0..2 {
            let both = published(&mut lab, v4)?;
            let (at, sent, got) = &both[way];
            for (what, frame) in [
                ("at its last hop", Frame { ttl: 1, ..sent.clone() }),
                ("tagged", Frame { tagged: true, ..sent.clone() }),
                ("with options", Frame { options: 1, ..sent.clone() }),
            ] {
                // TCP options are not options of IP.
                if what == "with options" && !v4 {
                    continue;
                }
                passes(&mut lab, what, *at, &frame)?;
            }
            if at.0 == COUNT_OUT {
                passes(&mut lab, "too large", *at, &Frame { payload: vec![0; 1473], ..sent.clone() })?;
                passes(&mut lab, "to another container", *at, &sent.clone().macs([2, 0, 0, 0, 7, 6], WEB_MAC))?;
            }
            let elsewhere = (at.0, if at.0 == COUNT_IN { lab.app } else { lab.uplink });
            if at.0 == COUNT_OUT {
                passes(&mut lab, "by another interface", elsewhere, sent)?;
            }
            carries(&mut lab, "plain", *at, sent, got)?;
            let mut null = sent.clone();
            if let support::packet::L4::Tcp { flags, .. } = &mut null.l4 {
                *flags = 0;
            }
            passes(&mut lab, "without any flag", *at, &null)?;
            carries(&mut lab, "after it", *at, sent, got)?;
            lab.promote(v4, EPOCH + 1, FOREVER)?;
            carries(&mut lab, "of this epoch", *at, sent, got)?;
            lab.trust(EPOCH, FOREVER)?;
            passes(&mut lab, "of another epoch", *at, sent)?;
            lab.promote(v4, EPOCH, -1)?;
            passes(&mut lab, "without news of the agent", *at, sent)?;
            lab.promote(v4, EPOCH, FOREVER)?;
            lab.age_by_ticks(v4, 64 + 16)?;
            passes(&mut lab, "the first of its second", *at, sent)?;
            carries(&mut lab, "the second", *at, sent, got)?;
        }
    }
    Ok(())
}

#[test]
fn the_end_of_a_connection_passes_and_so_does_what_follows_in_its_direction() -> Result<()> {
    let mut lab = Lab::new(&[UPLINK_IN, COUNT_IN, COUNT_OUT, CARRY_IN, CARRY_OUT])?;
    lab.publish(1, Addr::ANY, 8080, 7)?;
    for v4 in [true, false] {
        for flags in [FIN | ACK, RST, SYN] {
            for way in 0..2 {
                let both = published(&mut lab, v4)?;
                let (at, sent, _) = &both[way];
                let mut end = sent.clone();
                if let support::packet::L4::Tcp { flags: of, .. } = &mut end.l4 {
                    *of = flags;
                }
                passes(&mut lab, "the end", *at, &end)?;
                passes(&mut lab, "after the end", *at, sent)?;
                let (at, sent, got) = &both[1 - way];
                carries(&mut lab, "the other direction", *at, sent, got)?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_flow_is_reported_once_it_has_lasted() -> Result<()> {
    let mut lab = Lab::new(&[COUNT_IN, COUNT_OUT, CARRY_IN, CARRY_OUT])?;
    let uplink = lab.uplink;
    for v4 in [true, false] {
        lab.promote(v4, EPOCH, FOREVER)?;
        // Another port for each family: their slots are the same otherwise.
        let port = if v4 { 40_000 } else { 40_001 };
        let sent = at_host(Frame::tcp((client(v4), port), (host(v4), 8080), ACK)).bytes();
        // A window may end in between.
        let mut reported = Vec::new();
        for _ in 0..3 {
            lab.run_repeated(COUNT_IN, [uplink, uplink], &sent, 200)?;
            reported = lab.reports()?;
            if !reported.is_empty() {
                break;
            }
        }
        let [one] = reported.as_slice() else { panic!("{} reports", reported.len()) };
        let expected = (support::packet::mapped(client(v4)), support::packet::mapped(host(v4)), port, 8080);
        assert_eq!(expected, (one.src, one.dst, one.sport.value(), one.dport.value()));
        assert_eq!((PROTO_TCP, SIDE_UPLINK, uplink), (one.proto, one.side, one.ifindex));
        lab.run_repeated(COUNT_IN, [uplink, uplink], &at_host(Frame::udp((client(v4), 1), (host(v4), 2))).bytes(), 20)?;
        assert!(lab.reports()?.is_empty(), "a short one");
    }
    Ok(())
}
