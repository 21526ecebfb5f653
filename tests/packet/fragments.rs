//! Fragments: later fragments follow the first.

use crate::{STACK, at_host, becomes, client, gateway, goes_on_as, host, into, outside, stays};
use anyhow::Result;
use netpath_common::addr::Addr;
use netpath_common::layout::program::{BRIDGE_IN, UPLINK_IN, UPLINK_OUT};
use netpath_common::reason::Reason;
use std::net::IpAddr;
use support::packet::{APP_MAC, BRIDGE_MAC, Frame, L4, Lab, OTHER_BRIDGE_MAC, Piece, WEB_MAC, container};

fn lab() -> Result<Lab> {
    let mut lab = Lab::new(&[UPLINK_IN, BRIDGE_IN, UPLINK_OUT])?;
    lab.publish(1, Addr::ANY, 8080, 7)?;
    Ok(lab)
}

fn first(frame: Frame, id: u16) -> Frame {
    Frame { payload: vec![0x5a; 24], fragment: Some(Piece { id, ..Piece::FIRST }), ..frame }
}

/// The later fragments: without ports.
fn later(src: IpAddr, dst: IpAddr, proto: u8, id: u16) -> Vec<Frame> {
    let piece = |offset, more| Frame {
        payload: vec![0xa5; 32],
        fragment: Some(Piece { id, offset, more }),
        ..Frame::new(src, dst, L4::Raw(proto))
    };
    vec![piece(4, true), piece(8, false)]
}

#[test]
fn all_fragments_of_a_datagram_use_one_flow() -> Result<()> {
    let mut lab = lab()?;
    let (uplink, bridge) = (lab.uplink, lab.bridge);
    for v4 in [true, false] {
        let (from, to, web) = ((client(v4), 40_000), (host(v4), 8080), (container(7, v4), 80));
        let sent = at_host(first(Frame::udp(from, to), 1));
        let got = into(&sent.becomes(from, web), WEB_MAC, BRIDGE_MAC);
        becomes(&mut lab, "first", (UPLINK_IN, uplink), &sent, &got, Reason::FlowPublished)?;
        for sent in later(from.0, to.0, 17, 1) {
            let got = into(&sent.becomes(from, web), WEB_MAC, BRIDGE_MAC);
            becomes(&mut lab, "later", (UPLINK_IN, uplink), &at_host(sent), &got, Reason::Redirected)?;
        }
        let answer = first(Frame::udp(web, from), 9).macs(BRIDGE_MAC, WEB_MAC);
        becomes(&mut lab, "answer", (BRIDGE_IN, bridge), &answer, &answer.becomes(to, from), Reason::Redirected)?;
        for answer in later(web.0, from.0, 17, 9) {
            let answer = answer.macs(BRIDGE_MAC, WEB_MAC);
            let back = answer.becomes(to, from);
            becomes(&mut lab, "rest of the answer", (BRIDGE_IN, bridge), &answer, &back, Reason::Redirected)?;
        }
    }
    Ok(())
}

