//! Outcome of a packet walk, and the steps to it that fast and slow path share.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_F_INGRESS, TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer};
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::info;
use netpath_common::addr::Mac;
use netpath_common::family::Tuple;
use netpath_common::flow;
use netpath_common::layout::{
    FORWARD_EGRESS, FORWARD_INGRESS, FORWARD_LINK, FORWARD_NEIGH, Next, SIDE_BRIDGE, SIDE_UPLINK, is_inward, is_outward,
};
use netpath_common::policy::fits;
use netpath_common::reason::Reason;

use crate::headers::Wire;
use crate::maps;
use crate::packet::{self, View};
use crate::parsed::Packet;
use crate::subprog::ReturnValue;

/// The classifier's return value, and the reason.
#[derive(Clone, Copy)]
pub struct Verdict {
    pub action: i32,
    pub reason: Reason,
}

impl Verdict {
    /// A function of the BPF machine returns one register.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        (self.action as u32 as u64) | ((self.reason as u64) << 32)
    }

    #[inline(always)]
    pub const fn unpack(packed: u64) -> Self {
        Self { action: packed as u32 as i32, reason: Reason::at((packed >> 32) as u32) }
    }
}

/// A packed verdict.
impl ReturnValue for u64 {
    const NONE: Self = NOT_OURS.pack();
}

/// Unchanged to the next program and the stack.
#[inline(always)]
pub const fn stack(reason: Reason) -> Verdict {
    Verdict { action: TC_ACT_UNSPEC, reason }
}

pub const NOT_OURS: Verdict = stack(Reason::NotOurs);

#[inline(always)]
pub const fn drop(reason: Reason) -> Verdict {
    Verdict { action: TC_ACT_SHOT, reason }
}

/// The verdict of functions that create flows: the flow is written, and its hop is in scratch.
#[inline(always)]
pub const fn begun(reason: Reason) -> Verdict {
    Verdict { action: TC_ACT_REDIRECT, reason }
}

/// The packet is forwarded by the hop in scratch.
pub const FOLLOWED: Verdict = begun(Reason::Redirected);

#[inline(always)]
pub fn count(ctx: &impl View, verdict: Verdict) -> i32 {
    if let Some(slot) = maps::COUNT.get_ptr_mut(verdict.reason as u32) {
        // SAFETY: this processor's own slot.
        unsafe {
            (*slot).packets += 1;
            (*slot).bytes += u64::from(ctx.size());
        }
    }
    verdict.action
}

/// Counts a packet for the publish or the endpoint of its flow.
#[inline(always)]
pub fn traffic(ctx: &impl View, next: &Next) {
    if next.traffic == 0 {
        return;
    }
    let Some(counted) = maps::TRAFFIC.get_ptr_mut(u32::from(next.traffic)) else { return };
    let begun_inside = next.origin == Reason::FlowMasqueraded as u8;
    let into = begun_inside == (next.state & flow::REPLY_HALF != 0);
    // SAFETY: this processor's own slot.
    unsafe {
        let (packets, bytes) = if into {
            (&mut (*counted).packets_in, &mut (*counted).bytes_in)
        } else {
            (&mut (*counted).packets_out, &mut (*counted).bytes_out)
        };
        *packets += 1;
        *bytes += u64::from(ctx.size());
    }
}

/// Whether a packet may exceed the MTU of a hop. Into a container an IPv4 packet never does: what arrived here can be
/// received there. IPv6 packets that `br_netfilter` has reassembled can, and are lost.
#[inline(always)]
pub fn is_limited<F: Wire>(forward: u8) -> bool {
    is_outward(forward) || (!F::IS_V4 && is_inward(forward))
}

/// The reason why the packet cannot be forwarded this way and the stack has to handle it. Checked before any change.
#[inline(always)]
pub fn obstacle<F: Wire>(ctx: &TcContext, packet: &Packet<F>, forward: u8, mtu: u16) -> Option<Reason> {
    if packet.ip.ttl <= 1 {
        return Some(Reason::StackTtl);
    }
    let len = ctx.len() - packet.l3 as u32;
    if is_limited::<F>(forward) && !fits(len, packet::gso_size(ctx), packet.headers, u32::from(mtu)) {
        return Some(Reason::StackMtu);
    }
    None
}

/// Whether the stack can handle an already translated packet. From an uplink always: untranslated it is addressed to
/// the host itself, so only the error about the translated packet is right. A translated hairpin packet has a source
/// address of the host, which only IPv6 accepts from a bridge, and fragments again.
#[inline(always)]
pub fn can_take_stack<F: Wire>(packet: &Packet<F>, forward: u8, reason: Reason) -> bool {
    let hairpin = packet.side == SIDE_BRIDGE && is_inward(forward);
    packet.side == SIDE_UPLINK || (!F::IS_V4 && hairpin && reason as u32 == Reason::StackMtu as u32)
}

/// Redirects the packet to the device `ifindex`. Returns the action.
#[inline(always)]
pub fn redirect(ctx: &TcContext, ifindex: u32, forward: u8) -> i32 {
    if is_outward(forward) {
        packet::mark_sent(ctx);
    }
    // SAFETY: the helpers take numbers; the neighbour parameters may be absent.
    let action = unsafe {
        match forward {
            FORWARD_NEIGH => bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0),
            FORWARD_INGRESS => bpf_redirect(ifindex, u64::from(BPF_F_INGRESS)),
            FORWARD_EGRESS | FORWARD_LINK => bpf_redirect(ifindex, 0),
            _ => bpf_redirect_peer(ifindex, 0),
        }
    };
    action as i32
}

/// The forward kind of a packet and the hardware addresses of its frame. For an unknown uplink the kernel's neighbour table
/// provides the addresses.
#[inline(always)]
pub fn framed(next: &Next) -> (u8, [u32; 3]) {
    if next.forward != FORWARD_LINK {
        return (next.forward, addresses(&[next.match_dmac, next.next_hop_mac]));
    }
    match maps::find(&maps::UPLINK, next.ifindex) {
        Some(uplink) => (FORWARD_LINK, addresses(&[next.next_hop_mac, uplink.mac])),
        None => (FORWARD_NEIGH, [0; 3]),
    }
}

/// Hardware addresses as at the start of a frame.
#[inline(always)]
pub fn addresses(macs: &[Mac; 2]) -> [u32; 3] {
    zerocopy::transmute!(*macs)
}

#[inline(always)]
pub fn log_drop_of<F: Wire>(ctx: &impl EbpfContext, reason: u32, proto: u8, t: &Tuple<F>, ifindex: u32) {
    info!(
        ctx,
        "drop reason={} proto={} src={:i} sport={} dst={:i} dport={} ifindex={}",
        reason,
        proto,
        t.src,
        t.sport.value(),
        t.dst,
        t.dport.value(),
        ifindex
    );
}
