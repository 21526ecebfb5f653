//! Bridge ingress: what containers send. Answers of published flows out, masquerade, hairpin, isolation.

use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::TcContext;
use netpath_common::family::Kind as AddressKind;
use netpath_common::flow;
use netpath_common::layout::{FORWARD_NEIGH, NET_INTERNAL, NET_MASQUERADE, SIDE_BRIDGE, SIDE_UPLINK, Subnet};
use netpath_common::pair::Way;
use netpath_common::policy::may_pass;
use netpath_common::reason::Reason;

use crate::desk::{self, Making};
use crate::entry::Walk;
use crate::fast::{self, Plain};
use crate::global::global;
use crate::packet::{Kind, Packet};
use crate::verdict::{self, NOT_OURS, Verdict};
use crate::wire::Wire;
use crate::{flows, host, maps, packet, rules};

pub struct Ingress;

impl Walk for Ingress {
    const SIDE: u8 = SIDE_BRIDGE;

    #[inline(always)]
    fn short<F: Wire>(ctx: &TcContext, plain: &Plain<F>) -> Option<Verdict> {
        fast::follow(ctx, plain)
    }

    #[inline(always)]
    fn long<F: Wire>(ctx: &TcContext, packet: &Packet<F>) -> Verdict {
        if is_translatable(packet.kind) && flows::follow::<F>(ctx, u32::from(SIDE_BRIDGE)) != 0 {
            return verdict::FOLLOWED;
        }
        if F::kind(&packet.tuple.dst) != AddressKind::Unicast {
            return NOT_OURS;
        }
        Verdict::unpack(stranger::<F>(ctx))
    }
}

#[inline(always)]
fn is_translatable(kind: Kind) -> bool {
    matches!(kind, Kind::Tcp | Kind::Udp | Kind::EchoRequest)
}

global! {
    /// A packet that belongs to no flow; gives a packed verdict.
    fn stranger() -> u64 as np_stranger4, np_stranger6 = meet_stranger;
    fn hairpin(bridge: u32) -> u64 as np_hairpin4, np_hairpin6 = begin_hairpin;
    fn masquerade() -> u64 as np_masquerade4, np_masquerade6 = begin_masquerade;
}

#[inline(always)]
fn meet_stranger<F: Wire>(ctx: &TcContext) -> u64 {
    let Some(packet) = desk::packet::<F>() else { return NOT_OURS.pack() };
    let translatable = is_translatable(packet.kind);
    let bridge = packet::ifindex(ctx);
    // SAFETY: the reference is not kept.
    let Some(flags) = (unsafe { maps::NETWORK.get(bridge) }).map(|n| n.flags) else { return NOT_OURS.pack() };
    if translatable {
        let slot = rules::slot(packet.ip.proto, packet.tuple.dport.value());
        if slot != 0 {
            let target = rules::aim::<F>(ctx, slot, 0);
            if target != 0 {
                return hairpin::<F>(ctx, target);
            }
        }
    }
    match subnet_of::<F>(&packet.tuple.dst) {
        Some(s) if s.bridge == bridge || may_pass(flags, s.flags) => return NOT_OURS.pack(),
        Some(_) => return verdict::drop(Reason::DropIsolated).pack(),
        None => {}
    }
    let internal = flags & NET_INTERNAL != 0;
    if (!internal && flags & NET_MASQUERADE == 0) || host::is_local::<F>(ctx) != 0 {
        return NOT_OURS.pack();
    }
    if internal {
        return verdict::drop(Reason::DropIsolated).pack();
    }
    if packet.kind == Kind::Fragment {
        return verdict::stack(Reason::Fragment).pack();
    }
    if translatable && may_begin(packet) && belongs::<F>(&packet.tuple.src, bridge) {
        return masquerade::<F>(ctx);
    }
    NOT_OURS.pack()
}

#[inline(always)]
fn subnet_of<F: Wire>(a: &F::Addr) -> Option<Subnet> {
    maps::SUBNET.get(Key::new(128, F::mapped(*a).0)).copied()
}

/// Whether an address may be a source on this bridge.
#[inline(always)]
fn belongs<F: Wire>(a: &F::Addr, bridge: u32) -> bool {
    matches!(subnet_of::<F>(a), Some(s) if s.bridge == bridge)
}

