//! Access control: container addresses from outside, sources on bridges, allow lists; and traffic counters.

use crate::{DROPPED, REDIRECTED, STACK, at_host, becomes, client, gateway, host, into, ip, outside, stays};
use anyhow::Result;
use netpath_common::addr::Addr;
use netpath_common::layout::program::{BRIDGE_IN, UPLINK_IN};
use netpath_common::layout::{NET_DIRECT, NET_INTERNAL, NET_MASQUERADE};
use netpath_common::reason::Reason;
use support::packet::{ACK, APP_MAC, BRIDGE_MAC, Frame, L4, Lab, OTHER_BRIDGE_MAC, Piece, SYN, WEB_MAC, container};

fn lab() -> Result<Lab> {
    let mut lab = Lab::new(&[UPLINK_IN, BRIDGE_IN])?;
    lab.publish(1, Addr::ANY, 8080, 7)?;
    Ok(lab)
}

#[test]
fn a_container_is_not_reached_by_its_own_address() -> Result<()> {
    let mut lab = lab()?;
    let (uplink, bridge) = (lab.uplink, lab.bridge);
    for flags in [NET_MASQUERADE, NET_INTERNAL] {
        lab.set_network(7, bridge, flags)?;
        for v4 in [true, false] {
            let from = (client(v4), 40_000);
            let unused = if v4 { ip("10.89.7.99") } else { ip("fd41:7::99") };
            for (what, frame) in [
                ("a port", Frame::tcp(from, (container(7, v4), 80), SYN)),
                ("the middle of a connection", Frame::tcp(from, (container(7, v4), 80), ACK)),
                ("the published number", Frame::udp(from, (container(7, v4), 8080))),
                ("ping", Frame::new(from.0, container(7, v4), L4::Echo { request: true, id: 1 })),
                ("another protocol", Frame::new(from.0, container(7, v4), L4::Raw(47))),
                ("a fragment", Frame { fragment: Some(Piece::FIRST), ..Frame::udp(from, (container(7, v4), 80)) }),
                ("an unused address", Frame::udp(from, (unused, 80))),
            ] {
                let at = (UPLINK_IN, uplink);
                stays(&mut lab, what, at, &at_host(frame).bytes(), DROPPED, Reason::DropDirect)?;
            }
            let own = at_host(Frame::udp(from, (gateway(7, v4), 53)));
            stays(&mut lab, "the host's own address", (UPLINK_IN, uplink), &own.bytes(), STACK, Reason::NotOurs)?;
        }
    }
    Ok(())
}

#[test]
fn a_container_of_an_open_network_is_reached_and_answers_as_itself() -> Result<()> {
    let mut lab = lab()?;
    let (uplink, bridge) = (lab.uplink, lab.bridge);
    for flags in [NET_DIRECT, NET_DIRECT | NET_MASQUERADE] {
        lab.forget()?;
        lab.set_network(7, bridge, flags)?;
        for v4 in [true, false] {
            let (from, web) = ((client(v4), 40_000), (container(7, v4), 80));
            let echo = |src, dst, request| Frame::new(src, dst, L4::Echo { request, id: 80 });
            for (sent, answer) in [
                (Frame::tcp(from, web, SYN), Frame::tcp(web, from, SYN | ACK)),
                (Frame::udp(from, web), Frame::udp(web, from)),
                (echo(from.0, web.0, true), echo(web.0, from.0, false)),
                (Frame::new(from.0, web.0, L4::Raw(47)), Frame::new(web.0, from.0, L4::Raw(47))),
            ] {
                let sent = at_host(sent);
                let got = into(&Frame { ttl: 63, ..sent.clone() }, WEB_MAC, BRIDGE_MAC);
                becomes(&mut lab, "in", (UPLINK_IN, uplink), &sent, &got, Reason::FlowDirect)?;
                becomes(&mut lab, "in again", (UPLINK_IN, uplink), &sent, &got, Reason::Redirected)?;
                let answer = answer.macs(BRIDGE_MAC, WEB_MAC);
                let back = Frame { ttl: 63, ..answer.clone() };
                becomes(&mut lab, "out", (BRIDGE_IN, bridge), &answer, &back, Reason::Redirected)?;
            }
            let middle = at_host(Frame::tcp((client(v4), 40_001), web, ACK));
            stays(&mut lab, "of no flow", (UPLINK_IN, uplink), &middle.bytes(), STACK, Reason::NotOurs)?;
        }
    }
    Ok(())
}

#[test]
fn a_source_that_a_bridge_does_not_have_is_dropped() -> Result<()> {
    let mut lab = lab()?;
    let bridge = lab.bridge;
    for (flags, action, reason) in
        [(NET_MASQUERADE, DROPPED, Reason::DropSpoofed), (NET_MASQUERADE | NET_DIRECT, STACK, Reason::NotOurs)]
    {
        lab.set_network(7, bridge, flags)?;
        for v4 in [true, false] {
            let (there, local) = ((outside(v4), 53), (host(v4), 8080));
            let loopback = if v4 { ip("127.0.0.1") } else { ip("::1") };
            for src in [container(8, v4), client(v4), host(v4), outside(v4), loopback] {
                for to in [there, local, (container(8, v4), 80), (gateway(7, v4), 53)] {
                    let frame = Frame::udp((src, 40_000), to).macs(BRIDGE_MAC, WEB_MAC);
                    stays(&mut lab, &format!("{src} to {to:?}"), (BRIDGE_IN, bridge), &frame.bytes(), action, reason)?;
                }
            }
        }
    }
    let discovery = Frame::udp((ip("fe80::5"), 1), (gateway(7, false), 1)).macs(BRIDGE_MAC, WEB_MAC);
    stays(&mut lab, "link-local", (BRIDGE_IN, bridge), &discovery.bytes(), STACK, Reason::NotOurs)
}

