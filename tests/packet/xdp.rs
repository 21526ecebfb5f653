//! np_xdp_in: does the same as the classifier behind it, or nothing.

use crate::{
    DROPPED, REDIRECTED, STACK, XDP_DROPPED, XDP_PASSED, XDP_REDIRECTED, at_host, client, gateway, host, into, ip,
    outside, shapes,
};
use anyhow::{Context, Result};
use netpath_common::addr::Addr;
use netpath_common::layout::program::{BRIDGE_IN, UPLINK_IN, XDP_IN};
use netpath_common::layout::{ENDPOINT_XDP, NET_DIRECT, SIDE_BRIDGE};
use netpath_common::reason::Reason;
use support::packet::{ACK, BRIDGE_MAC, CLIENT_MAC, Frame, L4, Lab, Piece, SYN, WEB_MAC, container, mapped};

fn lab() -> Result<Lab> {
    let mut lab = Lab::new(&[XDP_IN, UPLINK_IN, BRIDGE_IN])?;
    lab.publish(1, Addr::ANY, 8080, 7)?;
    lab.set_endpoints(ENDPOINT_XDP)?;
    Ok(lab)
}

fn asked(v4: bool) -> Frame {
    at_host(Frame::udp((client(v4), 40_000), (host(v4), 8080)))
}

/// Creates the flow of [`asked`] by the classifier.
fn begin(lab: &mut Lab, v4: bool) -> Result<()> {
    let out = lab.run(UPLINK_IN, lab.uplink, &asked(v4).bytes())?;
    assert_eq!((REDIRECTED, vec![(Reason::FlowPublished, 1)]), (out.action, out.counted));
    Ok(())
}

#[track_caller]
fn passes(lab: &mut Lab, what: &str, sent: &[u8]) -> Result<()> {
    let out = lab.run(XDP_IN, lab.uplink, sent)?;
    assert_eq!(XDP_PASSED, out.action, "{what}");
    assert_eq!(sent, out.packet, "{what}: the packet was changed");
    assert!(out.counted.is_empty(), "{what}: the classifier counts it: {:?}", out.counted);
    Ok(())
}

/// XDP redirects it exactly as the classifier would; returns the classifier's result.
#[track_caller]
fn redirects(lab: &mut Lab, what: &str, sent: &[u8]) -> Result<Vec<u8>> {
    let early = lab.run(XDP_IN, lab.uplink, sent)?;
    let late = lab.run(UPLINK_IN, lab.uplink, sent)?;
    assert_eq!((XDP_REDIRECTED, REDIRECTED), (early.action, late.action), "{what}");
    assert_eq!(late.packet, early.packet, "{what}: the packet");
    assert_eq!((vec![(Reason::Redirected, 1)], &late.counted), (early.counted, &late.counted), "{what}");
    Ok(late.packet)
}

#[test]
fn datagrams_of_known_flows_go_in_as_the_classifier_would_send_them() -> Result<()> {
    let mut lab = lab()?;
    for v4 in [true, false] {
        passes(&mut lab, "the first is the classifier's", &asked(v4).bytes())?;
        begin(&mut lab, v4)?;
        let mut counted = lab.traffic(9)?;
        for (shape, sent) in shapes(&asked(v4)).into_iter().filter(|(_, f)| f.options == 0) {
            let got = into(&sent.becomes((client(v4), 40_000), (container(7, v4), 80)), WEB_MAC, BRIDGE_MAC);
            let bytes = sent.bytes();
            assert_eq!(got.bytes(), redirects(&mut lab, &shape, &bytes)?, "{shape}");
            counted.packets_in += 2;
            counted.bytes_in += 2 * bytes.len() as u64;
            assert_eq!(counted, lab.traffic(9)?, "{shape}: traffic of the publish");
        }
        // Short frames are padded.
        let padded = [asked(v4).bytes(), vec![0; 40]].concat();
        redirects(&mut lab, "padded", &padded)?;
    }
    Ok(())
}

