//! Reading and writing packets. Values are copied out before anything is written: no pointer into a packet outlives
//! a helper call.

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::{bpf_l4_csum_replace, bpf_skb_pull_data, bpf_skb_store_bytes};
use aya_ebpf::programs::TcContext;
use aya_ebpf::{EbpfContext, Global};
use netpath_common::addr::Be16;
use netpath_common::family::{Family, Tuple};
use netpath_common::layout::{PROTO_TCP, PROTO_UDP};

use crate::desk;
use crate::global::global;
use crate::wire::{Ip, Wire};

/// `netpath_common::layout::global::CSUM_IPV6`.
#[unsafe(no_mangle)]
pub static NP_CSUM_IPV6: Global<u8> = Global::new(0);

/// `include/uapi/linux/bpf.h`, of `bpf_l4_csum_replace` (6.16).
const BPF_F_IPV6: u64 = 1 << 7;

/// Ethernet, in front of the network header.
pub const ETHERNET: usize = 14;

/// `__sk_buff::pkt_type`: addressed to this host (`include/uapi/linux/if_packet.h`).
const PACKET_HOST: u32 = 0;

/// Bytes that are made linear if they are not: a network header with options, and a transport header.
const HEADERS: u32 = 100;

#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    Tcp,
    Udp,
    EchoRequest,
    EchoReply,
    /// Only the addresses of the tuple are set.
    Fragment,
    /// Another protocol, or a transport header that is cut short. Only the addresses of the tuple are set.
    Other,
}

pub struct Packet<F: Family> {
    pub tuple: Tuple<F>,
    pub ip: Ip,
    pub kind: Kind,
    pub tcp_flags: u8,
    pub l3: usize,
    /// Where the transport checksum is, and the flags of `bpf_l4_csum_replace` for a change of addresses; 0 = it does not
    /// cover them. Kept as numbers, so that the verifier has one way through [`rewrite`] and not one per protocol.
    pub check: usize,
    pub address_flags: u64,
    /// Network and transport headers: what each segment of a GSO packet has besides its payload.
    pub headers: u32,
}

/// The `T` at `offset`, if the packet is that long; not to be used after a helper that changes the packet. `T` is plain data of alignment 4 at most: the stack lays network
/// headers on such boundaries (`include/linux/skbuff.h, NET_IP_ALIGN`), and the machines that do not need it do not care.
#[inline(always)]
pub fn at<T>(ctx: &TcContext, offset: usize) -> Option<&T> {
    // SAFETY: between data and data_end, which the verifier checks again; T is plain data.
    place(ctx, offset, size_of::<T>()).map(|at| unsafe { &*(at as *const T) })
}

/// The same to be written to. Private data of this run: the verifier puts in front of a program that writes so what
/// makes a cloned packet's headers its own (`kernel/bpf/verifier.c, convert_ctx_accesses()`).
#[inline(always)]
#[expect(clippy::mut_from_ref, reason = "the packet is not part of the context")]
pub fn at_mut<T>(ctx: &TcContext, offset: usize) -> Option<&mut T> {
    // SAFETY: as above, and nobody else holds a reference into the packet.
    place(ctx, offset, size_of::<T>()).map(|at| unsafe { &mut *(at as *mut T) })
}

#[inline(always)]
fn place(ctx: &TcContext, offset: usize, size: usize) -> Option<usize> {
    // A bound for the verifier, and no loss: headers end before.
    if offset > 512 {
        return None;
    }
    let mut at = ctx.data() + offset;
    // One register for the check and the access: made up twice, the sum would be two pointers to the verifier.
    // (With no instruction in it, the line table would have two lines at one place, which the kernel refuses.)
    // SAFETY: the register keeps its value.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) at, options(pure, nomem, nostack, preserves_flags)) };
    if at + size > ctx.data_end() { None } else { Some(at) }
}

#[inline(always)]
pub fn store<T>(ctx: &TcContext, offset: usize, value: &T, flags: u64) -> Result<(), ()> {
    // SAFETY: the helper checks offset and length against the packet.
    let ret = unsafe {
        bpf_skb_store_bytes(ctx.skb.skb, offset as u32, core::ptr::from_ref(value).cast(), size_of::<T>() as u32, flags)
    };
    if ret == 0 { Ok(()) } else { Err(()) }
}

/// Whether the frame is untagged and addressed to this host. In promiscuous mode the hooks see the frames of others too,
/// and on a parent of a VLAN the frames of that VLAN.
#[inline(always)]
pub fn is_for_us(ctx: &TcContext) -> bool {
    // SAFETY: context fields, read-only.
    unsafe { (*ctx.skb.skb).pkt_type == PACKET_HOST && (*ctx.skb.skb).vlan_present == 0 }
}

#[inline(always)]
pub fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: a context field, read-only.
    unsafe { (*ctx.skb.skb).ifindex }
}

#[inline(always)]
pub fn gso_size(ctx: &TcContext) -> u32 {
    // SAFETY: a context field, read-only.
    unsafe { (*ctx.skb.skb).gso_size }
}

global! {
    /// Puts the packet on the desk; 0 if this is no whole IP packet of the family. The network header is at `l3`: 14 or 0.
    pub fn parse(l3: u32) -> u32 as np_parse4, np_parse6 = parse_packet;
}

