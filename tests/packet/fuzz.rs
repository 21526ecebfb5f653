//! Random bytes: the kernel accepts the program's verdict for any input, and untranslated packets stay unchanged.

use crate::{DROPPED, REDIRECTED, STACK, XDP_DROPPED, XDP_PASSED, XDP_REDIRECTED, at_host, client, host, outside};
use anyhow::Result;
use netpath_common::addr::Addr;
use netpath_common::layout::program::{BRIDGE_IN, LO_IN, UPLINK_IN, UPLINK_OUT, VETH_IN, XDP_IN};
use netpath_common::layout::{ENDPOINT_XDP, NET_DIRECT, NET_INTERNAL, NET_ISOLATED, NET_MASQUERADE, NET_STRICT};
use netpath_common::reason::Reason;
use support::packet::{ACK, BRIDGE_MAC, Frame, L4, Lab, Piece, SYN, WEB_MAC, container};
use support::rng::Rng;

/// Checksum errors of a frame: 0 for a valid sum. Translation neither repairs nor breaks a checksum, so it keeps this value.
/// None for a frame without a sum at a known place.
fn faults(frame: &[u8]) -> [Option<u16>; 2] {
    let v4 = frame[12] == 8;
    let at16 = |at: usize| usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
    let (header, l4, proto, end, addresses) = match v4 {
        true => {
            let l4 = 14 + usize::from(frame[14] & 0xf) * 4;
            // Later fragments have no transport header.
            let proto = if at16(20) & 0x1fff == 0 { frame[23] } else { 255 };
            (frame.get(14..l4), l4, proto, 14 + at16(16), &frame[26..34])
        }
        false => (None, 54, frame[20], 54 + at16(18), &frame[22..54]),
    };
    let transport = frame.get(l4..end.min(frame.len()));
    let pseudo = if v4 && proto == 1 { &[][..] } else { addresses };
    let sum = match (proto, transport) {
        (6 | 58, Some(t)) | (1, Some(t)) if v4 || proto != 1 => Some(support::packet::checksum(&[pseudo, t].concat())),
        (17, Some(t)) if t.len() >= 8 && t[6..8] != [0; 2] => Some(support::packet::checksum(&[pseudo, t].concat())),
        _ => None,
    };
    // Zero has two forms in one's complement.
    [header.map(support::packet::checksum), sum].map(|s| s.map(|s| if s == 0xffff { 0 } else { s }))
}

/// Network flags, the usual ones half of the time.
const NETWORKS: [u32; 6] = [
    NET_MASQUERADE,
    NET_DIRECT | NET_ISOLATED,
    NET_MASQUERADE,
    NET_INTERNAL | NET_STRICT,
    NET_MASQUERADE,
    NET_DIRECT | NET_MASQUERADE,
];

#[test]
fn random_bytes_are_never_rewritten_nor_rejected_by_the_kernel() -> Result<()> {
    let rng = Rng::new();
    support::need::say(&rng.to_string());
    let programs = [UPLINK_IN, BRIDGE_IN, UPLINK_OUT, LO_IN, VETH_IN, XDP_IN];
    let mut lab = Lab::new(&programs)?;
    lab.set_endpoints(ENDPOINT_XDP)?;
    lab.publish(1, Addr::ANY, 8080, 7)?;
    let (uplink, bridge, veth) = (lab.uplink, lab.bridge, lab.web);
    let (mut rewritten, mut redirected) = (0, 0);
    for round in 0..20_000_usize {
        let v4 = round % 2 == 0;
        if round % 500 == 0 {
            let networks = [(7, bridge), (8, lab.other_bridge)];
            networks
                .into_iter()
                .try_for_each(|(n, index)| lab.set_network(n, index, NETWORKS[round / 500 % NETWORKS.len()]))?;
        }
        let (from, to, web) = ((client(v4), 40_000), (host(v4), 8080), (container(7, v4), 40_000));
        let base = match rng.below(6) {
            0 => at_host(Frame::tcp(from, to, SYN)),
            1 => at_host(Frame::udp(from, to)),
            2 => Frame::tcp(web, (outside(v4), 80), ACK).macs(BRIDGE_MAC, WEB_MAC),
            3 => Frame { fragment: Some(Piece::FIRST), ..at_host(Frame::udp(from, to)) },
            4 => {
                let quoted = Frame::udp(to, from).quoted();
                let (kind, code) = if v4 { (3, 3) } else { (1, 4) };
                at_host(Frame { payload: quoted, ..Frame::new(from.0, to.0, L4::Error { kind, code }) })
            }
            _ => Frame { options: 3, ..Frame::udp(web, (outside(v4), 53)).macs(BRIDGE_MAC, WEB_MAC) },
        };
        let mut bytes = base.bytes();
        // A few bytes of a valid packet, or nothing of it after the Ethernet header.
        if rng.below(4) == 0 {
            bytes[14..].iter_mut().for_each(|b| *b = rng.below(256) as u8);
        } else {
            for _ in 0..=rng.below(6) {
                let at = 14 + rng.below(bytes.len() as u64 - 14) as usize;
                bytes[at] = rng.below(256) as u8;
            }
        }
        let program = *rng.pick(&programs);
        let at = match program {
            BRIDGE_IN => [0, bridge],
            UPLINK_OUT => [bridge, uplink],
            LO_IN => [0, 1],
            VETH_IN => [0, veth],
            _ => [0, uplink],
        };
        let out = lab.run_repeated(program, at, &bytes, 1)?;
        if program == XDP_IN {
            // The classifier behind it would have done the same.
            let then = lab.run(UPLINK_IN, uplink, &bytes)?;
            match out.action {
                XDP_PASSED => assert_eq!((&bytes, vec![]), (&out.packet, out.counted), "changed and passed on"),
                XDP_DROPPED => assert_eq!((DROPPED, &out.counted), (then.action, &then.counted), "{bytes:02x?}"),
                XDP_REDIRECTED => assert_eq!(
                    (REDIRECTED, &out.packet, &out.counted),
                    (then.action, &then.packet, &then.counted),
                    "{bytes:02x?}"
                ),
                other => panic!("verdict {other}: {bytes:02x?}"),
            }
            redirected += u32::from(out.action == XDP_REDIRECTED);
            continue;
        }
        let translated = out.action == REDIRECTED
            || out.action == STACK
                && out
                    .counted
                    .iter()
                    .any(|(r, _)| matches!(r, Reason::Translated | Reason::FlowPublished | Reason::FlowMasqueraded));
        if translated {
            rewritten += 1;
            assert_eq!(bytes.len(), out.packet.len(), "{program}: {bytes:02x?}");
            let what = format!("{rng} {program} made {:02x?} of {bytes:02x?}", out.packet);
            assert_eq!(faults(&bytes), faults(&out.packet), "the checksums; {what}");
        } else {
            let known = out.action == STACK || out.action == DROPPED && out.counted.len() == 1;
            assert!(known, "{program}: neither left alone nor dropped for a reason that is counted: {out:?}");
            assert_eq!(bytes, out.packet, "{program} changed what it did not translate ({out:?})");
        }
    }
    assert!(redirected > 20, "too few valid frames for XDP: {redirected} were redirected");
    assert!(rewritten > 100, "too few valid frames: {rewritten} of 20,000 were translated");
    Ok(())
}
