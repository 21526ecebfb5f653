//! ICMP errors in both directions: the receiver finds its own packet quoted.

use crate::{STACK, at_host, becomes, client, cut_everywhere, goes_on_as, host, into, ip, outside, stays};
use anyhow::Result;
use netpath_common::addr::Addr;
use netpath_common::layout::program::{BRIDGE_IN, LO_IN, UPLINK_IN, UPLINK_OUT};
use netpath_common::reason::Reason;
use std::net::IpAddr;
use support::packet::{ACK, BRIDGE_MAC, Frame, L4, Lab, SYN, WEB_MAC, container};

const LO: u32 = 1;
const NO_MAC: support::packet::Mac = [0; 6];

fn lab() -> Result<Lab> {
    let mut lab = Lab::new(&[UPLINK_IN, BRIDGE_IN, UPLINK_OUT, LO_IN])?;
    lab.publish(1, Addr::ANY, 8080, 7)?;
    Ok(lab)
}

/// A router on the path.
fn router(v4: bool) -> IpAddr {
    ip(if v4 { "198.51.100.9" } else { "2001:db8:9::9" })
}

/// Type and code of: time exceeded, port unreachable, too big, parameter problem.
fn kinds(v4: bool) -> [(u8, u8); 4] {
    if v4 { [(11, 0), (3, 3), (3, 4), (12, 0)] } else { [(3, 0), (1, 4), (2, 0), (4, 0)] }
}

fn error(src: IpAddr, dst: IpAddr, (kind, code): (u8, u8), quoted: Vec<u8>) -> Frame {
    Frame { payload: quoted, ..Frame::new(src, dst, L4::Error { kind, code }) }
}

