//! Ingress of uplinks: published ports in, answers to what containers have begun back, and nothing else to them.

use aya_ebpf::programs::TcContext;
use netpath_common::addr::Addr;
use netpath_common::family::Kind as AddressKind;
use netpath_common::flow;
use netpath_common::layout::{
    FORWARD_LINK, FORWARD_NEIGH, FORWARD_STACK, NET_DIRECT, NET_EDGE, SIDE_BRIDGE, SIDE_EGRESS, SIDE_UPLINK, near,
};
use netpath_common::pair::Way;
use netpath_common::reason::Reason;

use crate::desk::{self, Making};
use crate::entry::Walk;
use crate::fast::{self, Plain};
use crate::global::global;
use crate::packet::{Kind, Packet, View};
use crate::verdict::{self, NOT_OURS, Verdict};
use crate::wire::{Fragment, Glance, Wire};
use crate::{flows, fragment, host, icmp, maps, outward, packet, rules};

/// Of an uplink whose frames have an Ethernet header.
pub struct Ingress;
/// Of one whose frames have none.
pub struct IngressL3;

impl Walk for Ingress {
    const SIDE: u8 = SIDE_UPLINK;

    #[inline(always)]
    fn leaves<F: Wire>(ctx: &TcContext) -> bool {
        is_not_ours::<F>(ctx, Self::L3)
    }

    #[inline(always)]
    fn short<F: Wire>(ctx: &TcContext, plain: &Plain<F>) -> Option<Verdict> {
        fast::follow_inward(ctx, plain)
    }

    #[inline(always)]
    fn long<F: Wire>(ctx: &TcContext, packet: &Packet<F>) -> Verdict {
        arrive(ctx, packet)
    }
}

impl Walk for IngressL3 {
    const L3: usize = 0;
    const SIDE: u8 = SIDE_UPLINK;

    #[inline(always)]
    fn short<F: Wire>(_: &TcContext, _: &Plain<F>) -> Option<Verdict> {
        None
    }

    #[inline(always)]
    fn long<F: Wire>(ctx: &TcContext, packet: &Packet<F>) -> Verdict {
        arrive(ctx, packet)
    }
}

/// Whether a packet is certainly neither published, nor of a flow, nor to a container.
#[inline(always)]
pub fn is_not_ours<F: Wire>(ctx: &impl View, l3: usize) -> bool {
    let Some(Glance { proto, dport, dst, .. }) = F::glance(ctx, l3) else { return false };
    let port = dport.value();
    rules::slot(proto, port) == 0 && !flows::is_marked(proto, port) && !is_near(&F::mapped(dst))
}

/// Whether an address may be in a container's subnet: one load, and no look-up for most of what is not.
#[inline(always)]
pub fn is_near(address: &Addr) -> bool {
    let (word, bit) = near(address);
    maps::NEAR_BITS.get(word).is_some_and(|bits| bits & bit != 0)
}

#[inline(always)]
fn arrive<F: Wire>(ctx: &TcContext, packet: &Packet<F>) -> Verdict {
    // A publish on 127.0.0.1 must not answer to a wire, whatever route_localnet says.
    if F::kind(&packet.tuple.dst) == AddressKind::Loopback || F::kind(&packet.tuple.src) == AddressKind::Loopback {
        return verdict::drop(Reason::DropMartian);
    }
    let proto = packet.ip.proto;
    let port = packet.tuple.dport.value();
    let slot = rules::slot(proto, port);
    let followed = match packet.kind {
        Kind::Tcp | Kind::Udp | Kind::Sctp | Kind::EchoReply | Kind::EchoRequest | Kind::Other => {
            let may_be_known = slot != 0 || flows::is_marked(proto, port) || is_near(&F::mapped(packet.tuple.dst));
            if may_be_known { flows::follow::<F>(ctx) } else { 0 }
        }
        Kind::Error => icmp::follow::<F>(ctx, u32::from(SIDE_UPLINK)),
        Kind::Fragment | Kind::Odd => 0,
    };
    if followed != 0 {
        return verdict::FOLLOWED;
    }
    if slot != 0 && matches!(packet.kind, Kind::Tcp | Kind::Udp | Kind::Sctp) {
        let verdict = publish::<F>(ctx, slot);
        if verdict != NOT_OURS.pack() {
            return Verdict::unpack(verdict);
        }
    }
    Verdict::unpack(stranger::<F>(ctx))
}

global! {
    /// A packet that belongs to no flow and no publish; gives a packed verdict.
    fn stranger() -> u64 as np_arrival4, np_arrival6 = meet_stranger;

    /// A packet to a published port that belongs to no flow; gives a packed verdict.
    fn publish(slot: u32) -> u64 as np_publish4, np_publish6 = begin_published;

    /// Makes the bridge the sender of the flow in the making, to a client on the uplink's own link; 0 if it cannot be.
    fn stand_in(bridge: u32) -> u32 as np_stand_in4, np_stand_in6 = let_bridge_speak;

    /// A packet to a container's own address, on a network that is open; gives a packed verdict.
    fn direct(bridge: u32) -> u64 as np_direct4, np_direct6 = begin_direct;
}

