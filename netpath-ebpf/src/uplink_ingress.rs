//! Ingress of uplinks: packets to published ports and replies to flows of containers; all else to containers is
//! dropped.

use aya_ebpf::programs::TcContext;
use netpath_common::addr::Addr;
use netpath_common::family::Kind as AddressKind;
use netpath_common::layout::{FORWARD_NEIGH, LOCAL_OF_SEVERAL, NET_DIRECT, SIDE_BRIDGE, SIDE_UPLINK, subnet_hint};
use netpath_common::nat_plan::NextHop;
use netpath_common::policy::smaller_mtu;
use netpath_common::reason::Reason;
use netpath_common::tcp;

use crate::entry::Walk;
use crate::fast_path;
use crate::headers::{HeaderPeek, Wire};
use crate::packet::View;
use crate::parsed::{FastHeaders, Fragment, Kind};
use crate::scratch::{PendingFlow, Scratch, ScratchMut};
use crate::subprog::subprog;
use crate::verdict::{self, NOT_OURS, Verdict};
use crate::{flows, fragment, icmp, kernel_lookup, maps, masquerade, packet, port_lookup};

/// Ingress of an uplink with an Ethernet header.
pub struct Ingress;
/// Ingress of an uplink without an Ethernet header (tun, WireGuard).
pub struct IngressL3;

impl Walk for Ingress {
    const SIDE: u8 = SIDE_UPLINK;

    #[inline(always)]
    fn leaves<F: Wire>(ctx: &TcContext) -> bool {
        is_not_ours::<F>(ctx, Self::L3)
    }

    #[inline(always)]
    fn short<F: Wire>(ctx: &TcContext, plain: &FastHeaders<F>) -> Option<Verdict> {
        fast_path::follow_inward(ctx, plain)
    }

    #[inline(always)]
    fn long<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>) -> Verdict {
        arrive(ctx, scratch)
    }
}

impl Walk for IngressL3 {
    const L3: usize = 0;
    const SIDE: u8 = SIDE_UPLINK;

    #[inline(always)]
    fn long<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>) -> Verdict {
        arrive(ctx, scratch)
    }
}

/// Whether a packet is certainly neither published, nor of a flow, nor to a container.
#[inline(always)]
pub fn is_not_ours<F: Wire>(ctx: &impl View, l3: usize) -> bool {
    let Some(HeaderPeek { proto, dport, dst, .. }) = F::peek(ctx, l3) else { return false };
    let port = dport.value();
    port_lookup::slot(proto, port) == 0 && !flows::is_marked(proto, port) && !may_be_in_subnet(&F::mapped(dst))
}

/// Whether an address may be in a container's subnet: one load excludes most that are not.
#[inline(always)]
pub fn may_be_in_subnet(address: &Addr) -> bool {
    let (word, bit) = subnet_hint(address);
    maps::SUBNET_HINTS.get(word).is_some_and(|bits| bits & bit != 0)
}

#[inline(always)]
fn arrive<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>) -> Verdict {
    let packet = &scratch.packet;
    // A publish on 127.0.0.1 must not be reachable from a link, whatever route_localnet is.
    if F::kind(&packet.tuple.dst) == AddressKind::Loopback || F::kind(&packet.tuple.src) == AddressKind::Loopback {
        return verdict::drop(Reason::DropMartian);
    }
    let proto = packet.ip.proto;
    let port = packet.tuple.dport.value();
    let slot = port_lookup::slot(proto, port);
    let kind = packet.kind;
    let followed = match kind {
        Kind::Tcp | Kind::Udp | Kind::Sctp | Kind::EchoReply | Kind::EchoRequest | Kind::Other => {
            let may_be_known =
                slot != 0 || flows::is_marked(proto, port) || may_be_in_subnet(&F::mapped(packet.tuple.dst));
            if may_be_known { flows::follow(ctx, scratch) } else { 0 }
        }
        Kind::Error => icmp::follow(ctx, scratch, u32::from(SIDE_UPLINK)),
        Kind::Fragment | Kind::Odd => 0,
    };
    if followed != 0 {
        return verdict::FOLLOWED;
    }
    if slot != 0 && matches!(kind, Kind::Tcp | Kind::Udp | Kind::Sctp) {
        let verdict = publish(ctx, scratch, slot);
        if verdict != NOT_OURS.pack() {
            return Verdict::unpack(verdict);
        }
    }
    let verdict = no_flow(ctx, scratch);
    // Not nested in the other call: stack frames add up.
    Verdict::unpack(if verdict & DIRECT == 0 { verdict } else { direct(ctx, scratch, verdict as u32) })
}

