//! np_uplink_in: published ports; np_uplink_out: packets that must not leave.

use crate::{
    DROPPED, REDIRECTED, STACK, at_host, becomes, client, cut_everywhere, gateway, host, into, ip, shapes, stays,
};
use anyhow::Result;
use netpath_common::addr::Addr;
use netpath_common::layout::NET_DIRECT;
use netpath_common::layout::program::{BRIDGE_IN, UPLINK_IN, UPLINK_OUT};
use netpath_common::reason::Reason;
use std::net::IpAddr;
use support::packet::{
    ACK, BRIDGE_MAC, CLIENT_MAC, FIN, Frame, HOST_MAC, L4, Lab, RST, SYN, WEB_MAC, container, mapped,
};

fn lab() -> Result<Lab> {
    let mut lab = Lab::new(&[UPLINK_IN, BRIDGE_IN])?;
    lab.publish(1, Addr::ANY, 8080, 7)?;
    Ok(lab)
}

#[test]
fn a_published_port_leads_into_the_container_and_the_answer_back() -> Result<()> {
    let mut lab = lab()?;
    let (uplink, bridge) = (lab.uplink, lab.bridge);
    for v4 in [true, false] {
        let (from, to, web) = ((client(v4), 40_000), (host(v4), 8080), (container(7, v4), 80));
        for sent in [Frame::tcp(from, to, SYN), Frame::udp(from, to)] {
            for (shape, sent) in shapes(&sent) {
                lab.forget()?;
                let what = format!("{shape}: {sent:?}");
                let sent = at_host(sent);
                let got = into(&sent.becomes(from, web), WEB_MAC, BRIDGE_MAC);
                becomes(&mut lab, &what, (UPLINK_IN, uplink), &sent, &got, Reason::FlowPublished)?;
                becomes(&mut lab, &what, (UPLINK_IN, uplink), &sent, &got, Reason::Redirected)?;
                let answer = match sent.l4 {
                    L4::Tcp { .. } => Frame::tcp(web, from, SYN | ACK),
                    _ => Frame::udp(web, from),
                }
                .macs(BRIDGE_MAC, WEB_MAC);
                let back = answer.becomes(to, from);
                becomes(
                    &mut lab,
                    &format!("answer to {what}"),
                    (BRIDGE_IN, bridge),
                    &answer,
                    &back,
                    Reason::Redirected,
                )?;
            }
        }
    }
    Ok(())
}

#[test]
fn unpublished_ports_are_left_alone() -> Result<()> {
    let mut lab = lab()?;
    let at = (UPLINK_IN, lab.uplink);
    for v4 in [true, false] {
        let from = (client(v4), 40_000);
        let published = Frame::tcp(from, (host(v4), 8080), SYN);
        let other = if v4 { ip("198.51.100.77") } else { ip("2001:db8:77::1") };
        for (what, frame) in [
            ("another port", Frame::tcp(from, (host(v4), 8081), SYN)),
            ("an address that is not the host's", Frame::tcp(from, (other, 8080), SYN)),
            ("tagged", Frame { tagged: true, ..published.clone() }),
            ("addressed to another machine", published.clone().macs([2, 9, 9, 9, 9, 9], CLIENT_MAC)),
            ("an echo request", Frame::new(from.0, host(v4), L4::Echo { request: true, id: 8080 })),
            ("an echo reply without a request", Frame::new(from.0, host(v4), L4::Echo { request: false, id: 8080 })),
            ("another protocol", Frame::new(from.0, host(v4), L4::Raw(47))),
        ] {
            stays(&mut lab, what, at, &frame.bytes(), STACK, Reason::NotOurs)?;
        }
    }
    Ok(())
}

#[test]
fn a_packet_cut_anywhere_is_left_alone() -> Result<()> {
    let mut lab = lab()?;
    let (uplink, bridge) = (lab.uplink, lab.bridge);
    for v4 in [true, false] {
        let (from, to, web) = ((client(v4), 40_000), (host(v4), 8080), (container(7, v4), 80));
        for frame in [Frame::tcp(from, to, SYN), Frame::udp(from, to)] {
            for options in [0, 2] {
                let frame = Frame { options, ..frame.clone() };
                cut_everywhere(&mut lab, &format!("{frame:?}"), (UPLINK_IN, uplink), &frame)?;
            }
        }
        // An existing flow does not change that.
        let syn = Frame::tcp(from, to, SYN);
        assert_eq!(REDIRECTED, lab.run(UPLINK_IN, uplink, &syn.bytes())?.action);
        cut_everywhere(&mut lab, "of a flow", (UPLINK_IN, uplink), &syn)?;
        let answer = Frame::tcp(web, from, SYN | ACK).macs(BRIDGE_MAC, WEB_MAC);
        cut_everywhere(&mut lab, "answer of a flow", (BRIDGE_IN, bridge), &answer)?;
    }
    Ok(())
}

