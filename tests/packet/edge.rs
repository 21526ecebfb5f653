//! The edge path: translation at the uplink, routing and filtering by the host's stack; and flows of the other path that use
//! it.

use crate::{REDIRECTED, STACK, at_host, becomes, client, gateway, goes_on_as, host, into, outside, stays};
use anyhow::Result;
use netpath_common::addr::Addr;
use netpath_common::layout::program::{BRIDGE_IN, UPLINK_IN, UPLINK_OUT};
use netpath_common::layout::{NET_DIRECT, NET_EDGE, NET_MASQUERADE};
use netpath_common::reason::Reason;
use support::packet::{ACK, APP_MAC, BRIDGE_MAC, Frame, L4, Lab, OTHER_BRIDGE_MAC, SYN, WEB_MAC, container};

fn lab(flags: u32) -> Result<Lab> {
    let mut lab = Lab::new(&[UPLINK_IN, BRIDGE_IN, UPLINK_OUT])?;
    lab.publish(1, Addr::ANY, 8080, 7)?;
    let bridge = lab.bridge;
    lab.set_network(7, bridge, flags)?;
    Ok(lab)
}

/// The stack decrements its hop limit.
fn as_old(frame: Frame) -> Frame {
    Frame { ttl: frame.ttl + 1, ..frame }
}

#[test]
fn a_published_port_is_translated_at_the_uplink_in_both_directions() -> Result<()> {
    let mut lab = lab(NET_MASQUERADE | NET_EDGE)?;
    let (uplink, bridge) = (lab.uplink, lab.bridge);
    for v4 in [true, false] {
        let (from, to, web) = ((client(v4), 40_000), (host(v4), 8080), (container(7, v4), 80));
        for (sent, answer) in [
            (Frame::tcp(from, to, SYN), Frame::tcp(web, from, SYN | ACK)),
            (Frame::udp(from, to), Frame::udp(web, from)),
        ] {
            lab.forget()?;
            for ttl in [64, 1] {
                let sent = Frame { ttl, ..at_host(sent.clone()) };
                let got = as_old(sent.becomes(from, web));
                let reason = if ttl == 64 { Reason::FlowPublished } else { Reason::Translated };
                goes_on_as(&mut lab, "in", (UPLINK_IN, [0, uplink]), &sent, &got, reason)?;
                goes_on_as(&mut lab, "in again", (UPLINK_IN, [0, uplink]), &sent, &got, Reason::Translated)?;
            }
            let seen = answer.clone().macs(BRIDGE_MAC, WEB_MAC).bytes();
            stays(&mut lab, "at the bridge", (BRIDGE_IN, bridge), &seen, STACK, Reason::NotOurs)?;
            let back = as_old(answer.becomes(to, from));
            goes_on_as(&mut lab, "out", (UPLINK_OUT, [bridge, uplink]), &answer, &back, Reason::Translated)?;
        }
    }
    Ok(())
}

#[test]
fn outbound_packets_are_masqueraded_at_the_uplink_and_answers_come_back() -> Result<()> {
    let mut lab = lab(NET_MASQUERADE | NET_EDGE)?;
    let (uplink, bridge) = (lab.uplink, lab.bridge);
    for v4 in [true, false] {
        let (web, there, seen) = ((container(7, v4), 40_000), (outside(v4), 53), (host(v4), 40_000));
        let echo = |src, dst, request| Frame::new(src, dst, L4::Echo { request, id: 40_000 });
        for (sent, answer) in [
            (Frame::tcp(web, there, SYN), Frame::tcp(there, seen, SYN | ACK)),
            (Frame::udp(web, there), Frame::udp(there, seen)),
            (echo(web.0, there.0, true), echo(there.0, seen.0, false)),
        ] {
            lab.forget()?;
            let at_bridge = sent.clone().macs(BRIDGE_MAC, WEB_MAC).bytes();
            stays(&mut lab, "at the bridge", (BRIDGE_IN, bridge), &at_bridge, STACK, Reason::NotOurs)?;
            let got = as_old(sent.becomes(seen, there));
            goes_on_as(&mut lab, "out", (UPLINK_OUT, [bridge, uplink]), &sent, &got, Reason::FlowMasqueraded)?;
            goes_on_as(&mut lab, "out again", (UPLINK_OUT, [bridge, uplink]), &sent, &got, Reason::Translated)?;
            let peer = if matches!(answer.l4, L4::Echo { .. }) { (there.0, web.1) } else { there };
            let back = as_old(answer.becomes(peer, web));
            goes_on_as(&mut lab, "back", (UPLINK_IN, [0, uplink]), &answer, &back, Reason::Translated)?;
        }
    }
    Ok(())
}

#[test]
fn the_stack_reports_the_last_hop_of_an_offloaded_flow() -> Result<()> {
    let mut lab = lab(NET_MASQUERADE)?;
    let uplink = lab.uplink;
    for v4 in [true, false] {
        let (from, to, web) = ((client(v4), 40_000), (host(v4), 8080), (container(7, v4), 80));
        let sent = Frame { ttl: 1, ..at_host(Frame::udp(from, to)) };
        let got = as_old(sent.becomes(from, web));
        goes_on_as(&mut lab, "the first", (UPLINK_IN, [0, uplink]), &sent, &got, Reason::FlowPublished)?;
        goes_on_as(&mut lab, "another", (UPLINK_IN, [0, uplink]), &sent, &got, Reason::Translated)?;
    }
    Ok(())
}

