//! Reading and writing packets. Values are copied out before any write: no pointer into a packet outlives a helper
//! call.

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::{bpf_l4_csum_replace, bpf_skb_pull_data, bpf_skb_store_bytes};
use aya_ebpf::programs::{TcContext, XdpContext};
use aya_ebpf::{EbpfContext, Global};
use netpath_common::addr::Be16;
use netpath_common::family::{Family, Tuple};
use netpath_common::flow;
use netpath_common::layout::{PROTO_ICMP, PROTO_ICMPV6, PROTO_SCTP, PROTO_TCP, PROTO_UDP};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::headers::{Fragment, Ip, Wire};
use crate::scratch::ScratchMut;
use crate::subprog::subprog;
use crate::{fragment, icmp};

/// `netpath_common::layout::global::CSUM_IPV6`.
#[unsafe(no_mangle)]
pub static NP_CSUM_IPV6: Global<u8> = Global::new(0);

/// `include/uapi/linux/bpf.h`, of `bpf_l4_csum_replace` (6.16).
const BPF_F_IPV6: u64 = 1 << 7;

const PROTO_DCCP: u8 = 33;
const PROTO_UDP_LITE: u8 = 136;

/// Length of an Ethernet header.
pub const ETHERNET: usize = 14;

/// `__sk_buff::pkt_type`: addressed to this host (`include/uapi/linux/if_packet.h`).
const PACKET_HOST: u32 = 0;

/// Bytes that are made linear: a network header with options, a transport header, and the same quoted in an ICMP
/// error.
const HEADERS: u32 = 140;

#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    Tcp,
    Udp,
    /// Ports are read, and never changed.
    Sctp,
    EchoRequest,
    EchoReply,
    /// An ICMP error: the quotation is in scratch (`icmp.rs`). Only the addresses of the tuple are set.
    Error,
    /// A later fragment with unknown ports. Only the addresses of the tuple are set.
    Fragment,
    /// A protocol without ports; they are zero.
    Other,
    /// A transport header that is truncated, malformed or not translatable.
    Odd,
}

pub struct Packet<F: Family> {
    pub tuple: Tuple<F>,
    pub ip: Ip,
    pub kind: Kind,
    pub tcp_flags: u8,
    /// The hook's side, one of `layout::SIDE_*`.
    pub side: u8,
    pub l3: usize,
    /// Offset of the transport checksum, and the flags of `bpf_l4_csum_replace` for a change of addresses; 0 = it
    /// does not cover them. Stored as numbers, so that the verifier walks [`rewrite`] once and not once per protocol.
    pub check: usize,
    pub address_flags: u64,
    /// Length of network and transport headers: each segment of a GSO packet has them besides its payload.
    pub headers: u32,
}

impl<F: Family> Packet<F> {
    /// Whether a flow can begin with it: the ports of a later fragment are not its own.
    #[inline(always)]
    pub fn may_begin(&self) -> bool {
        // TCP flows begin with a SYN. Other segments are left to the stack.
        self.ip.fragment != Fragment::Later && (self.kind != Kind::Tcp || flow::is_syn(self.tcp_flags))
    }
}

/// A frame at a hook.
pub trait View {
    /// Start of the bytes that can be read in place.
    fn begin(&self) -> usize;
    fn end(&self) -> usize;
    /// Length of the whole frame, from `begin` on.
    fn size(&self) -> u32;
}

impl View for TcContext {
    #[inline(always)]
    fn begin(&self) -> usize {
        self.data()
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.data_end()
    }

    #[inline(always)]
    fn size(&self) -> u32 {
        self.len()
    }
}

/// Single-buffer frames: programs that do not declare support for more buffers get no others (5.18).
impl View for XdpContext {
    #[inline(always)]
    fn begin(&self) -> usize {
        self.data()
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.data_end()
    }

    #[inline(always)]
    fn size(&self) -> u32 {
        self.data_end().wrapping_sub(self.data()) as u32
    }
}

/// The `T` at `offset`, a compile-time constant, if the packet is that long; invalid after a helper that changes the
/// packet. `T` has an alignment of 4 at most: the stack aligns network headers so (`include/linux/skbuff.h,
/// NET_IP_ALIGN`), except on machines with cheap unaligned access.
#[inline(always)]
pub fn at<T: FromBytes + Immutable>(ctx: &impl View, offset: usize) -> Option<&T> {
    // SAFETY: between data and data_end, which the verifier checks again; any bytes are a T.
    place(ctx, offset, size_of::<T>()).map(|at| unsafe { &*(at as *const T) })
}