#[inline(always)]
fn meet_stranger<F: Wire>(ctx: &TcContext) -> u64 {
    let Some(packet) = desk::packet::<F>() else { return NOT_OURS.pack() };
    // The fragments behind a first one that is not ours are not ours either.
    if packet.ip.fragment == Fragment::First {
        fragment::learn::<F>(ctx);
    }
    // Nothing is reached that was not published, unless its network is open.
    if is_near(&F::mapped(packet.tuple.dst))
        && let Some(subnet) = outward::subnet_of::<F>(&packet.tuple.dst)
        && host::is_local::<F>(ctx) == 0
    {
        if subnet.flags & NET_DIRECT == 0 {
            return verdict::drop(Reason::DropDirect).pack();
        }
        return direct::<F>(ctx, subnet.bridge);
    }
    if packet.kind == Kind::Fragment { verdict::stack(Reason::Fragment).pack() } else { NOT_OURS.pack() }
}

#[inline(always)]
fn begin_published<F: Wire>(ctx: &TcContext, slot: u32) -> u64 {
    let Some(packet) = desk::packet::<F>() else { return NOT_OURS.pack() };
    let bridge = match rules::aim::<F>(ctx, slot, 0) {
        0 => return NOT_OURS.pack(),
        rules::REFUSED => return verdict::drop(Reason::DropNotAllowed).pack(),
        bridge => bridge,
    };
    // The host itself may talk from a port that is published: then the packet answers one of its own sockets. A new
    // connection begins with a SYN; anything else is a flow that the table has lost, and is made anew from the rule.
    if packet.ip.fragment == Fragment::Later
        || (!flow::is_syn(packet.tcp_flags) && host::has_connection::<F>(ctx, host::PACKET) != 0)
    {
        return NOT_OURS.pack();
    }
    begin_inward::<F>(ctx, bridge, Reason::FlowPublished)
}

/// It keeps its addresses. The flow leads its answers past masquerade, and both past the bridge.
#[inline(always)]
fn begin_direct<F: Wire>(ctx: &TcContext, bridge: u32) -> u64 {
    let (Some(packet), Some(Making { plan, .. })) = (desk::packet::<F>(), desk::making::<F>()) else {
        return NOT_OURS.pack();
    };
    let known = matches!(packet.kind, Kind::Tcp | Kind::Udp | Kind::Sctp | Kind::EchoRequest | Kind::Other);
    if !known || !packet.may_begin() {
        return if packet.kind == Kind::Fragment { verdict::stack(Reason::Fragment).pack() } else { NOT_OURS.pack() };
    }
    plan.to.dst = packet.tuple.dst;
    plan.to.dport = packet.tuple.dport;
    plan.traffic = rules::way_in::<F>(ctx, bridge) as u16;
    begin_inward::<F>(ctx, bridge, Reason::FlowDirect)
}

/// Begins the flow that is aimed already, from the packet's sender to the container and back by this uplink.
#[inline(always)]
fn begin_inward<F: Wire>(ctx: &TcContext, bridge: u32, reason: Reason) -> u64 {
    let (Some(packet), Some(Making { plan, .. })) = (desk::packet::<F>(), desk::making::<F>()) else {
        return NOT_OURS.pack();
    };
    let ifindex = packet::ifindex(ctx);
    // SAFETY: the references are not kept.
    let (mtu, flags) = unsafe {
        let mtu = maps::UPLINK.get(ifindex).map_or(u16::MAX, |u| u.mtu as u16);
        (mtu, maps::NETWORK.get(bridge).map_or(0, |n| n.flags))
    };
    plan.from = packet.tuple;
    plan.to.src = packet.tuple.src;
    plan.to.sport = packet.tuple.sport;
    plan.side = SIDE_UPLINK;
    plan.twin_side = SIDE_BRIDGE;
    plan.proto = packet.ip.proto;
    plan.origin = reason as u8;
    plan.back = Way { ifindex, dmac: plan.there.smac, forward: FORWARD_NEIGH, mtu, ..Way::default() };
    (plan.back.smac, plan.back.forward) = flows::way_back::<F>(ctx, &packet.tuple.reversed(), ifindex);
    if flags & NET_EDGE != 0 {
        plan.twin_side = SIDE_EGRESS;
        plan.there.forward = FORWARD_STACK;
        // Where the stack's way is another, the answers are turned round at the uplink that it leads to (`egress.rs`).
        if plan.back.forward != FORWARD_LINK {
            plan.back = Way { ifindex, dmac: plan.back.dmac, forward: FORWARD_STACK, mtu, ..Way::default() };
        }
    }
    let on_link = F::is_link_local(&packet.tuple.src);
    if on_link && (reason as u32 != Reason::FlowPublished as u32 || stand_in::<F>(ctx, bridge) == 0) {
        return NOT_OURS.pack();
    }
    flows::begin::<F>(ctx, on_link, reason).pack()
}

/// The container cannot answer to an address of another link: the bridge speaks for it, as in a hairpin. The stack would
/// not pass that on, nor can its filters be asked on the way.
#[inline(always)]
fn let_bridge_speak<F: Wire>(_ctx: &TcContext, bridge: u32) -> u32 {
    let Some(Making { plan, .. }) = desk::making::<F>() else { return 0 };
    // SAFETY: the reference is not kept.
    let Some(network) = (unsafe { maps::NETWORK.get(bridge) }) else { return 0 };
    plan.to.src = F::gateway(network);
    u32::from(network.flags & NET_EDGE == 0 && !F::is_unset(&plan.to.src))
}