#[test]
fn an_offloaded_flow_keeps_its_ports_when_a_packet_takes_the_stack() -> Result<()> {
    let mut lab = lab(NET_MASQUERADE)?;
    let (uplink, bridge) = (lab.uplink, lab.bridge);
    for v4 in [true, false] {
        let (web, there, seen) = ((container(7, v4), 40_000), (outside(v4), 53), (host(v4), 40_000));
        let small = Frame::udp(web, there).macs(BRIDGE_MAC, WEB_MAC);
        let large = Frame { payload: vec![0; 1473], ..small.clone() };
        for begin_by_stack in [false, true] {
            lab.forget()?;
            if !begin_by_stack {
                assert_eq!(REDIRECTED, lab.run(BRIDGE_IN, bridge, &small.bytes())?.action);
            }
            stays(&mut lab, "too large", (BRIDGE_IN, bridge), &large.bytes(), STACK, Reason::StackMtu)?;
            let reason = if begin_by_stack { Reason::FlowMasqueraded } else { Reason::Translated };
            let got = as_old(large.becomes(seen, there));
            goes_on_as(&mut lab, "out", (UPLINK_OUT, [bridge, uplink]), &large, &got, reason)?;
            let got = small.becomes(seen, there);
            becomes(&mut lab, "a small one", (BRIDGE_IN, bridge), &small, &got, Reason::Redirected)?;
            let answer = at_host(Frame::udp(there, seen));
            let back = into(&answer.becomes(there, web), WEB_MAC, BRIDGE_MAC);
            becomes(&mut lab, "the answer", (UPLINK_IN, uplink), &answer, &back, Reason::Redirected)?;
        }
    }
    Ok(())
}

#[test]
fn a_network_without_masquerade_is_seen_as_it_is_and_gets_its_answers() -> Result<()> {
    for (flags, tracked) in [(0, true), (NET_EDGE, true), (NET_DIRECT, false)] {
        let mut lab = lab(flags)?;
        let (uplink, bridge) = (lab.uplink, lab.bridge);
        for v4 in [true, false] {
            let (web, there) = ((container(7, v4), 40_000), (outside(v4), 53));
            let sent = Frame::udp(web, there).macs(BRIDGE_MAC, WEB_MAC);
            let answer = at_host(Frame::udp(there, web));
            let at = (BRIDGE_IN, bridge);
            if flags == 0 {
                becomes(&mut lab, "out", at, &sent, &sent.becomes(web, there), Reason::FlowMasqueraded)?;
                let back = into(&answer.becomes(there, web), WEB_MAC, BRIDGE_MAC);
                becomes(&mut lab, "back", (UPLINK_IN, uplink), &answer, &back, Reason::Redirected)?;
            } else {
                stays(&mut lab, "out", at, &sent.bytes(), STACK, Reason::NotOurs)?;
                let out = lab.run_repeated(UPLINK_OUT, [bridge, uplink], &sent.bytes(), 1)?;
                assert_eq!((STACK, sent.bytes()), (out.action, out.packet), "flags {flags}");
                if tracked {
                    stays(&mut lab, "back", (UPLINK_IN, uplink), &answer.bytes(), STACK, Reason::Translated)?;
                } else {
                    let back = into(&answer.becomes(there, web), WEB_MAC, BRIDGE_MAC);
                    becomes(&mut lab, "back", (UPLINK_IN, uplink), &answer, &back, Reason::FlowDirect)?;
                }
            }
        }
    }
    Ok(())
}

/// A packet reassembled by br_netfilter does not reach an IPv6 container unless the stack fragments it again.
#[test]
fn an_ipv6_packet_above_a_containers_mtu_goes_to_the_stack() -> Result<()> {
    let mut lab = lab(NET_MASQUERADE)?;
    let (uplink, other) = (lab.uplink, lab.other_bridge);
    for v4 in [true, false] {
        let (from, to, web) = ((client(v4), 40_000), (host(v4), 8080), (container(7, v4), 80));
        let (app, gateway) = ((container(8, v4), 40_001), (gateway(7, v4), 40_001));
        let hairpin = Frame::udp(app, to).macs(OTHER_BRIDGE_MAC, APP_MAC);
        for (at, seen, small, first) in [
            ((UPLINK_IN, uplink), from, at_host(Frame::udp(from, to)), Reason::FlowPublished),
            ((BRIDGE_IN, other), gateway, hairpin, Reason::FlowHairpin),
        ] {
            let large = Frame { payload: vec![0; 1_600], ..small.clone() };
            for reason in [first, Reason::Redirected] {
                let got = into(&large.becomes(seen, web), WEB_MAC, BRIDGE_MAC);
                if v4 {
                    becomes(&mut lab, "large", at, &large, &got, reason)?;
                } else {
                    let reason = if reason == first { first } else { Reason::Translated };
                    let got = as_old(large.becomes(seen, web));
                    goes_on_as(&mut lab, "large", (at.0, [0, at.1]), &large, &got, reason)?;
                }
            }
            let got = into(&small.becomes(seen, web), WEB_MAC, BRIDGE_MAC);
            becomes(&mut lab, "small", at, &small, &got, Reason::Redirected)?;
        }
    }
    Ok(())
}
