//! IPv4 and IPv6 for the programs, in addition to `netpath_common::family`: headers, flow table, helper structs.

use aya_ebpf::bindings::{BPF_F_RECOMPUTE_CSUM, bpf_fib_lookup, bpf_sock_tuple};
use aya_ebpf::maps::{Array, LruHashMap};
use aya_ebpf::programs::TcContext;
use netpath_common::addr::{Be16, V4, V6};
use netpath_common::checksum;
use netpath_common::family::{Family, Ipv4, Ipv6, Tuple};
use netpath_common::layout::{
    Flow4, Flow6, FlowKey4, FlowKey6, FragmentKey4, FragmentKey6, OPENINGS4, OPENINGS6, Opening, PROTO_TCP, PROTO_UDP,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, transmute};

use crate::maps;
use crate::packet::{self, NP_CSUM_IPV6, View};
use crate::parsed::{FastHeaders, Fragment, Ip};
use crate::scratch::HasScratch;

/// `include/uapi/linux/in.h`, `AF_INET` and `AF_INET6`.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Number of IPv6 extension headers that are parsed; a packet with more is not ours.
const EXTENSIONS: usize = 4;

/// The fields that the first check of a packet reads.
pub struct HeaderPeek<F: Family> {
    pub proto: u8,
    pub sport: Be16,
    pub dport: Be16,
    pub dst: F::Addr,
}

/// The bounds of the address are those of a log line.
pub trait Wire:
    HasScratch<Addr: aya_log_ebpf::macro_support::IpFormatter + aya_log_ebpf::macro_support::Argument>
{
    fn flows() -> &'static LruHashMap<Self::Key, Self::Flow>;
    /// Offset of [`Next`] in a flow.
    const NEXT: usize;

    /// The TCP flows that are opening, and how many there can be.
    fn openings() -> &'static Array<Opening<Self::Key>>;
    const OPENINGS: u32;

    type FragmentKey;
    fn fragments() -> &'static LruHashMap<Self::FragmentKey, u32>;
    fn fragment_key(src: &Self::Addr, dst: &Self::Addr, id: u32, proto: u8, side: u8) -> Self::FragmentKey;

    /// Length of a network header without options or extensions.
    const HEADER: usize;
    /// Length of a packet whose header says zero: IPv4 counts the header, IPv6 what follows it.
    const EMPTY: usize = if Self::IS_V4 { 0 } else { Self::HEADER };

    /// A TCP or UDP packet with a plain header at `l3` and no loopback address.
    fn peek(ctx: &impl View, l3: usize) -> Option<HeaderPeek<Self>>;

    /// The next protocol of the network header at `l3`.
    fn protocol(ctx: &TcContext, l3: usize) -> Option<u8>;

    /// Reads the network header at `l3` into `plain` if it has neither options nor extensions and is no fragment. Returns
    /// the length of the IP packet.
    fn read_plain(ctx: &impl View, l3: usize, plain: &mut FastHeaders<Self>) -> Option<u32>;

    /// Writes `to` and decrements the TTL; the transport checksum is already updated.
    fn write_plain(ctx: &TcContext, l3: usize, plain: &FastHeaders<Self>, to: &Tuple<Self>) -> Option<()>;

    /// The same for packets without a checksum state in the kernel.
    fn write_in_place(ctx: &impl View, l3: usize, plain: &FastHeaders<Self>, to: &Tuple<Self>) -> Option<()>;

    /// Reads the header at `l3` into `ip` and the addresses of `tuple`; false: truncated, malformed or with extension
    /// headers that are not supported.
    fn header(ctx: &TcContext, l3: usize, ip: &mut Ip, tuple: &mut Tuple<Self>) -> bool;

    /// Writes the addresses of `to` and decrements the TTL by `hops`; the transport checksum is unchanged.
    fn write_header(ctx: &TcContext, l3: usize, ip: &Ip, hops: u8, from: &Tuple<Self>, to: &Tuple<Self>) -> Option<()>;

    /// Writes the addresses of `to` into a header at `l3` that is quoted by the ICMP error with the checksum at
    /// `check`.
    fn restore_addresses(
        ctx: &TcContext,
        check: usize,
        l3: usize,
        ip: &Ip,
        from: &Tuple<Self>,
        to: &Tuple<Self>,
    ) -> Option<()>;

    fn fill_fib(params: &mut bpf_fib_lookup, ip: &Ip, src: &Self::Addr, dst: &Self::Addr);
    fn fib_source(params: &bpf_fib_lookup) -> Self::Addr;

    /// Fills the argument of the socket look-ups for a packet `t` that arrives at the host; returns its size.
    fn fill_sock(tuple: &mut bpf_sock_tuple, t: &Tuple<Self>) -> u32;
}

