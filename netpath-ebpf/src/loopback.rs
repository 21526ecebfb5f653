//! Ingress of `lo`: clients on the host that bound a source address, which the sock_addr programs ignore, and the
//! host's ICMP errors about packets that were masqueraded with its address.
//!
//! The clients' packets get the bridge's address as source, so that the container can reply; replies go back into
//! `lo` (`bridge.rs`), which needs `route_localnet` and `accept_local` there.

use aya_ebpf::programs::TcContext;
use netpath_common::family::Kind as AddressKind;
use netpath_common::layout::{FORWARD_EGRESS, FORWARD_INGRESS, SIDE_BRIDGE, SIDE_LO, SIDE_UPLINK, is_inward};
use netpath_common::nat_plan::NextHop;
use netpath_common::reason::Reason;
use netpath_common::tcp;

use crate::entry::Walk;
use crate::fast_path;
use crate::headers::Wire;
use crate::parsed::{FastHeaders, Kind};
use crate::scratch::{PendingFlow, Scratch, ScratchMut};
use crate::subprog::subprog;
use crate::verdict::{self, NOT_OURS, Verdict};
use crate::{flows, icmp, kernel_lookup, maps, packet, port_lookup};

pub struct Ingress;

impl Walk for Ingress {
    const SIDE: u8 = SIDE_LO;

    #[inline(always)]
    fn short<F: Wire>(ctx: &TcContext, plain: &FastHeaders<F>) -> Option<Verdict> {
        if port_lookup::slot(plain.proto, plain.tuple().dport.value()) == 0 {
            return Some(NOT_OURS);
        }
        fast_path::follow(ctx, plain)
    }

    #[inline(always)]
    fn long<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>) -> Verdict {
        let packet = &scratch.packet;
        if packet.kind == Kind::Error {
            return host_icmp_error(ctx, scratch);
        }
        if !matches!(packet.kind, Kind::Tcp | Kind::Udp) || F::kind(&packet.tuple.dst) == AddressKind::Local {
            return NOT_OURS;
        }
        let slot = port_lookup::slot(packet.ip.proto, packet.tuple.dport.value());
        if slot == 0 {
            return NOT_OURS;
        }
        if flows::follow(ctx, scratch) != 0 {
            return verdict::FOLLOWED;
        }
        if !scratch.packet.may_begin() {
            return NOT_OURS;
        }
        Verdict::unpack(dial(ctx, scratch, slot))
    }
}

/// The host's ICMP error about a packet that was masqueraded with its address: the destination is unreachable.
#[inline(always)]
fn host_icmp_error<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>) -> Verdict {
    if icmp::follow(ctx, scratch, u32::from(SIDE_UPLINK)) == 0 {
        return NOT_OURS;
    }
    let hop = &mut scratch.hop;
    // The error carries the host's route: the stack would deliver it to the host, which is right for packets of the
    // host itself.
    if is_inward(hop.next.forward) {
        hop.next.forward = FORWARD_EGRESS;
    } else if hop.next.origin != Reason::FlowHost as u8 {
        return NOT_OURS;
    }
    verdict::FOLLOWED
}

subprog! {
    /// The first packet to a published port. Returns a packed verdict.
    fn dial(slot: u32) -> u64 as np_dial4, np_dial6 = begin_dialled;
}

#[inline(always)]
fn begin_dialled<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>, slot: u32) -> u64 {
    // A reply to a socket of the host that uses a published port as its source port.
    if !tcp::is_syn(scratch.packet.segment.flags)
        && kernel_lookup::has_connection(ctx, scratch, kernel_lookup::SENDER) != 0
    {
        return NOT_OURS.pack();
    }
    // Packets on lo are addressed to the host.
    let bridge = port_lookup::select_target(ctx, scratch, slot, 1);
    let Some(net) = maps::find(&maps::NETWORK, bridge) else { return NOT_OURS.pack() };
    let Scratch { packet, pending: PendingFlow { plan, .. }, .. } = &mut **scratch;
    plan.to.src = F::gateway(net);
    if F::is_unset(&plan.to.src) {
        return NOT_OURS.pack();
    }
    if let Some(reason) = verdict::obstacle(ctx, packet, plan.there.forward, plan.there.mtu) {
        return verdict::stack(reason).pack();
    }
    if is_inward(plan.there.forward) {
        plan.there.forward = FORWARD_EGRESS;
    }
    plan.from = packet.tuple;
    plan.to.sport = packet.tuple.sport;
    plan.side = SIDE_LO;
    plan.reverse_side = SIDE_BRIDGE;
    plan.proto = packet.ip.proto;
    plan.origin = Reason::FlowLoopback as u8;
    // No hardware address: that of lo is zero, and lo ignores frames to other addresses.
    plan.back =
        NextHop { ifindex: packet::ifindex(ctx), forward: FORWARD_INGRESS, mtu: u16::MAX, ..NextHop::default() };
    flows::begin(ctx, scratch, true, Reason::FlowLoopback).pack()
}
