//! End of the walk of a packet: translation, forwarding, logging.

use aya_ebpf::bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT, bpf_redir_neigh};
use aya_ebpf::helpers::{bpf_redirect_neigh, bpf_skb_change_head};
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;
use netpath_common::family::Family;
use netpath_common::layout::{FORWARD_NEIGH, FORWARD_STACK};
use netpath_common::reason::Reason;

use crate::headers::Wire;
use crate::packet::{self, ETHERNET};
use crate::parsed::{Fragment, Kind, Packet};
use crate::rewrite::rewrite;
use crate::scratch::{Scratch, ScratchMut};
use crate::subprog::subprog;
use crate::verdict::{Verdict, begun, can_take_stack, drop, framed, log_drop_of, obstacle, redirect, stack, traffic};
use crate::{fragment, icmp};

/// Ends the walk of a packet: forwards it by its hop if it has one, logs it if it is dropped.
#[inline(always)]
pub fn conclude<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>, mut verdict: Verdict) -> Verdict {
    if verdict.action == TC_ACT_REDIRECT {
        if verdict.reason as u32 != Reason::Redirected as u32 {
            log_flow(ctx, scratch);
        }
        verdict = Verdict::unpack(translate(ctx, scratch, verdict.reason as u32));
    }
    if verdict.action == TC_ACT_REDIRECT {
        verdict = Verdict::unpack(send(ctx, scratch, verdict.reason as u32));
    }
    if verdict.action == TC_ACT_SHOT {
        log_drop(ctx, scratch, verdict.reason as u32);
    }
    verdict
}

subprog! {
    /// Translates the packet in scratch for the hop in scratch. Returns a packed verdict; [`send`] must follow.
    fn translate(reason: u32) -> u64 as np_translate4, np_translate6 = translate_packet;

    /// Forwards the translated packet. Returns a packed verdict.
    fn send(reason: u32) -> u64 as np_send4, np_send6 = send_packet;

    fn log_drop(reason: u32) -> u32 as np_log_drop4, np_log_drop6 = log_dropped;
    fn log_flow() -> u32 as np_log_flow4, np_log_flow6 = log_new_flow;
}

#[inline(always)]
fn translate_packet<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>, reason: u32) -> u64 {
    let Scratch { packet, hop, .. } = &mut **scratch;
    let next = &mut hop.next;
    let mut hops = 1;
    if next.forward == FORWARD_STACK {
        hops = 0;
    } else if let Some(reason) = obstacle(ctx, packet, next.forward, next.mtu) {
        if !can_take_stack(packet, next.forward, reason) {
            return stack(reason).pack();
        }
        next.forward = FORWARD_STACK;
        hops = 0;
    }
    if packet.ip.fragment == Fragment::First {
        fragment::learn(ctx, scratch);
    }
    if scratch.packet.kind == Kind::Error && icmp::restore(ctx, scratch) == 0 {
        return drop(Reason::DropRewrite).pack();
    }
    match rewrite(ctx, &scratch.packet, hops, &scratch.hop.to) {
        Some(()) => begun(Reason::at(reason)).pack(),
        None => drop(Reason::DropRewrite).pack(),
    }
}

#[inline(always)]
fn send_packet<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>, reason: u32) -> u64 {
    let (packet, next) = (&scratch.packet, &scratch.hop.next);
    traffic(ctx, next);
    if next.forward == FORWARD_STACK {
        return stack(if reason == Reason::Redirected as u32 { Reason::Translated } else { Reason::at(reason) }).pack();
    }
    packet::untag(ctx);
    let ((forward, addresses), ifindex) = (framed(next), next.ifindex);
    if forward != FORWARD_NEIGH && frame::<F>(ctx, packet, &addresses).is_err() {
        return drop(Reason::DropRewrite).pack();
    }
    let action = if forward == FORWARD_NEIGH && scratch.via.is_needed {
        packet::mark_sent(ctx);
        let via = &mut scratch.via.next_hop;
        // SAFETY: `via` is a whole `bpf_redir_neigh`, whose size is given, and outlives the call.
        unsafe { bpf_redirect_neigh(ifindex, via, size_of::<bpf_redir_neigh>() as i32, 0) as i32 }
    } else {
        redirect(ctx, ifindex, forward)
    };
    Verdict { action, reason: Reason::at(reason) }.pack()
}

/// Writes the hardware addresses, or a whole Ethernet header for a packet without one.
#[inline(always)]
fn frame<F: Family>(ctx: &TcContext, packet: &Packet<F>, addresses: &[u32; 3]) -> Result<(), ()> {
    if packet.l3 == ETHERNET {
        return packet::store(ctx, 0, addresses, 0);
    }
    // SAFETY: pointers into the packet are not kept.
    if unsafe { bpf_skb_change_head(ctx.skb.skb, ETHERNET as u32, 0) } != 0 {
        return Err(());
    }
    let protocol: u16 = if F::IS_V4 { 0x0800 } else { 0x86dd };
    packet::store(ctx, 0, addresses, 0)?;
    packet::store(ctx, size_of_val(addresses), &protocol.to_be_bytes(), 0)
}

#[inline(always)]
fn log_dropped<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>, reason: u32) -> u32 {
    let packet = &scratch.packet;
    log_drop_of::<F>(ctx, reason, packet.ip.proto, &packet.tuple, packet::ifindex(ctx));
    1
}

#[inline(always)]
fn log_new_flow<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>) -> u32 {
    let plan = &scratch.pending.plan;
    let (from, to) = (&plan.from, &plan.to);
    debug!(
        ctx,
        "flow origin={} proto={} src={:i} sport={} dst={:i} dport={} to_src={:i} to_sport={} to_dst={:i} to_dport={}",
        plan.origin,
        plan.proto,
        from.src,
        from.sport.value(),
        from.dst,
        from.dport.value(),
        to.src,
        to.sport.value(),
        to.dst,
        to.dport.value()
    );
    1
}
