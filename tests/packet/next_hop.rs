//! The cached next hop of flows: cached when known, resolved again after a while, and always with the kernel's neighbour table
//! being told of its use.

use crate::{REDIRECTED, at_host, client, host, outside};
use anyhow::{Context, Result, ensure};
use netpath_common::addr::{Addr, Mac};
use netpath_common::layout::program::{BRIDGE_IN, UPLINK_IN, VETH_IN};
use netpath_common::layout::{FORWARD_LINK, FORWARD_NEIGH, SIDE_BRIDGE};
use std::net::IpAddr;
use std::process::Command;
use support::host::patience;
use support::packet::{ACK, BRIDGE_MAC, Frame, HOST_MAC, Lab, RST, SYN, WEB_MAC, container};

const NEXT: Mac = [2, 0, 0, 0, 0, 0x42];
const OTHER: Mac = [2, 0, 0, 0, 0, 0x43];

/// Sets the client in the kernel's neighbour table: it is the gateway as well.
fn neighbour(v4: bool, verb: &str, mac: Mac) -> Result<()> {
    let (address, mac) = (client(v4).to_string(), mac.map(|b| format!("{b:02x}")).join(":"));
    let mut words = vec!["neigh", verb, &address, "dev", "eth0"];
    if verb != "del" {
        words.extend(["lladdr", &mac, "nud", "permanent"]);
    }
    ensure!(Command::new("ip").args(words).status().context("cannot run ip")?.success(), "ip neigh {verb}");
    Ok(())
}

/// The frame's hardware addresses afterwards; its own, where the kernel fills them in.
fn sent_to(lab: &mut Lab, at: (&str, u32), frame: &Frame) -> Result<(Mac, Mac)> {
    let out = lab.run(at.0, at.1, &frame.bytes())?;
    ensure!(out.action == REDIRECTED, "{frame:?}: {out:?}");
    let mac = |at: usize| out.packet[at..at + 6].try_into();
    Ok((mac(0)?, mac(6)?))
}

/// The same for a packet after another. After a second the bridge's program would resolve the next hop again: with patient
/// tests this is the time that a packet may take.
fn goes_on_to(lab: &mut Lab, at: (&str, u32), frame: &Frame) -> Result<(Mac, Mac)> {
    for _ in 1..patience() {
        if let Ok(sent) = sent_to(lab, at, frame)
            && sent != BY_THE_KERNEL
        {
            return Ok(sent);
        }
        sent_to(lab, (BRIDGE_IN, lab.bridge), frame)?;
    }
    sent_to(lab, at, frame)
}

/// Creates a flow by [`NEXT`], published or masqueraded. Its first packet, or the first answer, is sent at `first` and updates
/// the neighbour table. Returns the flow's outbound packets, by their flags.
fn begin(
    lab: &mut Lab,
    what: &str,
    v4: bool,
    published: bool,
    first: (&str, u32),
) -> Result<impl Fn(u8) -> Frame + use<>> {
    lab.forget()?;
    neighbour(v4, "replace", NEXT)?;
    let there = if published { client(v4) } else { outside(v4) };
    let out = move |flags| outward(published, v4, there, flags);
    if published {
        ensure!(lab.run(UPLINK_IN, lab.uplink, &arriving(v4, SYN))?.action == REDIRECTED, "{what}");
    }
    let flags = if published { SYN | ACK } else { SYN };
    assert_eq!(BY_THE_KERNEL, sent_to(lab, first, &out(flags))?, "{what}: the first");
    Ok(out)
}

const BY_THE_KERNEL: (Mac, Mac) = (BRIDGE_MAC, WEB_MAC);