/// Flag beside the bridge of a container, instead of a verdict: the packet is for [`direct`].
const DIRECT: u64 = 1 << 63;

subprog! {
    /// A packet without flow and publish. Returns a packed verdict, or [`DIRECT`].
    fn no_flow() -> u64 as np_uplink_no_flow4, np_uplink_no_flow6 = handle_no_flow;

    /// A packet to a published port without a flow. Returns a packed verdict.
    fn publish(slot: u32) -> u64 as np_publish4, np_publish6 = begin_published;

    /// Makes the bridge's address the source of the pending flow for a client with a link-local address; 0 if
    /// impossible.
    fn snat_to_gateway(bridge: u32) -> u32 as np_snat_to_gateway4, np_snat_to_gateway6 = use_gateway_source;

    /// Makes answers to the packet in scratch leave as the host's own would, if it is addressed to an address of another
    /// interface, such as `lo` (LVS, direct return); 0: they leave as the packet came.
    fn by_own_way() -> u32 as np_by_own_way4, np_by_own_way6 = answer_by_own_way;

    /// A packet to a container's own address, on an open network. Returns a packed verdict.
    fn direct(bridge: u32) -> u64 as np_direct4, np_direct6 = begin_direct;
}

#[inline(always)]
fn handle_no_flow<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>) -> u64 {
    // Later fragments of a packet that is not ours are not ours either.
    if scratch.packet.ip.fragment == Fragment::First {
        fragment::learn(ctx, scratch);
    }
    // Only published ports are reachable, unless the network is open.
    let dst = &scratch.packet.tuple.dst;
    if may_be_in_subnet(&F::mapped(*dst))
        && let Some(subnet) = masquerade::subnet_of::<F>(dst)
        && kernel_lookup::is_local(ctx, scratch) == 0
    {
        if subnet.flags & NET_DIRECT == 0 {
            return verdict::drop(Reason::DropDirect).pack();
        }
        return DIRECT | u64::from(subnet.bridge);
    }
    if scratch.packet.kind == Kind::Fragment { verdict::stack(Reason::Fragment).pack() } else { NOT_OURS.pack() }
}

#[inline(always)]
fn begin_published<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>, slot: u32) -> u64 {
    let bridge = match port_lookup::select_target(ctx, scratch, slot, 0) {
        0 => return NOT_OURS.pack(),
        port_lookup::REFUSED => return verdict::drop(Reason::DropNotAllowed).pack(),
        bridge => bridge,
    };
    // The host itself may use a published port as source: then the packet is a reply to one of its sockets. A new
    // connection begins with a SYN; any other segment belongs to a flow that the table has lost, which is recreated
    // from the rule.
    if scratch.packet.ip.fragment == Fragment::Later
        || (!tcp::is_syn(scratch.packet.segment.flags)
            && kernel_lookup::has_connection(ctx, scratch, kernel_lookup::SENDER) != 0)
    {
        return NOT_OURS.pack();
    }
    begin_inward(ctx, scratch, bridge, Reason::FlowPublished)
}

