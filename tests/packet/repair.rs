//! Halves of flows that the table has evicted, and ports that the host and a container would both use.

use crate::{REDIRECTED, STACK, at_host, becomes, client, goes_on_as, host, into, outside, stays};
use anyhow::Result;
use netpath_common::addr::Addr;
use netpath_common::flow::ticks;
use netpath_common::layout::program::{BRIDGE_IN, LO_IN, UPLINK_IN, UPLINK_OUT};
use netpath_common::layout::{FLOWS6, SIDE_BRIDGE, SIDE_LO, SIDE_UPLINK};
use netpath_common::reason::Reason;
use std::net::UdpSocket;
use support::packet::{ACK, APP_MAC, BRIDGE_MAC, FIN, Frame, Lab, OTHER_BRIDGE_MAC, RST, SYN, WEB_MAC, container};

/// After a while, and in the next tick: a full table turns over in a few seconds, and a port may be reused in the same one.
#[test]
fn a_dropped_half_is_rebuilt_from_the_other() -> Result<()> {
    made_anew(ticks(2))?;
    made_anew(1)
}

/// Each half of a published and of a masqueraded flow is lost, then a packet of the other half arrives `after` so many ticks,
/// and then the one that needs the lost half.
fn made_anew(after: u32) -> Result<()> {
    let mut lab = Lab::new(&[UPLINK_IN, BRIDGE_IN])?;
    lab.publish(1, Addr::ANY, 8080, 7)?;
    let (uplink, bridge) = (lab.uplink, lab.bridge);
    for v4 in [true, false] {
        let (from, to, web) = ((client(v4), 40_000), (host(v4), 8080), (container(7, v4), 80));
        let (app, there, seen) = ((container(7, v4), 40_001), (outside(v4), 53), (host(v4), 40_001));
        for published in [true, false] {
            for lost in [SIDE_UPLINK, SIDE_BRIDGE] {
                lab.forget()?;
                let (inward, outward) = if published {
                    (at_host(Frame::tcp(from, to, ACK)), Frame::tcp(web, from, ACK).macs(BRIDGE_MAC, WEB_MAC))
                } else {
                    (at_host(Frame::tcp(there, seen, ACK)), Frame::tcp(app, there, ACK).macs(BRIDGE_MAC, WEB_MAC))
                };
                if published {
                    assert_eq!(
                        REDIRECTED,
                        lab.run(UPLINK_IN, uplink, &at_host(Frame::tcp(from, to, SYN)).bytes())?.action
                    );
                } else {
                    let syn = Frame::tcp(app, there, SYN).macs(BRIDGE_MAC, WEB_MAC).bytes();
                    assert_eq!(REDIRECTED, lab.run(BRIDGE_IN, bridge, &syn)?.action);
                }
                let got = if published { inward.becomes(from, web) } else { inward.becomes(there, app) };
                let got = into(&got, WEB_MAC, BRIDGE_MAC);
                let back = if published { outward.becomes(to, from) } else { outward.becomes(seen, there) };
                lab.lose_half(v4, lost)?;
                if lost == SIDE_UPLINK {
                    // A sweep may have missed either half, each while it was lost.
                    lab.lose_mark(seen.1)?;
                }
                lab.age_by_ticks(v4, after)?;
                let what = format!("v4 {v4}, published {published}, lost {lost}, {after} ticks");
                let (first, second) = (((UPLINK_IN, uplink), &inward, &got), ((BRIDGE_IN, bridge), &outward, &back));
                let order = if lost == SIDE_UPLINK { [second, first] } else { [first, second] };
                for (at, sent, got) in order {
                    becomes(&mut lab, &what, at, sent, got, Reason::Redirected)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_repaired_half_on_lo_takes_the_path_of_the_first() -> Result<()> {
    let mut lab = Lab::new(&[LO_IN, BRIDGE_IN])?;
    lab.publish(1, Addr::ANY, 8080, 7)?;
    let bridge = lab.bridge;
    for v4 in [true, false] {
        let (own, web) = ((host(v4), 40_000), (container(7, v4), 80));
        let sent = Frame::tcp(own, (host(v4), 8080), SYN).macs([0; 6], [0; 6]);
        assert_eq!(REDIRECTED, lab.run(LO_IN, 1, &sent.bytes())?.action);
        let before = lab.ways(v4, SIDE_LO)?;
        lab.lose_half(v4, SIDE_LO)?;
        lab.age_flows(v4, 2)?;
        let answer = Frame::tcp(web, (crate::gateway(7, v4), 40_000), ACK).macs(BRIDGE_MAC, WEB_MAC);
        assert_eq!(REDIRECTED, lab.run(BRIDGE_IN, bridge, &answer.bytes())?.action);
        assert_eq!((before, 1), (lab.ways(v4, SIDE_LO)?, lab.ways(v4, SIDE_LO)?.len()), "v4 {v4}");
    }
    Ok(())
}

/// The container's outbound half is lost, and the container sends first.
#[test]
fn the_middle_of_a_connection_finds_its_other_half_again() -> Result<()> {
    let mut lab = Lab::new(&[UPLINK_IN, BRIDGE_IN])?;
    let (uplink, bridge) = (lab.uplink, lab.bridge);
    for v4 in [true, false] {
        lab.forget()?;
        let (app, there, seen) = ((container(7, v4), 40_001), (outside(v4), 80), (host(v4), 40_001));
        let sent = |flags| Frame::tcp(app, there, flags).macs(BRIDGE_MAC, WEB_MAC);
        let answer = at_host(Frame::tcp(there, seen, SYN | ACK)).bytes();
        assert_eq!(REDIRECTED, lab.action(BRIDGE_IN, bridge, &sent(SYN).bytes())?);
        assert_eq!(REDIRECTED, lab.action(UPLINK_IN, uplink, &answer)?);
        lab.lose_half(v4, SIDE_BRIDGE)?;
        let data = sent(ACK);
        let got = data.becomes(seen, there);
        becomes(&mut lab, "found again", (BRIDGE_IN, bridge), &data, &got, Reason::FlowMasqueraded)?;
        becomes(&mut lab, "and known", (BRIDGE_IN, bridge), &data, &got, Reason::Redirected)?;
        let other = Frame::tcp((app.0, 40_002), there, ACK).macs(BRIDGE_MAC, WEB_MAC).bytes();
        stays(&mut lab, "of no connection", (BRIDGE_IN, bridge), &other, STACK, Reason::NotOurs)?;
    }
    Ok(())
}

/// Late packets of an ended connection do not end the next one from the same port.
#[test]
fn a_stale_half_does_not_affect_a_later_flow() -> Result<()> {
    let mut lab = Lab::new(&[UPLINK_IN, BRIDGE_IN])?;
    lab.set_ports(61_000, 61_000)?;
    let (uplink, bridge, other) = (lab.uplink, lab.bridge, lab.other_bridge);
    for v4 in [true, false] {
        lab.forget()?;
        let there = (outside(v4), 80);
        let first = Frame::tcp((container(8, v4), 40_001), there, SYN).macs(OTHER_BRIDGE_MAC, APP_MAC);
        let mine = |flags| Frame::tcp((container(7, v4), 40_001), there, flags).macs(BRIDGE_MAC, WEB_MAC);
        let arrives = |port, flags| at_host(Frame::tcp(there, (host(v4), port), flags)).bytes();
        assert_eq!(REDIRECTED, lab.action(BRIDGE_IN, other, &first.bytes())?);
        assert_eq!(REDIRECTED, lab.action(BRIDGE_IN, bridge, &mine(SYN).bytes())?);
        assert_eq!(REDIRECTED, lab.action(UPLINK_IN, uplink, &arrives(61_000, SYN | ACK))?);
        assert_eq!(REDIRECTED, lab.action(BRIDGE_IN, bridge, &mine(FIN | ACK).bytes())?);
        lab.lose_flows_to(v4, 40_001)?;
        let again = mine(SYN);
        let kept = again.becomes((host(v4), 40_001), there);
        becomes(
            &mut lab,
            "the next, as its port is free",
            (BRIDGE_IN, bridge),
            &again,
            &kept,
            Reason::FlowMasqueraded,
        )?;
        lab.action(UPLINK_IN, uplink, &arrives(61_000, FIN | ACK))?;
        lab.action(UPLINK_IN, uplink, &arrives(61_000, RST))?;
        let states = lab.states(v4, SIDE_BRIDGE)?;
        assert_eq!(vec![0], states, "v4 {v4}: of the next connection");
    }
    Ok(())
}

/// A socket of the host needed another port, and the next one from there does not.
#[test]
fn nothing_is_left_of_the_port_that_the_host_need_not_change_any_more() -> Result<()> {
    let mut lab = Lab::new(&[UPLINK_IN, BRIDGE_IN, UPLINK_OUT])?;
    let (uplink, bridge) = (lab.uplink, lab.bridge);
    for v4 in [true, false] {
        lab.forget()?;
        lab.set_ports(61_000, 61_000)?;
        let (there, own) = ((outside(v4), 53), (host(v4), 40_001));
        let theirs = Frame::tcp((container(7, v4), 40_001), there, SYN).macs(BRIDGE_MAC, WEB_MAC);
        assert_eq!(REDIRECTED, lab.action(BRIDGE_IN, bridge, &theirs.bytes())?);
        let out = (UPLINK_OUT, [0, uplink]);
        let ours = Frame::tcp(own, there, SYN);
        let moved = Frame { ttl: 64, ..ours.becomes((host(v4), 61_000), there) };
        goes_on_as(&mut lab, "taken", out, &ours, &moved, Reason::FlowHost)?;
        // It is closing, so that a SYN starts a new connection; and the container's flow is gone.
        let fin = Frame::tcp(own, there, FIN | ACK);
        let sent = Frame { ttl: 64, ..fin.becomes((host(v4), 61_000), there) };
        goes_on_as(&mut lab, "its end", out, &fin, &sent, Reason::Translated)?;
        lab.lose_flows_to(v4, 40_001)?;
        assert_eq!(STACK, lab.run_repeated(out.0, out.1, &ours.bytes(), 1)?.action);
        let late = at_host(Frame::tcp(there, (host(v4), 61_000), FIN | ACK));
        lab.action(UPLINK_IN, uplink, &late.bytes())?;
        let more = Frame::tcp(own, there, ACK);
        let quiet = lab.run_repeated(out.0, out.1, &more.bytes(), 1)?;
        assert_eq!((STACK, more.bytes()), (quiet.action, quiet.packet), "v4 {v4}: it keeps its port");
    }
    Ok(())
}

/// All entries have been looked up since the kernel's last LRU pass: it then evicts those that have not, which are the newest.
#[test]
fn a_full_table_keeps_what_waits_for_its_answer() -> Result<()> {
    const AT_ONCE: u16 = 100;
    const FULL: u16 = FLOWS6 as u16 / 2;
    let mut lab = Lab::new(&[UPLINK_IN, BRIDGE_IN])?;
    let (uplink, bridge) = (lab.uplink, lab.bridge);
    let there = (outside(false), 53);
    let send = |lab: &mut Lab, n: u16| {
        let sent = Frame::udp((container(7, false), 1_024 + n), there).macs(BRIDGE_MAC, WEB_MAC);
        lab.action(BRIDGE_IN, bridge, &sent.bytes())
    };
    let answer = |lab: &mut Lab, n: u16| {
        lab.action(UPLINK_IN, uplink, &at_host(Frame::udp(there, (host(false), 1_024 + n))).bytes())
    };
    for n in 0..FULL {
        assert_eq!((REDIRECTED, REDIRECTED), (send(&mut lab, n)?, answer(&mut lab, n)?), "flow {n}");
    }
    for n in 0..FULL {
        send(&mut lab, n)?;
        answer(&mut lab, n)?;
    }
    for round in 0..4 {
        let new = FULL + round * AT_ONCE..FULL + (round + 1) * AT_ONCE;
        for n in new.clone() {
            assert_eq!(REDIRECTED, send(&mut lab, n)?, "new flow {n}");
        }
        for n in new {
            assert_eq!(REDIRECTED, answer(&mut lab, n)?, "answer to new flow {n}");
        }
    }
    Ok(())
}

/// The table evicts the half that holds the port, and the host connects from there.
#[test]
fn a_half_is_not_rebuilt_over_a_connection_of_the_host() -> Result<()> {
    let mut lab = Lab::new(&[BRIDGE_IN])?;
    lab.set_ports(61_000, 61_000)?;
    let bridge = lab.bridge;
    for v4 in [true, false] {
        let (app, there) = ((container(7, v4), 40_001), (outside(v4), 53));
        let sent = Frame::udp(app, there).macs(BRIDGE_MAC, WEB_MAC);
        let kept = sent.becomes((host(v4), 40_001), there);
        becomes(&mut lab, "begins", (BRIDGE_IN, bridge), &sent, &kept, Reason::FlowMasqueraded)?;
        lab.lose_half(v4, SIDE_UPLINK)?;
        lab.age_flows(v4, 2)?;
        let socket = UdpSocket::bind((host(v4), 40_001))?;
        socket.connect(there)?;
        let moved = sent.becomes((host(v4), 61_000), there);
        becomes(&mut lab, "gets another port", (BRIDGE_IN, bridge), &sent, &moved, Reason::FlowMasqueraded)?;
        becomes(&mut lab, "and goes on", (BRIDGE_IN, bridge), &sent, &moved, Reason::Redirected)?;
    }
    Ok(())
}

#[test]
fn the_host_gets_another_port_where_a_container_has_taken_it() -> Result<()> {
    let mut lab = Lab::new(&[UPLINK_IN, BRIDGE_IN, UPLINK_OUT])?;
    let (uplink, bridge) = (lab.uplink, lab.bridge);
    for v4 in [true, false] {
        let (app, there, own) = ((container(7, v4), 40_001), (outside(v4), 53), (host(v4), 40_001));
        for (udp, tcp) in [(true, false), (false, true)] {
            lab.forget()?;
            lab.set_ports(61_000, 61_000)?;
            let make = |src, dst, flags| if udp { Frame::udp(src, dst) } else { Frame::tcp(src, dst, flags) };
            let theirs = make(app, there, SYN).macs(BRIDGE_MAC, WEB_MAC);
            assert_eq!(REDIRECTED, lab.run(BRIDGE_IN, bridge, &theirs.bytes())?.action);
            let out = (UPLINK_OUT, [0, uplink]);
            let ours = make(own, there, SYN);
            let other = (host(v4), 61_000);
            let same = |f: &Frame| Frame { ttl: 64, ..f.becomes(other, there) };
            goes_on_as(&mut lab, "taken", out, &ours, &same(&ours), Reason::FlowHost)?;
            // A VLAN or macvlan on an uplink: the device below has the program too. (Any other interface represents it here.)
            let below = lab.run_repeated(UPLINK_OUT, [0, bridge], &same(&ours).bytes(), 1)?;
            assert_eq!((STACK, same(&ours).bytes(), vec![]), (below.action, below.packet, below.counted), "below it");
            let more = make(own, there, ACK);
            goes_on_as(&mut lab, "and so on", out, &more, &same(&more), Reason::Translated)?;
            let answer = at_host(make(there, other, ACK));
            let back = Frame { ttl: 64, ..answer.becomes(there, own) };
            goes_on_as(&mut lab, "its answer", (UPLINK_IN, [0, uplink]), &answer, &back, Reason::Translated)?;
            let answer = at_host(make(there, own, ACK));
            let back = into(&answer.becomes(there, app), WEB_MAC, BRIDGE_MAC);
            becomes(&mut lab, "the container's", (UPLINK_IN, uplink), &answer, &back, Reason::Redirected)?;
            let free = make(own, (outside(v4), 54), if tcp { SYN } else { 0 });
            let quiet = lab.run_repeated(out.0, out.1, &free.bytes(), 1)?;
            assert_eq!((STACK, free.bytes(), vec![]), (quiet.action, quiet.packet, quiet.counted), "to another");
        }
    }
    let stranger = at_host(Frame::udp((outside(true), 53), (host(true), 40_001)));
    lab.forget()?;
    stays(&mut lab, "without a flow", (UPLINK_IN, uplink), &stranger.bytes(), STACK, Reason::NotOurs)
}
