//! BIG TCP: GSO packets above 64 KiB, whose headers have no length. A test run takes shorter ones, with the same headers.

use crate::{DROPPED, REDIRECTED, STACK, at_host, client, host, into};
use anyhow::Result;
use netpath_common::addr::Addr;
use netpath_common::layout::program::{BRIDGE_IN, UPLINK_IN, VETH_IN};
use netpath_common::reason::Reason;
use support::packet::{ACK, BRIDGE_MAC, Frame, Lab, SYN, WEB_MAC, checksum, container};

/// Where the length is, and for IPv6 the next header.
const LENGTH4: usize = 14 + 2;
const LENGTH6: usize = 14 + 4;

/// With a length of zero. `jumbo`: and for IPv6 with the option that has it instead (RFC 2675), as up to Linux 6.18.
fn big(frame: &Frame, jumbo: bool) -> Vec<u8> {
    let mut bytes = frame.bytes();
    if frame.src.is_ipv4() {
        bytes[LENGTH4..LENGTH4 + 2].fill(0);
        bytes[14 + 10..14 + 12].fill(0);
        let sum = checksum(&bytes[14..34]);
        bytes[14 + 10..14 + 12].copy_from_slice(&sum.to_be_bytes());
        return bytes;
    }
    bytes[LENGTH6..LENGTH6 + 2].fill(0);
    if jumbo {
        let len = (bytes.len() - 14 - 40 + 8) as u32;
        let option = [&[bytes[LENGTH6 + 2], 0, 0xc2, 4][..], &len.to_be_bytes()].concat();
        bytes[LENGTH6 + 2] = 0;
        bytes.splice(14 + 40..14 + 40, option);
    }
    bytes
}

#[test]
fn a_packet_without_a_length_goes_as_its_segments_do() -> Result<()> {
    let mut lab = Lab::new(&[UPLINK_IN, BRIDGE_IN, VETH_IN])?;
    lab.publish(1, Addr::ANY, 8080, 7)?;
    let (uplink, bridge, veth) = (lab.uplink, lab.bridge, lab.web);
    for (v4, jumbo) in [(true, false), (false, false), (false, true)] {
        lab.forget()?;
        let (from, to, web) = ((client(v4), 40_000), (host(v4), 8080), (container(7, v4), 80));
        let payload = vec![0xa5; 3_000];
        let inward = |flags| at_host(Frame { payload: payload.clone(), ..Frame::tcp(from, to, flags) });
        let outward =
            |flags| Frame { payload: payload.clone(), ..Frame::tcp(web, from, flags) }.macs(BRIDGE_MAC, WEB_MAC);
        let syn = at_host(Frame::tcp(from, to, SYN));
        assert_eq!(REDIRECTED, lab.action(UPLINK_IN, uplink, &syn.bytes())?);
        let answer = Frame::tcp(web, from, SYN | ACK).macs(BRIDGE_MAC, WEB_MAC);
        assert_eq!(REDIRECTED, lab.action(BRIDGE_IN, bridge, &answer.bytes())?);
        // An Ethernet frame's worth each: the option does not count.
        lab.gso_size = if v4 { 1_460 } else { 1_440 };
        let up = inward(ACK);
        let out = lab.run(UPLINK_IN, uplink, &big(&up, jumbo))?;
        let got = into(&up.becomes(from, web), WEB_MAC, BRIDGE_MAC);
        assert_eq!((REDIRECTED, big(&got, jumbo)), (out.action, out.packet), "up, v4 {v4}, jumbo {jumbo}");
        let down = outward(ACK);
        for (program, index) in [(BRIDGE_IN, bridge), (VETH_IN, veth)] {
            // The veth's program has the fast path alone.
            if program == VETH_IN && jumbo {
                continue;
            }
            let out = lab.run(program, index, &big(&down, jumbo))?;
            let what = format!("down at {program}, v4 {v4}, jumbo {jumbo}");
            assert_eq!(REDIRECTED, out.action, "{what}: {:?}", out.counted);
            let got = big(&down.becomes(to, from), jumbo);
            assert_eq!(got[12..], out.packet[12..], "{what}");
        }
        lab.gso_size += 1;
        let out = lab.run(BRIDGE_IN, bridge, &big(&down, jumbo))?;
        assert_eq!((STACK, vec![(Reason::StackMtu, 1)]), (out.action, out.counted), "segments too large, v4 {v4}");
        // Not of segments: the length is wrong.
        lab.gso_size = 0;
        let out = lab.run(UPLINK_IN, uplink, &big(&up, jumbo))?;
        assert!(matches!(out.action, STACK | DROPPED), "v4 {v4}, jumbo {jumbo}: {out:?}");
    }
    Ok(())
}