#[test]
fn answers_to_masqueraded_flows_go_in_and_are_seen() -> Result<()> {
    let mut lab = lab()?;
    let bridge = lab.bridge;
    for v4 in [true, false] {
        let (app, there) = ((container(7, v4), 40_001), (outside(v4), 53));
        let out = lab.run(BRIDGE_IN, bridge, &Frame::udp(app, there).macs(BRIDGE_MAC, WEB_MAC).bytes())?;
        assert_eq!(REDIRECTED, out.action);
        let answer = at_host(Frame::udp(there, (host(v4), 40_001)));
        let early = lab.run(XDP_IN, lab.uplink, &answer.bytes())?;
        let got = into(&answer.becomes(there, app), WEB_MAC, BRIDGE_MAC);
        assert_eq!((XDP_REDIRECTED, got.bytes()), (early.action, early.packet));
        // This makes the flow bidirectional: a request alone would expire after 30 s.
        lab.age_flows(v4, 100)?;
        redirects(&mut lab, "a while later", &answer.bytes())?;
    }
    Ok(())
}

#[test]
fn packets_outside_its_scope_pass_unchanged() -> Result<()> {
    let mut lab = lab()?;
    for v4 in [true, false] {
        begin(&mut lab, v4)?;
        let from = (client(v4), 40_000);
        let syn = at_host(Frame::tcp(from, (host(v4), 8080), SYN));
        assert_eq!(REDIRECTED, lab.run(UPLINK_IN, lab.uplink, &syn.bytes())?.action);
        for (what, frame) in [
            ("options", Frame { options: 1, ..asked(v4) }),
            ("a fragment", Frame { fragment: Some(Piece::FIRST), ..asked(v4) }),
            ("tagged", Frame { tagged: true, ..asked(v4) }),
            ("to another machine", asked(v4).macs([2, 9, 9, 9, 9, 9], CLIENT_MAC)),
            ("to another machine, by its last byte", asked(v4).macs([2, 0, 0, 0, 0, 9], CLIENT_MAC)),
            ("to the broadcast address", asked(v4).macs([0xff; 6], CLIENT_MAC)),
            ("the last hop", Frame { ttl: 1, ..asked(v4) }),
            ("no hop left", Frame { ttl: 0, ..asked(v4) }),
            ("longer than the container takes", Frame { payload: vec![7; 1_500], ..asked(v4) }),
            ("TCP of a known flow", syn.clone()),
            ("an echo request", at_host(Frame::new(from.0, host(v4), L4::Echo { request: true, id: 8080 }))),
            ("not ours", at_host(Frame::udp(from, (host(v4), 22)))),
        ] {
            passes(&mut lab, what, &frame.bytes())?;
        }
        redirects(&mut lab, "and none of it harms the flow", &asked(v4).bytes())?;
        let largest = 1_500 - 8 - if v4 { 20 } else { 40 };
        redirects(&mut lab, "as long as it takes", &Frame { payload: vec![7; largest], ..asked(v4) }.bytes())?;
    }
    Ok(())
}

#[test]
fn a_packet_cut_anywhere_passes_unchanged() -> Result<()> {
    let mut lab = lab()?;
    for v4 in [true, false] {
        begin(&mut lab, v4)?;
        let direct = at_host(Frame::udp((client(v4), 40_000), (container(7, v4), 80)));
        for frame in [asked(v4), direct] {
            let bytes = frame.bytes();
            for len in 14..bytes.len() {
                passes(&mut lab, &format!("{frame:?} cut to {len} bytes"), &bytes[..len])?;
            }
        }
    }
    Ok(())
}

/// The checksum field holds the sum of the pseudo-header (RFC 768): the device computes the rest.
fn left_to_the_device(frame: &Frame) -> Vec<u8> {
    let mut bytes = frame.bytes();
    let l4 = if frame.src.is_ipv4() { 34 } else { 54 };
    let udp = bytes.len() - l4;
    let addresses = bytes[if frame.src.is_ipv4() { l4 - 8 } else { l4 - 32 }..l4].to_vec();
    let mut sum = 17 + udp as u32;
    sum += addresses.chunks(2).map(|p| u32::from(u16::from_be_bytes([p[0], p[1]]))).sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    bytes[l4 + 6..l4 + 8].copy_from_slice(&(sum as u16).to_be_bytes());
    bytes
}

