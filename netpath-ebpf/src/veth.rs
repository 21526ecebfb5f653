//! Ingress of a container's veth, ahead of the bridge: packets of known flows that leave by an uplink. All other
//! packets pass to the bridge and its program (`bridge.rs`).
//!
//! A frame between two containers of one network has their hardware addresses; only frames addressed to the bridge
//! itself are routed.

use aya_ebpf::programs::TcContext;
use netpath_common::layout::{SIDE_BRIDGE, is_outward};

use crate::entry::Walk;
use crate::fast_path;
use crate::headers::Wire;
use crate::packet;
use crate::parsed::FastHeaders;
use crate::scratch::ScratchMut;
use crate::verdict::{self, NOT_OURS, Verdict};

pub struct Ingress;

impl Walk for Ingress {
    const SIDE: u8 = SIDE_BRIDGE;

    #[inline(always)]
    fn short<F: Wire>(ctx: &TcContext, plain: &FastHeaders<F>) -> Option<Verdict> {
        let &[a, b, _] = packet::at::<[u32; 3]>(ctx, 0)?;
        fast_path::follow_if::<F, true>(ctx, plain, |next| {
            let [c, d, _] = verdict::addresses(&[next.match_dmac, next.next_hop_mac]);
            is_outward(next.forward) && a == c && (b ^ d) as u16 == 0
        })
    }

    #[inline(always)]
    fn long<F: Wire>(_: &TcContext, _: &mut ScratchMut<F>) -> Verdict {
        NOT_OURS
    }
}
