//! np_bridge_in: masquerade, hairpin, isolation.

use crate::{
    DROPPED, REDIRECTED, STACK, at_host, becomes, client, cut_everywhere, gateway, host, into, ip, outside, shapes,
    stays,
};
use anyhow::Result;
use netpath_common::addr::Addr;
use netpath_common::layout::program::{BRIDGE_IN, UPLINK_IN};
use netpath_common::layout::{NET_INTERNAL, NET_ISOLATED, NET_MASQUERADE, NET_STRICT, SIDE_BRIDGE};
use netpath_common::reason::Reason;
use std::net::IpAddr;
use support::packet::{
    ACK, APP_MAC, BRIDGE_MAC, FIN, Frame, L4, Lab, OTHER_BRIDGE_MAC, Piece, SYN, WEB_MAC, container,
};

fn lab() -> Result<Lab> {
    let mut lab = Lab::new(&[UPLINK_IN, BRIDGE_IN])?;
    lab.publish(1, Addr::ANY, 8080, 7)?;
    Ok(lab)
}

fn from_web(frame: Frame) -> Frame {
    frame.macs(BRIDGE_MAC, WEB_MAC)
}

fn echo(src: IpAddr, dst: IpAddr, request: bool, id: u16) -> Frame {
    Frame::new(src, dst, L4::Echo { request, id })
}

#[test]
fn outbound_packets_have_the_outgoing_address_and_answers_come_back() -> Result<()> {
    let mut lab = lab()?;
    let (uplink, bridge) = (lab.uplink, lab.bridge);
    for v4 in [true, false] {
        let (web, there) = ((container(7, v4), 40_000), (outside(v4), 53));
        let out = (host(v4), 40_000);
        for (sent, answer) in [
            (Frame::tcp(web, there, SYN), Frame::tcp(there, out, SYN | ACK)),
            (Frame::udp(web, there), Frame::udp(there, out)),
            (echo(web.0, there.0, true, 40_000), echo(there.0, out.0, false, 40_000)),
        ] {
            for (shape, sent) in shapes(&sent) {
                lab.forget()?;
                let what = format!("{shape}: {sent:?}");
                let sent = from_web(sent);
                let got = sent.becomes(out, there);
                becomes(&mut lab, &what, (BRIDGE_IN, bridge), &sent, &got, Reason::FlowMasqueraded)?;
                becomes(&mut lab, &what, (BRIDGE_IN, bridge), &sent, &got, Reason::Redirected)?;
                let peer = if matches!(answer.l4, L4::Echo { .. }) { (there.0, web.1) } else { there };
                let back = into(&answer.becomes(peer, web), WEB_MAC, BRIDGE_MAC);
                becomes(
                    &mut lab,
                    &format!("answer to {what}"),
                    (UPLINK_IN, uplink),
                    &answer,
                    &back,
                    Reason::Redirected,
                )?;
            }
            cut_everywhere(&mut lab, "a masqueraded packet", (BRIDGE_IN, bridge), &from_web(sent.clone()))?;
            cut_everywhere(&mut lab, "its answer", (UPLINK_IN, uplink), &answer)?;
        }
    }
    Ok(())
}

#[test]
fn a_taken_port_is_replaced_by_one_of_the_range_and_none_left_is_a_drop() -> Result<()> {
    let mut lab = lab()?;
    let (bridge, other) = (lab.bridge, lab.other_bridge);
    for v4 in [true, false] {
        lab.forget()?;
        lab.set_ports(61_000, 61_000)?;
        let there = (outside(v4), 53);
        let first = from_web(Frame::udp((container(7, v4), 40_000), there));
        let got = first.becomes((host(v4), 40_000), there);
        becomes(&mut lab, "keeps its port", (BRIDGE_IN, bridge), &first, &got, Reason::FlowMasqueraded)?;
        let second = Frame::udp((container(8, v4), 40_000), there).macs(OTHER_BRIDGE_MAC, APP_MAC);
        let got = second.becomes((host(v4), 61_000), there);
        becomes(&mut lab, "another's is taken", (BRIDGE_IN, other), &second, &got, Reason::FlowMasqueraded)?;
        let third = from_web(Frame::udp((container(7, v4), 61_000), there)).bytes();
        stays(&mut lab, "no port left", (BRIDGE_IN, bridge), &third, DROPPED, Reason::DropPortsExhausted)?;
        // Another destination has a port space of its own.
        let fourth = from_web(Frame::udp((container(7, v4), 61_000), (outside(v4), 54)));
        let got = fourth.becomes((host(v4), 61_000), (outside(v4), 54));
        becomes(&mut lab, "another destination", (BRIDGE_IN, bridge), &fourth, &got, Reason::FlowMasqueraded)?;
    }
    Ok(())
}