/// One flow: its packets in each direction, on the container's side and outside.
struct Case {
    what: &'static str,
    begin: (&'static str, Frame),
    /// Outbound: as the container sent it, and on the wire.
    out: (Frame, Frame),
    /// Inbound: on the wire, and as the container received it.
    back: (Frame, Frame),
}

fn cases(v4: bool) -> Vec<Case> {
    let (from, to, web) = ((client(v4), 40_000), (host(v4), 8080), (container(7, v4), 80));
    let (app, there, seen) = ((container(7, v4), 40_001), (outside(v4), 53), (host(v4), 40_001));
    let sctp = |a: (IpAddr, u16), b: (IpAddr, u16)| Frame::new(a.0, b.0, L4::Sctp { sport: a.1, dport: b.1 });
    let echo = |src, dst, request| Frame::new(src, dst, L4::Echo { request, id: 40_002 });
    vec![
        Case {
            what: "published tcp",
            begin: (UPLINK_IN, at_host(Frame::tcp(from, to, SYN))),
            out: (Frame::tcp(web, from, ACK), Frame::tcp(to, from, ACK)),
            back: (Frame::tcp(from, to, ACK), Frame::tcp(from, web, ACK)),
        },
        Case {
            what: "published udp",
            begin: (UPLINK_IN, at_host(Frame::udp(from, to))),
            out: (Frame::udp(web, from), Frame::udp(to, from)),
            back: (Frame::udp(from, to), Frame::udp(from, web)),
        },
        Case {
            what: "masqueraded tcp",
            begin: (BRIDGE_IN, Frame::tcp(app, there, SYN).macs(BRIDGE_MAC, WEB_MAC)),
            out: (Frame::tcp(app, there, ACK), Frame::tcp(seen, there, ACK)),
            back: (Frame::tcp(there, seen, ACK), Frame::tcp(there, app, ACK)),
        },
        Case {
            what: "masqueraded udp",
            begin: (BRIDGE_IN, Frame::udp(app, there).macs(BRIDGE_MAC, WEB_MAC)),
            out: (Frame::udp(app, there), Frame::udp(seen, there)),
            back: (Frame::udp(there, seen), Frame::udp(there, app)),
        },
        Case {
            what: "published sctp",
            begin: (UPLINK_IN, at_host(sctp(from, to))),
            out: (sctp((web.0, to.1), from), sctp(to, from)),
            back: (sctp(from, to), sctp(from, (web.0, to.1))),
        },
        Case {
            what: "masqueraded sctp",
            begin: (BRIDGE_IN, sctp(app, there).macs(BRIDGE_MAC, WEB_MAC)),
            out: (sctp(app, there), sctp(seen, there)),
            back: (sctp(there, seen), sctp(there, app)),
        },
        Case {
            what: "masqueraded echo",
            begin: (BRIDGE_IN, echo(app.0, there.0, true).macs(BRIDGE_MAC, WEB_MAC)),
            out: (echo(app.0, there.0, true), echo(seen.0, there.0, true)),
            back: (echo(there.0, seen.0, false), echo(there.0, app.0, false)),
        },
    ]
}

/// The quoted bytes: the whole packet, or the required minimum.
fn quotes(sent: &Frame, restored: &Frame) -> Vec<(Vec<u8>, Vec<u8>)> {
    let least = if sent.src.is_ipv4() { 28 } else { 48 };
    let mut all = vec![(sent.quoted()[..least].to_vec(), restored.quoted()[..least].to_vec())];
    // Of TCP, whose checksum is not restored, only the minimum.
    if !matches!(sent.l4, L4::Tcp { .. }) {
        all.push((sent.quoted(), restored.quoted()));
    }
    all
}

#[test]
fn an_error_from_outside_quotes_what_the_container_sent() -> Result<()> {
    let mut lab = lab()?;
    let (uplink, bridge) = (lab.uplink, lab.bridge);
    for v4 in [true, false] {
        for Case { what, begin, out: (sent, wire), .. } in cases(v4) {
            lab.run(begin.0, if begin.0 == UPLINK_IN { uplink } else { bridge }, &begin.1.bytes())?;
            for kind in kinds(v4) {
                // A router on the path, and the far end itself.
                for by in [router(v4), wire.dst] {
                    for (quoted, restored) in quotes(&wire, &sent) {
                        let what = format!("{what}, {kind:?} by {by}, {} bytes quoted", quoted.len());
                        let told = at_host(error(by, host(v4), kind, quoted));
                        let reads =
                            Frame { ttl: 63, ..into(&error(by, sent.src, kind, restored), WEB_MAC, BRIDGE_MAC) };
                        becomes(&mut lab, &what, (UPLINK_IN, uplink), &told, &reads, Reason::Redirected)?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// No host has the address: the kernel resolves it with the host's address, and reports the failure.
#[test]
fn the_container_reads_the_hosts_own_error_about_a_translated_packet() -> Result<()> {
    let mut lab = lab()?;
    let (uplink, bridge) = (lab.uplink, lab.bridge);
    for v4 in [true, false] {
        let unreachable = if v4 { (3, 1) } else { (1, 3) };
        for Case { what, begin, out: (sent, wire), .. } in cases(v4) {
            lab.run(begin.0, if begin.0 == UPLINK_IN { uplink } else { bridge }, &begin.1.bytes())?;
            for (quoted, restored) in quotes(&wire, &sent) {
                let what = format!("{what}, {} bytes quoted", quoted.len());
                let told = error(host(v4), host(v4), unreachable, quoted).macs(NO_MAC, NO_MAC);
                let reads = into(&error(host(v4), sent.src, unreachable, restored), WEB_MAC, BRIDGE_MAC);
                becomes(&mut lab, &what, (LO_IN, LO), &told, &Frame { ttl: 63, ..reads }, Reason::Redirected)?;
            }
        }
        let own = error(host(v4), host(v4), unreachable, Frame::udp((host(v4), 5_000), (client(v4), 5_001)).quoted());
        stays(&mut lab, "its own", (LO_IN, LO), &own.macs(NO_MAC, NO_MAC).bytes(), STACK, Reason::NotOurs)?;
    }
    Ok(())
}

#[test]
fn an_error_of_a_container_comes_from_the_host_and_quotes_what_the_other_sent() -> Result<()> {
    let mut lab = lab()?;
    let (uplink, bridge) = (lab.uplink, lab.bridge);
    for v4 in [true, false] {
        for Case { what, begin, back: (wire, got), .. } in cases(v4) {
            lab.run(begin.0, if begin.0 == UPLINK_IN { uplink } else { bridge }, &begin.1.bytes())?;
            for kind in kinds(v4) {
                for (quoted, restored) in quotes(&got, &wire) {
                    let what = format!("{what}, {kind:?}, {} bytes quoted", quoted.len());
                    let told = error(got.dst, wire.src, kind, quoted).macs(BRIDGE_MAC, WEB_MAC);
                    let reads = error(host(v4), wire.src, kind, restored).macs(BRIDGE_MAC, WEB_MAC);
                    let reads = Frame { ttl: 63, ..reads };
                    becomes(&mut lab, &what, (BRIDGE_IN, bridge), &told, &reads, Reason::Redirected)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn an_error_of_the_host_itself_quotes_what_the_client_sent() -> Result<()> {
    let mut lab = lab()?;
    let uplink = lab.uplink;
    for v4 in [true, false] {
        for Case { what, begin, back: (wire, got), .. } in cases(v4).into_iter().take(2) {
            lab.run(begin.0, uplink, &begin.1.bytes())?;
            for (quoted, restored) in quotes(&got, &wire) {
                let (told, reads) = (
                    error(host(v4), wire.src, kinds(v4)[0], quoted),
                    error(host(v4), wire.src, kinds(v4)[0], restored),
                );
                goes_on_as(&mut lab, what, (UPLINK_OUT, [0, uplink]), &told, &reads, Reason::Translated)?;
            }
        }
    }
    Ok(())
}

#[test]
fn an_error_about_an_unknown_flow_is_left_alone() -> Result<()> {
    let mut lab = lab()?;
    let (uplink, bridge) = (lab.uplink, lab.bridge);
    for v4 in [true, false] {
        let theirs = Frame::udp((host(v4), 5_000), (client(v4), 5_001)).quoted();
        let told = error(router(v4), host(v4), kinds(v4)[0], theirs.clone());
        stays(&mut lab, "of the host itself", (UPLINK_IN, uplink), &told.bytes(), STACK, Reason::NotOurs)?;
        let own = Frame::udp((client(v4), 5_001), (container(7, v4), 5_000)).quoted();
        let told = error(container(7, v4), client(v4), kinds(v4)[0], own).macs(BRIDGE_MAC, WEB_MAC);
        stays(&mut lab, "of a container", (BRIDGE_IN, bridge), &told.bytes(), STACK, Reason::NotOurs)?;
        // A redirect, and in IPv6 an informational message.
        let redirect = error(router(v4), host(v4), (if v4 { 5 } else { 137 }, 0), theirs);
        stays(&mut lab, "a redirect", (UPLINK_IN, uplink), &redirect.bytes(), STACK, Reason::NotOurs)?;
    }
    Ok(())
}

/// A socket of the host may use the port by now.
#[test]
fn an_error_about_a_flow_that_has_expired_is_left_alone() -> Result<()> {
    let mut lab = lab()?;
    let (uplink, bridge) = (lab.uplink, lab.bridge);
    for v4 in [true, false] {
        for Case { what, begin, out: (_, wire), .. } in cases(v4) {
            lab.forget()?;
            lab.run(begin.0, if begin.0 == UPLINK_IN { uplink } else { bridge }, &begin.1.bytes())?;
            lab.age_flows(v4, 100_000)?;
            let told = |by| error(by, host(v4), kinds(v4)[1], wire.quoted());
            let at_uplink = at_host(told(wire.dst)).bytes();
            stays(&mut lab, what, (UPLINK_IN, uplink), &at_uplink, STACK, Reason::NotOurs)?;
            let on_lo = told(host(v4)).macs(NO_MAC, NO_MAC).bytes();
            stays(&mut lab, what, (LO_IN, LO), &on_lo, STACK, Reason::NotOurs)?;
        }
    }
    Ok(())
}

#[test]
fn an_error_cut_anywhere_is_left_alone() -> Result<()> {
    let mut lab = lab()?;
    let uplink = lab.uplink;
    for v4 in [true, false] {
        let (from, to) = ((client(v4), 40_000), (host(v4), 8080));
        lab.run(UPLINK_IN, uplink, &at_host(Frame::udp(from, to)).bytes())?;
        let told = error(router(v4), host(v4), kinds(v4)[0], Frame::udp(to, from).quoted());
        cut_everywhere(&mut lab, "an error", (UPLINK_IN, uplink), &told)?;
        // The frame is longer than the packet, as short frames are.
        let mut short = at_host(told).bytes();
        let (len, at) = if v4 { (20 + 8 + 20 + 4, 16) } else { (8 + 40 + 4, 18) };
        short[at..at + 2].copy_from_slice(&u16::to_be_bytes(len));
        stays(&mut lab, "less than it has to quote", (UPLINK_IN, uplink), &short, STACK, Reason::NotOurs)?;
    }
    Ok(())
}
