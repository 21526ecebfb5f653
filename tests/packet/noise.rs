//! Bytes that nobody meant: whatever comes, the kernel takes the program's answer, and what is not translated is not
//! touched.

use crate::{DROPPED, REDIRECTED, STACK, XDP_DROPPED, XDP_PASSED, XDP_REDIRECTED, at_host, client, host, outside};
use anyhow::Result;
use kit::packet::{ACK, BRIDGE_MAC, Frame, L4, Lab, Piece, SYN, WEB_MAC, container};
use netpath_common::addr::Addr;
use netpath_common::layout::ENDPOINT_XDP;
use netpath_common::layout::program::{BRIDGE_IN, LO_IN, UPLINK_IN, UPLINK_OUT, XDP_IN};
use netpath_common::reason::Reason;

/// xorshift64* (Vigna 2016): the same noise from the same seed.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

#[test]
fn noise_is_never_rewritten_nor_refused_by_the_kernel() -> Result<()> {
    let seed = std::env::var("NETPATH_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(20_261_121);
    kit::need::say(&format!("NETPATH_SEED={seed}"));
    let mut noise = Noise(seed);
    let programs = [UPLINK_IN, BRIDGE_IN, UPLINK_OUT, LO_IN, XDP_IN];
    let mut lab = Lab::new(&programs)?;
    lab.set_endpoints(ENDPOINT_XDP)?;
    lab.publish(1, Addr::ANY, 8080, 7)?;
    let (uplink, bridge) = (lab.uplink, lab.bridge);
    let (mut rewritten, mut redirected) = (0, 0);
    for round in 0..20_000 {
        let v4 = round % 2 == 0;
        let (from, to, web) = ((client(v4), 40_000), (host(v4), 8080), (container(7, v4), 40_000));
        let base = match noise.below(6) {
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
        // A few bytes of a packet that is right, or nothing of it behind the Ethernet header.
        if noise.below(4) == 0 {
            bytes[14..].iter_mut().for_each(|b| *b = noise.next() as u8);
        } else {
            for _ in 0..=noise.below(6) {
                let at = 14 + noise.below(bytes.len() - 14);
                bytes[at] = noise.next() as u8;
            }
        }
        let program = programs[noise.below(programs.len())];
        let at = match program {
            BRIDGE_IN => [0, bridge],
            UPLINK_OUT => [bridge, uplink],
            LO_IN => [0, 1],
            _ => [0, uplink],
        };
        let out = lab.run_repeated(program, at, &bytes, 1)?;
        if program == XDP_IN {
            // Whatever it does, the classifier behind it would have done.
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
        } else {
            assert_eq!(bytes, out.packet, "{program} changed what it did not translate ({out:?})");
        }
    }
    assert!(redirected > 20, "the noise hides everything from XDP: {redirected} were redirected");
    assert!(rewritten > 100, "the noise hides everything: {rewritten} of 20,000 were translated");
    Ok(())
}
