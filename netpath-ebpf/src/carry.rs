//! Promoted flows: netfilter has decided about a flow and translated it, and the agent has written both directions into the flow
//! table of these programs. They carry its packets past the host's stack, except those that conntrack and the rules have to see.
//!
//! One packet per direction and second takes the stack, which keeps the conntrack entry and the neighbour alive. A flow without an
//! entry is counted, and reported once it has lasted.

use aya_ebpf::helpers::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer};
use aya_ebpf::programs::TcContext;
use netpath_common::family::{Ipv4, Ipv6};
use netpath_common::flow;
use netpath_common::layout::{
    FORWARD_LINK, FORWARD_NEIGH, Lasting, METER_WINDOW, METERS, PROTO_TCP, Promotion, SIDE_BRIDGE, SIDE_UPLINK,
    is_inward, is_outward,
};
use netpath_common::policy::fits;
use netpath_common::reason::Reason;
use netpath_common::tcp::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};

use crate::entry::{ETH_P_IP, ETH_P_IPV6, is_v4_only};
use crate::fast_path::translate;
use crate::flows::now;
use crate::half::Half;
use crate::headers::{HeaderPeek, Wire};
use crate::maps;
use crate::packet::{self, ETHERNET, View};
use crate::parsed::FastHeaders;
use crate::verdict::{self, NOT_OURS};

/// Hands packets to the program that carries while flows are carried, and counts them otherwise. A program of its own, since the
/// verifier makes each program that writes into packets copy the headers of cloned ones first, as are most of TCP between namespaces.
#[inline(always)]
pub fn count<const OUTWARD: bool>(ctx: &TcContext) -> i32 {
    let Some(promotion) = maps::PROMOTION.get(0) else { return NOT_OURS.action };
    let now = now();
    if carries(promotion, now) {
        // SAFETY: the array has programs of this type. It returns only if the agent, which has filled it, is gone.
        unsafe { maps::CARRY.tail_call(ctx, u32::from(OUTWARD)) };
        return NOT_OURS.action;
    }
    let side = if OUTWARD { SIDE_BRIDGE } else { SIDE_UPLINK };
    match ctx.skb.protocol() {
        _ if packet::is_tagged(ctx) => {}
        ETH_P_IP => count_and_report::<Ipv4>(ctx, promotion, now, side),
        ETH_P_IPV6 if !is_v4_only() => count6(ctx, promotion, now, side),
        _ => {}
    }
    NOT_OURS.action
}

#[inline(never)]
fn count6(ctx: &TcContext, promotion: &Promotion, now: u32, side: u8) {
    count_and_report::<Ipv6>(ctx, promotion, now, side);
}

#[inline(always)]
fn count_and_report<F: Wire>(ctx: &TcContext, promotion: &Promotion, now: u32, side: u8) {
    let plain = &mut FastHeaders::<F>::new();
    if lasts::<F>(ctx, promotion, now) && plain.read(ctx, side) {
        report(ctx, plain, side);
    }
}

/// While nothing is carried, the agent lets the time pass: most hosts, and all short flows on them.
#[inline(always)]
fn carries(promotion: &Promotion, now: u32) -> bool {
    promotion.until.wrapping_sub(now) as i32 > 0
}

pub fn into_container(ctx: &TcContext) -> i32 {
    match ctx.skb.protocol() {
        _ if packet::is_tagged(ctx) => NOT_OURS.action,
        ETH_P_IP => pass::<Ipv4, false>(ctx),
        ETH_P_IPV6 if !is_v4_only() => into_container6(ctx),
        _ => NOT_OURS.action,
    }
}

pub fn out_of_container(ctx: &TcContext) -> i32 {
    match ctx.skb.protocol() {
        _ if packet::is_tagged(ctx) => NOT_OURS.action,
        ETH_P_IP => pass::<Ipv4, true>(ctx),
        ETH_P_IPV6 if !is_v4_only() => out_of_container6(ctx),
        _ => NOT_OURS.action,
    }
}

// Functions of their own, so that families do not share a stack frame of 512 bytes.
#[inline(never)]
fn into_container6(ctx: &TcContext) -> i32 {
    pass::<Ipv6, false>(ctx)
}

#[inline(never)]
fn out_of_container6(ctx: &TcContext) -> i32 {
    pass::<Ipv6, true>(ctx)
}

#[inline(always)]
fn pass<F: Wire, const OUTWARD: bool>(ctx: &TcContext) -> i32 {
    carry::<F, OUTWARD>(ctx).unwrap_or(NOT_OURS.action)
}

