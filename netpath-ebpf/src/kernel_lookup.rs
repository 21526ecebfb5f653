//! Look-ups in the kernel: the host's addresses, routes and sockets.

use aya_ebpf::bindings::{
    BPF_F_CURRENT_NETNS, BPF_FIB_LOOKUP_OUTPUT, BPF_FIB_LOOKUP_SRC, bpf_fib_lookup, bpf_redir_neigh,
    bpf_redir_neigh__bindgen_ty_1, bpf_sock_tuple,
};
use aya_ebpf::bindings::{BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_SUCCESS};
use aya_ebpf::helpers::{bpf_fib_lookup, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::TcContext;
use aya_ebpf::{EbpfContext, Global};
use netpath_common::addr::{Be16, Mac};
use netpath_common::family::{Kind, Tuple};
use netpath_common::layout::{ETHERNET, PROTO_TCP, PROTO_UDP, SIDE_BRIDGE};

use crate::headers::Wire;
use crate::parsed::Packet;
use crate::scratch::{Scratch, ScratchMut};
use crate::subprog::subprog;
use crate::{maps, packet};

/// `netpath_common::layout::global::FIB_SRC`.
#[unsafe(no_mangle)]
pub static NP_FIB_SRC: Global<u8> = Global::new(0);

/// Result of [`next_hop`].
pub const NO_ROUTE: u32 = 2;

/// Arguments of [`has_connection`].
pub const SENDER: u32 = 0;
pub const RECEIVER: u32 = 1;

/// Results of [`socket`].
pub const NO_SOCKET: u32 = 0;
/// It listens, or has no peer.
pub const BOUND: u32 = 1;
pub const CONNECTED: u32 = 2;

/// Result of [`udp_socket`].
const UDP_SOCKET: u32 = 1 << 16;

/// `include/net/tcp_states.h`.
const TCP_LISTEN: u32 = 10;

subprog! {
    /// 1 if the packet in scratch is addressed to one of the host's own addresses. The map has those that the control
    /// plane knows; the kernel also has those added since.
    pub fn is_local() -> u32 as np_is_local4, np_is_local6 = look_up_local;

    /// The device towards the destination of the packet in scratch; 0 = none. If the kernel returns it (6.7), the
    /// host's source address becomes the source of `to` in the pending flow; otherwise that is unset. Next hop and MTU of the
    /// route are in `there`.
    pub fn route() -> u32 as np_route4, np_route6 = look_up_route;

    /// After [`route`]: whether `via` in scratch is needed to send the packet through `ifindex`. Returns 0.
    pub fn compare_via(ifindex: u32) -> u32 as np_compare_via4, np_compare_via6 = compare_next_hops;

    /// 1 if the kernel knows the hardware address of the next hop for the hop in scratch through `ifindex`, an uplink with
    /// Ethernet; the address is then in `fib.dmac` in scratch. [`NO_ROUTE`]: the host has no such route through this
    /// uplink. The route's MTU is in `fib`, 0 = unknown ([`mtu`]).
    pub fn next_hop(ifindex: u32) -> u32 as np_next_hop4, np_next_hop6 = look_up_next_hop;

    /// The device by which the host itself would send to the destination of the hop in scratch, 0 = none; as [`next_hop`]
    /// otherwise.
    pub fn way_of_host() -> u32 as np_way_of_host4, np_way_of_host6 = look_up_way;

    /// 1 if the host sends through `ifindex` to the source of the packet in scratch.
    pub fn leads_to_source(ifindex: u32) -> u32 as np_leads4, np_leads6 = look_up_source;

    /// 1 if a socket of the host is connected to the peer that sent the packet in scratch ([`SENDER`]), or to the peer that
    /// would receive the translated packet ([`RECEIVER`]).
    pub fn has_connection(peer: u32) -> u32 as np_connection4, np_connection6 = look_up_connection;
}

#[inline(always)]
fn look_up_local<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>) -> u32 {
    let Scratch { packet, fib, .. } = &mut **scratch;
    let dst = &packet.tuple.dst;
    let on_link = F::is_link_local(dst);
    if F::kind(dst) == Kind::Local && !on_link {
        return 0;
    }
    if maps::find(&maps::LOCAL, F::mapped(*dst)).is_some() {
        return 1;
    }
    // For link-local addresses the result is the same, local or not (`net/core/filter.c, bpf_ipv6_fib_lookup()`). Packets
    // of containers may have destinations without a route, which have the same result as a local address.
    if on_link || packet.side == SIDE_BRIDGE {
        return 0;
    }
    // Not forwarded: the address is local. Broadcasts do not get here, since their frames are not addressed to this
    // host alone.
    u32::from(look_up(ctx, fib, &packet.tuple, packet, packet::ifindex(ctx), 0) == BPF_FIB_LKUP_RET_NOT_FWDED)
}