#[test]
fn a_masqueraded_datagram_and_a_large_echo() -> Result<()> {
    let mut lab = lab()?;
    let (uplink, bridge) = (lab.uplink, lab.bridge);
    for v4 in [true, false] {
        let (web, there, seen) = ((container(7, v4), 40_000), (outside(v4), 53), (host(v4), 40_000));
        let icmp = if v4 { 1 } else { 58 };
        let echo = |src, dst, request| Frame::new(src, dst, L4::Echo { request, id: 40_000 });
        for (proto, sent, back) in [
            (17, Frame::udp(web, there), Frame::udp(there, seen)),
            (icmp, echo(web.0, there.0, true), echo(there.0, seen.0, false)),
        ] {
            lab.forget()?;
            let port = if proto == 17 { there.1 } else { web.1 };
            let sent = first(sent, 3).macs(BRIDGE_MAC, WEB_MAC);
            let got = sent.becomes(seen, there);
            becomes(&mut lab, "first", (BRIDGE_IN, bridge), &sent, &got, Reason::FlowMasqueraded)?;
            for sent in later(web.0, there.0, proto, 3) {
                let sent = sent.macs(BRIDGE_MAC, WEB_MAC);
                becomes(&mut lab, "later", (BRIDGE_IN, bridge), &sent, &sent.becomes(seen, there), Reason::Redirected)?;
            }
            let back = at_host(first(back, 4));
            let got = into(&back.becomes((there.0, port), web), WEB_MAC, BRIDGE_MAC);
            becomes(&mut lab, "back", (UPLINK_IN, uplink), &back, &got, Reason::Redirected)?;
            for back in later(there.0, seen.0, proto, 4) {
                let got = into(&back.becomes(there, web), WEB_MAC, BRIDGE_MAC);
                becomes(&mut lab, "rest", (UPLINK_IN, uplink), &at_host(back), &got, Reason::Redirected)?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_fragment_before_the_first_goes_where_the_last_datagram_went() -> Result<()> {
    let mut lab = lab()?;
    let uplink = lab.uplink;
    for v4 in [true, false] {
        let (from, to, web) = ((client(v4), 40_000), (host(v4), 8080), (container(7, v4), 80));
        let [early, _] = &later(from.0, to.0, 17, 1)[..] else { anyhow::bail!("two pieces") };
        let unknown = at_host(early.clone()).bytes();
        stays(&mut lab, "no datagram seen yet", (UPLINK_IN, uplink), &unknown, STACK, Reason::Fragment)?;
        let sent = at_host(first(Frame::udp(from, to), 1));
        let got = into(&sent.becomes(from, web), WEB_MAC, BRIDGE_MAC);
        becomes(&mut lab, "first", (UPLINK_IN, uplink), &sent, &got, Reason::FlowPublished)?;
        for early in later(from.0, to.0, 17, 2) {
            let got = into(&early.becomes(from, web), WEB_MAC, BRIDGE_MAC);
            becomes(&mut lab, "before its first", (UPLINK_IN, uplink), &at_host(early), &got, Reason::Redirected)?;
        }
    }
    Ok(())
}

#[test]
fn fragments_of_the_hosts_own_datagrams_are_left_alone() -> Result<()> {
    let mut lab = lab()?;
    let at = (UPLINK_IN, lab.uplink);
    for v4 in [true, false] {
        let (from, to) = ((client(v4), 40_000), (host(v4), 2_049));
        let head = at_host(first(Frame::udp(from, to), 5)).bytes();
        stays(&mut lab, "first", at, &head, STACK, Reason::NotOurs)?;
        for piece in later(from.0, to.0, 17, 5) {
            stays(&mut lab, "later", at, &at_host(piece).bytes(), STACK, Reason::NotOurs)?;
        }
    }
    Ok(())
}

/// A hairpin flow's answers go to the bridge's own address, and so do a container's packets to the host.
#[test]
fn fragments_to_the_host_are_not_those_of_a_flow_between_the_same_two() -> Result<()> {
    let mut lab = lab()?;
    let (bridge, other) = (lab.bridge, lab.other_bridge);
    for v4 in [true, false] {
        let (app, web, gateway) = ((container(8, v4), 40_001), (container(7, v4), 80), (gateway(7, v4), 40_001));
        let asked = Frame::udp(app, (host(v4), 8080)).macs(OTHER_BRIDGE_MAC, APP_MAC);
        let got = into(&asked.becomes(gateway, web), WEB_MAC, BRIDGE_MAC);
        becomes(&mut lab, "hairpin", (BRIDGE_IN, other), &asked, &got, Reason::FlowHairpin)?;
        let answer = first(Frame::udp(web, gateway), 9).macs(BRIDGE_MAC, WEB_MAC);
        let back = into(&answer.becomes((host(v4), 8080), app), APP_MAC, OTHER_BRIDGE_MAC);
        becomes(&mut lab, "its answer", (BRIDGE_IN, bridge), &answer, &back, Reason::Redirected)?;
        let head = first(Frame::udp(web, (gateway.0, 5_353)), 10).macs(BRIDGE_MAC, WEB_MAC).bytes();
        stays(&mut lab, "to the host", (BRIDGE_IN, bridge), &head, STACK, Reason::NotOurs)?;
        for piece in later(web.0, gateway.0, 17, 10) {
            let piece = piece.macs(BRIDGE_MAC, WEB_MAC).bytes();
            stays(&mut lab, "the rest of it", (BRIDGE_IN, bridge), &piece, STACK, Reason::NotOurs)?;
        }
    }
    Ok(())
}

/// The stack has fragmented a packet too large for the uplink.
#[test]
fn fragments_made_by_the_stack_are_translated_at_egress() -> Result<()> {
    let mut lab = lab()?;
    let at = (UPLINK_OUT, [lab.bridge, lab.uplink]);
    for v4 in [true, false] {
        let (web, there, seen) = ((container(7, v4), 40_000), (outside(v4), 53), (host(v4), 40_000));
        let sent = first(Frame::udp(web, there), 6);
        let same = |frame: &Frame| Frame { ttl: 64, ..frame.becomes(seen, there) };
        goes_on_as(&mut lab, "first", at, &sent, &same(&sent), Reason::FlowMasqueraded)?;
        for sent in later(web.0, there.0, 17, 6) {
            goes_on_as(&mut lab, "later", at, &sent, &same(&sent), Reason::Translated)?;
        }
    }
    Ok(())
}

/// Fragments made by the stack do not carry their input interface (net/ipv6/ip6_output.c, ip6_copy_metadata()).
#[test]
fn fragments_without_an_input_interface_are_known_by_their_source() -> Result<()> {
    let mut lab = lab()?;
    let (uplink, veth) = (lab.uplink, lab.web);
    let (web, there, seen) = ((container(7, false), 40_000), (outside(false), 53), (host(false), 40_000));
    for (origin, options) in [(0, 0), (veth, 0), (0, 1)] {
        lab.forget()?;
        let at = (UPLINK_OUT, [origin, uplink]);
        let same = |frame: &Frame| Frame { ttl: 64, ..frame.becomes(seen, there) };
        let sent = Frame { options, ..first(Frame::udp(web, there), 6) };
        goes_on_as(&mut lab, "first", at, &sent, &same(&sent), Reason::FlowMasqueraded)?;
        for sent in later(web.0, there.0, 17, 6) {
            let sent = Frame { options, ..sent };
            goes_on_as(&mut lab, "later", at, &sent, &same(&sent), Reason::Translated)?;
        }
        let own = first(Frame::udp((host(false), 41_000), there), 7).bytes();
        let out = lab.run_repeated(at.0, at.1, &own, 1)?;
        assert_eq!((STACK, own, vec![]), (out.action, out.packet, out.counted), "the host's own");
    }
    Ok(())
}

/// RFC 6946: a fragment header on a complete packet.
#[test]
fn an_atomic_fragment_is_a_whole_packet() -> Result<()> {
    let mut lab = lab()?;
    let at = (UPLINK_IN, lab.uplink);
    let (from, to, web) = ((client(false), 40_000), (host(false), 8080), (container(7, false), 80));
    let whole = Some(Piece { id: 8, offset: 0, more: false });
    let sent = at_host(Frame { fragment: whole, ..Frame::udp(from, to) });
    let got = into(&sent.becomes(from, web), WEB_MAC, BRIDGE_MAC);
    becomes(&mut lab, "atomic", at, &sent, &got, Reason::FlowPublished)
}