#[test]
fn the_port_of_a_closed_connection_is_taken_before_none_is() -> Result<()> {
    let mut lab = lab()?;
    let (bridge, other, uplink) = (lab.bridge, lab.other_bridge, lab.uplink);
    for v4 in [true, false] {
        lab.forget()?;
        lab.set_ports(61_000, 61_000)?;
        let (there, out) = ((outside(v4), 80), (host(v4), 61_000));
        let (app, web) = ((container(8, v4), 40_000), (container(7, v4), 61_000));
        let from_app = |flags| Frame::tcp(app, there, flags).macs(OTHER_BRIDGE_MAC, APP_MAC);
        for (at, index, frame) in [
            (BRIDGE_IN, bridge, from_web(Frame::tcp((container(7, v4), 40_000), there, SYN))),
            (BRIDGE_IN, other, from_app(SYN)),
            (UPLINK_IN, uplink, Frame::tcp(there, out, SYN | ACK)),
            (BRIDGE_IN, other, from_app(FIN | ACK)),
        ] {
            assert_eq!(REDIRECTED, lab.run(at, index, &frame.bytes())?.action, "{frame:?}");
        }
        let wanting = from_web(Frame::tcp(web, there, SYN));
        let none = |lab: &mut Lab, what: &str| {
            lab.age_flows(v4, 2)?;
            stays(lab, what, (BRIDGE_IN, bridge), &wanting.bytes(), DROPPED, Reason::DropPortsExhausted)
        };
        none(&mut lab, "half-closed")?;
        assert_eq!(REDIRECTED, lab.run(UPLINK_IN, uplink, &Frame::tcp(there, out, FIN | ACK).bytes())?.action);
        stays(&mut lab, "closed just now", (BRIDGE_IN, bridge), &wanting.bytes(), DROPPED, Reason::DropPortsExhausted)?;
        lab.age_flows(v4, 3)?;
        let before = lab.ways(v4, SIDE_BRIDGE)?.len();
        let got = wanting.becomes(out, there);
        becomes(&mut lab, "closed", (BRIDGE_IN, bridge), &wanting, &got, Reason::FlowMasqueraded)?;
        assert_eq!(before, lab.ways(v4, SIDE_BRIDGE)?.len(), "v4 {v4}: the other half is gone");
        let answer = Frame::tcp(there, out, SYN | ACK);
        let back = into(&answer.becomes(there, web), WEB_MAC, BRIDGE_MAC);
        becomes(&mut lab, "its answer", (UPLINK_IN, uplink), &answer, &back, Reason::Redirected)?;
        let late = from_app(SYN).bytes();
        stays(
            &mut lab,
            "the former owner of the port",
            (BRIDGE_IN, other),
            &late,
            DROPPED,
            Reason::DropPortsExhausted,
        )?;
        becomes(&mut lab, "and still", (UPLINK_IN, uplink), &answer, &back, Reason::Redirected)?;
    }
    Ok(())
}

/// A full table evicts the half that first sent.
#[test]
fn the_port_of_a_quiet_flow_that_has_lost_its_first_half_is_taken_before_none_is() -> Result<()> {
    let mut lab = lab()?;
    let (bridge, other, uplink) = (lab.bridge, lab.other_bridge, lab.uplink);
    for v4 in [true, false] {
        lab.forget()?;
        lab.set_ports(61_000, 61_000)?;
        let (there, out, web) = ((outside(v4), 53), (host(v4), 61_000), (container(7, v4), 61_000));
        let first = Frame::udp((container(8, v4), 61_000), there).macs(OTHER_BRIDGE_MAC, APP_MAC);
        let answer = Frame::udp(there, out);
        assert_eq!(REDIRECTED, lab.run(BRIDGE_IN, other, &first.bytes())?.action);
        assert_eq!(REDIRECTED, lab.run(UPLINK_IN, uplink, &answer.bytes())?.action);
        let wanting = from_web(Frame::udp(web, there));
        let none = |lab: &mut Lab, what: &str| {
            stays(lab, what, (BRIDGE_IN, bridge), &wanting.bytes(), DROPPED, Reason::DropPortsExhausted)
        };
        lab.lose_half(v4, SIDE_BRIDGE)?;
        none(&mut lab, "not quiet")?;
        assert_eq!(REDIRECTED, lab.run(BRIDGE_IN, other, &first.bytes())?.action);
        lab.age_flows(v4, 3)?;
        none(&mut lab, "whole")?;
        lab.lose_half(v4, SIDE_BRIDGE)?;
        let got = wanting.becomes(out, there);
        becomes(&mut lab, "adrift", (BRIDGE_IN, bridge), &wanting, &got, Reason::FlowMasqueraded)?;
        let back = into(&answer.becomes(there, web), WEB_MAC, BRIDGE_MAC);
        becomes(&mut lab, "its answer", (UPLINK_IN, uplink), &answer, &back, Reason::Redirected)?;
    }
    Ok(())
}