#[test]
fn incomplete_checksums_pass_and_others_stay_valid_or_invalid() -> Result<()> {
    let mut lab = lab()?;
    for v4 in [true, false] {
        begin(&mut lab, v4)?;
        for payload in [vec![], vec![1], vec![0xff; 17], vec![3; 1_000]] {
            let frame = Frame { payload, ..asked(v4) };
            passes(&mut lab, "left to the device", &left_to_the_device(&frame))?;
            let mut wrong = frame.bytes();
            let at = wrong.len() - frame.payload.len() - 1;
            wrong[at] ^= 0x10;
            redirects(&mut lab, "wrong", &wrong)?;
        }
        // A zero sum is written as 0xffff: zero means that there is no checksum.
        let zero = (0..=u16::MAX).map(|n| Frame { payload: n.to_be_bytes().to_vec(), ..asked(v4) }).find(|f| {
            let got = f.becomes((client(v4), 40_000), (container(7, v4), 80)).bytes();
            got[got.len() - 4..got.len() - 2] == [0xff; 2]
        });
        redirects(&mut lab, "zero", &zero.context("no payload has that sum")?.bytes())?;
    }
    Ok(())
}

#[test]
fn flows_that_xdp_cannot_serve_go_to_the_classifier() -> Result<()> {
    let mut lab = lab()?;
    for v4 in [true, false] {
        let sent = asked(v4).bytes();
        begin(&mut lab, v4)?;
        lab.age_flows(v4, 31)?;
        passes(&mut lab, "expired", &sent)?;
        lab.forget()?;
        begin(&mut lab, v4)?;
        lab.age_flows(v4, 3)?;
        redirects(&mut lab, "a while later", &sent)?;
        lab.lose_half(v4, SIDE_BRIDGE)?;
        lab.age_flows(v4, 3)?;
        passes(&mut lab, "the answers' half is to be mended", &sent)?;
        assert_eq!(REDIRECTED, lab.run(UPLINK_IN, lab.uplink, &sent)?.action);
        redirects(&mut lab, "mended", &sent)?;
    }
    lab.forget()?;
    lab.set_endpoints(0)?;
    for v4 in [true, false] {
        let sent = asked(v4).bytes();
        let out = lab.run(UPLINK_IN, lab.uplink, &sent)?;
        assert_eq!(vec![(Reason::FlowPublished, 1)], out.counted);
        passes(&mut lab, "to a container that does not take it", &sent)?;
    }
    Ok(())
}

/// The classifier drops it for `reason`; `early`: and so does XDP.
#[track_caller]
fn dropped(lab: &mut Lab, what: &str, sent: &Frame, reason: Reason, early: bool) -> Result<()> {
    let sent = at_host(sent.clone()).bytes();
    let late = lab.run(UPLINK_IN, lab.uplink, &sent)?;
    assert_eq!((DROPPED, vec![(reason, 1)]), (late.action, late.counted), "{what}");
    if !early {
        return passes(lab, what, &sent);
    }
    let out = lab.run(XDP_IN, lab.uplink, &sent)?;
    assert_eq!((XDP_DROPPED, &sent, vec![(reason, 1)]), (out.action, &out.packet, out.counted), "{what}");
    Ok(())
}

/// The classifier passes it, and so does XDP.
#[track_caller]
fn let_through(lab: &mut Lab, what: &str, sent: &Frame) -> Result<()> {
    let sent = at_host(sent.clone()).bytes();
    passes(lab, what, &sent)?;
    assert_ne!(DROPPED, lab.run(UPLINK_IN, lab.uplink, &sent)?.action, "{what}");
    Ok(())
}

