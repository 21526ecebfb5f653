//! Egress of uplinks: no packet leaves with a container's own address unless its network allows it. The packets here
//! took the host's stack: those that it had to handle (too big, TTL exhausted), the host's own errors about translated
//! packets, and the host's own packets from a port that a container's flow holds.

use aya_ebpf::programs::TcContext;
use netpath_common::flow;
use netpath_common::layout::{
    FORWARD_LINK, FORWARD_STACK, NET_DIRECT, NET_MASQUERADE, PROTO_TCP, PROTO_UDP, SIDE_BRIDGE, SIDE_EGRESS,
};
use netpath_common::reason::Reason;

use crate::entry::Walk;
use crate::headers::Wire;
use crate::packet::ETHERNET;
use crate::parsed::{Fragment, Kind, Packet};
use crate::scratch::{Scratch, ScratchMut};
use crate::subprog::subprog;
use crate::verdict::{self, NOT_OURS, Verdict};
use crate::{flows, fragment, icmp, maps, masquerade, packet};

/// IPv6 headers that may precede the transport header in a fragment: hop-by-hop and destination options, the fragment
/// header itself (RFC 8200 §4.3, §4.6, §4.5).
const HOP_BY_HOP: u8 = 0;
const OPTIONS: u8 = 60;
const FRAGMENT: u8 = 44;

/// Egress of an uplink with an Ethernet header.
pub struct Egress;
/// Egress of an uplink without an Ethernet header (tun, WireGuard).
pub struct EgressL3;

/// The device that the packet came from; 0 = the host sent it.
#[inline(always)]
fn origin(ctx: &TcContext) -> u32 {
    // SAFETY: a context field, read-only.
    unsafe { (*ctx.skb.skb).ingress_ifindex }
}

/// Packets redirected by the programs, most packets of the host itself, and forwarded packets of other networks.
#[inline(always)]
fn is_of_others<F: Wire>(ctx: &TcContext, l3: usize) -> bool {
    if packet::take_sent(ctx) {
        return true;
    }
    let proto = F::protocol(ctx, l3);
    // Fragments made by the stack may lack their ingress device: `ip6_copy_metadata()` does not copy it.
    if !F::IS_V4 && matches!(proto, Some(FRAGMENT | HOP_BY_HOP | OPTIONS)) {
        return false;
    }
    match origin(ctx) {
        // Packets of the host itself: its errors may quote translated packets, and it may use a port that a
        // container's flow holds.
        0 => match proto {
            Some(PROTO_TCP | PROTO_UDP) => {
                !F::peek(ctx, l3).is_some_and(|g| flows::is_marked(g.proto, g.sport.value()))
            }
            proto => proto != Some(F::ICMP),
        },
        from => maps::find(&maps::NETWORK, from).is_none(),
    }
}

/// The bridge of a packet without an ingress device, by its source; 0 = none, it is the host's own.
#[inline(always)]
fn bridge_of<F: Wire>(ctx: &TcContext, packet: &Packet<F>) -> u32 {
    let from = origin(ctx);
    if maps::find(&maps::NETWORK, from).is_some() {
        return from;
    }
    // The host sends from its bridges' addresses too, and replies from them to clients anywhere.
    if maps::find(&maps::LOCAL, F::mapped(packet.tuple.src)).is_some() {
        return 0;
    }
    masquerade::subnet_of::<F>(&packet.tuple.src).map_or(0, |s| s.bridge)
}

impl Walk for Egress {
    const SIDE: u8 = SIDE_EGRESS;
    // Few packets take the stack.
    const IS_SHORT: bool = false;

    #[inline(always)]
    fn leaves<F: Wire>(ctx: &TcContext) -> bool {
        is_of_others::<F>(ctx, ETHERNET)
    }

    #[inline(always)]
    fn long<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>) -> Verdict {
        Verdict::unpack(leave(ctx, scratch))
    }
}

impl Walk for EgressL3 {
    const L3: usize = 0;
    const SIDE: u8 = SIDE_EGRESS;

    #[inline(always)]
    fn leaves<F: Wire>(ctx: &TcContext) -> bool {
        is_of_others::<F>(ctx, 0)
    }

    #[inline(always)]
    fn long<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>) -> Verdict {
        Verdict::unpack(leave(ctx, scratch))
    }
}

