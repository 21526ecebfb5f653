//! np_veth_in: known flows bypass the bridge; other packets are unchanged.

use crate::{STACK, at_host, becomes, client, host, into, outside};
use anyhow::Result;
use netpath_common::addr::Addr;
use netpath_common::layout::program::{BRIDGE_IN, UPLINK_IN, VETH_IN};
use netpath_common::reason::Reason;
use support::packet::{ACK, BRIDGE_MAC, FIN, Frame, Lab, SYN, WEB_MAC, container};

#[track_caller]
fn passes(lab: &mut Lab, what: &str, sent: &Frame) -> Result<()> {
    let web = lab.web;
    let out = lab.run(VETH_IN, web, &sent.bytes())?;
    assert_eq!((STACK, sent.bytes(), vec![]), (out.action, out.packet, out.counted), "{what}");
    Ok(())
}

#[test]
fn answers_and_later_packets_leave_at_once() -> Result<()> {
    let mut lab = Lab::new(&[UPLINK_IN, BRIDGE_IN, VETH_IN])?;
    lab.publish(1, Addr::ANY, 8080, 7)?;
    let (uplink, bridge, veth) = (lab.uplink, lab.bridge, lab.web);
    for v4 in [true, false] {
        let (from, to, web) = ((client(v4), 40_000), (host(v4), 8080), (container(7, v4), 80));
        let answer = Frame::tcp(web, from, SYN | ACK).macs(BRIDGE_MAC, WEB_MAC);
        passes(&mut lab, "no flow yet", &answer)?;
        let sent = at_host(Frame::tcp(from, to, SYN));
        let got = into(&sent.becomes(from, web), WEB_MAC, BRIDGE_MAC);
        becomes(&mut lab, "published", (UPLINK_IN, uplink), &sent, &got, Reason::FlowPublished)?;
        lab.keep_young(v4)?;
        let back = answer.becomes(to, from);
        becomes(&mut lab, "answer", (VETH_IN, veth), &answer, &back, Reason::Redirected)?;
        lab.keep_young(v4)?;
        let end = Frame::tcp(web, from, FIN | ACK).macs(BRIDGE_MAC, WEB_MAC);
        becomes(&mut lab, "its end", (VETH_IN, veth), &end, &end.becomes(to, from), Reason::Redirected)?;

        let (app, there, seen) = ((container(7, v4), 40_001), (outside(v4), 53), (host(v4), 40_001));
        let question = Frame::udp(app, there).macs(BRIDGE_MAC, WEB_MAC);
        passes(&mut lab, "the first one outward", &question)?;
        let got = question.becomes(seen, there);
        becomes(&mut lab, "at the bridge", (BRIDGE_IN, bridge), &question, &got, Reason::FlowMasqueraded)?;
        lab.keep_young(v4)?;
        becomes(&mut lab, "the next", (VETH_IN, veth), &question, &got, Reason::Redirected)?;

        let neighbour = question.clone().macs([2, 0, 0, 0, 7, 6], WEB_MAC);
        passes(&mut lab, "to another container's hardware address", &neighbour)?;
        passes(&mut lab, "tagged", &Frame { tagged: true, ..question.clone() })?;
        passes(&mut lab, "at its last hop", &Frame { ttl: 1, ..question.clone() })?;
        passes(&mut lab, "too large", &Frame { payload: vec![0; 1473], ..question.clone() })?;
        passes(&mut lab, "with options", &Frame { options: 1, ..question })?;
    }
    Ok(())
}

/// Hairpin is handled at the bridge: the frame goes to another container.
#[test]
fn a_hairpin_flow_is_left_to_the_bridge() -> Result<()> {
    let mut lab = Lab::new(&[BRIDGE_IN, VETH_IN])?;
    lab.publish(1, Addr::ANY, 8080, 7)?;
    let bridge = lab.bridge;
    let sent = Frame::tcp((container(7, true), 40_000), (host(true), 8080), SYN).macs(BRIDGE_MAC, WEB_MAC);
    lab.run(BRIDGE_IN, bridge, &sent.bytes())?;
    passes(&mut lab, "hairpin", &sent)
}
