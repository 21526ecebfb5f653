//! XDP at an uplink, before the kernel builds an skb: packets that the classifier (`uplink_ingress.rs`) would
//! certainly drop are dropped, and datagrams of known flows are redirected into their container. All other frames
//! pass unchanged, and the classifier handles them as without this program, which is optional.
//!
//! Two things are invisible here. A checksum left to the device by its sender (usual over a veth): such a datagram
//! passes, since the checksum would stay incomplete. And a VLAN tag that the device has already stripped: a frame of
//! a VLAN is dropped or redirected if its addresses and ports are those of an uplink's packet.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::programs::XdpContext;
use netpath_common::addr::Mac;
use netpath_common::checksum;
use netpath_common::family::{Ipv4, Ipv6, Kind, Tuple};
use netpath_common::layout::{FORWARD_XDP, NET_DIRECT, PROTO_UDP, SIDE_UPLINK};
use netpath_common::reason::Reason;

use crate::entry::{ETH_P_IP, ETH_P_IPV6, is_v4_only};
use crate::fast_path;
use crate::half::Half;
use crate::headers::Wire;
use crate::packet::{self, ETHERNET, Udp, View};
use crate::parsed::FastHeaders;
use crate::verdict::{self, Verdict};
use crate::{maps, masquerade, port_lookup, uplink_ingress};

#[inline(always)]
pub fn arrive(ctx: &XdpContext) -> u32 {
    let Some(&protocol) = packet::at::<u16>(ctx, 12) else { return XDP_PASS };
    let packed = match u32::from(protocol) {
        ETH_P_IP => walk_here::<Ipv4>(ctx),
        ETH_P_IPV6 if !is_v4_only() => walk::<Ipv6>(ctx.ctx),
        _ => PASS,
    };
    if packed == PASS { XDP_PASS } else { verdict::count(ctx, Verdict::unpack(packed)) as u32 }
}

/// No verdict: the packet passes uncounted.
const PASS: u64 = u64::MAX;

// As in `entry.rs`: IPv6 has a stack frame of its own.
#[inline(never)]
fn walk<F: Wire>(md: *mut xdp_md) -> u64 {
    walk_here::<F>(&XdpContext::new(md))
}

#[inline(always)]
fn walk_here<F: Wire>(ctx: &XdpContext) -> u64 {
    if uplink_ingress::is_not_ours::<F>(ctx, ETHERNET) {
        return PASS;
    }
    let plain = &mut FastHeaders::<F>::new();
    if !plain.read(ctx, SIDE_UPLINK) || !is_for_us(ctx) {
        return PASS;
    }
    if let Some(half) = Half::find(&plain.key) {
        return follow(ctx, plain, half).map_or(PASS, Verdict::pack);
    }
    let Some(reason) = refused::<F>(plain.tuple(), plain.proto) else { return PASS };
    log_dropped(ctx.ctx, plain, reason as u32);
    drop(reason).pack()
}

const fn drop(reason: Reason) -> Verdict {
    Verdict { action: XDP_DROP as i32, reason }
}

/// Whether the frame has the uplink's own address: in promiscuous mode frames to other hosts arrive too, and those
/// for devices stacked on the uplink.
#[inline(always)]
fn is_for_us(ctx: &XdpContext) -> bool {
    let Some(uplink) = maps::find(&maps::UPLINK, ctx.ingress_ifindex() as u32) else { return false };
    packet::at::<Mac>(ctx, 0).is_some_and(|to| word(to) == word(&uplink.mac) && to[4..] == uplink.mac[4..])
}

#[inline(always)]
fn word(mac: &Mac) -> u32 {
    u32::from_ne_bytes([mac[0], mac[1], mac[2], mac[3]])
}