/// RFC 9293 §3.5: each SYN meets the other's in flight.
#[test]
fn two_ends_that_dial_each_other_at_once_are_one_connection() -> Result<()> {
    let mut lab = lab()?;
    let (bridge, uplink) = (lab.bridge, lab.uplink);
    for v4 in [true, false] {
        let (web, there, seen) = ((container(7, v4), 40_000), (outside(v4), 50_000), (host(v4), 40_000));
        let sent = |flags| from_web(Frame::tcp(web, there, flags));
        let comes = |flags| at_host(Frame::tcp(there, seen, flags));
        let first = sent(SYN);
        becomes(&mut lab, "its", (BRIDGE_IN, bridge), &first, &first.becomes(seen, there), Reason::FlowMasqueraded)?;
        for (what, flags) in [("the other's", SYN), ("its answer", SYN | ACK), ("and on", ACK)] {
            let frame = comes(flags);
            let got = into(&frame.becomes(there, web), WEB_MAC, BRIDGE_MAC);
            becomes(&mut lab, what, (UPLINK_IN, uplink), &frame, &got, Reason::Redirected)?;
            let frame = sent(flags | ACK);
            becomes(&mut lab, what, (BRIDGE_IN, bridge), &frame, &frame.becomes(seen, there), Reason::Redirected)?;
        }
    }
    Ok(())
}

/// Both pings use the same identifier (on Windows all do), and each is answered by its target.
#[test]
fn a_request_is_no_reply_to_a_ping_of_a_container() -> Result<()> {
    let mut lab = lab()?;
    let (bridge, uplink) = (lab.bridge, lab.uplink);
    for v4 in [true, false] {
        let (web, there, seen) = (container(7, v4), outside(v4), host(v4));
        assert_eq!(REDIRECTED, lab.action(BRIDGE_IN, bridge, &from_web(echo(web, there, true, 1)).bytes())?);
        let theirs = at_host(echo(there, seen, true, 1)).bytes();
        stays(&mut lab, "a request to the host", (UPLINK_IN, uplink), &theirs, STACK, Reason::NotOurs)?;
        let reply = from_web(echo(web, there, false, 1)).bytes();
        stays(&mut lab, "a reply without a request", (BRIDGE_IN, bridge), &reply, STACK, Reason::NotOurs)?;
        let reply = at_host(echo(there, seen, false, 1)).bytes();
        assert_eq!(REDIRECTED, lab.action(UPLINK_IN, uplink, &reply)?);
    }
    Ok(())
}

#[test]
fn a_port_of_a_socket_of_the_host_is_not_taken() -> Result<()> {
    let mut lab = lab()?;
    let bridge = lab.bridge;
    let _udp = std::net::UdpSocket::bind("192.0.2.1:40000")?;
    let _tcp = std::net::TcpListener::bind("192.0.2.1:40001")?;
    let there = (outside(true), 53);
    for sent in [Frame::udp((container(7, true), 40_000), there), Frame::tcp((container(7, true), 40_001), there, SYN)]
    {
        let out = lab.run(BRIDGE_IN, bridge, &from_web(sent.clone()).bytes())?;
        assert_eq!(REDIRECTED, out.action, "{sent:?}");
        let port = u16::from_be_bytes([out.packet[34], out.packet[35]]);
        assert!(port >= 61_000, "{sent:?} got port {port} of a socket");
        assert_eq!(from_web(sent).becomes((host(true), port), there).bytes(), out.packet);
    }
    Ok(())
}