#[repr(C, align(4))]
#[derive(Clone, Copy, FromBytes, Immutable)]
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

impl Header4 {
    /// Neither options nor a fragment (more fragments, and the offset: RFC 791 §3.1).
    #[inline(always)]
    fn is_plain(&self) -> bool {
        self.version_ihl == 0x45 && self.fragment.value() & 0x3fff == 0
    }
}

/// The fields that translation changes, from the TTL on.
#[repr(C, align(4))]
#[derive(FromBytes, IntoBytes, Immutable)]
struct Tail4 {
    ttl: u8,
    proto: u8,
    check: [u8; 2],
    src: V4,
    dst: V4,
}

/// The same with the ports, in a packet without options.
#[repr(C, align(4))]
#[derive(FromBytes, IntoBytes, Immutable)]
struct Plain4 {
    ttl: u8,
    proto: u8,
    check: [u8; 2],
    src: V4,
    dst: V4,
    ports: u32,
}

/// TTL and header checksum after translation to `to` and `hops` decrements.
#[inline(always)]
fn aged(ttl: u8, proto: u8, sum: [u8; 2], hops: u8, from: &Tuple<Ipv4>, to: &Tuple<Ipv4>) -> (u8, [u8; 2]) {
    let less = ttl.wrapping_sub(hops);
    let (old, new) = (u16::from_ne_bytes([ttl, proto]), u16::from_ne_bytes([less, proto]));
    let difference = u64::from(from.address_difference(to)) + u64::from(!old) + u64::from(new);
    (less, checksum::replaced(sum, difference))
}

/// A plain network header with the ports.
#[repr(C, align(4))]
#[derive(FromBytes, Immutable)]
struct Ports<H> {
    header: H,
    sport: Be16,
    dport: Be16,
}

#[inline(always)]
fn is_tcp_or_udp(proto: u8) -> bool {
    proto == PROTO_TCP || proto == PROTO_UDP
}

#[inline(always)]
fn native(a: V4) -> u32 {
    u32::from_ne_bytes(a)
}

#[inline(always)]
fn words(a: &V6) -> [u32; 4] {
    transmute!(*a)
}

