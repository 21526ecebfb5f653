//! Parsing of a packet into scratch.

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::bpf_skb_pull_data;
use aya_ebpf::programs::TcContext;
use netpath_common::addr::Be16;
use netpath_common::layout::{PROTO_ICMP, PROTO_ICMPV6, PROTO_SCTP, PROTO_TCP, PROTO_UDP};
use netpath_common::tcp::Segment;

use crate::headers::Wire;
use crate::packet::{ETHERNET, Echo, Sctp, Tcp, Udp, View, behind};
use crate::parsed::{Fragment, Kind, Packet};
use crate::scratch::ScratchMut;
use crate::subprog::subprog;
use crate::{fragment, icmp};

const PROTO_DCCP: u8 = 33;
const PROTO_UDP_LITE: u8 = 136;

/// Bytes that must be linear: a network header with options, a transport header, and the same quoted in an ICMP error.
const HEADERS: u32 = 140;

subprog! {
    /// Parses the packet into scratch; 0 if it is no whole IP packet of the family. The network header is at `l3`: 14
    /// or 0.
    pub fn parse(l3: u32, side: u32) -> u32 as np_parse4, np_parse6 = parse_packet;

    /// Reads the transport header of the packet in scratch.
    fn read_transport() -> u32 as np_transport4, np_transport6 = transport;
}

#[inline(always)]
fn parse_packet<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>, l3: u32, side: u32) -> u32 {
    scratch.via.is_needed = false;
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
    (packet.check, packet.address_flags, packet.segment) = (0, 0, Segment::default());
    // BIG TCP, as `View::ip_len`. In IPv6 up to 6.18 with a jumbo payload option (RFC 2675), which no segment has
    // (`include/net/ipv6.h, ipv6_hopopt_jumbo_remove()`).
    if packet.ip.len as usize == F::EMPTY && ctx.is_gso() {
        packet.ip.len = ctx.size() - packet.l3 as u32;
        packet.ip.gone = if F::IS_V4 { 0 } else { (packet.ip.l4 - packet.l3 - F::HEADER) as u32 };
    }
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
    let network = (l4 - packet.l3) as u32 - packet.ip.gone;
    let len = packet.ip.len;
    match packet.ip.proto {
        PROTO_TCP => {
            let Some(h) = behind::<Tcp>(ctx, l4) else { return Kind::Odd };
            packet.headers = network + u32::from(h.offset >> 4) * 4;
            if h.offset >> 4 < 5 || packet.headers > len {
                return Kind::Odd;
            }
            (packet.tuple.sport, packet.tuple.dport) = (h.sport, h.dport);
            packet.segment = h.segment();
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
