//! Ingress of bridges: packets of containers. Replies of published flows, masquerade, hairpin, isolation.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use netpath_common::addr::{Addr, V6};
use netpath_common::family::{Family, Ipv6, Kind as AddressKind};
use netpath_common::layout::{DNS_PORT, NET_DIRECT, NET_DNS, NET_INTERNAL, NET_MASQUERADE, SIDE_BRIDGE};
use netpath_common::policy::may_pass;
use netpath_common::reason::Reason;

use crate::entry::Walk;
use crate::fast_path;
use crate::headers::Wire;
use crate::masquerade::{belongs, subnet_of};
use crate::packet::ETHERNET;
use crate::parsed::{FastHeaders, Fragment, Kind};
use crate::scratch::{PendingFlow, Scratch, ScratchMut};
use crate::subprog::subprog;
use crate::verdict::{self, NOT_OURS, Verdict};
use crate::{flows, fragment, icmp, kernel_lookup, maps, masquerade, packet, port_lookup};

pub struct Ingress;

impl Walk for Ingress {
    const SIDE: u8 = SIDE_BRIDGE;

    #[inline(always)]
    fn short<F: Wire>(ctx: &TcContext, plain: &FastHeaders<F>) -> Option<Verdict> {
        if has_closed(ctx) {
            return None;
        }
        fast_path::follow(ctx, plain)
    }

    #[inline(always)]
    fn without_v6(ctx: &TcContext) -> Verdict {
        if is_forged_v6(ctx.skb.skb) != 0 { verdict::drop(Reason::DropSpoofed) } else { NOT_OURS }
    }

    #[inline(always)]
    fn long<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>) -> Verdict {
        let followed = match scratch.packet.kind {
            _ if has_closed(ctx) => 0,
            Kind::Tcp | Kind::Udp | Kind::Sctp | Kind::EchoRequest | Kind::EchoReply | Kind::Other => {
                flows::follow(ctx, scratch)
            }
            Kind::Error => icmp::follow(ctx, scratch, u32::from(SIDE_BRIDGE)),
            Kind::Fragment | Kind::Odd => 0,
        };
        if followed != 0 {
            return verdict::FOLLOWED;
        }
        if F::kind(&scratch.packet.tuple.dst) != AddressKind::Unicast {
            return NOT_OURS;
        }
        Verdict::unpack(no_flow(ctx, scratch))
    }
}

/// 1 if an IPv6 packet has a routable source, although no network has a subnet of IPv6. A function of its own for its stack frame.
#[inline(never)]
fn is_forged_v6(skb: *mut __sk_buff) -> u32 {
    let ctx = &TcContext::new(skb);
    let is_closed = maps::find(&maps::NETWORK, packet::ifindex(ctx)).is_some_and(|n| n.flags & NET_DIRECT == 0);
    // Source and destination (RFC 8200 §3).
    let Ok([from, to]) = ctx.load::<[V6; 2]>(ETHERNET + 8) else { return 0 };
    let is_routable = matches!(Ipv6::kind(&from), AddressKind::Unicast | AddressKind::Loopback);
    u32::from(is_closed && is_routable && Ipv6::kind(&to) == AddressKind::Unicast)
}

/// Whether the packet comes from an internal network. No flow begins or ends there, so a packet that matches one is
/// forged. (For other networks this is unknown: a container replies by its default route, on whichever of its
/// networks the request came.)
#[inline(always)]
fn has_closed(ctx: &TcContext) -> bool {
    maps::find(&maps::NETWORK, packet::ifindex(ctx)).is_some_and(|n| n.flags & NET_INTERNAL != 0)
}

subprog! {
    /// A packet that belongs to no flow. Returns a packed verdict.
    fn no_flow() -> u64 as np_bridge_no_flow4, np_bridge_no_flow6 = handle_no_flow;
    fn hairpin(bridge: u32) -> u64 as np_hairpin4, np_hairpin6 = begin_hairpin;
}

