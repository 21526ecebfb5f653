//! Masquerade: the source address of packets to the outside, and the flow for their replies.

use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::TcContext;
use netpath_common::addr::{Mac, is_known};
use netpath_common::layout::{
    FORWARD_LINK, FORWARD_NEIGH, FORWARD_STACK, NET_MASQUERADE, SIDE_BRIDGE, SIDE_EGRESS, SIDE_UPLINK, Subnet,
};
use netpath_common::nat_plan::NextHop;
use netpath_common::policy::smaller_mtu;
use netpath_common::reason::Reason;

use crate::headers::Wire;
use crate::scratch::{PendingFlow, Scratch, ScratchMut};
use crate::subprog::subprog;
use crate::verdict::{self, NOT_OURS};
use crate::{flows, kernel_lookup, maps, packet, port_lookup};

#[inline(always)]
pub fn subnet_of<F: Wire>(a: &F::Addr) -> Option<Subnet> {
    maps::SUBNET.get(Key::new(128, F::mapped(*a).0)).copied()
}

/// Whether an address is a valid source on this bridge.
#[inline(always)]
pub fn belongs<F: Wire>(a: &F::Addr, bridge: u32) -> bool {
    matches!(subnet_of::<F>(a), Some(s) if s.bridge == bridge)
}

subprog! {
    /// Begins the flow of the packet in scratch, which came from `bridge`. Returns a packed verdict. `uplink`: the outgoing
    /// device; 0: that of the kernel's route.
    pub fn begin(bridge: u32, uplink: u32) -> u64 as np_begin_outward4, np_begin_outward6 = begin_outward;
}

#[inline(always)]
fn begin_outward<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>, bridge: u32, uplink: u32) -> u64 {
    const NO_ROUTE: u64 = verdict::stack(Reason::StackNoRoute).pack();
    let route = kernel_lookup::route(ctx, scratch);
    let ifindex = if uplink == 0 { route } else { uplink };
    // On other devices than uplinks no program would translate replies.
    let (Some(net), Some(out_link)) = (maps::find(&maps::NETWORK, bridge), maps::find(&maps::UPLINK, ifindex)) else {
        return NO_ROUTE;
    };
    let Scratch { packet, pending: PendingFlow { plan, .. }, .. } = &mut **scratch;
    let masqueraded = net.flags & NET_MASQUERADE != 0;
    if !masqueraded {
        plan.to.src = packet.tuple.src;
    } else if !F::is_unset(&F::outbound(net)) {
        plan.to.src = F::outbound(net);
    } else if F::is_unset(&plan.to.src) || route != ifindex {
        plan.to.src = F::source(out_link);
    }
    if F::is_unset(&plan.to.src) {
        return NO_ROUTE;
    }
    // The first packet goes by the kernel's neighbour table, later ones directly to the next hop if it is known.
    let is_known = out_link.ethernet != 0 && is_known(&plan.there.next_hop_mac);
    let (forward, next_hop_mac) =
        if is_known { (FORWARD_LINK, plan.there.next_hop_mac) } else { (FORWARD_NEIGH, Mac::default()) };
    let route_mtu = if route == ifindex { plan.there.mtu } else { 0 };
    let mtu = smaller_mtu(out_link.mtu as u16, route_mtu);
    plan.there = NextHop { ifindex, forward, next_hop_mac, mtu, ..NextHop::default() };
    // The stack has already checked the size of its packets.
    if uplink == 0
        && let Some(reason) = verdict::obstacle(ctx, packet, plan.there.forward, plan.there.mtu)
    {
        return verdict::stack(reason).pack();
    }
    plan.from = packet.tuple;
    plan.to.dst = packet.tuple.dst;
    plan.to.sport = packet.tuple.sport;
    plan.to.dport = packet.tuple.dport;
    plan.side = SIDE_BRIDGE;
    plan.reverse_side = SIDE_UPLINK;
    plan.proto = packet.ip.proto;
    plan.origin = Reason::FlowMasqueraded as u8;
    let traffic = port_lookup::hop_to_sender(ctx, scratch, bridge) as u16;
    let plan = &mut scratch.pending.plan;
    plan.traffic = traffic;
    plan.there.match_dmac = plan.back.next_hop_mac;
    if uplink == 0 {
        kernel_lookup::compare_via(ctx, scratch, ifindex);
    }
    // A flow begins in the middle of a connection only if its reverse entry exists: it has kept its port.
    if !scratch.packet.may_begin() && flows::has_reverse(ctx, scratch) == 0 {
        return NOT_OURS.pack();
    }
    // Without masquerade the sender shares no ports with the host.
    flows::begin(ctx, scratch, masqueraded, Reason::FlowMasqueraded).pack()
}

/// A socket of the host begins a flow from a port that a container's flow to the same destination holds: it gets
/// another port, as a later flow of the container would.
#[inline(always)]
pub fn begin_own<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>) -> u64 {
    let Scratch { packet, pending: PendingFlow { plan, .. }, .. } = &mut **scratch;
    let next_hop =
        NextHop { ifindex: packet::ifindex(ctx), forward: FORWARD_STACK, mtu: u16::MAX, ..NextHop::default() };
    plan.from = packet.tuple;
    plan.to = packet.tuple;
    plan.side = SIDE_EGRESS;
    plan.reverse_side = SIDE_UPLINK;
    plan.proto = packet.ip.proto;
    plan.origin = Reason::FlowHost as u8;
    plan.traffic = 0;
    (plan.there, plan.back) = (next_hop, next_hop);
    flows::begin(ctx, scratch, true, Reason::FlowHost).pack()
}