/// The same at an offset from the packet.
#[inline(always)]
pub fn behind<T: FromBytes + Immutable>(ctx: &TcContext, offset: usize) -> Option<&T> {
    // No loss: headers end before.
    if offset > OFFSETS {
        return None;
    }
    let mut bounded = offset;
    // A bound that the verifier sees in the register that is added. The comparison may have used another load of the
    // same stack slot, and kernels before 6.8 do not relate the two.
    // SAFETY: the register keeps its value, which is not above the mask.
    unsafe {
        core::arch::asm!("{0} &= 511", inout(reg) bounded, options(pure, nomem, nostack, preserves_flags));
    }
    at(ctx, bounded)
}

/// The mask in [`behind`].
const OFFSETS: usize = 511;

/// As [`at`], for writing. Private data of this run: for programs that write so, the verifier adds a prologue that
/// unshares a cloned packet's headers (`kernel/bpf/verifier.c, convert_ctx_accesses()`).
#[inline(always)]
#[expect(clippy::mut_from_ref, reason = "the packet is not part of the context")]
pub fn at_mut<T: FromBytes + IntoBytes>(ctx: &impl View, offset: usize) -> Option<&mut T> {
    // SAFETY: as above, and there is no other reference into the packet.
    place(ctx, offset, size_of::<T>()).map(|at| unsafe { &mut *(at as *mut T) })
}

#[inline(always)]
fn place(ctx: &impl View, offset: usize, size: usize) -> Option<usize> {
    let mut at = ctx.begin() + offset;
    // One register for the check and the access: computed twice, the sum would be two unrelated pointers to the
    // verifier. (Without an instruction the line table would have two lines at one place, which the kernel rejects.)
    // SAFETY: the register keeps its value.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) at, options(pure, nomem, nostack, preserves_flags)) };
    if at + size > ctx.end() { None } else { Some(at) }
}

#[inline(always)]
pub fn store<T: IntoBytes + Immutable>(ctx: &TcContext, offset: usize, value: &T, flags: u64) -> Result<(), ()> {
    // SAFETY: the helper checks offset and length against the packet.
    let ret = unsafe {
        bpf_skb_store_bytes(ctx.skb.skb, offset as u32, core::ptr::from_ref(value).cast(), size_of::<T>() as u32, flags)
    };
    if ret == 0 { Ok(()) } else { Err(()) }
}

/// Whether the frame is untagged and addressed to this host. In promiscuous mode the hooks see frames to other hosts
/// too, and on the parent of a VLAN the frames of that VLAN.
#[inline(always)]
pub fn is_for_us(ctx: &TcContext) -> bool {
    // SAFETY: context fields, read-only.
    unsafe { (*ctx.skb.skb).pkt_type == PACKET_HOST && !is_tagged(ctx) }
}

#[inline(always)]
pub fn is_tagged(ctx: &TcContext) -> bool {
    // SAFETY: a context field, read-only.
    unsafe { (*ctx.skb.skb).vlan_present != 0 }
}

#[inline(always)]
pub fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: a context field, read-only.
    unsafe { (*ctx.skb.skb).ifindex }
}

/// `__sk_buff::tc_index` of a packet that a program has redirected, for the program at the egress of that device.
const SENT: u32 = 0x4e50;

#[inline(always)]
pub fn mark_sent(ctx: &TcContext) {
    // SAFETY: a context field that classifiers may write.
    unsafe { (*ctx.skb.skb).tc_index = SENT }
}

/// Whether the packet was marked; clears the mark.
#[inline(always)]
pub fn take_sent(ctx: &TcContext) -> bool {
    // SAFETY: as above.
    unsafe {
        let sent = (*ctx.skb.skb).tc_index == SENT;
        if sent {
            (*ctx.skb.skb).tc_index = 0;
        }
        sent
    }
}

#[inline(always)]
pub fn gso_size(ctx: &TcContext) -> u32 {
    // SAFETY: a context field, read-only.
    unsafe { (*ctx.skb.skb).gso_size }
}

subprog! {
    /// Parses the packet into scratch; 0 if it is no whole IP packet of the family. The network header is at `l3`: 14
    /// or 0.
    pub fn parse(l3: u32, side: u32) -> u32 as np_parse4, np_parse6 = parse_packet;

    /// Reads the transport header of the packet in scratch.
    fn read_transport() -> u32 as np_transport4, np_transport6 = transport;
}