#[test]
fn a_flow_goes_straight_to_its_next_hop_and_follows_it() -> Result<()> {
    let mut lab = Lab::new(&[UPLINK_IN, BRIDGE_IN, VETH_IN])?;
    lab.publish(1, Addr::ANY, 8080, 7)?;
    let (bridge, veth) = (lab.bridge, lab.web);
    for v4 in [true, false] {
        for published in [true, false] {
            for (program, index) in [(BRIDGE_IN, bridge), (VETH_IN, veth)] {
                let what = format!("v4 {v4}, published {published}, {program}");
                let first = if published { (program, index) } else { (BRIDGE_IN, bridge) };
                let out = begin(&mut lab, &what, v4, published, first)?;
                assert_eq!(
                    (NEXT, HOST_MAC),
                    goes_on_to(&mut lab, (program, index), &out(ACK))?,
                    "{what}: those behind it"
                );
                // Another machine takes the address: found after a second, by the kernel.
                neighbour(v4, "replace", OTHER)?;
                lab.age_flows(v4, 2)?;
                assert_eq!(BY_THE_KERNEL, sent_to(&mut lab, (BRIDGE_IN, bridge), &out(ACK))?, "{what}: after a while");
                assert_eq!(
                    (OTHER, HOST_MAC),
                    goes_on_to(&mut lab, (program, index), &out(ACK))?,
                    "{what}: found again"
                );
                neighbour(v4, "del", OTHER)?;
                lab.age_flows(v4, 2)?;
                for n in 0..2 {
                    let at = if n == 0 { (BRIDGE_IN, bridge) } else { (program, index) };
                    assert_eq!(BY_THE_KERNEL, sent_to(&mut lab, at, &out(ACK))?, "{what}: unknown, {n}");
                }
                assert_eq!(vec![FORWARD_NEIGH], lab.ways(v4, SIDE_BRIDGE)?, "{what}");
            }
        }
    }
    Ok(())
}

/// A tick later neither hook may use the address that the neighbour had.
#[test]
fn the_kernel_solicits_a_next_hop_that_is_gone() -> Result<()> {
    let mut lab = Lab::new(&[UPLINK_IN, BRIDGE_IN, VETH_IN])?;
    lab.publish(1, Addr::ANY, 8080, 7)?;
    let (bridge, veth) = (lab.bridge, lab.web);
    for (v4, published) in [(true, true), (true, false), (false, true), (false, false)] {
        let what = format!("v4 {v4}, published {published}");
        let out = begin(&mut lab, &what, v4, published, (BRIDGE_IN, bridge))?;
        assert_eq!((NEXT, HOST_MAC), goes_on_to(&mut lab, (BRIDGE_IN, bridge), &out(ACK))?, "{what}: known");
        neighbour(v4, "del", NEXT)?;
        lab.age_flows(v4, 2)?;
        for n in 0..3 {
            assert_eq!(BY_THE_KERNEL, sent_to(&mut lab, (BRIDGE_IN, bridge), &out(ACK))?, "{what}: gone, {n}");
            // Within a second of its resolution.
            lab.age_by_ticks(v4, 1)?;
            // Or left to the bridge's program: on a slow machine it is due for resolution by now.
            let early = lab.run(VETH_IN, veth, &out(ACK).bytes())?;
            assert_eq!(out(ACK).bytes()[..12], early.packet[..12], "{what}: gone, {n}, at the veth");
        }
        neighbour(v4, "replace", OTHER)?;
        lab.age_flows(v4, 2)?;
        assert_eq!(BY_THE_KERNEL, sent_to(&mut lab, (BRIDGE_IN, bridge), &out(ACK))?, "{what}: found");
        assert_eq!((OTHER, HOST_MAC), goes_on_to(&mut lab, (BRIDGE_IN, bridge), &out(ACK))?, "{what}: straight");
        neighbour(v4, "del", OTHER)?;
    }
    Ok(())
}

/// Each half is stored for both: the outbound one must not take the other's packets for its own use of the next hop.
#[test]
fn packets_that_come_in_do_not_keep_a_next_hop_alive() -> Result<()> {
    let mut lab = Lab::new(&[UPLINK_IN, BRIDGE_IN])?;
    lab.publish(1, Addr::ANY, 8080, 7)?;
    let (uplink, bridge) = (lab.uplink, lab.bridge);
    for v4 in [true, false] {
        lab.forget()?;
        neighbour(v4, "replace", NEXT)?;
        let out = |flags| outward(true, v4, client(v4), flags);
        ensure!(lab.run(UPLINK_IN, uplink, &arriving(v4, SYN))?.action == REDIRECTED, "begun");
        sent_to(&mut lab, (BRIDGE_IN, bridge), &out(SYN | ACK))?;
        assert_eq!((NEXT, HOST_MAC), goes_on_to(&mut lab, (BRIDGE_IN, bridge), &out(ACK))?, "v4 {v4}: known");
        neighbour(v4, "replace", OTHER)?;
        lab.age_flows(v4, 2)?;
        ensure!(lab.run(UPLINK_IN, uplink, &arriving(v4, ACK))?.action == REDIRECTED, "in");
        assert_eq!(BY_THE_KERNEL, sent_to(&mut lab, (BRIDGE_IN, bridge), &out(ACK))?, "v4 {v4}: resolves");
        assert_eq!((OTHER, HOST_MAC), goes_on_to(&mut lab, (BRIDGE_IN, bridge), &out(ACK))?, "v4 {v4}: found");
        neighbour(v4, "del", OTHER)?;
    }
    Ok(())
}