#[test]
fn an_allow_list_restricts_a_publish() -> Result<()> {
    let mut lab = lab()?;
    let (uplink, other) = (lab.uplink, lab.other_bridge);
    lab.allow = 5;
    lab.publish(3, Addr::ANY, 9090, 7)?;
    lab.allow(5, client(true), 32)?;
    lab.allow(5, client(false), 64)?;
    lab.allow(6, outside(true), 32)?;
    for v4 in [true, false] {
        let to = (host(v4), 9090);
        let sent = at_host(Frame::tcp((client(v4), 40_000), to, SYN));
        let got = into(&sent.becomes((client(v4), 40_000), (container(7, v4), 80)), WEB_MAC, BRIDGE_MAC);
        becomes(&mut lab, "on the list", (UPLINK_IN, uplink), &sent, &got, Reason::FlowPublished)?;
        let stranger = at_host(Frame::tcp((outside(v4), 40_000), to, SYN)).bytes();
        stays(&mut lab, "not on it", (UPLINK_IN, uplink), &stranger, DROPPED, Reason::DropNotAllowed)?;
        let hairpin = Frame::tcp((container(8, v4), 40_000), to, SYN).macs(OTHER_BRIDGE_MAC, APP_MAC).bytes();
        stays(&mut lab, "a container", (BRIDGE_IN, other), &hairpin, DROPPED, Reason::DropNotAllowed)?;
        let open = at_host(Frame::tcp((outside(v4), 40_000), (host(v4), 8080), SYN));
        assert_eq!(REDIRECTED, lab.run(UPLINK_IN, uplink, &open.bytes())?.action, "another publish");
    }
    Ok(())
}

#[test]
fn packets_are_counted_for_their_publish_or_endpoint_by_direction() -> Result<()> {
    let mut lab = lab()?;
    let (uplink, bridge) = (lab.uplink, lab.bridge);
    let (mut published, mut own) = (lab.traffic(9)?, lab.traffic(10)?);
    for v4 in [true, false] {
        let (from, to, web) = ((client(v4), 40_000), (host(v4), 8080), (container(7, v4), 80));
        let sent = at_host(Frame::udp(from, to)).bytes();
        for _ in 0..3 {
            lab.run(UPLINK_IN, uplink, &sent)?;
        }
        let answer = Frame::udp(web, from).macs(BRIDGE_MAC, WEB_MAC).bytes();
        lab.run(BRIDGE_IN, bridge, &answer)?;
        published.packets_in += 3;
        published.bytes_in += 3 * sent.len() as u64;
        published.packets_out += 1;
        published.bytes_out += answer.len() as u64;
        let (app, there) = ((container(7, v4), 40_001), (outside(v4), 53));
        let sent = Frame::udp(app, there).macs(BRIDGE_MAC, WEB_MAC).bytes();
        lab.run(BRIDGE_IN, bridge, &sent)?;
        let answer = at_host(Frame::udp(there, (host(v4), 40_001))).bytes();
        for _ in 0..2 {
            lab.run(UPLINK_IN, uplink, &answer)?;
        }
        own.packets_out += 1;
        own.bytes_out += sent.len() as u64;
        own.packets_in += 2;
        own.bytes_in += 2 * answer.len() as u64;
        assert_eq!((published, own), (lab.traffic(9)?, lab.traffic(10)?), "v4 {v4}");
    }
    Ok(())
}

/// A raw sender on an internal network cannot send in a flow of another container.
#[test]
fn an_internal_network_has_no_part_in_flows() -> Result<()> {
    let mut lab = lab()?;
    let (uplink, bridge, other) = (lab.uplink, lab.bridge, lab.other_bridge);
    for v4 in [true, false] {
        let (from, to, web) = ((client(v4), 40_000), (host(v4), 8080), (container(7, v4), 80));
        let sent = at_host(Frame::udp(from, to));
        let got = into(&sent.becomes(from, web), WEB_MAC, BRIDGE_MAC);
        becomes(&mut lab, "published", (UPLINK_IN, uplink), &sent, &got, Reason::FlowPublished)?;
        let answer = Frame::udp(web, from).macs(BRIDGE_MAC, WEB_MAC);
        becomes(&mut lab, "answered", (BRIDGE_IN, bridge), &answer, &answer.becomes(to, from), Reason::Redirected)?;
        let forged = [
            Frame::udp(web, from),
            Frame { options: 1, ..Frame::udp(web, from) },
            Frame { fragment: Some(Piece::FIRST), ..Frame::udp(web, from) },
        ];
        for (flags, action) in [(NET_MASQUERADE, REDIRECTED), (NET_INTERNAL, DROPPED)] {
            lab.set_network(8, other, flags)?;
            for frame in &forged {
                let frame = frame.clone().macs(OTHER_BRIDGE_MAC, APP_MAC);
                let out = lab.run(BRIDGE_IN, other, &frame.bytes())?;
                // A container answers by its default route, whichever of its networks the request came from.
                assert_eq!(action, out.action, "flags {flags}: {frame:?}: {out:?}");
            }
        }
    }
    Ok(())
}