/// Why the classifier would drop a packet without a flow; `None`: it may not. Cases that depend on the kernel's
/// routes are left to it.
#[inline(always)]
fn refused<F: Wire>(packet: &Tuple<F>, proto: u8) -> Option<Reason> {
    if F::kind(&packet.dst) == Kind::Loopback || F::kind(&packet.src) == Kind::Loopback {
        return Some(Reason::DropMartian);
    }
    let host = F::mapped(packet.dst);
    let is_local = maps::find(&maps::LOCAL, host).is_some();
    let slot = port_lookup::slot(proto, packet.dport.value());
    if slot != 0
        && is_local
        && let Some(rule) = port_lookup::serving(slot, packet, proto)
    {
        return if port_lookup::refuses::<F>(rule, &packet.src) { Some(Reason::DropNotAllowed) } else { None };
    }
    if is_local || !uplink_ingress::may_be_in_subnet(&host) || maps::find(&maps::ENDPOINT, host).is_none() {
        return None;
    }
    let subnet = masquerade::subnet_of::<F>(&packet.dst)?;
    if subnet.flags & NET_DIRECT == 0 { Some(Reason::DropDirect) } else { None }
}

/// Redirects a datagram into its container.
#[inline(always)]
fn follow<F: Wire>(ctx: &XdpContext, plain: &FastHeaders<F>, half: Half<F>) -> Option<Verdict> {
    let next = &half.next();
    // The veth would drop a longer packet silently (`drivers/net/veth.c, veth_xdp_xmit()`).
    let fits = ctx.size() - ETHERNET as u32 <= u32::from(next.mtu);
    if plain.proto != PROTO_UDP || next.forward != FORWARD_XDP || plain.ttl <= 1 || !fits {
        return None;
    }
    let l4 = ETHERNET + F::HEADER;
    let &Udp { len, check, .. } = packet::at::<Udp>(ctx, l4)?;
    // One in 65,536 complete checksums looks the same, and takes the slow path unnecessarily.
    if check == plain.tuple().pseudo_sum(PROTO_UDP, len) || !fast_path::note::<F, false>(plain, next) {
        return None;
    }
    // As in `fast_path.rs`.
    let next = &half.next();
    let addresses = verdict::addresses(&[next.match_dmac, next.next_hop_mac]);
    if half.read(|flow| translate(ctx, plain, F::target_of(flow), check, addresses)).is_none() {
        return Some(drop(Reason::DropRewrite));
    }
    verdict::traffic(ctx, next);
    // SAFETY: the helper takes numbers.
    unsafe { bpf_redirect(next.ifindex, 0) };
    Some(Verdict { action: XDP_REDIRECT as i32, reason: Reason::Redirected })
}

/// A checksum of zero means none and stays; a result of zero is written as 0xffff (RFC 768).
#[inline(always)]
fn replaced<F: Wire>(check: [u8; 2], from: &Tuple<F>, to: &Tuple<F>) -> [u8; 2] {
    if check == [0; 2] {
        return check;
    }
    let difference = u64::from(from.address_difference(to)) + u64::from(!from.ports()) + u64::from(to.ports());
    match checksum::replaced(check, difference) {
        [0, 0] => [0xff; 2],
        sum => sum,
    }
}

#[inline(always)]
fn translate<F: Wire>(
    ctx: &XdpContext,
    plain: &FastHeaders<F>,
    to: &Tuple<F>,
    check: [u8; 2],
    addresses: [u32; 3],
) -> Option<()> {
    *packet::at_mut::<[u8; 2]>(ctx, ETHERNET + F::HEADER + 6)? = replaced(check, plain.tuple(), to);
    F::write_in_place(ctx, ETHERNET, plain, to)?;
    *packet::at_mut::<[u32; 3]>(ctx, 0)? = addresses;
    Some(())
}

#[inline(never)]
fn log_dropped<F: Wire>(md: *mut xdp_md, plain: &FastHeaders<F>, reason: u32) {
    let ctx = &XdpContext::new(md);
    verdict::log_drop_of::<F>(ctx, reason, plain.proto, plain.tuple(), ctx.ingress_ifindex() as u32);
}
