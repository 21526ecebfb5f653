//! Uplinks. Ingress: published ports in, answers to masqueraded flows back. Egress: nothing leaves with a private source.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_skb_load_bytes_relative;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::TcContext;
use netpath_common::addr::Addr;
use netpath_common::family::{Family, Ipv4, Ipv6, Kind as AddressKind};
use netpath_common::flow;
use netpath_common::layout::{FORWARD_NEIGH, NET_MASQUERADE, SIDE_BRIDGE, SIDE_UPLINK};
use netpath_common::pair::Way;
use netpath_common::reason::Reason;

use crate::desk::{self, Making};
use crate::entry::{ETH_P_IP, ETH_P_IPV6, Walk};
use crate::fast::{self, Plain};
use crate::global::global;
use crate::packet::{Kind, Packet};
use crate::verdict::{self, NOT_OURS, Verdict};
use crate::wire::Wire;
use crate::{flows, host, maps, packet, rules};

/// Of an uplink whose frames have an Ethernet header.
pub struct Ingress;
/// Of one whose frames have none.
pub struct IngressL3;

impl Walk for Ingress {
    const SIDE: u8 = SIDE_UPLINK;

    #[inline(always)]
    fn leaves<F: Wire>(ctx: &TcContext) -> bool {
        let Some((proto, port)) = F::glance(ctx, Self::L3) else { return false };
        rules::slot(proto, port) == 0 && !flows::is_marked::<F>(proto, port)
    }

    #[inline(always)]
    fn short<F: Wire>(ctx: &TcContext, plain: &Plain<F>) -> Option<Verdict> {
        fast::follow(ctx, plain)
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

#[inline(always)]
fn arrive<F: Wire>(ctx: &TcContext, packet: &Packet<F>) -> Verdict {
    // A publish on 127.0.0.1 must not answer to a wire, whatever route_localnet says.
    if F::kind(&packet.tuple.dst) == AddressKind::Loopback || F::kind(&packet.tuple.src) == AddressKind::Loopback {
        return verdict::drop(Reason::DropMartian);
    }
    match packet.kind {
        Kind::Tcp | Kind::Udp | Kind::EchoReply => {}
        Kind::Fragment => return verdict::stack(Reason::Fragment),
        Kind::EchoRequest | Kind::Other => return NOT_OURS,
    }
    let port = packet.tuple.dport.value();
    let slot = rules::slot(packet.ip.proto, port);
    if slot == 0 && !flows::is_marked::<F>(packet.ip.proto, port) {
        return NOT_OURS;
    }
    if flows::follow::<F>(ctx, u32::from(SIDE_UPLINK)) != 0 {
        return verdict::FOLLOWED;
    }
    if slot == 0 { NOT_OURS } else { Verdict::unpack(publish::<F>(ctx, slot)) }
}

global! {
    /// A packet to a published port that belongs to no flow; gives a packed verdict.
    fn publish(slot: u32) -> u64 as np_publish4, np_publish6 = begin_published;
}

#[inline(always)]
fn begin_published<F: Wire>(ctx: &TcContext, slot: u32) -> u64 {
    let Some(packet) = desk::packet::<F>() else { return NOT_OURS.pack() };
    if rules::aim::<F>(ctx, slot, 0) == 0 {
        return NOT_OURS.pack();
    }
    // The host itself may talk from a port that is published: then the packet answers one of its own sockets. A new
    // connection begins with a SYN; anything else is a flow that the table has lost, and is made anew from the rule.
    if !flow::is_syn(packet.tcp_flags) && host::has_connection::<F>(ctx) != 0 {
        return NOT_OURS.pack();
    }
    let Some(Making { plan, .. }) = desk::making::<F>() else { return NOT_OURS.pack() };
    if let Some(reason) = verdict::obstacle(ctx, packet, plan.there.forward, plan.there.mtu) {
        return verdict::stack(reason).pack();
    }
    let ifindex = packet::ifindex(ctx);
    // SAFETY: the reference is not kept.
    let mtu = unsafe { maps::UPLINK.get(ifindex) }.map_or(u16::MAX, |u| u.mtu as u16);
    plan.from = packet.tuple;
    plan.to.src = packet.tuple.src;
    plan.to.sport = packet.tuple.sport;
    plan.side = SIDE_UPLINK;
    plan.twin_side = SIDE_BRIDGE;
    plan.proto = packet.ip.proto;
    plan.origin = Reason::FlowPublished as u8;
    plan.back = Way { ifindex, forward: FORWARD_NEIGH, mtu, ..Way::default() };
    flows::begin::<F>(ctx, false, Reason::FlowPublished).pack()
}

/// Offset from which `bpf_skb_load_bytes_relative` counts: the network header, on any kind of device (4.18).
const FROM_NETWORK_HEADER: u32 = 1;

/// A packet of a masqueraded network that still has its private source here could not be translated.
#[inline(always)]
pub fn egress(ctx: &TcContext) -> Verdict {
    // SAFETY: a context field, read-only. 0 = sent by the host itself.
    let from = unsafe { (*ctx.skb.skb).ingress_ifindex };
    if from == 0 {
        return NOT_OURS;
    }
    // SAFETY: the reference is not kept.
    match unsafe { maps::NETWORK.get(from) } {
        Some(net) if net.flags & NET_MASQUERADE != 0 => {}
        _ => return NOT_OURS,
    }
    let source = match ctx.skb.protocol() {
        ETH_P_IP => source::<[u8; 4]>(ctx, 12).map(Ipv4::mapped),
        ETH_P_IPV6 => source::<[u8; 16]>(ctx, 8).map(Ipv6::mapped),
        _ => None,
    };
    let Some(Addr(source)) = source else { return NOT_OURS };
    match maps::SUBNET.get(Key::new(128, source)) {
        Some(subnet) if subnet.flags & NET_MASQUERADE != 0 => verdict::drop(Reason::DropUntranslatable),
        _ => NOT_OURS,
    }
}

#[inline(always)]
fn source<A: Copy>(ctx: &TcContext, offset: u32) -> Option<A> {
    let mut address = core::mem::MaybeUninit::<A>::uninit();
    // SAFETY: the helper fills the whole of `address` or fails.
    unsafe {
        let ret = bpf_skb_load_bytes_relative(
            ctx.as_ptr().cast_const(),
            offset,
            address.as_mut_ptr().cast(),
            size_of::<A>() as u32,
            FROM_NETWORK_HEADER,
        );
        (ret == 0).then(|| address.assume_init())
    }
}
