//! Bridge ingress: what containers send. Answers of published flows out, the way outward, hairpin, isolation.

use aya_ebpf::programs::TcContext;
use netpath_common::family::Kind as AddressKind;
use netpath_common::layout::{NET_DIRECT, NET_EDGE, NET_INTERNAL, NET_MASQUERADE, SIDE_BRIDGE};
use netpath_common::policy::may_pass;
use netpath_common::reason::Reason;

use crate::desk::{Desk, Making, Mine};
use crate::entry::Walk;
use crate::fast::{self, Plain};
use crate::global::global;
use crate::outward::{belongs, subnet_of};
use crate::packet::Kind;
use crate::verdict::{self, NOT_OURS, Verdict};
use crate::wire::{Fragment, Wire};
use crate::{flows, fragment, host, icmp, maps, outward, packet, rules};

pub struct Ingress;

impl Walk for Ingress {
    const SIDE: u8 = SIDE_BRIDGE;

    #[inline(always)]
    fn short<F: Wire>(ctx: &TcContext, plain: &Plain<F>) -> Option<Verdict> {
        if is_closed(ctx) {
            return None;
        }
        fast::follow(ctx, plain)
    }

    #[inline(always)]
    fn long<F: Wire>(ctx: &TcContext, desk: &mut Mine<F>) -> Verdict {
        let followed = match desk.packet.kind {
            _ if is_closed(ctx) => 0,
            Kind::Tcp | Kind::Udp | Kind::Sctp | Kind::EchoRequest | Kind::EchoReply | Kind::Other => {
                flows::follow(ctx, desk)
            }
            Kind::Error => icmp::follow(ctx, desk, u32::from(SIDE_BRIDGE)),
            Kind::Fragment | Kind::Odd => 0,
        };
        if followed != 0 {
            return verdict::FOLLOWED;
        }
        if F::kind(&desk.packet.tuple.dst) != AddressKind::Unicast {
            return NOT_OURS;
        }
        Verdict::unpack(stranger(ctx, desk))
    }
}

/// Whether the packet comes from an internal network. No flow begins or ends there, so one that seems to belong to a flow
/// pretends to be another's. (Of other networks that cannot be told: a container answers by its default route, whichever of
/// its networks it was asked on.)
#[inline(always)]
fn is_closed(ctx: &TcContext) -> bool {
    maps::find(&maps::NETWORK, packet::ifindex(ctx)).is_some_and(|n| n.flags & NET_INTERNAL != 0)
}

global! {
    /// A packet that belongs to no flow; gives a packed verdict.
    fn stranger() -> u64 as np_stranger4, np_stranger6 = meet_stranger;
    fn hairpin(bridge: u32) -> u64 as np_hairpin4, np_hairpin6 = begin_hairpin;
}

#[inline(always)]
fn meet_stranger<F: Wire>(ctx: &TcContext, desk: &mut Mine<F>) -> u64 {
    let bridge = packet::ifindex(ctx);
    // Whatever it says of itself, no program has sent it on yet.
    packet::take_sent(ctx);
    // The fragments behind a first one without a flow are not those of another datagram between the same two.
    if desk.packet.ip.fragment == Fragment::First {
        fragment::learn(ctx, desk);
    }
    let Some(flags) = maps::find(&maps::NETWORK, bridge).map(|n| n.flags) else { return NOT_OURS.pack() };
    let packet = &desk.packet;
    // Neighbour discovery and the like have link-local sources.
    let from = F::kind(&packet.tuple.src);
    if flags & NET_DIRECT == 0
        && (from == AddressKind::Loopback || (from == AddressKind::Unicast && !belongs::<F>(&packet.tuple.src, bridge)))
    {
        return verdict::drop(Reason::DropSpoofed).pack();
    }
    let slot = rules::slot(packet.ip.proto, packet.tuple.dport.value());
    if slot != 0 && matches!(packet.kind, Kind::Tcp | Kind::Udp | Kind::Sctp) {
        match rules::aim(ctx, desk, slot, 0) {
            0 => {}
            rules::REFUSED => return verdict::drop(Reason::DropNotAllowed).pack(),
            target => return hairpin(ctx, desk, target),
        }
    }
    match subnet_of::<F>(&desk.packet.tuple.dst) {
        Some(s) if s.bridge == bridge || may_pass(flags, s.flags) => return NOT_OURS.pack(),
        Some(_) => return verdict::drop(Reason::DropIsolated).pack(),
        None => {}
    }
    if host::is_local(ctx, desk) != 0 {
        return NOT_OURS.pack();
    }
    if flags & NET_INTERNAL != 0 {
        return verdict::drop(Reason::DropIsolated).pack();
    }
    let packet = &desk.packet;
    // The answers of what netfilter has let in; all else begins at the uplink.
    if packet.kind == Kind::Sctp && rules::has_moved_sctp::<F>(&packet.tuple.src) {
        return NOT_OURS.pack();
    }
    // Who may be reached directly needs no flow; what takes the stack begins at the uplink.
    if flags & NET_EDGE != 0 || flags & (NET_MASQUERADE | NET_DIRECT) == NET_DIRECT {
        return NOT_OURS.pack();
    }
    match packet.kind {
        Kind::Tcp | Kind::Udp | Kind::Sctp | Kind::EchoRequest | Kind::Other
            if packet.ip.fragment != Fragment::Later && belongs::<F>(&packet.tuple.src, bridge) =>
        {
            outward::begin(ctx, desk, bridge, 0)
        }
        Kind::Fragment => verdict::stack(Reason::Fragment).pack(),
        _ => NOT_OURS.pack(),
    }
}

/// A container dials a published port on an address of its own host (RFC 4787 §6); `target` is the bridge of the
/// container that the flow in the making is aimed at.
///
/// Both ends are rewritten: on its own network the target would answer to the sender's address on layer 2, past us, and
/// to itself not at all; on another one the sender may be the target's second leg. The answer comes to the address of the
/// target's bridge, and so to this program.
#[inline(always)]
fn begin_hairpin<F: Wire>(ctx: &TcContext, desk: &mut Mine<F>, target: u32) -> u64 {
    let Desk { packet, making: Making { plan, .. }, .. } = &mut **desk;
    let bridge = packet::ifindex(ctx);
    if !packet.may_begin() || !belongs::<F>(&packet.tuple.src, bridge) {
        return NOT_OURS.pack();
    }
    let (Some(net), Some(other)) = (maps::find(&maps::NETWORK, bridge), maps::find(&maps::NETWORK, target)) else {
        return NOT_OURS.pack();
    };
    // A published port is for isolated networks too (netavark 2.1); an internal one has no way out and none in.
    if target != bridge && (net.flags | other.flags) & NET_INTERNAL != 0 {
        return verdict::drop(Reason::DropIsolated).pack();
    }
    plan.to.src = F::gateway(other);
    if F::is_unset(&plan.to.src) {
        return NOT_OURS.pack();
    }
    if let Some(reason) = verdict::obstacle(ctx, packet, plan.there.forward, plan.there.mtu)
        && !verdict::can_take_stack(packet, plan.there.forward, reason)
    {
        return verdict::stack(reason).pack();
    }
    plan.from = packet.tuple;
    plan.to.sport = packet.tuple.sport;
    plan.side = SIDE_BRIDGE;
    plan.twin_side = SIDE_BRIDGE;
    plan.proto = packet.ip.proto;
    plan.origin = Reason::FlowHairpin as u8;
    rules::way_home(ctx, desk, bridge);
    flows::begin(ctx, desk, true, Reason::FlowHairpin).pack()
}