#[test]
fn loopback_addresses_never_come_from_a_wire() -> Result<()> {
    let mut lab = lab()?;
    lab.publish(3, mapped(ip("127.0.0.1")), 9090, 7)?;
    let at = (UPLINK_IN, lab.uplink);
    for (src, dst) in [("192.0.2.2", "127.0.0.1"), ("127.0.0.1", "192.0.2.1"), ("2001:db8:1::2", "::1")] {
        let frame = Frame::tcp((ip(src), 40_000), (ip(dst), 9090), SYN);
        stays(&mut lab, &format!("{src} to {dst}"), at, &frame.bytes(), DROPPED, Reason::DropMartian)?;
    }
    let frame = Frame::tcp((client(true), 40_000), (host(true), 9090), SYN);
    stays(&mut lab, "the same port of the host", at, &frame.bytes(), STACK, Reason::NotOurs)
}

#[test]
fn a_rule_for_one_address_answers_there_only() -> Result<()> {
    let mut lab = lab()?;
    lab.publish(3, mapped(host(true)), 9090, 7)?;
    let at = (UPLINK_IN, lab.uplink);
    let from = (client(true), 40_000);
    let here = Frame::tcp(from, (host(true), 9090), SYN);
    let got = into(&here.becomes(from, (container(7, true), 80)), WEB_MAC, BRIDGE_MAC);
    becomes(&mut lab, "the address", at, &here, &got, Reason::FlowPublished)?;
    let elsewhere = Frame::tcp(from, (ip("10.89.7.1"), 9090), SYN);
    stays(&mut lab, "another address of the host", at, &elsewhere.bytes(), STACK, Reason::NotOurs)
}

/// Of the client's wire; the container sees its bridge's address.
#[test]
fn a_published_port_answers_on_the_link_local_address() -> Result<()> {
    let mut lab = lab()?;
    let (uplink, bridge) = (lab.uplink, lab.bridge);
    let (own, neighbour, gateway) = (ip("fe80::1"), (ip("fe80::2"), 40_000), (gateway(7, false), 40_000));
    let (to, web) = ((own, 8080), (container(7, false), 80));
    let sent = at_host(Frame::tcp(neighbour, to, SYN));
    let at = (UPLINK_IN, uplink);
    stays(&mut lab, "not the host's", at, &sent.bytes(), STACK, Reason::NotOurs)?;
    lab.put(netpath_common::layout::name::LOCAL, mapped(own), uplink)?;
    for to in [to, (host(false), 8080)] {
        for (sent, answer) in [
            (Frame::tcp(neighbour, to, SYN), Frame::tcp(web, gateway, SYN | ACK)),
            (Frame::udp(neighbour, to), Frame::udp(web, gateway)),
        ] {
            lab.forget()?;
            let sent = at_host(sent);
            let got = into(&sent.becomes(gateway, web), WEB_MAC, BRIDGE_MAC);
            becomes(&mut lab, "in", at, &sent, &got, Reason::FlowPublished)?;
            becomes(&mut lab, "in again", at, &sent, &got, Reason::Redirected)?;
            let answer = answer.macs(BRIDGE_MAC, WEB_MAC);
            // Back to the sender's hardware address: this host has no route to link-local addresses.
            let back = answer.becomes(to, neighbour).macs(CLIENT_MAC, HOST_MAC);
            becomes(&mut lab, "back", (BRIDGE_IN, bridge), &answer, &back, Reason::Redirected)?;
        }
    }
    lab.forget()?;
    lab.set_network(7, bridge, NET_DIRECT)?;
    let direct = at_host(Frame::tcp(neighbour, web, SYN));
    stays(&mut lab, "to the container's own address", at, &direct.bytes(), STACK, Reason::NotOurs)
}

#[test]
fn an_address_unknown_to_the_control_plane_is_looked_up_in_the_kernel() -> Result<()> {
    let mut lab = lab()?;
    assert!(std::process::Command::new("ip").args(["addr", "add", "192.0.2.99/24", "dev", "eth0"]).status()?.success());
    let from = (client(true), 40_000);
    let sent = Frame::tcp(from, (ip("192.0.2.99"), 8080), SYN);
    let got = into(&sent.becomes(from, (container(7, true), 80)), WEB_MAC, BRIDGE_MAC);
    let at = (UPLINK_IN, lab.uplink);
    becomes(&mut lab, "a new address", at, &sent, &got, Reason::FlowPublished)
}

#[test]
fn a_syn_restarts_a_closed_flow_and_a_lost_flow_is_rebuilt() -> Result<()> {
    let mut lab = lab()?;
    let at = (UPLINK_IN, lab.uplink);
    for v4 in [true, false] {
        let (from, to, web) = ((client(v4), 40_000), (host(v4), 8080), (container(7, v4), 80));
        for (flags, reason) in [
            (SYN, Reason::FlowPublished),
            (ACK, Reason::Redirected),
            (SYN, Reason::Redirected),
            (FIN | ACK, Reason::Redirected),
            (ACK, Reason::Redirected),
            (SYN, Reason::FlowPublished),
            (RST, Reason::Redirected),
            (SYN, Reason::FlowPublished),
        ] {
            let sent = Frame::tcp(from, to, flags);
            let got = into(&sent.becomes(from, web), WEB_MAC, BRIDGE_MAC);
            becomes(&mut lab, &format!("flags {flags:#x}"), at, &sent, &got, reason)?;
        }
        lab.forget()?;
        let sent = Frame::tcp(from, to, ACK);
        let got = into(&sent.becomes(from, web), WEB_MAC, BRIDGE_MAC);
        becomes(&mut lab, "the flow was lost", at, &sent, &got, Reason::FlowPublished)?;
        lab.forget()?;
    }
    Ok(())
}

