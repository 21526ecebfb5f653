//! SCTP with its own ports, and protocols without ports.

use crate::{DROPPED, STACK, at_host, becomes, client, host, into, outside, stays};
use anyhow::Result;
use netpath_common::addr::Addr;
use netpath_common::layout::ENDPOINT_MOVED_SCTP;
use netpath_common::layout::program::{BRIDGE_IN, UPLINK_IN};
use netpath_common::reason::Reason;
use std::net::IpAddr;
use support::packet::{APP_MAC, BRIDGE_MAC, Frame, L4, Lab, OTHER_BRIDGE_MAC, WEB_MAC, container};

fn sctp(src: (IpAddr, u16), dst: (IpAddr, u16)) -> Frame {
    Frame::new(src.0, dst.0, L4::Sctp { sport: src.1, dport: dst.1 })
}

#[test]
fn sctp_keeps_its_ports() -> Result<()> {
    let mut lab = Lab::new(&[UPLINK_IN, BRIDGE_IN])?;
    lab.publish(1, Addr::ANY, 5_000, 7)?;
    let (uplink, bridge, other) = (lab.uplink, lab.bridge, lab.other_bridge);
    for v4 in [true, false] {
        let (from, to, web) = ((client(v4), 40_000), (host(v4), 5_000), (container(7, v4), 5_000));
        let sent = at_host(sctp(from, to));
        let got = into(&sent.becomes(from, web), WEB_MAC, BRIDGE_MAC);
        becomes(&mut lab, "published", (UPLINK_IN, uplink), &sent, &got, Reason::FlowPublished)?;
        let answer = sctp(web, from).macs(BRIDGE_MAC, WEB_MAC);
        becomes(&mut lab, "answer", (BRIDGE_IN, bridge), &answer, &answer.becomes(to, from), Reason::Redirected)?;

        let (app, there, seen) = ((container(7, v4), 40_001), (outside(v4), 36_412), (host(v4), 40_001));
        let sent = sctp(app, there).macs(BRIDGE_MAC, WEB_MAC);
        let got = sent.becomes(seen, there);
        becomes(&mut lab, "out", (BRIDGE_IN, bridge), &sent, &got, Reason::FlowMasqueraded)?;
        let answer = at_host(sctp(there, seen));
        let back = into(&answer.becomes(there, app), WEB_MAC, BRIDGE_MAC);
        becomes(&mut lab, "back", (UPLINK_IN, uplink), &answer, &back, Reason::Redirected)?;
        let second = sctp((container(8, v4), 40_001), there).macs(OTHER_BRIDGE_MAC, APP_MAC).bytes();
        let none = Reason::DropPortsExhausted;
        stays(&mut lab, "the port is taken and cannot be changed", (BRIDGE_IN, other), &second, DROPPED, none)?;
    }
    Ok(())
}

#[test]
fn answers_to_packets_let_in_by_netfilter_go_through_the_stack() -> Result<()> {
    let mut lab = Lab::new(&[UPLINK_IN, BRIDGE_IN])?;
    lab.publish(1, Addr::ANY, 5_000, 7)?;
    lab.set_endpoints(ENDPOINT_MOVED_SCTP)?;
    let (uplink, bridge) = (lab.uplink, lab.bridge);
    for v4 in [true, false] {
        let (from, to, web) = ((client(v4), 40_000), (host(v4), 6_000), (container(7, v4), 5_001));
        stays(&mut lab, "in", (UPLINK_IN, uplink), &at_host(sctp(from, to)).bytes(), STACK, Reason::NotOurs)?;
        let answer = sctp(web, from).macs(BRIDGE_MAC, WEB_MAC);
        stays(&mut lab, "the answer", (BRIDGE_IN, bridge), &answer.bytes(), STACK, Reason::NotOurs)?;
        // Its ports of the same number, and its other protocols, are unaffected.
        let (to, web) = ((host(v4), 5_000), (container(7, v4), 5_000));
        let sent = at_host(sctp(from, to));
        let got = into(&sent.becomes(from, web), WEB_MAC, BRIDGE_MAC);
        becomes(&mut lab, "published", (UPLINK_IN, uplink), &sent, &got, Reason::FlowPublished)?;
        let answer = sctp(web, from).macs(BRIDGE_MAC, WEB_MAC);
        becomes(&mut lab, "its answer", (BRIDGE_IN, bridge), &answer, &answer.becomes(to, from), Reason::Redirected)?;
        let sent = Frame::udp((container(7, v4), 40_001), (outside(v4), 53)).macs(BRIDGE_MAC, WEB_MAC);
        let got = sent.becomes((host(v4), 40_001), (outside(v4), 53));
        becomes(&mut lab, "UDP", (BRIDGE_IN, bridge), &sent, &got, Reason::FlowMasqueraded)?;
    }
    Ok(())
}

#[test]
fn other_protocols_are_masqueraded_by_their_addresses() -> Result<()> {
    let mut lab = Lab::new(&[UPLINK_IN, BRIDGE_IN])?;
    let (uplink, bridge) = (lab.uplink, lab.bridge);
    for v4 in [true, false] {
        let (app, there, seen) = (container(7, v4), outside(v4), host(v4));
        // GRE, ESP.
        for proto in [47, 50] {
            let sent = Frame::new(app, there, L4::Raw(proto)).macs(BRIDGE_MAC, WEB_MAC);
            let got = sent.becomes((seen, 0), (there, 0));
            becomes(&mut lab, "out", (BRIDGE_IN, bridge), &sent, &got, Reason::FlowMasqueraded)?;
            let answer = at_host(Frame::new(there, seen, L4::Raw(proto)));
            let back = into(&answer.becomes((there, 0), (app, 0)), WEB_MAC, BRIDGE_MAC);
            becomes(&mut lab, "back", (UPLINK_IN, uplink), &answer, &back, Reason::Redirected)?;
        }
    }
    Ok(())
}