impl Wire for Ipv4 {
    #[inline(always)]
    fn flows() -> &'static LruHashMap<Self::Key, Self::Flow> {
        &maps::FLOW4
    }

    const HEADER: usize = size_of::<Header4>();
    const NEXT: usize = core::mem::offset_of!(Flow4, next);
    const OPENINGS: u32 = OPENINGS4;

    #[inline(always)]
    fn openings() -> &'static Array<Opening<FlowKey4>> {
        &maps::OPENING4
    }

    #[inline(always)]
    fn peek(ctx: &impl View, l3: usize) -> Option<HeaderPeek<Self>> {
        let Ports { header: h, sport, dport } = packet::at::<Ports<Header4>>(ctx, l3)?;
        let loopback = h.src[0] == 127 || h.dst[0] == 127;
        (h.is_plain() && !loopback && is_tcp_or_udp(h.proto)).then_some(HeaderPeek {
            proto: h.proto,
            sport: *sport,
            dport: *dport,
            dst: h.dst,
        })
    }

    #[inline(always)]
    fn protocol(ctx: &TcContext, l3: usize) -> Option<u8> {
        packet::at::<Header4>(ctx, l3).map(|h| h.proto)
    }

    #[inline(always)]
    fn read_plain(ctx: &impl View, l3: usize, plain: &mut FastHeaders<Self>) -> Option<u32> {
        let h = packet::at::<Header4>(ctx, l3)?;
        if !h.is_plain() {
            return None;
        }
        plain.key.src = h.src;
        plain.key.dst = h.dst;
        (plain.proto, plain.ttl, plain.sum) = (h.proto, h.ttl, h.check);
        Some(ctx.ip_len(l3, Self::EMPTY, h.len.value()))
    }

    #[inline(always)]
    fn write_plain(ctx: &TcContext, l3: usize, plain: &FastHeaders<Self>, to: &Tuple<Self>) -> Option<()> {
        // The header's own checksum balances its changes in a CHECKSUM_COMPLETE sum.
        Self::write_in_place(ctx, l3, plain, to)
    }

    #[inline(always)]
    fn write_in_place(ctx: &impl View, l3: usize, plain: &FastHeaders<Self>, to: &Tuple<Self>) -> Option<()> {
        let (ttl, check) = aged(plain.ttl, plain.proto, plain.sum, 1, plain.tuple(), to);
        let tail = Plain4 { ttl, proto: plain.proto, check, src: to.src, dst: to.dst, ports: to.ports() };
        *packet::at_mut::<Plain4>(ctx, l3 + 8)? = tail;
        Some(())
    }

    type FragmentKey = FragmentKey4;

    #[inline(always)]
    fn fragments() -> &'static LruHashMap<FragmentKey4, u32> {
        &maps::FRAG4
    }

    #[inline(always)]
    fn fragment_key(src: &V4, dst: &V4, id: u32, proto: u8, side: u8) -> FragmentKey4 {
        FragmentKey4 { src: *src, dst: *dst, id, proto, side, pad: [0; 2] }
    }

    #[inline(always)]
    fn header(ctx: &TcContext, l3: usize, ip: &mut Ip, tuple: &mut Tuple<Self>) -> bool {
        let Some(h) = packet::at::<Header4>(ctx, l3) else { return false };
        let header_len = usize::from(h.version_ihl & 0x0f) * 4;
        if h.version_ihl >> 4 != 4 || header_len < size_of::<Header4>() {
            return false;
        }
        tuple.src = h.src;
        tuple.dst = h.dst;
        let fragment = Fragment::at(h.fragment.value() & 0x1fff, h.fragment.value() & 0x2000);
        *ip = Ip {
            proto: h.proto,
            ttl: h.ttl,
            word: h.check,
            fragment,
            id: u32::from(h.id.value()),
            l4: l3 + header_len,
            len: u32::from(h.len.value()),
            flow: 0,
            gone: 0,
        };
        true
    }

    #[inline(always)]
    fn write_header(ctx: &TcContext, l3: usize, ip: &Ip, hops: u8, from: &Tuple<Self>, to: &Tuple<Self>) -> Option<()> {
        let (ttl, check) = aged(ip.ttl, ip.proto, ip.word, hops, from, to);
        let tail = Tail4 { ttl, proto: ip.proto, check, src: to.src, dst: to.dst };
        // The header's own checksum balances all of this in a CHECKSUM_COMPLETE sum, so nothing is recomputed.
        packet::store(ctx, l3 + 8, &tail, 0).ok()
    }

    #[inline(always)]
    fn restore_addresses(
        ctx: &TcContext,
        _: usize,
        l3: usize,
        ip: &Ip,
        from: &Tuple<Self>,
        to: &Tuple<Self>,
    ) -> Option<()> {
        #[repr(C)]
        #[derive(IntoBytes, Immutable)]
        struct Ends4 {
            check: [u8; 2],
            src: V4,
            dst: V4,
        }
        let check = checksum::replaced(ip.word, u64::from(from.address_difference(to)));
        // The quoted header's checksum balances its addresses in the error's.
        packet::store(ctx, l3 + 10, &Ends4 { check, src: to.src, dst: to.dst }, 0).ok()
    }

    #[inline(always)]
    fn fill_fib(params: &mut bpf_fib_lookup, _: &Ip, src: &V4, dst: &V4) {
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
#[derive(Clone, Copy, FromBytes, Immutable)]
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
#[derive(FromBytes, Immutable)]
struct FragmentHeader {
    next: u8,
    reserved: u8,
    offset: Be16,
    id: u32,
}

#[repr(C, align(4))]
#[derive(FromBytes, IntoBytes, Immutable)]
struct Tail6 {
    len: Be16,
    next: u8,
    hops: u8,
    src: V6,
    dst: V6,
}

/// Both addresses and the ports, in a packet without extension headers.
#[repr(C, align(4))]
#[derive(FromBytes, IntoBytes, Immutable)]
struct Ends6 {
    src: V6,
    dst: V6,
    ports: u32,
}

impl Wire for Ipv6 {
    #[inline(always)]
    fn flows() -> &'static LruHashMap<Self::Key, Self::Flow> {
        &maps::FLOW6
    }

    const HEADER: usize = size_of::<Header6>();
    const NEXT: usize = core::mem::offset_of!(Flow6, next);
    const OPENINGS: u32 = OPENINGS6;

    #[inline(always)]
    fn openings() -> &'static Array<Opening<FlowKey6>> {
        &maps::OPENING6
    }

    #[inline(always)]
    fn peek(ctx: &impl View, l3: usize) -> Option<HeaderPeek<Self>> {
        let Ports { header: h, sport, dport } = packet::at::<Ports<Header6>>(ctx, l3)?;
        // ::1 and other addresses that begin with four zero bytes.
        let odd = words(&h.src)[0] == 0 || words(&h.dst)[0] == 0;
        (h.version >> 4 == 6 && !odd && is_tcp_or_udp(h.next)).then_some(HeaderPeek {
            proto: h.next,
            sport: *sport,
            dport: *dport,
            dst: h.dst,
        })
    }

    #[inline(always)]
    fn protocol(ctx: &TcContext, l3: usize) -> Option<u8> {
        packet::at::<Header6>(ctx, l3).map(|h| h.next)
    }

    #[inline(always)]
    fn read_plain(ctx: &impl View, l3: usize, plain: &mut FastHeaders<Self>) -> Option<u32> {
        let h = packet::at::<Header6>(ctx, l3)?;
        if h.version >> 4 != 6 {
            return None;
        }
        plain.key.src = h.src;
        plain.key.dst = h.dst;
        // Extension headers are protocols without a fast path.
        (plain.proto, plain.ttl) = (h.next, h.hops);
        Some(ctx.ip_len(l3, Self::EMPTY, h.len.value()))
    }

    #[inline(always)]
    fn write_plain(ctx: &TcContext, l3: usize, plain: &FastHeaders<Self>, to: &Tuple<Self>) -> Option<()> {
        if NP_CSUM_IPV6.load() != 0 {
            return Self::write_in_place(ctx, l3, plain, to);
        }
        let hops = plain.ttl.wrapping_sub(1);
        let len = *packet::at::<Be16>(ctx, l3 + 4)?;
        let tail = Tail6 { len, next: plain.proto, hops, src: to.src, dst: to.dst };
        packet::store(ctx, l3 + 4, &tail, u64::from(BPF_F_RECOMPUTE_CSUM)).ok()?;
        packet::store(ctx, l3 + Self::HEADER, &to.ports(), 0).ok()
    }

    #[inline(always)]
    fn write_in_place(ctx: &impl View, l3: usize, plain: &FastHeaders<Self>, to: &Tuple<Self>) -> Option<()> {
        *packet::at_mut::<u8>(ctx, l3 + 7)? = plain.ttl.wrapping_sub(1);
        let ends = packet::at_mut::<Ends6>(ctx, l3 + 8)?;
        ends.src = to.src;
        ends.dst = to.dst;
        ends.ports = to.ports();
        Some(())
    }

    type FragmentKey = FragmentKey6;

    #[inline(always)]
    fn fragments() -> &'static LruHashMap<FragmentKey6, u32> {
        &maps::FRAG6
    }

    #[inline(always)]
    fn fragment_key(src: &V6, dst: &V6, id: u32, proto: u8, side: u8) -> FragmentKey6 {
        FragmentKey6 { src: *src, dst: *dst, id, proto, side, pad: [0; 2] }
    }

    #[inline(always)]
    fn header(ctx: &TcContext, l3: usize, ip: &mut Ip, tuple: &mut Tuple<Self>) -> bool {
        let Some(h) = packet::at::<Header6>(ctx, l3) else { return false };
        if h.version >> 4 != 6 {
            return false;
        }
        tuple.src = h.src;
        tuple.dst = h.dst;
        let (ttl, len) = (h.hops, h.len);
        let [a, b, c] = h.class_flow;
        let flow = u32::from_ne_bytes([h.version & 0x0f, a, b, c]);
        let mut proto = h.next;
        let mut l4 = l3 + size_of::<Header6>();
        let (mut fragment, mut id) = (Fragment::No, 0);
        for _ in 0..EXTENSIONS {
            match proto {
                // Hop-by-hop and destination options (RFC 8200 §4.3, §4.6). A routing header changes the destination
                // of the pseudo-header, so it is not supported.
                0 | 60 => {
                    let Some(&[next, words]) = packet::behind::<[u8; 2]>(ctx, l4) else { return false };
                    proto = next;
                    l4 += (usize::from(words) + 1) * 8;
                }
                44 => {
                    let Some(f) = packet::behind::<FragmentHeader>(ctx, l4) else { return false };
                    // RFC 8200 §4.5; a fragment header may also be on a whole packet (RFC 6946).
                    fragment = Fragment::at(f.offset.value() >> 3, f.offset.value() & 1);
                    (proto, id) = (f.next, f.id);
                    l4 += size_of::<FragmentHeader>();
                    if fragment == Fragment::Later {
                        break;
                    }
                }
                _ => break,
            }
        }
        let len_word = len.0;
        let len = size_of::<Header6>() as u32 + u32::from(len.value());
        *ip = Ip { proto, ttl, word: len_word, fragment, id, l4, len, flow, gone: 0 };
        true
    }

    #[inline(always)]
    fn write_header(ctx: &TcContext, l3: usize, ip: &Ip, hops: u8, _: &Tuple<Self>, to: &Tuple<Self>) -> Option<()> {
        let next = *packet::behind::<u8>(ctx, l3 + 6)?;
        let tail = Tail6 { len: Be16(ip.word), next, hops: ip.ttl.wrapping_sub(hops), src: to.src, dst: to.dst };
        // Without a header checksum only the transport checksum balances the addresses in a CHECKSUM_COMPLETE sum,
        // and `bpf_l4_csum_replace` treats it as IPv4's (`net/core/utils.c, inet_proto_csum_replace_by_diff()`;
        // BPF_F_IPV6 only since 6.16). So the sum is recomputed from the bytes here.
        packet::store(ctx, l3 + 4, &tail, u64::from(BPF_F_RECOMPUTE_CSUM)).ok()
    }

    #[inline(always)]
    fn restore_addresses(
        ctx: &TcContext,
        check: usize,
        l3: usize,
        _: &Ip,
        from: &Tuple<Self>,
        to: &Tuple<Self>,
    ) -> Option<()> {
        packet::replace_checksum(ctx, check, 0, u64::from(from.address_difference(to)), 0).ok()?;
        packet::store(ctx, l3 + 8, &[to.src, to.dst], 0).ok()
    }

    #[inline(always)]
    fn fill_fib(params: &mut bpf_fib_lookup, ip: &Ip, src: &V6, dst: &V6) {
        params.family = AF_INET6;
        params.__bindgen_anon_2.flowinfo = ip.flow;
        params.__bindgen_anon_3.ipv6_src = words(src);
        params.__bindgen_anon_4.ipv6_dst = words(dst);
    }

    #[inline(always)]
    fn fib_source(params: &bpf_fib_lookup) -> V6 {
        // SAFETY: a union of plain integers, zeroed before the call.
        transmute!(unsafe { params.__bindgen_anon_3.ipv6_src })
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