/// `None`: the packet takes the stack.
#[inline(always)]
fn carry<F: Wire, const OUTWARD: bool>(ctx: &TcContext) -> Option<i32> {
    let side = if OUTWARD { SIDE_BRIDGE } else { SIDE_UPLINK };
    let promotion = maps::PROMOTION.get(0)?;
    let now = now();
    let plain = &mut FastHeaders::<F>::new();
    // The time may have passed since the other program has looked.
    if !carries(promotion, now) || !plain.read(ctx, side) {
        return None;
    }
    let found = Half::<F>::find(&plain.key).filter(|half| half.serial().load() == promotion.epoch);
    let Some(half) = found else {
        if lasts::<F>(ctx, promotion, now) {
            report(ctx, plain, side);
        }
        return None;
    };
    let next = &half.next();
    // By another interface the packet meets other rules, and the checks of the source's way back.
    let is_elsewhere = half.ack().load() != packet::ifindex(ctx);
    if flow::has_ended(next) || is_elsewhere {
        return None;
    }
    if plain.proto == PROTO_TCP {
        let flags = plain.segment.flags;
        if flags & (TCP_FIN | TCP_SYN | TCP_RST) != 0 {
            // So do the packets that follow in this direction.
            half.state().store(next.state | flow::RESET);
        }
        // A segment without any of them is invalid for conntrack.
        if flags & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK) != TCP_ACK {
            return None;
        }
    }
    if flow::starts_window(next, now) {
        half.last_seen().store(now);
        return None;
    }
    let is_fit = if OUTWARD {
        let &[a, b, _] = packet::at::<[u32; 3]>(ctx, 0)?;
        let [c, d, _] = verdict::addresses(&[next.match_dmac, next.next_hop_mac]);
        is_outward(next.forward) && a == c && (b ^ d) as u16 == 0
    } else {
        is_inward(next.forward)
    };
    let len = ctx.size() - ETHERNET as u32;
    let fits = fits(len, packet::gso_size(ctx), plain.headers, u32::from(next.mtu));
    if !is_fit || plain.ttl <= 1 || (verdict::is_limited::<F>(next.forward) && !fits) {
        return None;
    }
    let (forward, addresses) = if OUTWARD {
        verdict::framed(next)
    } else {
        (next.forward, verdict::addresses(&[next.match_dmac, next.next_hop_mac]))
    };
    if half.read(|flow| translate(ctx, plain, F::target_of(flow), forward, addresses)).is_none() {
        return Some(verdict::drop(Reason::DropRewrite).action);
    }
    // Without a mark for a program at the uplink's egress: there is none.
    // SAFETY: the helpers take numbers; the neighbour parameters may be absent.
    let action = unsafe {
        match forward {
            FORWARD_LINK => bpf_redirect(next.ifindex, 0),
            FORWARD_NEIGH => bpf_redirect_neigh(next.ifindex, core::ptr::null_mut(), 0, 0),
            _ => bpf_redirect_peer(next.ifindex, 0),
        }
    };
    Some(action as i32)
}

/// Counts a packet without an entry, by the segments that it stands for; whether its flow has passed the threshold now.
#[inline(always)]
fn lasts<F: Wire>(ctx: &TcContext, promotion: &Promotion, now: u32) -> bool {
    /// As a power of two: about a segment.
    const SEGMENT: u32 = 11;
    let Some(HeaderPeek { sport, dport, dst, .. }) = F::peek(ctx, ETHERNET) else { return false };
    let ports = u32::from(sport.value()) << 16 | u32::from(dport.value());
    let [.., a, b, c, d] = F::mapped(dst).0;
    let mixed = (u32::from_ne_bytes([a, b, c, d]) ^ ports).wrapping_mul(0x9e37_79b1);
    let Some(slot) = maps::METER.get_ptr_mut(mixed >> (32 - METERS.ilog2())) else { return false };
    let window = u64::from(now >> METER_WINDOW) << 32;
    // SAFETY: this processor's own slot, aligned.
    let before = unsafe { *slot };
    let before = if before & !u64::from(u32::MAX) == window { before as u32 } else { 0 };
    let after = before + 1 + (ctx.size() >> SEGMENT);
    // SAFETY: this processor's own slot, aligned; no reference to it exists.
    unsafe { *slot = window | u64::from(after) };
    before < promotion.threshold && after >= promotion.threshold
}

#[inline(always)]
fn report<F: Wire>(ctx: &TcContext, plain: &FastHeaders<F>, side: u8) {
    let tuple = plain.tuple();
    // A full buffer loses it; the next window reports the flow again.
    if let Some(mut record) = maps::LASTING.reserve::<Lasting>(0) {
        record.write(Lasting {
            src: F::mapped(tuple.src),
            dst: F::mapped(tuple.dst),
            ifindex: packet::ifindex(ctx),
            sport: tuple.sport,
            dport: tuple.dport,
            proto: plain.proto,
            side,
            pad: [0; 2],
        });
        record.submit(0);
    }
}