#[inline(always)]
fn parse_packet<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>, l3: u32, side: u32) -> u32 {
    let packet = &mut scratch.packet;
    packet.side = side as u8;
    // Constants from here on, for offsets into the packet.
    let whole = if l3 == 0 { fill(ctx, 0, packet) } else { fill(ctx, ETHERNET, packet) };
    if !whole {
        return 0;
    }
    read_transport(ctx, scratch);
    1
}

#[inline(always)]
fn fill<F: Wire>(ctx: &TcContext, l3: usize, packet: &mut Packet<F>) -> bool {
    let linear = ctx.data_end().wrapping_sub(ctx.data()) as u32;
    let len = ctx.len();
    if linear < HEADERS && linear < len {
        // SAFETY: pointers into the packet are taken after this.
        unsafe { bpf_skb_pull_data(ctx.skb.skb, if len < HEADERS { len } else { HEADERS }) };
    }
    packet.l3 = l3;
    // A truncated packet is left to the stack. (A longer frame is valid: short frames are padded.)
    F::header(ctx, l3, &mut packet.ip, &mut packet.tuple) && packet.ip.len.wrapping_add(l3 as u32) <= len
}

#[inline(always)]
fn transport<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>) -> u32 {
    let packet = &mut scratch.packet;
    (packet.check, packet.address_flags, packet.tcp_flags) = (0, 0, 0);
    packet.kind = match packet.ip.fragment {
        Fragment::Later => fragment::of_known(packet),
        _ => headers(ctx, packet),
    };
    if packet.kind == Kind::Error && icmp::read(ctx, scratch) == 0 {
        scratch.packet.kind = Kind::Odd;
    }
    1
}

/// Reads the ports, flags and length of a whole transport header.
#[inline(always)]
fn headers<F: Wire>(ctx: &TcContext, packet: &mut Packet<F>) -> Kind {
    let l4 = packet.ip.l4;
    let network = (l4 - packet.l3) as u32;
    let len = packet.ip.len;
    match packet.ip.proto {
        PROTO_TCP => {
            let Some(h) = behind::<Tcp>(ctx, l4) else { return Kind::Odd };
            packet.headers = network + u32::from(h.offset >> 4) * 4;
            if h.offset >> 4 < 5 || packet.headers > len {
                return Kind::Odd;
            }
            (packet.tuple.sport, packet.tuple.dport) = (h.sport, h.dport);
            packet.tcp_flags = h.flags;
            packet.check = l4 + 16;
            packet.address_flags = u64::from(BPF_F_PSEUDO_HDR);
            Kind::Tcp
        }
        PROTO_UDP => {
            let Some(h) = behind::<Udp>(ctx, l4) else { return Kind::Odd };
            packet.headers = network + 8;
            if packet.headers > len {
                return Kind::Odd;
            }
            (packet.tuple.sport, packet.tuple.dport) = (h.sport, h.dport);
            packet.check = l4 + 6;
            // A UDP checksum of zero means none, and stays (RFC 768; for IPv6 tunnels RFC 6935).
            packet.address_flags = u64::from(BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0);
            Kind::Udp
        }
        PROTO_SCTP => {
            let Some(h) = behind::<Sctp>(ctx, l4) else { return Kind::Odd };
            packet.headers = network + size_of::<Sctp>() as u32;
            if packet.headers > len {
                return Kind::Odd;
            }
            // No pseudo-header (RFC 9260 §6.8): addresses can be changed, ports cannot.
            (packet.tuple.sport, packet.tuple.dport) = (h.sport, h.dport);
            Kind::Sctp
        }
        p if p == F::ICMP => {
            let Some(h) = behind::<Echo>(ctx, l4) else { return Kind::Odd };
            packet.headers = network + 8;
            if packet.headers > len {
                return Kind::Odd;
            }
            packet.check = l4 + 2;
            // ICMP for IPv4 has no pseudo-header (RFC 792).
            packet.address_flags = if F::IS_V4 { 0 } else { u64::from(BPF_F_PSEUDO_HDR) };
            if icmp::is_error::<F>(h.kind) {
                (packet.tuple.sport, packet.tuple.dport) = (Be16::default(), Be16::default());
                return if packet.ip.fragment == Fragment::No { Kind::Error } else { Kind::Odd };
            }
            (packet.tuple.sport, packet.tuple.dport) = (h.id, h.id);
            match h.kind {
                k if k == F::ECHO_REQUEST && h.code == 0 => Kind::EchoRequest,
                k if k == F::ECHO_REPLY && h.code == 0 => Kind::EchoReply,
                _ => Kind::Odd,
            }
        }
        // Their checksums cover the addresses, at offsets of their own (RFC 3828, RFC 4340 §9).
        PROTO_UDP_LITE | PROTO_DCCP => Kind::Odd,
        // The other family's ICMP, and extension headers.
        PROTO_ICMP | PROTO_ICMPV6 | 0 | 43 | 44 | 59 | 60 => Kind::Odd,
        _ => {
            packet.headers = network;
            (packet.tuple.sport, packet.tuple.dport) = (Be16::default(), Be16::default());
            Kind::Other
        }
    }
}

