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

use crate::desk::{Desk, Making, Mine};
use crate::entry::Walk;
use crate::fast::{self, Plain};
use crate::global::global;
use crate::packet::{Kind, View};
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
    fn long<F: Wire>(ctx: &TcContext, desk: &mut Mine<F>) -> Verdict {
        arrive(ctx, desk)
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
    fn long<F: Wire>(ctx: &TcContext, desk: &mut Mine<F>) -> Verdict {
        arrive(ctx, desk)
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
fn arrive<F: Wire>(ctx: &TcContext, desk: &mut Mine<F>) -> Verdict {
    let packet = &desk.packet;
    // A publish on 127.0.0.1 must not answer to a wire, whatever route_localnet says.
    if F::kind(&packet.tuple.dst) == AddressKind::Loopback || F::kind(&packet.tuple.src) == AddressKind::Loopback {
        return verdict::drop(Reason::DropMartian);
    }
    let proto = packet.ip.proto;
    let port = packet.tuple.dport.value();
    let slot = rules::slot(proto, port);
    let kind = packet.kind;
    let followed = match kind {
        Kind::Tcp | Kind::Udp | Kind::Sctp | Kind::EchoReply | Kind::EchoRequest | Kind::Other => {
            let may_be_known = slot != 0 || flows::is_marked(proto, port) || is_near(&F::mapped(packet.tuple.dst));
            if may_be_known { flows::follow(ctx, desk) } else { 0 }
        }
        Kind::Error => icmp::follow(ctx, desk, u32::from(SIDE_UPLINK)),
        Kind::Fragment | Kind::Odd => 0,
    };
    if followed != 0 {
        return verdict::FOLLOWED;
    }
    if slot != 0 && matches!(kind, Kind::Tcp | Kind::Udp | Kind::Sctp) {
        let verdict = publish(ctx, desk, slot);
        if verdict != NOT_OURS.pack() {
            return Verdict::unpack(verdict);
        }
    }
    Verdict::unpack(stranger(ctx, desk))
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
fn meet_stranger<F: Wire>(ctx: &TcContext, desk: &mut Mine<F>) -> u64 {
    // The fragments behind a first one that is not ours are not ours either.
    if desk.packet.ip.fragment == Fragment::First {
        fragment::learn(ctx, desk);
    }
    // Nothing is reached that was not published, unless its network is open.
    let dst = &desk.packet.tuple.dst;
    if is_near(&F::mapped(*dst))
        && let Some(subnet) = outward::subnet_of::<F>(dst)
        && host::is_local(ctx, desk) == 0
    {
        if subnet.flags & NET_DIRECT == 0 {
            return verdict::drop(Reason::DropDirect).pack();
        }
        return direct(ctx, desk, subnet.bridge);
    }
    if desk.packet.kind == Kind::Fragment { verdict::stack(Reason::Fragment).pack() } else { NOT_OURS.pack() }
}

#[inline(always)]
fn begin_published<F: Wire>(ctx: &TcContext, desk: &mut Mine<F>, slot: u32) -> u64 {
    let bridge = match rules::aim(ctx, desk, slot, 0) {
        0 => return NOT_OURS.pack(),
        rules::REFUSED => return verdict::drop(Reason::DropNotAllowed).pack(),
        bridge => bridge,
    };
    // The host itself may talk from a port that is published: then the packet answers one of its own sockets. A new
    // connection begins with a SYN; anything else is a flow that the table has lost, and is made anew from the rule.
    if desk.packet.ip.fragment == Fragment::Later
        || (!flow::is_syn(desk.packet.tcp_flags) && host::has_connection(ctx, desk, host::PACKET) != 0)
    {
        return NOT_OURS.pack();
    }
    begin_inward(ctx, desk, bridge, Reason::FlowPublished)
}

/// It keeps its addresses. The flow leads its answers past masquerade, and both past the bridge.
#[inline(always)]
fn begin_direct<F: Wire>(ctx: &TcContext, desk: &mut Mine<F>, bridge: u32) -> u64 {
    let Desk { packet, making: Making { plan, .. }, .. } = &mut **desk;
    let known = matches!(packet.kind, Kind::Tcp | Kind::Udp | Kind::Sctp | Kind::EchoRequest | Kind::Other);
    if !known || !packet.may_begin() {
        return if packet.kind == Kind::Fragment { verdict::stack(Reason::Fragment).pack() } else { NOT_OURS.pack() };
    }
    plan.to.dst = packet.tuple.dst;
    plan.to.dport = packet.tuple.dport;
    let traffic = rules::way_in(ctx, desk, bridge) as u16;
    desk.making.plan.traffic = traffic;
    begin_inward(ctx, desk, bridge, Reason::FlowDirect)
}

/// Begins the flow that is aimed already, from the packet's sender to the container and back by this uplink.
#[inline(always)]
fn begin_inward<F: Wire>(ctx: &TcContext, desk: &mut Mine<F>, bridge: u32, reason: Reason) -> u64 {
    let ifindex = packet::ifindex(ctx);
    let mtu = maps::find(&maps::UPLINK, ifindex).map_or(u16::MAX, |u| u.mtu as u16);
    let flags = maps::find(&maps::NETWORK, bridge).map_or(0, |n| n.flags);
    let Desk { packet, making: Making { plan, .. }, .. } = &mut **desk;
    plan.from = packet.tuple;
    plan.to.src = packet.tuple.src;
    plan.to.sport = packet.tuple.sport;
    plan.side = SIDE_UPLINK;
    plan.twin_side = SIDE_BRIDGE;
    plan.proto = packet.ip.proto;
    plan.origin = reason as u8;
    plan.back = Way { ifindex, dmac: plan.there.smac, forward: FORWARD_NEIGH, mtu, ..Way::default() };
    let to = packet.tuple.reversed();
    let way_back = flows::way_back(ctx, desk, &to, ifindex);
    let Desk { packet, making: Making { plan, .. }, .. } = &mut **desk;
    (plan.back.smac, plan.back.forward) = way_back;
    if flags & NET_EDGE != 0 {
        plan.twin_side = SIDE_EGRESS;
        plan.there.forward = FORWARD_STACK;
        // Where the stack's way is another, the answers are turned round at the uplink that it leads to (`egress.rs`).
        if plan.back.forward != FORWARD_LINK {
            plan.back = Way { ifindex, dmac: plan.back.dmac, forward: FORWARD_STACK, mtu, ..Way::default() };
        }
    }
    let on_link = F::is_link_local(&packet.tuple.src);
    if on_link && (reason as u32 != Reason::FlowPublished as u32 || stand_in(ctx, desk, bridge) == 0) {
        return NOT_OURS.pack();
    }
    flows::begin(ctx, desk, on_link, reason).pack()
}

/// The container cannot answer to an address of another link: the bridge speaks for it, as in a hairpin. The stack would
/// not pass that on, nor can its filters be asked on the way.
#[inline(always)]
fn let_bridge_speak<F: Wire>(_ctx: &TcContext, desk: &mut Mine<F>, bridge: u32) -> u32 {
    let Some(network) = maps::find(&maps::NETWORK, bridge) else { return 0 };
    let plan = &mut desk.making.plan;
    plan.to.src = F::gateway(network);
    u32::from(network.flags & NET_EDGE == 0 && !F::is_unset(&plan.to.src))
}