#[inline(always)]
fn parse_packet<F: Wire>(ctx: &TcContext, l3: u32) -> u32 {
    let Some(packet) = desk::packet::<F>() else { return 0 };
    // Known numbers from here on, for offsets into the packet.
    u32::from(if l3 == 0 { fill(ctx, 0, packet) } else { fill(ctx, ETHERNET, packet) })
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
    // A packet cut short is the stack's to drop. (Longer is right: short frames are padded.)
    if !F::header(ctx, l3, packet) || packet.ip.len.wrapping_add(l3 as u32) > len {
        return false;
    }
    packet.kind = if packet.ip.fragment { Kind::Fragment } else { transport(ctx, packet) };
    true
}

/// Reads the ports, flags and header length of a transport header that is whole.
#[inline(always)]
fn transport<F: Wire>(ctx: &TcContext, packet: &mut Packet<F>) -> Kind {
    let l4 = packet.ip.l4;
    let headers = (l4 - packet.l3) as u32;
    let len = packet.ip.len;
    match packet.ip.proto {
        PROTO_TCP => {
            let Some(h) = at::<Tcp>(ctx, l4) else { return Kind::Other };
            packet.headers = headers + u32::from(h.offset >> 4) * 4;
            if h.offset >> 4 < 5 || packet.headers > len {
                return Kind::Other;
            }
            (packet.tuple.sport, packet.tuple.dport) = (h.sport, h.dport);
            packet.tcp_flags = h.flags;
            packet.check = l4 + 16;
            packet.address_flags = u64::from(BPF_F_PSEUDO_HDR);
            Kind::Tcp
        }
        PROTO_UDP => {
            let Some(h) = at::<Udp>(ctx, l4) else { return Kind::Other };
            packet.headers = headers + 8;
            if packet.headers > len {
                return Kind::Other;
            }
            (packet.tuple.sport, packet.tuple.dport) = (h.sport, h.dport);
            packet.check = l4 + 6;
            // A UDP checksum of zero means none, and stays (RFC 768; for IPv6 tunnels RFC 6935).
            packet.address_flags = u64::from(BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0);
            Kind::Udp
        }
        p if p == F::ICMP => {
            let Some(h) = at::<Echo>(ctx, l4) else { return Kind::Other };
            packet.headers = headers + 8;
            if packet.headers > len || h.code != 0 {
                return Kind::Other;
            }
            (packet.tuple.sport, packet.tuple.dport) = (h.id, h.id);
            packet.check = l4 + 2;
            // ICMP for IPv4 has no pseudo-header (RFC 792).
            packet.address_flags = if F::IS_V4 { 0 } else { u64::from(BPF_F_PSEUDO_HDR) };
            match h.kind {
                k if k == F::ECHO_REQUEST => Kind::EchoRequest,
                k if k == F::ECHO_REPLY => Kind::EchoReply,
                _ => Kind::Other,
            }
        }
        _ => Kind::Other,
    }
}

/// `packet` becomes `to`, one hop older. An error leaves it half written.
#[inline(always)]
pub fn rewrite<F: Wire>(ctx: &TcContext, packet: &Packet<F>, to: &Tuple<F>) -> Result<(), ()> {
    let from = &packet.tuple;
    let (l4, check, flags) = (packet.ip.l4, packet.check, packet.address_flags);
    F::write_header(ctx, packet.l3, &packet.ip, from, to)?;
    if flags != 0 {
        replace_checksum(ctx, check, 0, u64::from(from.address_difference(to)), flags)?;
    }
    if from.ports() == to.ports() {
        return Ok(());
    }
    if packet.ip.proto == F::ICMP {
        let (old, new) = (u16::from_ne_bytes(from.sport.0), u16::from_ne_bytes(to.sport.0));
        replace_checksum(ctx, check, u64::from(old), u64::from(new), 2)?;
        return store(ctx, l4 + 4, &to.sport, 0);
    }
    let mangled = flags & u64::from(BPF_F_MARK_MANGLED_0);
    replace_checksum(ctx, check, u64::from(from.ports()), u64::from(to.ports()), mangled | 4)?;
    store(ctx, l4, &to.ports(), 0)
}

/// The transport checksum of a TCP or UDP packet at `l4` that becomes `to`. Two calls, since for a packet whose checksum
/// is left to the device (CHECKSUM_PARTIAL) the field holds the addresses and not the ports.
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
fn replace_checksum(ctx: &TcContext, at: usize, from: u64, to: u64, flags: u64) -> Result<(), ()> {
    // SAFETY: the helper checks the offset against the packet.
    if unsafe { bpf_l4_csum_replace(ctx.as_ptr().cast(), at as u32, from, to, flags) } == 0 { Ok(()) } else { Err(()) }
}

#[repr(C, align(4))]
#[derive(Clone, Copy)]
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
#[derive(Clone, Copy)]
pub struct Udp {
    pub sport: Be16,
    pub dport: Be16,
    len: [u8; 2],
    check: [u8; 2],
}

#[repr(C, align(4))]
#[derive(Clone, Copy)]
struct Echo {
    kind: u8,
    code: u8,
    check: [u8; 2],
    id: Be16,
    sequence: [u8; 2],
}