/// Translates `packet` to `to` and decrements its TTL by `hops`. `None`: it is partly written.
#[inline(always)]
pub fn rewrite<F: Wire>(ctx: &TcContext, packet: &Packet<F>, hops: u8, to: &Tuple<F>) -> Option<()> {
    let from = &packet.tuple;
    let (l4, check, flags) = (packet.ip.l4, packet.check, packet.address_flags);
    F::write_header(ctx, packet.l3, &packet.ip, hops, from, to)?;
    if flags != 0 {
        replace_checksum(ctx, check, 0, u64::from(from.address_difference(to)), flags).ok()?;
    }
    if from.ports() == to.ports() || check == 0 {
        return Some(());
    }
    if packet.ip.proto == F::ICMP {
        let (old, new) = (u16::from_ne_bytes(from.sport.0), u16::from_ne_bytes(to.sport.0));
        replace_checksum(ctx, check, u64::from(old), u64::from(new), 2).ok()?;
        return store(ctx, l4 + 4, &to.sport, 0).ok();
    }
    let mangled = flags & u64::from(BPF_F_MARK_MANGLED_0);
    replace_checksum(ctx, check, u64::from(from.ports()), u64::from(to.ports()), mangled | 4).ok()?;
    store(ctx, l4, &to.ports(), 0).ok()
}

/// The transport checksum of a TCP or UDP packet at `l4` that becomes `to`. Two calls: with CHECKSUM_PARTIAL the
/// field covers the addresses and not the ports.
#[inline(always)]
pub fn replace_sums<F: Wire>(ctx: &TcContext, proto: u8, l4: usize, from: &Tuple<F>, to: &Tuple<F>) -> Option<()> {
    let (check, mangled) = if proto == PROTO_TCP { (l4 + 16, 0) } else { (l4 + 6, u64::from(BPF_F_MARK_MANGLED_0)) };
    let family = if F::IS_V4 || NP_CSUM_IPV6.load() == 0 { 0 } else { BPF_F_IPV6 };
    let flags = u64::from(BPF_F_PSEUDO_HDR) | mangled | family;
    replace_checksum(ctx, check, 0, u64::from(from.address_difference(to)), flags).ok()?;
    if from.ports() == to.ports() {
        return Some(());
    }
    replace_checksum(ctx, check, u64::from(from.ports()), u64::from(to.ports()), mangled | 4).ok()
}

#[inline(always)]
pub fn replace_checksum(ctx: &TcContext, at: usize, from: u64, to: u64, flags: u64) -> Result<(), ()> {
    // SAFETY: the helper checks the offset against the packet.
    if unsafe { bpf_l4_csum_replace(ctx.as_ptr().cast(), at as u32, from, to, flags) } == 0 { Ok(()) } else { Err(()) }
}

#[repr(C, align(4))]
#[derive(Clone, Copy, FromBytes, Immutable)]
pub struct Tcp {
    pub sport: Be16,
    pub dport: Be16,
    numbers: [u8; 8],
    pub offset: u8,
    pub flags: u8,
    window: [u8; 2],
    check: [u8; 2],
    urgent: [u8; 2],
}

#[repr(C, align(4))]
#[derive(Clone, Copy, FromBytes, Immutable)]
pub struct Udp {
    pub sport: Be16,
    pub dport: Be16,
    pub len: Be16,
    pub check: [u8; 2],
}

/// The common header (RFC 9260 §3.1).
#[repr(C, align(4))]
#[derive(Clone, Copy, FromBytes, Immutable)]
pub struct Sctp {
    pub sport: Be16,
    pub dport: Be16,
    tag: [u8; 4],
    check: [u8; 4],
}

#[repr(C, align(4))]
#[derive(Clone, Copy, FromBytes, Immutable)]
pub struct Echo {
    pub kind: u8,
    pub code: u8,
    pub check: [u8; 2],
    pub id: Be16,
    pub sequence: [u8; 2],
}