subprog! {
    /// A packet that the fast path left; gives a packed verdict.
    fn leave() -> u64 as np_leave4, np_leave6 = handle_leave;
}

#[inline(always)]
fn handle_leave<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>) -> u64 {
    let packet = &scratch.packet;
    let translatable = matches!(packet.kind, Kind::Tcp | Kind::Udp | Kind::Sctp | Kind::EchoRequest | Kind::Other);
    let known = translatable || packet.kind == Kind::EchoReply;
    // A container's flow is found under the bridge's side, one of the host itself under this one.
    let followed = if packet.kind == Kind::Error {
        icmp::follow(ctx, scratch, u32::from(SIDE_EGRESS)) != 0
            || icmp::follow(ctx, scratch, u32::from(SIDE_BRIDGE)) != 0
    } else {
        known && (flows::follow(ctx, scratch) != 0 || follow_offloaded(ctx, scratch) != 0)
    };
    if followed {
        return go_on(ctx, scratch, verdict::FOLLOWED);
    }
    let packet = &scratch.packet;
    let from = bridge_of::<F>(ctx, packet);
    if from == 0 {
        if packet.ip.fragment == Fragment::First {
            fragment::learn(ctx, scratch);
        }
        let packet = &scratch.packet;
        let begins = translatable && packet.may_begin();
        if begins && flows::is_taken(ctx, packet) {
            return masquerade::begin_own(ctx, scratch);
        }
        // It keeps its port: later packets must not find the flow of an earlier connection. Ended flows of other
        // protocols are not found anyway, and each of their packets would pass here.
        if begins && packet.kind == Kind::Tcp {
            flows::remove(ctx, scratch);
        }
        return NOT_OURS.pack();
    }
    let Some(flags) = maps::find(&maps::NETWORK, from).map(|n| n.flags) else { return NOT_OURS.pack() };
    if flags & NET_MASQUERADE == 0 {
        // They keep their addresses, and need a flow to admit replies unless the network is open.
        if flags & NET_DIRECT == 0
            && translatable
            && packet.may_begin()
            && masquerade::belongs::<F>(&packet.tuple.src, from)
        {
            let verdict = Verdict::unpack(masquerade::begin(ctx, scratch, from, packet::ifindex(ctx)));
            return go_on(ctx, scratch, verdict);
        }
        return NOT_OURS.pack();
    }
    let private = matches!(masquerade::subnet_of::<F>(&packet.tuple.src), Some(s) if s.flags & NET_MASQUERADE != 0);
    if !private {
        return NOT_OURS.pack();
    }
    if translatable && packet.ip.fragment != Fragment::Later && masquerade::belongs::<F>(&packet.tuple.src, from) {
        let verdict = Verdict::unpack(masquerade::begin(ctx, scratch, from, packet::ifindex(ctx)));
        if verdict.reason as u32 != Reason::StackNoRoute as u32 && verdict.reason as u32 != Reason::NotOurs as u32 {
            return go_on(ctx, scratch, verdict);
        }
    }
    verdict::drop(Reason::DropUntranslatable).pack()
}

#[inline(always)]
fn follow_offloaded<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>) -> u32 {
    scratch.packet.side = SIDE_BRIDGE;
    let mut followed = flows::follow(ctx, scratch);
    let next = &scratch.hop.next;
    if followed != 0 && next.state & flow::REPLY_HALF == 0 && next.ifindex != packet::ifindex(ctx) {
        followed = flows::remove(ctx, scratch);
    }
    scratch.packet.side = SIDE_EGRESS;
    followed
}

/// Independent of the flow's own next hop, this packet has taken the stack's route; but a reply that the stack would
/// send by another uplink than that of the request leaves by the latter if it can ([`flows::hop_back`]).
#[inline(always)]
fn go_on<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>, verdict: Verdict) -> u64 {
    let Scratch { packet, hop, .. } = &mut **scratch;
    let next = &mut hop.next;
    let turns_round = next.state & flow::REPLY_HALF != 0
        && next.forward == FORWARD_LINK
        && next.ifindex != packet::ifindex(ctx)
        && verdict::obstacle(ctx, packet, FORWARD_LINK, next.mtu).is_none();
    if !turns_round {
        next.forward = FORWARD_STACK;
    }
    verdict.pack()
}