#[inline(always)]
fn look_up_route<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>) -> u32 {
    let Scratch { packet, pending, fib, via, .. } = &mut **scratch;
    let knows_source = NP_FIB_SRC.load() != 0;
    let flags = if knows_source { BPF_FIB_LOOKUP_SRC } else { 0 };
    let ret = look_up(ctx, fib, &packet.tuple, packet, packet::ifindex(ctx), flags);
    // bpf_redirect_neigh resolves the neighbour, and the size is checked later.
    if ret != BPF_FIB_LKUP_RET_SUCCESS && ret != BPF_FIB_LKUP_RET_NO_NEIGH {
        return 0;
    }
    apply_route_mtu::<F>(fib, &packet.tuple.dst);
    pending.plan.to.src = if knows_source { F::fib_source(fib) } else { F::Addr::default() };
    pending.plan.there.next_hop_mac = if ret == BPF_FIB_LKUP_RET_SUCCESS { fib.dmac } else { Mac::default() };
    pending.plan.there.mtu = mtu(fib);
    via.next_hop = gateway(fib);
    fib.ifindex
}

/// Of a route that was found. Without a gateway it is the destination itself.
#[inline(always)]
fn gateway(fib: &bpf_fib_lookup) -> bpf_redir_neigh {
    // SAFETY: unions of plain integers; the fields of IPv4 are the first of IPv6's.
    let nh = bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: unsafe { fib.__bindgen_anon_4.ipv6_dst } };
    bpf_redir_neigh { nh_family: u32::from(fib.family), __bindgen_anon_1: nh }
}

#[inline(always)]
fn compare_next_hops<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>, ifindex: u32) -> u32 {
    let Scratch { packet, pending, fib, via, .. } = &mut **scratch;
    let Some(config) = maps::CONFIG.get(0) else { return 0 };
    // As the helper looks it up: translated, from the host, without ports.
    let none = Be16::default();
    let tuple = Tuple { src: pending.plan.to.src, dst: packet.tuple.dst, sport: none, dport: none };
    let ret = look_up(ctx, fib, &tuple, packet, config.lo_ifindex, 0);
    let is_route = ret == BPF_FIB_LKUP_RET_SUCCESS || ret == BPF_FIB_LKUP_RET_NO_NEIGH;
    let other = gateway(fib);
    // SAFETY: both are next hops whose union the helper or zeroing has written in full, and any bits are valid words.
    let (a, b) = unsafe { (via.next_hop.__bindgen_anon_1.ipv6_nh, other.__bindgen_anon_1.ipv6_nh) };
    let differs = (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]);
    via.is_needed = !is_route || fib.ifindex != ifindex || differs | (via.next_hop.nh_family ^ other.nh_family) != 0;
    0
}

#[inline(always)]
fn look_up_next_hop<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>, ifindex: u32) -> u32 {
    let Scratch { packet, hop, fib, .. } = &mut **scratch;
    let ethernet = maps::find(&maps::UPLINK, ifindex).map_or(0, |u| u.ethernet);
    if ethernet == 0 {
        set_mtu(fib, 0);
        return 0;
    }
    let ret = look_up(ctx, fib, &hop.to, packet, ifindex, BPF_FIB_LOOKUP_OUTPUT);
    apply_route_mtu::<F>(fib, &hop.to.dst);
    if ret == BPF_FIB_LKUP_RET_SUCCESS && fib.ifindex == ifindex {
        return 1;
    }
    let leads_elsewhere = ret == BPF_FIB_LKUP_RET_NOT_FWDED || fib.ifindex != ifindex;
    if ethernet == ETHERNET && leads_elsewhere {
        set_mtu(fib, 0);
        return NO_ROUTE;
    }
    0
}

#[inline(always)]
fn look_up_way<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>) -> u32 {
    let Scratch { packet, hop, fib, .. } = &mut **scratch;
    // As for a socket of the host (`include/net/flow.h, LOOPBACK_IFINDEX`).
    let Some(config) = maps::CONFIG.get(0) else { return 0 };
    let ret = look_up(ctx, fib, &hop.to, packet, config.lo_ifindex, 0);
    if ret == BPF_FIB_LKUP_RET_NO_NEIGH {
        fib.dmac = Mac::default();
    } else if ret != BPF_FIB_LKUP_RET_SUCCESS {
        return 0;
    }
    apply_route_mtu::<F>(fib, &hop.to.dst);
    fib.ifindex
}

#[inline(always)]
fn look_up_source<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>, ifindex: u32) -> u32 {
    let Scratch { packet, fib, .. } = &mut **scratch;
    let Some(config) = maps::CONFIG.get(0) else { return 0 };
    let none = Be16::default();
    let tuple = Tuple { src: F::Addr::default(), dst: packet.tuple.src, sport: none, dport: none };
    let ret = look_up(ctx, fib, &tuple, packet, config.lo_ifindex, 0);
    let is_route = ret == BPF_FIB_LKUP_RET_SUCCESS || ret == BPF_FIB_LKUP_RET_NO_NEIGH;
    u32::from(is_route && fib.ifindex == ifindex)
}