#[inline(always)]
fn handle_no_flow<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>) -> u64 {
    let bridge = packet::ifindex(ctx);
    // The mark is cleared here: no program has redirected this packet yet, and a container can set it.
    packet::take_sent(ctx);
    // Later fragments must not be attributed to an earlier datagram between the same two hosts.
    if scratch.packet.ip.fragment == Fragment::First {
        fragment::learn(ctx, scratch);
    }
    let Some(flags) = maps::find(&maps::NETWORK, bridge).map(|n| n.flags) else { return NOT_OURS.pack() };
    let source = &scratch.packet.tuple.src;
    // Neighbour discovery, among others, has link-local sources.
    let (from, is_own) = (F::kind(source), belongs::<F>(source, bridge));
    // A container may be the router of further subnets.
    let is_routed =
        from == AddressKind::Unicast && !is_own && kernel_lookup::leads_to_source(ctx, scratch, bridge) != 0;
    let is_spoofed = from == AddressKind::Loopback || (from == AddressKind::Unicast && !is_own && !is_routed);
    if flags & NET_DIRECT == 0 && is_spoofed {
        return verdict::drop(Reason::DropSpoofed).pack();
    }
    let packet = &scratch.packet;
    let slot = port_lookup::slot(packet.ip.proto, packet.tuple.dport.value());
    let is_dns = || is_dns_server(&F::mapped(packet.tuple.dst), packet.tuple.dport.value());
    if slot != 0 && matches!(packet.kind, Kind::Tcp | Kind::Udp | Kind::Sctp) && !is_dns() {
        match port_lookup::select_target(ctx, scratch, slot, 0) {
            0 => {}
            port_lookup::REFUSED => return verdict::drop(Reason::DropNotAllowed).pack(),
            _ if !is_own && !is_routed => return NOT_OURS.pack(),
            target => return hairpin(ctx, scratch, target),
        }
    }
    match subnet_of::<F>(&scratch.packet.tuple.dst) {
        Some(s) if s.bridge == bridge || may_pass(flags, s.flags) => return NOT_OURS.pack(),
        Some(_) => return verdict::drop(Reason::DropIsolated).pack(),
        None => {}
    }
    if kernel_lookup::is_local(ctx, scratch) != 0 {
        return NOT_OURS.pack();
    }
    if flags & NET_INTERNAL != 0 {
        return verdict::drop(Reason::DropIsolated).pack();
    }
    let packet = &scratch.packet;
    // Replies of flows that netfilter let in; other SCTP flows begin at the uplink.
    if packet.kind == Kind::Sctp && port_lookup::has_moved_sctp::<F>(&packet.tuple.src) {
        return NOT_OURS.pack();
    }
    // A directly reachable network needs no flow.
    if flags & (NET_MASQUERADE | NET_DIRECT) == NET_DIRECT {
        return NOT_OURS.pack();
    }
    match packet.kind {
        Kind::Tcp | Kind::Udp | Kind::Sctp | Kind::EchoRequest | Kind::Other
            if packet.ip.fragment != Fragment::Later && is_own =>
        {
            masquerade::begin(ctx, scratch, bridge, 0)
        }
        Kind::Fragment => verdict::stack(Reason::Fragment).pack(),
        _ => NOT_OURS.pack(),
    }
}

/// Whether `to`:`port` is the DNS server of a network.
#[inline(always)]
fn is_dns_server(to: &Addr, port: u16) -> bool {
    let has_dns = |bridge: &u32| maps::find(&maps::NETWORK, *bridge).is_some_and(|n| n.flags & NET_DNS != 0);
    port == DNS_PORT && maps::find(&maps::LOCAL, to).is_some_and(has_dns)
}

/// A container connects to a published port on an address of its own host (RFC 4787 §6); `target` is the bridge of
/// the selected container.
///
/// Both ends are rewritten: on the same network the target would reply to the sender's address on layer 2, past this
/// program, and to itself not at all; on another network the sender may be the target's second interface. The reply
/// goes to the address of the target's bridge, and so to this program.
#[inline(always)]
fn begin_hairpin<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>, target: u32) -> u64 {
    let Scratch { packet, pending: PendingFlow { plan, .. }, .. } = &mut **scratch;
    let bridge = packet::ifindex(ctx);
    if !packet.may_begin() {
        return NOT_OURS.pack();
    }
    let (Some(net), Some(other)) = (maps::find(&maps::NETWORK, bridge), maps::find(&maps::NETWORK, target)) else {
        return NOT_OURS.pack();
    };
    // Published ports are reachable from isolated networks too (netavark 2.1), but not to or from internal ones.
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
    plan.reverse_side = SIDE_BRIDGE;
    plan.proto = packet.ip.proto;
    plan.origin = Reason::FlowHairpin as u8;
    port_lookup::hop_to_sender(ctx, scratch, bridge);
    flows::begin(ctx, scratch, true, Reason::FlowHairpin).pack()
}
