//! Packets of flows that only the host's stack can handle.

use crate::{REDIRECTED, STACK, at_host, becomes, client, gateway, goes_on_as, host, into, outside, stays};
use anyhow::Result;
use netpath_common::addr::Addr;
use netpath_common::layout::program::{BRIDGE_IN, UPLINK_IN, UPLINK_OUT};
use netpath_common::layout::{NET_DIRECT, NET_MASQUERADE};
use netpath_common::reason::Reason;
use support::packet::{APP_MAC, BRIDGE_MAC, Frame, Lab, OTHER_BRIDGE_MAC, WEB_MAC, container};

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
    for flags in [0, NET_DIRECT] {
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
                let back = into(&answer.becomes(there, web), WEB_MAC, BRIDGE_MAC);
                becomes(&mut lab, "back", (UPLINK_IN, uplink), &answer, &back, Reason::FlowDirect)?;
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