/// Protocol and ports are those by which rules and the choice among several next hops decide (`ip rule … ipproto … dport`,
/// `fib_multipath_hash_policy`).
#[inline(always)]
fn look_up<F: Wire>(
    ctx: &TcContext,
    fib: &mut bpf_fib_lookup,
    tuple: &Tuple<F>,
    packet: &Packet<F>,
    ifindex: u32,
    flags: u32,
) -> u32 {
    // The kernel replaces a length, if there is one, by the MTU, unless it does not know the next hop's hardware address.
    const LEN: u16 = 1;
    // SAFETY: plain integers, for which zero is valid.
    *fib = unsafe { core::mem::zeroed() };
    F::fill_fib(fib, &packet.ip, &tuple.src, &tuple.dst);
    fib.ifindex = ifindex;
    fib.l4_protocol = packet.ip.proto;
    // Echo's identifier is no port.
    if packet.ip.proto != F::ICMP {
        fib.sport = u16::from_ne_bytes(tuple.sport.0);
        fib.dport = u16::from_ne_bytes(tuple.dport.0);
    }
    set_mtu(fib, LEN);
    // SAFETY: the helper reads and writes within the size given.
    let ret = unsafe { bpf_fib_lookup(ctx.as_ptr(), fib, size_of::<bpf_fib_lookup>() as i32, flags) } as u32;
    if mtu(fib) == LEN {
        set_mtu(fib, 0);
    }
    ret
}

/// The route's MTU after [`look_up`]; 0: unknown.
#[inline(always)]
pub fn mtu(fib: &bpf_fib_lookup) -> u16 {
    // SAFETY: a union of two numbers of one size.
    unsafe { fib.__bindgen_anon_1.mtu_result }
}

/// The kernel applies the MTU of a route to forwarded packets (`include/net/ip.h, ip_dst_mtu_maybe_forward()`;
/// `net/ipv6/ip6_output.c, ip6_finish_output()`), but the helper returns it only if it is locked.
#[inline(always)]
fn apply_route_mtu<F: Wire>(fib: &mut bpf_fib_lookup, destination: &F::Addr) {
    let of_route = maps::ROUTE_MTU.get(Key::new(128, F::mapped(*destination).0)).map_or(0, |mtu| *mtu as u16);
    let known = mtu(fib);
    if of_route != 0 && (known == 0 || of_route < known) {
        set_mtu(fib, of_route);
    }
}

#[inline(always)]
fn set_mtu(fib: &mut bpf_fib_lookup, mtu: u16) {
    fib.__bindgen_anon_1.mtu_result = mtu;
}

/// Which socket of the host would receive a packet with this tuple: [`NO_SOCKET`], [`BOUND`] or [`CONNECTED`]. ICMP echo
/// has none to check.
#[inline(always)]
pub fn socket<F: Wire>(ctx: &TcContext, sock: &mut bpf_sock_tuple, arriving: &Tuple<F>, proto: u8) -> u32 {
    let (found, connected) = match proto {
        PROTO_TCP => {
            let state = tcp_state(ctx, sock, arriving);
            (state != 0, state != TCP_LISTEN)
        }
        PROTO_UDP => {
            let socket = udp_socket(ctx, sock, arriving);
            (socket != 0, socket as u16 != 0)
        }
        _ => return NO_SOCKET,
    };
    if found { BOUND + u32::from(connected) } else { NO_SOCKET }
}

#[inline(always)]
fn look_up_connection<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>, peer: u32) -> u32 {
    let Scratch { packet, hop, sock, .. } = &mut **scratch;
    let arriving = if peer == RECEIVER { hop.to.reversed() } else { packet.tuple };
    u32::from(socket(ctx, sock, &arriving, packet.ip.proto) == CONNECTED)
}

/// The state of the TCP socket that would receive a packet with this tuple, 0 = none.
#[inline(always)]
fn tcp_state<F: Wire>(ctx: &TcContext, tuple: &mut bpf_sock_tuple, arriving: &Tuple<F>) -> u32 {
    let size = F::fill_sock(tuple, arriving);
    // SAFETY: the helper reads `size` bytes of the tuple; the socket is released after its last use.
    unsafe {
        let socket = bpf_skc_lookup_tcp(ctx.as_ptr(), tuple, size, BPF_F_CURRENT_NETNS as u64, 0);
        if socket.is_null() {
            return 0;
        }
        let state = (*socket).state;
        bpf_sk_release(socket.cast());
        state
    }
}

/// [`UDP_SOCKET`] and the peer's port of the UDP socket that would receive a packet with this tuple, 0 = not
/// connected; 0: none. (A number: with an `Option` the compiler reads a port that is absent, which the verifier
/// rejects.)
#[inline(always)]
fn udp_socket<F: Wire>(ctx: &TcContext, tuple: &mut bpf_sock_tuple, arriving: &Tuple<F>) -> u32 {
    let size = F::fill_sock(tuple, arriving);
    // SAFETY: the helper reads `size` bytes of the tuple, which is larger. A socket that it returns is counted until it is released, and read
    // only before.
    unsafe {
        let socket = bpf_sk_lookup_udp(ctx.as_ptr(), tuple, size, BPF_F_CURRENT_NETNS as u64, 0);
        if socket.is_null() {
            return 0;
        }
        let port = (*socket).dst_port;
        bpf_sk_release(socket.cast());
        UDP_SOCKET | u32::from(port)
    }
}