/// From the client to the published port.
fn arriving(v4: bool, flags: u8) -> Vec<u8> {
    at_host(Frame::tcp((client(v4), 40_000), (host(v4), 8080), flags)).bytes()
}

fn outward(published: bool, v4: bool, there: IpAddr, flags: u8) -> Frame {
    let web = (container(7, v4), if published { 80 } else { 40_001 });
    let peer = (there, if published { 40_000 } else { 443 });
    Frame::tcp(web, peer, flags).macs(BRIDGE_MAC, WEB_MAC)
}

#[test]
fn a_restarted_connection_confirms_its_neighbour_again() -> Result<()> {
    let mut lab = Lab::new(&[UPLINK_IN, BRIDGE_IN])?;
    lab.publish(1, Addr::ANY, 8080, 7)?;
    let (uplink, bridge) = (lab.uplink, lab.bridge);
    for v4 in [true, false] {
        lab.forget()?;
        neighbour(v4, "replace", NEXT)?;
        let out = |flags| outward(true, v4, client(v4), flags);
        for round in 0..3 {
            ensure!(lab.run(UPLINK_IN, uplink, &arriving(v4, SYN))?.action == REDIRECTED, "round {round}");
            assert_eq!(vec![FORWARD_NEIGH], lab.ways(v4, SIDE_BRIDGE)?, "round {round}: begun");
            assert_eq!(BY_THE_KERNEL, sent_to(&mut lab, (BRIDGE_IN, bridge), &out(SYN | ACK))?, "round {round}");
            assert_eq!((NEXT, HOST_MAC), goes_on_to(&mut lab, (BRIDGE_IN, bridge), &out(ACK))?, "round {round}");
            assert_eq!(vec![FORWARD_LINK], lab.ways(v4, SIDE_BRIDGE)?, "round {round}: answered");
            ensure!(lab.run(UPLINK_IN, uplink, &arriving(v4, RST | ACK))?.action == REDIRECTED, "the end");
        }
        neighbour(v4, "del", NEXT)?;
    }
    Ok(())
}

/// The host's route to the client uses another uplink, or none: answers leave by the uplink of the request, now and later.
#[test]
fn an_answer_without_a_route_by_its_uplink_goes_to_the_sender_of_the_request() -> Result<()> {
    let mut lab = Lab::new(&[UPLINK_IN, BRIDGE_IN, VETH_IN])?;
    lab.publish(1, Addr::ANY, 8080, 7)?;
    let (uplink, bridge, veth) = (lab.uplink, lab.bridge, lab.web);
    // This host has no route to link-local addresses; the container sees the bridge's address as the source.
    let (asker, seen) = (("fe80::2".parse::<IpAddr>()?, 40_000), (crate::gateway(7, false), 40_000));
    let asked = Frame::udp(asker, (host(false), 8080)).macs(HOST_MAC, NEXT);
    let answer = Frame::udp((container(7, false), 80), seen).macs(BRIDGE_MAC, WEB_MAC);
    lab.run(UPLINK_IN, uplink, &asked.bytes())?;
    for (what, seconds, at) in [("at once", 0, (BRIDGE_IN, bridge)), ("later", 5, (BRIDGE_IN, bridge))] {
        lab.age_flows(false, seconds)?;
        assert_eq!((NEXT, HOST_MAC), sent_to(&mut lab, at, &answer)?, "{what}");
    }
    assert_eq!((NEXT, HOST_MAC), sent_to(&mut lab, (VETH_IN, veth), &answer)?, "before the bridge");
    assert_eq!(vec![FORWARD_LINK], lab.ways(false, SIDE_BRIDGE)?);
    Ok(())
}
