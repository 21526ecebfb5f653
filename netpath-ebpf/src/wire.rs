//! What the programs need of a family beyond `netpath_common::family`: its headers, its flow table, its helper structs.

use aya_ebpf::bindings::{BPF_F_RECOMPUTE_CSUM, bpf_fib_lookup, bpf_sock_tuple};
use aya_ebpf::maps::{LruHashMap, PerCpuArray};
use aya_ebpf::programs::TcContext;
use netpath_common::addr::{Be16, V4, V6};
use netpath_common::checksum;
use netpath_common::family::{Family, Ipv4, Ipv6, Tuple};

use crate::desk::Desk;
use crate::maps;
use crate::packet::{self, Packet};

/// `include/uapi/linux/in.h`, `AF_INET` and `AF_INET6`.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// IPv6 extension headers walked before the packet is not ours.
const EXTENSIONS: usize = 4;

/// The network header, as far as translation needs it.
#[derive(Clone, Copy, Default)]
pub struct Ip {
    pub proto: u8,
    pub ttl: u8,
    /// IPv4: the header's checksum. IPv6: the payload's length.
    pub word: [u8; 2],
    pub fragment: bool,
    /// Where the transport header begins, from the start of the packet.
    pub l4: usize,
    /// Bytes of the IP packet, by its own word.
    pub len: u32,
}

pub trait Wire: Family {
    /// For log lines.
    type Shown: aya_log_ebpf::macro_support::IpFormatter + aya_log_ebpf::macro_support::Argument;
    fn shown(a: &Self::Addr) -> Self::Shown;

    fn flows() -> &'static LruHashMap<Self::Key, Self::Flow>;
    fn desk() -> &'static PerCpuArray<Desk<Self>>;

    /// Fills `packet.ip` and the addresses; false: cut short, malformed or with headers that we do not walk.
    fn header(ctx: &TcContext, l3: usize, packet: &mut Packet<Self>) -> bool;

    /// Writes `to`'s addresses and one hop less; the transport checksum is not touched.
    fn write_header(ctx: &TcContext, l3: usize, ip: &Ip, from: &Tuple<Self>, to: &Tuple<Self>) -> Result<(), ()>;

    fn fill_fib(params: &mut bpf_fib_lookup, src: &Self::Addr, dst: &Self::Addr);
    fn fib_source(params: &bpf_fib_lookup) -> Self::Addr;

    /// `t` as it would arrive at a socket of the host, and the size that the look-up helpers want.
    fn fill_sock(tuple: &mut bpf_sock_tuple, t: &Tuple<Self>) -> u32;
}

#[repr(C, align(4))]
#[derive(Clone, Copy)]
struct Header4 {
    version_ihl: u8,
    tos: u8,
    len: Be16,
    id: Be16,
    fragment: Be16,
    ttl: u8,
    proto: u8,
    check: [u8; 2],
    src: V4,
    dst: V4,
}

/// From the hop count on: what changes.
#[repr(C, align(4))]
struct Tail4 {
    ttl: u8,
    proto: u8,
    check: [u8; 2],
    src: V4,
    dst: V4,
}

#[inline(always)]
fn native(a: V4) -> u32 {
    u32::from_ne_bytes(a)
}

#[inline(always)]
fn words(a: &V6) -> [u32; 4] {
    // SAFETY: sixteen bytes either way, every bit pattern is valid.
    unsafe { core::mem::transmute::<V6, [u32; 4]>(*a) }
}

impl Wire for Ipv4 {
    type Shown = V4;

    #[inline(always)]
    fn shown(a: &V4) -> V4 {
        *a
    }

    #[inline(always)]
    fn flows() -> &'static LruHashMap<Self::Key, Self::Flow> {
        &maps::FLOW4
    }

    #[inline(always)]
    fn desk() -> &'static PerCpuArray<Desk<Self>> {
        &maps::DESK4
    }

    #[inline(always)]
    fn header(ctx: &TcContext, l3: usize, packet: &mut Packet<Self>) -> bool {
        let Some(h) = packet::at::<Header4>(ctx, l3) else { return false };
        let header_len = usize::from(h.version_ihl & 0x0f) * 4;
        if h.version_ihl >> 4 != 4 || header_len < size_of::<Header4>() {
            return false;
        }
        packet.tuple.src = h.src;
        packet.tuple.dst = h.dst;
        packet.ip = Ip {
            proto: h.proto,
            ttl: h.ttl,
            word: h.check,
            // More fragments, or an offset; not "don't fragment" (RFC 791 §3.1).
            fragment: h.fragment.value() & 0x3fff != 0,
            l4: l3 + header_len,
            len: u32::from(h.len.value()),
        };
        true
    }

    #[inline(always)]
    fn write_header(ctx: &TcContext, l3: usize, ip: &Ip, from: &Tuple<Self>, to: &Tuple<Self>) -> Result<(), ()> {
        let ttl = ip.ttl.wrapping_sub(1);
        let old = u16::from_ne_bytes([ip.ttl, ip.proto]);
        let new = u16::from_ne_bytes([ttl, ip.proto]);
        let difference = u64::from(from.address_difference(to)) + u64::from(!old) + u64::from(new);
        let check = checksum::replaced(ip.word, difference);
        let tail = Tail4 { ttl, proto: ip.proto, check, src: to.src, dst: to.dst };
        // The header's own checksum balances all of this in a CHECKSUM_COMPLETE sum, so nothing is recomputed.
        packet::store(ctx, l3 + 8, &tail, 0)
    }

    #[inline(always)]
    fn fill_fib(params: &mut bpf_fib_lookup, src: &V4, dst: &V4) {
        params.family = AF_INET;
        params.__bindgen_anon_3.ipv4_src = native(*src);
        params.__bindgen_anon_4.ipv4_dst = native(*dst);
    }

    #[inline(always)]
    fn fib_source(params: &bpf_fib_lookup) -> V4 {
        // SAFETY: a union of plain integers, zeroed before the call.
        unsafe { params.__bindgen_anon_3.ipv4_src }.to_ne_bytes()
    }

    #[inline(always)]
    fn fill_sock(tuple: &mut bpf_sock_tuple, t: &Tuple<Self>) -> u32 {
        // SAFETY: a union of plain integers.
        let v4 = unsafe { &mut tuple.__bindgen_anon_1.ipv4 };
        v4.saddr = native(t.src);
        v4.daddr = native(t.dst);
        v4.sport = u16::from_ne_bytes(t.sport.0);
        v4.dport = u16::from_ne_bytes(t.dport.0);
        12
    }
}