/// The engine's socket holds a published port. The same port of another container, and another port of the same one, count as
/// taken.
#[test]
fn a_published_port_is_its_containers_own_while_a_socket_holds_it() -> Result<()> {
    let mut lab = lab()?;
    let (bridge, other) = (lab.bridge, lab.other_bridge);
    // 5060 leads to 80 of the container.
    lab.publish(3, Addr::ANY, 5_060, 7)?;
    lab.publish(5, Addr::ANY, 80, 7)?;
    let held: Result<Vec<_>, std::io::Error> = [80, 5_060]
        .into_iter()
        .map(|port| Ok((std::net::TcpListener::bind(("::", port))?, std::net::UdpSocket::bind(("::", port))?)))
        .collect();
    let _held = held?;
    for v4 in [true, false] {
        let there = (outside(v4), 53);
        for tcp in [true, false] {
            lab.forget()?;
            let frame = |from| if tcp { Frame::tcp(from, there, SYN) } else { Frame::udp(from, there) };
            let own = from_web(frame((container(7, v4), 80)));
            let got = own.becomes((host(v4), 80), there);
            becomes(&mut lab, "its own", (BRIDGE_IN, bridge), &own, &got, Reason::FlowMasqueraded)?;
            for (what, at, sent) in [
                ("of another container", other, frame((container(8, v4), 80)).macs(OTHER_BRIDGE_MAC, APP_MAC)),
                ("published from another port", bridge, from_web(frame((container(7, v4), 5_060)))),
            ] {
                lab.forget()?;
                let out = lab.run(BRIDGE_IN, at, &sent.bytes())?;
                let at = if v4 { 34 } else { 54 };
                let port = u16::from_be_bytes([out.packet[at], out.packet[at + 1]]);
                assert!(out.action == REDIRECTED && port >= 61_000, "{what}, v4 {v4}, tcp {tcp}: port {port}");
            }
        }
    }
    Ok(())
}

#[test]
fn untranslatable_packets_are_left_to_the_stack() -> Result<()> {
    let mut lab = lab()?;
    let at = (BRIDGE_IN, lab.bridge);
    for v4 in [true, false] {
        let (web, there) = ((container(7, v4), 40_000), (outside(v4), 53));
        let nowhere = if v4 { ip("224.0.0.251") } else { ip("ff02::fb") };
        for (what, frame) in [
            ("a protocol that cannot be translated", Frame::new(web.0, there.0, L4::Raw(136))),
            ("the middle of a connection", Frame::tcp(web, there, ACK)),
            ("an echo answer", echo(web.0, there.0, false, 7)),
            ("multicast", Frame::udp(web, (nowhere, 5353))),
            ("the gateway", Frame::udp(web, (gateway(7, v4), 53))),
            ("the host", Frame::tcp(web, (host(v4), 22), SYN)),
            ("another open network", Frame::tcp(web, (container(8, v4), 80), SYN)),
            ("tagged", Frame { tagged: true, ..Frame::udp(web, there) }),
        ] {
            stays(&mut lab, what, at, &from_web(frame).bytes(), STACK, Reason::NotOurs)?;
        }
        let udp = from_web(Frame::udp(web, there));
        for (what, frame, reason) in [
            (
                "a fragment without its first",
                Frame { l4: L4::Raw(17), fragment: Some(Piece::LAST), ..udp.clone() },
                Reason::Fragment,
            ),
            ("at the end of its hops", Frame { ttl: 1, ..udp.clone() }, Reason::StackTtl),
            ("larger than the way out", Frame { payload: vec![0; 1473], ..udp.clone() }, Reason::StackMtu),
        ] {
            stays(&mut lab, what, at, &frame.bytes(), STACK, reason)?;
        }
        // The same packet of an existing flow.
        assert_eq!(REDIRECTED, lab.run(at.0, at.1, &udp.bytes())?.action);
        let large = Frame { payload: vec![0; 1473], ..udp.clone() };
        stays(&mut lab, "larger, of a flow", at, &large.bytes(), STACK, Reason::StackMtu)?;
        let dying = Frame { ttl: 1, ..udp };
        stays(&mut lab, "last hop, of a flow", at, &dying.bytes(), STACK, Reason::StackTtl)?;
    }
    assert!(std::process::Command::new("ip").args(["route", "del", "default"]).status()?.success());
    assert!(std::process::Command::new("ip").args(["-6", "route", "del", "default"]).status()?.success());
    // Without a route the kernel returns "not forwarded", as for its own addresses, and 8080 is published on those.
    for v4 in [true, false] {
        for port in [1, 8080] {
            let lost = from_web(Frame::udp((container(7, v4), 1), (outside(v4), port)));
            stays(&mut lab, "nowhere", at, &lost.bytes(), STACK, Reason::StackNoRoute)?;
            let syn = from_web(Frame::tcp((container(7, v4), 1), (outside(v4), port), SYN));
            stays(&mut lab, "nowhere", at, &syn.bytes(), STACK, Reason::StackNoRoute)?;
        }
    }
    Ok(())
}

