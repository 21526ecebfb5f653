//! Dispatch of a frame at a hook to the walk of its address family.

use aya_ebpf::Global;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use netpath_common::family::{Ipv4, Ipv6};

use crate::conclude::conclude;
use crate::headers::Wire;
use crate::packet::{self, ETHERNET};
use crate::parse::parse;
use crate::parsed::FastHeaders;
use crate::scratch::ScratchMut;
use crate::verdict::{NOT_OURS, Verdict};

/// `__sk_buff::protocol`, in network byte order (`include/uapi/linux/if_ether.h`).
pub const ETH_P_IP: u32 = (0x0800u16).to_be() as u32;
pub const ETH_P_IPV6: u32 = (0x86ddu16).to_be() as u32;

/// `netpath_common::layout::global::V4_ONLY`.
#[unsafe(no_mangle)]
pub static NP_V4_ONLY: Global<u8> = Global::new(0);

/// A constant of the verifier, which does not check what cannot run.
#[inline(always)]
pub fn is_v4_only() -> bool {
    NP_V4_ONLY.load() != 0
}

/// The packet walk of a hook.
pub trait Walk {
    /// Offset of the network header: behind Ethernet, or 0.
    const L3: usize = ETHERNET;
    /// Side of the flows at this hook.
    const SIDE: u8;
    /// Whether it has a fast path.
    const IS_SHORT: bool = Self::L3 == ETHERNET;

    /// Whether a packet is certainly not ours: checked first, before anything is copied.
    #[inline(always)]
    fn leaves<F: Wire>(_: &TcContext) -> bool {
        false
    }

    /// A packet with plain headers. `None`: it needs the slow path.
    #[inline(always)]
    fn short<F: Wire>(_: &TcContext, _: &FastHeaders<F>) -> Option<Verdict> {
        None
    }

    /// An IPv6 packet while no network has IPv6.
    #[inline(always)]
    fn without_v6(_: &TcContext) -> Verdict {
        NOT_OURS
    }

    /// Any packet, parsed into scratch.
    fn long<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>) -> Verdict;
}

#[inline(always)]
pub fn walk<W: Walk>(ctx: &TcContext) -> Verdict {
    match ctx.skb.protocol() {
        ETH_P_IP => arrive::<Ipv4, W>(ctx),
        ETH_P_IPV6 if is_v4_only() => W::without_v6(ctx),
        ETH_P_IPV6 => arrive::<Ipv6, W>(ctx),
        _ => NOT_OURS,
    }
}

/// The fast path alone. `None`: the packet passes unchanged.
#[inline(always)]
pub fn walk_short<W: Walk>(ctx: &TcContext) -> Option<Verdict> {
    let packed = match ctx.skb.protocol() {
        ETH_P_IP => short_here::<Ipv4, W>(ctx.skb.skb),
        ETH_P_IPV6 if !is_v4_only() => short::<Ipv6, W>(ctx.skb.skb),
        _ => LONG,
    };
    if packed == LONG { None } else { Some(Verdict::unpack(packed)) }
}

#[inline(always)]
fn arrive<F: Wire, W: Walk>(ctx: &TcContext) -> Verdict {
    if W::leaves::<F>(ctx) {
        return NOT_OURS;
    }
    let skb = ctx.skb.skb;
    // The fast path leaves a tag where it is.
    let packed = match (W::IS_SHORT && !packet::is_tagged(ctx), F::IS_V4) {
        (true, true) => short_here::<F, W>(skb),
        (true, false) => short::<F, W>(skb),
        (false, _) => LONG,
    };
    Verdict::unpack(if packed == LONG { long::<F, W>(skb) } else { packed })
}

/// No verdict: the packet needs the slow path.
const LONG: u64 = u64::MAX;

#[inline(always)]
fn short_here<F: Wire, W: Walk>(skb: *mut __sk_buff) -> u64 {
    let ctx = &TcContext::new(skb);
    let plain = &mut FastHeaders::<F>::new();
    if !plain.read(ctx, W::SIDE) {
        return LONG;
    }
    W::short(ctx, plain).map_or(LONG, Verdict::pack)
}

// Separate functions, so that families and paths do not share a stack frame of 512 bytes. A call is expensive on
// machines with return mitigations, so IPv4 is inlined.
#[inline(never)]
fn short<F: Wire, W: Walk>(skb: *mut __sk_buff) -> u64 {
    short_here::<F, W>(skb)
}

#[inline(never)]
fn long<F: Wire, W: Walk>(skb: *mut __sk_buff) -> u64 {
    let ctx = &TcContext::new(skb);
    // SAFETY: the only call in this function, and its callers use no scratch.
    let Some(scratch) = &mut (unsafe { ScratchMut::<F>::take() }) else { return NOT_OURS.pack() };
    if parse(ctx, scratch, W::L3 as u32, u32::from(W::SIDE)) == 0 {
        return NOT_OURS.pack();
    }
    let verdict = W::long(ctx, scratch);
    conclude(ctx, scratch, verdict).pack()
}