#[repr(C, align(4))]
#[derive(Clone, Copy)]
struct Header6 {
    version: u8,
    class_flow: [u8; 3],
    len: Be16,
    next: u8,
    hops: u8,
    src: V6,
    dst: V6,
}

#[repr(C, align(4))]
struct Tail6 {
    len: Be16,
    next: u8,
    hops: u8,
    src: V6,
    dst: V6,
}

impl Wire for Ipv6 {
    type Shown = V6;

    #[inline(always)]
    fn shown(a: &V6) -> V6 {
        *a
    }

    #[inline(always)]
    fn flows() -> &'static LruHashMap<Self::Key, Self::Flow> {
        &maps::FLOW6
    }

    #[inline(always)]
    fn desk() -> &'static PerCpuArray<Desk<Self>> {
        &maps::DESK6
    }

    #[inline(always)]
    fn header(ctx: &TcContext, l3: usize, packet: &mut Packet<Self>) -> bool {
        let Some(h) = packet::at::<Header6>(ctx, l3) else { return false };
        if h.version >> 4 != 6 {
            return false;
        }
        packet.tuple.src = h.src;
        packet.tuple.dst = h.dst;
        let (ttl, len) = (h.hops, h.len);
        let mut proto = h.next;
        let mut l4 = l3 + size_of::<Header6>();
        let mut fragment = false;
        for _ in 0..EXTENSIONS {
            match proto {
                // Hop-by-hop and destination options (RFC 8200 §4.3, §4.6). A routing header changes what the
                // pseudo-header's destination is, so it is not walked.
                0 | 60 => {
                    let Some(&[next, words]) = packet::at::<[u8; 2]>(ctx, l4) else { return false };
                    proto = next;
                    l4 += (usize::from(words) + 1) * 8;
                }
                44 => {
                    fragment = true;
                    break;
                }
                _ => break,
            }
        }
        packet.ip =
            Ip { proto, ttl, word: len.0, fragment, l4, len: size_of::<Header6>() as u32 + u32::from(len.value()) };
        true
    }

    #[inline(always)]
    fn write_header(ctx: &TcContext, l3: usize, ip: &Ip, _from: &Tuple<Self>, to: &Tuple<Self>) -> Result<(), ()> {
        let next = *packet::at::<u8>(ctx, l3 + 6).ok_or(())?;
        let tail = Tail6 { len: Be16(ip.word), next, hops: ip.ttl.wrapping_sub(1), src: to.src, dst: to.dst };
        // Without a header checksum nothing balances the addresses in a CHECKSUM_COMPLETE sum but the transport
        // checksum, and `bpf_l4_csum_replace` counts that one as if it were IPv4 (`net/core/utils.c,
        // inet_proto_csum_replace_by_diff()`; BPF_F_IPV6 only since 6.16). So the sum follows the bytes here.
        packet::store(ctx, l3 + 4, &tail, u64::from(BPF_F_RECOMPUTE_CSUM))
    }

    #[inline(always)]
    fn fill_fib(params: &mut bpf_fib_lookup, src: &V6, dst: &V6) {
        params.family = AF_INET6;
        params.__bindgen_anon_3.ipv6_src = words(src);
        params.__bindgen_anon_4.ipv6_dst = words(dst);
    }

    #[inline(always)]
    fn fib_source(params: &bpf_fib_lookup) -> V6 {
        // SAFETY: a union of plain integers, zeroed before the call; sixteen bytes either way.
        unsafe { core::mem::transmute::<[u32; 4], V6>(params.__bindgen_anon_3.ipv6_src) }
    }

    #[inline(always)]
    fn fill_sock(tuple: &mut bpf_sock_tuple, t: &Tuple<Self>) -> u32 {
        // SAFETY: a union of plain integers.
        let v6 = unsafe { &mut tuple.__bindgen_anon_1.ipv6 };
        v6.saddr = words(&t.src);
        v6.daddr = words(&t.dst);
        v6.sport = u16::from_ne_bytes(t.sport.0);
        v6.dport = u16::from_ne_bytes(t.dport.0);
        36
    }
}