#[test]
fn one_client_port_to_two_host_addresses_gets_two_flows() -> Result<()> {
    let mut lab = lab()?;
    let at = (UPLINK_IN, lab.uplink);
    let (from, web) = ((client(true), 40_000), (container(7, true), 80));
    let first = Frame::udp(from, (host(true), 8080));
    let got = into(&first.becomes(from, web), WEB_MAC, BRIDGE_MAC);
    becomes(&mut lab, "the first", at, &first, &got, Reason::FlowPublished)?;
    let second = Frame::udp(from, (ip("10.89.8.1"), 8080));
    let out = lab.run(at.0, at.1, &second.bytes())?;
    assert_eq!(REDIRECTED, out.action);
    let port = u16::from_be_bytes([out.packet[34], out.packet[35]]);
    assert!(port >= 61_000, "the second keeps port {port}, which is the first one's");
    let got = into(&second.becomes((from.0, port), web), WEB_MAC, BRIDGE_MAC);
    assert_eq!(got.bytes(), out.packet);
    let answer = Frame::udp(web, (from.0, port)).macs(BRIDGE_MAC, WEB_MAC);
    let back = answer.becomes((ip("10.89.8.1"), 8080), from);
    let bridge = lab.bridge;
    becomes(&mut lab, "its answer", (BRIDGE_IN, bridge), &answer, &back, Reason::Redirected)
}

#[test]
fn a_private_source_does_not_leave() -> Result<()> {
    let mut lab = Lab::new(&[UPLINK_OUT])?;
    let (uplink, bridge) = (lab.uplink, lab.bridge);
    for v4 in [true, false] {
        let leak = Frame::new(container(7, v4), client(v4), L4::Raw(136)).bytes();
        let out = lab.run_repeated(UPLINK_OUT, [bridge, uplink], &leak, 1)?;
        assert_eq!((DROPPED, vec![(Reason::DropUntranslatable, 1)]), (out.action, out.counted));
        let quoted = Frame::udp((client(v4), 53), (gateway(7, v4), 53)).quoted();
        let (kind, code) = if v4 { (3, 3) } else { (1, 4) };
        for (what, first, frame) in [
            ("the host's own", 0, Frame::udp((host(v4), 53), (client(v4), 53))),
            ("the host's from a bridge's address", 0, Frame::udp((gateway(7, v4), 53), (client(v4), 53))),
            ("its echo", 0, Frame::new(gateway(7, v4), client(v4), L4::Echo { request: false, id: 7 })),
            (
                "its error",
                0,
                Frame { payload: quoted, ..Frame::new(gateway(7, v4), client(v4), L4::Error { kind, code }) },
            ),
            ("translated", bridge, Frame::udp((host(v4), 53), (client(v4), 53))),
            ("from another interface", uplink, Frame::udp((container(7, v4), 53), (client(v4), 53))),
        ] {
            let out = lab.run_repeated(UPLINK_OUT, [first, uplink], &frame.bytes(), 1)?;
            assert_eq!((STACK, vec![]), (out.action, out.counted), "{what}");
        }
    }
    lab.set_network(7, bridge, 0)?;
    let routed = Frame::udp((container(7, true), 53), (client(true), 53)).bytes();
    assert_eq!(STACK, lab.run_repeated(UPLINK_OUT, [bridge, uplink], &routed, 1)?.action, "a routed network");
    Ok(())
}

/// Tunnels may send it (RFC 6935); an incremental update of no sum would give a wrong one.
#[test]
fn a_datagram_of_ipv6_without_a_checksum_stays_without_one() -> Result<()> {
    let mut lab = lab()?;
    let (uplink, bridge) = (lab.uplink, lab.bridge);
    let without = |from: (IpAddr, u16), to: (IpAddr, u16)| Frame {
        l4: L4::Udp { sport: from.1, dport: to.1, zero_sum: true },
        ..Frame::udp(from, to)
    };
    let (from, to, web) = ((client(false), 40_000), (host(false), 8080), (container(7, false), 80));
    let sent = at_host(without(from, to));
    let got = into(&sent.becomes(from, web), WEB_MAC, BRIDGE_MAC);
    becomes(&mut lab, "in", (UPLINK_IN, uplink), &sent, &got, Reason::FlowPublished)?;
    becomes(&mut lab, "again", (UPLINK_IN, uplink), &sent, &got, Reason::Redirected)?;
    let answer = without(web, from).macs(BRIDGE_MAC, WEB_MAC);
    becomes(&mut lab, "back", (BRIDGE_IN, bridge), &answer, &answer.becomes(to, from), Reason::Redirected)
}
