//! Translation of a packet in place.

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::programs::TcContext;
use netpath_common::family::Tuple;
use netpath_common::layout::PROTO_TCP;

use crate::headers::Wire;
use crate::packet::{NP_CSUM_IPV6, replace_checksum, store};
use crate::parsed::Packet;

/// `include/uapi/linux/bpf.h`, of `bpf_l4_csum_replace` (6.16).
const BPF_F_IPV6: u64 = 1 << 7;

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