#[test]
fn a_container_reaches_published_ports_of_its_own_host() -> Result<()> {
    let mut lab = lab()?;
    let (bridge, other) = (lab.bridge, lab.other_bridge);
    for v4 in [true, false] {
        let (to, web) = ((host(v4), 8080), (container(7, v4), 80));
        for (what, at, n, mac, bridge_mac) in
            [("itself", bridge, 7, WEB_MAC, BRIDGE_MAC), ("from another network", other, 8, APP_MAC, OTHER_BRIDGE_MAC)]
        {
            for address in [host(v4), gateway(7, v4)] {
                lab.forget()?;
                let (from, to) = ((container(n, v4), 40_000), (address, to.1));
                let seen = (gateway(7, v4), 40_000);
                let sent = Frame::tcp(from, to, SYN).macs(bridge_mac, mac);
                let got = into(&sent.becomes(seen, web), WEB_MAC, BRIDGE_MAC);
                becomes(&mut lab, what, (BRIDGE_IN, at), &sent, &got, Reason::FlowHairpin)?;
                becomes(&mut lab, what, (BRIDGE_IN, at), &sent, &got, Reason::Redirected)?;
                let answer = from_web(Frame::tcp(web, seen, SYN | ACK));
                let back = into(&answer.becomes(to, from), mac, bridge_mac);
                becomes(&mut lab, what, (BRIDGE_IN, bridge), &answer, &back, Reason::Redirected)?;
            }
        }
    }
    Ok(())
}

#[test]
fn isolated_networks_do_not_meet_and_internal_ones_have_no_way_out() -> Result<()> {
    let mut lab = lab()?;
    let (bridge, other) = (lab.bridge, lab.other_bridge);
    for (a, b, pass) in [
        (0, 0, true),
        (NET_ISOLATED, 0, true),
        (NET_ISOLATED, NET_ISOLATED, false),
        (NET_STRICT, 0, false),
        (NET_STRICT, NET_STRICT, false),
        (NET_INTERNAL, 0, false),
    ] {
        lab.set_network(7, bridge, a | NET_MASQUERADE)?;
        lab.set_network(8, other, b | NET_MASQUERADE)?;
        for v4 in [true, false] {
            for fragment in [None, Some(Piece::FIRST)] {
                let what = format!("{a} to {b}, v4 {v4}, {fragment:?}");
                let there = Frame::tcp((container(7, v4), 1), (container(8, v4), 80), SYN);
                let back = Frame::tcp((container(8, v4), 80), (container(7, v4), 1), SYN | ACK);
                let (there, back) = (Frame { fragment, ..there }, Frame { fragment, ..back });
                let (action, reason) = if pass { (STACK, Reason::NotOurs) } else { (DROPPED, Reason::DropIsolated) };
                stays(&mut lab, &what, (BRIDGE_IN, bridge), &from_web(there).bytes(), action, reason)?;
                let back = back.macs(OTHER_BRIDGE_MAC, APP_MAC);
                stays(&mut lab, &what, (BRIDGE_IN, other), &back.bytes(), action, reason)?;
            }
        }
    }
    lab.set_network(7, bridge, NET_INTERNAL)?;
    for v4 in [true, false] {
        let web = (container(7, v4), 40_000);
        let out = from_web(Frame::udp(web, (client(v4), 53))).bytes();
        stays(&mut lab, "out of an internal network", (BRIDGE_IN, bridge), &out, DROPPED, Reason::DropIsolated)?;
        let gateway = from_web(Frame::udp(web, (gateway(7, v4), 53))).bytes();
        stays(&mut lab, "to its gateway", (BRIDGE_IN, bridge), &gateway, STACK, Reason::NotOurs)?;
    }
    Ok(())
}