/// Addresses are kept. The flow exempts its replies from masquerade, and both directions bypass the bridge.
#[inline(always)]
fn begin_direct<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>, bridge: u32) -> u64 {
    let Scratch { packet, pending: PendingFlow { plan, .. }, .. } = &mut **scratch;
    let known = matches!(packet.kind, Kind::Tcp | Kind::Udp | Kind::Sctp | Kind::EchoRequest | Kind::Other);
    if !known || !packet.may_begin() {
        return if packet.kind == Kind::Fragment { verdict::stack(Reason::Fragment).pack() } else { NOT_OURS.pack() };
    }
    plan.to.dst = packet.tuple.dst;
    plan.to.dport = packet.tuple.dport;
    let traffic = port_lookup::hop_to_destination(ctx, scratch, bridge) as u16;
    scratch.pending.plan.traffic = traffic;
    begin_inward(ctx, scratch, bridge, Reason::FlowDirect)
}

/// Begins the flow with the selected target, from the packet's sender to the container and back by this uplink.
#[inline(always)]
fn begin_inward<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>, bridge: u32, reason: Reason) -> u64 {
    let ifindex = packet::ifindex(ctx);
    let mtu = maps::find(&maps::UPLINK, ifindex).map_or(u16::MAX, |u| u.mtu as u16);
    let Scratch { packet, pending: PendingFlow { plan, .. }, .. } = &mut **scratch;
    plan.from = packet.tuple;
    plan.to.src = packet.tuple.src;
    plan.to.sport = packet.tuple.sport;
    plan.side = SIDE_UPLINK;
    plan.reverse_side = SIDE_BRIDGE;
    plan.proto = packet.ip.proto;
    plan.origin = reason as u8;
    plan.back =
        NextHop { ifindex, match_dmac: plan.there.next_hop_mac, forward: FORWARD_NEIGH, mtu, ..NextHop::default() };
    if by_own_way(ctx, scratch) == 0 {
        let to = scratch.packet.tuple.reversed();
        let hop_back = flows::hop_back(ctx, scratch, &to, ifindex);
        let Scratch { pending: PendingFlow { plan, .. }, fib, .. } = &mut **scratch;
        (plan.back.next_hop_mac, plan.back.forward) = hop_back;
        plan.back.mtu = smaller_mtu(mtu, kernel_lookup::mtu(fib));
    }
    let packet = &scratch.packet;
    let on_link = F::is_link_local(&packet.tuple.src);
    if on_link && (reason as u32 != Reason::FlowPublished as u32 || snat_to_gateway(ctx, scratch, bridge) == 0) {
        return NOT_OURS.pack();
    }
    flows::begin(ctx, scratch, on_link, reason).pack()
}

#[inline(always)]
fn answer_by_own_way<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>) -> u32 {
    let Scratch { packet, hop, .. } = &mut **scratch;
    let owner = maps::find(&maps::LOCAL, F::mapped(packet.tuple.dst)).map_or(LOCAL_OF_SEVERAL, |owner| *owner);
    if owner == LOCAL_OF_SEVERAL || owner == packet::ifindex(ctx) {
        return 0;
    }
    hop.to = packet.tuple.reversed();
    let way = kernel_lookup::way_of_host(ctx, scratch);
    let Some(uplink) = maps::find(&maps::UPLINK, way) else { return 0 };
    let Scratch { pending: PendingFlow { plan, .. }, fib, .. } = &mut **scratch;
    plan.back.ifindex = way;
    plan.back.next_hop_mac = if uplink.ethernet == 0 { [0; 6] } else { fib.dmac };
    plan.back.mtu = smaller_mtu(uplink.mtu as u16, kernel_lookup::mtu(fib));
    1
}

/// The container cannot reply to a link-local address of another link: the bridge's address replaces it, as in a
/// hairpin.
#[inline(always)]
fn use_gateway_source<F: Wire>(_ctx: &TcContext, scratch: &mut ScratchMut<F>, bridge: u32) -> u32 {
    let Some(network) = maps::find(&maps::NETWORK, bridge) else { return 0 };
    let plan = &mut scratch.pending.plan;
    plan.to.src = F::gateway(network);
    u32::from(!F::is_unset(&plan.to.src))
}