#[test]
fn packets_that_the_classifier_certainly_drops_are_dropped() -> Result<()> {
    let mut lab = lab()?;
    lab.publish(3, mapped(ip("127.0.0.1")), 9090, 7)?;
    for (src, dst) in [("192.0.2.2", "127.0.0.1"), ("127.0.0.1", "192.0.2.1"), ("2001:db8:1::2", "::1")] {
        let tcp = Frame::tcp((ip(src), 40_000), (ip(dst), 9090), SYN);
        dropped(&mut lab, "a loopback address", &tcp, Reason::DropMartian, true)?;
        let optional = Frame { options: 1, ..tcp.clone() };
        dropped(&mut lab, "and options", &optional, Reason::DropMartian, false)?;
        passes(&mut lab, "to another machine", &tcp.macs([2, 9, 9, 9, 9, 9], CLIENT_MAC).bytes())?;
    }
    for v4 in [true, false] {
        let from = (client(v4), 40_000);
        let unused = if v4 { ip("10.89.7.99") } else { ip("fd41:7::99") };
        for (what, frame, early) in [
            ("a port", Frame::tcp(from, (container(7, v4), 80), SYN), true),
            ("the middle of a connection", Frame::tcp(from, (container(7, v4), 80), ACK), true),
            ("the published number", Frame::udp(from, (container(7, v4), 8080)), true),
            ("ping", Frame::new(from.0, container(7, v4), L4::Echo { request: true, id: 1 }), false),
            ("an unused address", Frame::udp(from, (unused, 80)), false),
        ] {
            dropped(&mut lab, what, &frame, Reason::DropDirect, early)?;
        }
        let_through(&mut lab, "the host's own address", &Frame::udp(from, (gateway(7, v4), 53)))?;
    }
    let bridge = lab.bridge;
    lab.set_network(7, bridge, NET_DIRECT)?;
    for v4 in [true, false] {
        let sent = Frame::udp((client(v4), 40_000), (container(7, v4), 80));
        let_through(&mut lab, "an open network", &sent)?;
        redirects(&mut lab, "then it is a flow", &at_host(sent).bytes())?;
    }
    Ok(())
}

#[test]
fn clients_that_are_on_no_list_are_dropped() -> Result<()> {
    let mut lab = lab()?;
    lab.allow = 5;
    lab.publish(3, Addr::ANY, 9090, 7)?;
    lab.publish(5, mapped(host(true)), 9191, 7)?;
    lab.publish(7, mapped(ip("198.51.100.9")), 9292, 7)?;
    lab.allow(5, client(true), 32)?;
    lab.allow(5, client(false), 64)?;
    for v4 in [true, false] {
        for port in [9090, 8080] {
            let_through(&mut lab, "on the list, or none", &Frame::udp((client(v4), 40_000), (host(v4), port)))?;
        }
        let to = (host(v4), 9090);
        for frame in [Frame::udp((outside(v4), 40_000), to), Frame::tcp((outside(v4), 40_000), to, SYN)] {
            dropped(&mut lab, "not on it", &frame, Reason::DropNotAllowed, true)?;
        }
    }
    let fixed = Frame::udp((outside(true), 40_000), (host(true), 9191));
    dropped(&mut lab, "one address", &fixed, Reason::DropNotAllowed, true)?;
    for port in [9090, 9292] {
        let elsewhere = Frame::udp((outside(true), 40_000), (ip("198.51.100.9"), port));
        let_through(&mut lab, "the port of another machine", &elsewhere)?;
    }
    // An address unknown to the control plane needs a kernel lookup, which only the classifier does.
    assert!(std::process::Command::new("ip").args(["addr", "add", "192.0.2.99/24", "dev", "eth0"]).status()?.success());
    let unknown = Frame::udp((outside(true), 40_000), (ip("192.0.2.99"), 9090));
    dropped(&mut lab, "a new address", &unknown, Reason::DropNotAllowed, false)?;
    let other = at_host(Frame::udp((outside(true), 40_000), (host(true), 22))).bytes();
    assert_eq!(STACK, lab.run(UPLINK_IN, lab.uplink, &other)?.action);
    passes(&mut lab, "another port", &other)
}