/// TCP flows begin with a SYN. What is in the middle of something else is the stack's.
#[inline(always)]
fn may_begin<F: Wire>(packet: &Packet<F>) -> bool {
    packet.kind != Kind::Tcp || flow::is_syn(packet.tcp_flags)
}

/// A container dials a published port on an address of its own host (RFC 4787 §6); `target` is the bridge of the
/// container that the flow in the making is aimed at.
///
/// Both ends are rewritten: on its own network the target would answer to the sender's address on layer 2, past us, and
/// to itself not at all; on another one the sender may be the target's second leg. The answer comes to the address of the
/// target's bridge, and so to this program.
#[inline(always)]
fn begin_hairpin<F: Wire>(ctx: &TcContext, target: u32) -> u64 {
    let Some(packet) = desk::packet::<F>() else { return NOT_OURS.pack() };
    let bridge = packet::ifindex(ctx);
    if !may_begin(packet) || !belongs::<F>(&packet.tuple.src, bridge) {
        return NOT_OURS.pack();
    }
    // SAFETY: the references are not kept.
    let (Some(net), Some(other)) = (unsafe { (maps::NETWORK.get(bridge), maps::NETWORK.get(target)) }) else {
        return NOT_OURS.pack();
    };
    // A published port is for isolated networks too (netavark 2.1); an internal one has no way out and none in.
    if target != bridge && (net.flags | other.flags) & NET_INTERNAL != 0 {
        return verdict::drop(Reason::DropIsolated).pack();
    }
    let Some(Making { plan, .. }) = desk::making::<F>() else { return NOT_OURS.pack() };
    plan.to.src = F::gateway(other);
    if F::is_unset(&plan.to.src) {
        return NOT_OURS.pack();
    }
    if let Some(reason) = verdict::obstacle(ctx, packet, plan.there.forward, plan.there.mtu) {
        return verdict::stack(reason).pack();
    }
    plan.from = packet.tuple;
    plan.to.sport = packet.tuple.sport;
    plan.side = SIDE_BRIDGE;
    plan.twin_side = SIDE_BRIDGE;
    plan.proto = packet.ip.proto;
    plan.origin = Reason::FlowHairpin as u8;
    rules::way_home::<F>(ctx, bridge);
    flows::begin::<F>(ctx, true, Reason::FlowHairpin).pack()
}

/// A container talks to the outside: it gets the address of the way out.
#[inline(always)]
fn begin_masquerade<F: Wire>(ctx: &TcContext) -> u64 {
    const NO_ROUTE: u64 = verdict::stack(Reason::StackNoRoute).pack();
    let Some(packet) = desk::packet::<F>() else { return NOT_OURS.pack() };
    let bridge = packet::ifindex(ctx);
    let ifindex = host::route::<F>(ctx);
    // A device that is no uplink would not bring the answers back.
    // SAFETY: the references are not kept.
    let (Some(net), Some(uplink)) = (unsafe { (maps::NETWORK.get(bridge), maps::UPLINK.get(ifindex)) }) else {
        return NO_ROUTE;
    };
    let Some(Making { plan, .. }) = desk::making::<F>() else { return NOT_OURS.pack() };
    if !F::is_unset(&F::outbound(net)) {
        plan.to.src = F::outbound(net);
    } else if F::is_unset(&plan.to.src) {
        plan.to.src = F::source(uplink);
    }
    if F::is_unset(&plan.to.src) {
        return NO_ROUTE;
    }
    plan.there = Way { ifindex, forward: FORWARD_NEIGH, mtu: uplink.mtu as u16, ..Way::default() };
    if let Some(reason) = verdict::obstacle(ctx, packet, plan.there.forward, plan.there.mtu) {
        return verdict::stack(reason).pack();
    }
    plan.from = packet.tuple;
    plan.to.dst = packet.tuple.dst;
    plan.to.sport = packet.tuple.sport;
    plan.to.dport = packet.tuple.dport;
    plan.side = SIDE_BRIDGE;
    plan.twin_side = SIDE_UPLINK;
    plan.proto = packet.ip.proto;
    plan.origin = Reason::FlowMasqueraded as u8;
    rules::way_home::<F>(ctx, bridge);
    flows::begin::<F>(ctx, true, Reason::FlowMasqueraded).pack()
}
