//! ICMP errors (RFC 792, RFC 4443): the quoted packet was translated, so the quotation is translated back for its
//! sender, and the error forwarded there (RFC 5508 §4).

use aya_ebpf::programs::TcContext;
use netpath_common::addr::Be16;
use netpath_common::family::{Family, Tuple};
use netpath_common::layout::{PROTO_SCTP, PROTO_TCP, PROTO_UDP, SIDE_BRIDGE};

use crate::flows;
use crate::half::Half;
use crate::headers::Wire;
use crate::packet::{self, ETHERNET, Echo, Udp};
use crate::parsed::{Fragment, Quoted};
use crate::scratch::{Scratch, ScratchMut};
use crate::subprog::subprog;

/// Length of the error's own header.
const HEADER: usize = 8;

/// Unreachable, too big, time exceeded, parameter problem. Redirects are for the next hop, source quench is obsolete.
#[inline(always)]
pub fn is_error<F: Family>(kind: u8) -> bool {
    if F::IS_V4 { matches!(kind, 3 | 11 | 12) } else { matches!(kind, 1..=4) }
}

subprog! {
    /// Parses the quotation of the error in scratch into scratch; 0 if that is impossible.
    pub fn read() -> u32 as np_read_quoted4, np_read_quoted6 = read_quoted;

    /// Looks up the flow of the quoted packet at `side`; 1 if there is one, with its hop in scratch.
    pub fn follow(side: u32) -> u32 as np_follow_error4, np_follow_error6 = follow_quoted;

    /// Translates the quotation back; 0 = the packet is partly written.
    pub fn restore() -> u32 as np_restore4, np_restore6 = restore_quoted;
}

#[inline(always)]
fn read_quoted<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>) -> u32 {
    let Scratch { packet, quoted, .. } = &mut **scratch;
    // Constant offsets for the verifier: an error with options in its own network header is ignored.
    let plain = packet.l3 + F::HEADER;
    if packet.ip.l4 != plain {
        return 0;
    }
    let whole = if packet.l3 == 0 {
        F::header(ctx, F::HEADER + HEADER, &mut quoted.ip, &mut quoted.tuple)
    } else {
        F::header(ctx, ETHERNET + F::HEADER + HEADER, &mut quoted.ip, &mut quoted.tuple)
    };
    if !whole || quoted.ip.fragment == Fragment::Later {
        return 0;
    }
    let l4 = quoted.ip.l4;
    // At least eight bytes of the transport header (RFC 792): ports and UDP's checksum, or echo's identifier. Bytes
    // behind the error's own end are padding.
    if l4 + 8 > packet.l3 + packet.ip.len as usize {
        return 0;
    }
    let tuple = &mut quoted.tuple;
    match quoted.ip.proto {
        PROTO_TCP | PROTO_UDP | PROTO_SCTP => {
            let Some(h) = packet::behind::<Udp>(ctx, l4) else { return 0 };
            (tuple.sport, tuple.dport) = (h.sport, h.dport);
        }
        p if p == F::ICMP => {
            let Some(h) = packet::behind::<Echo>(ctx, l4) else { return 0 };
            if h.kind != F::ECHO_REQUEST && h.kind != F::ECHO_REPLY {
                return 0;
            }
            (tuple.sport, tuple.dport) = (h.id, h.id);
        }
        _ => (tuple.sport, tuple.dport) = (Be16::default(), Be16::default()),
    }
    1
}

#[inline(always)]
fn follow_quoted<F: Wire>(_ctx: &TcContext, scratch: &mut ScratchMut<F>, side: u32) -> u32 {
    let Scratch { packet, quoted, hop, .. } = &mut **scratch;
    // The entry for replies to the quoted packet has both addresses as the packet's sender knows them.
    let key = F::key(&quoted.tuple.reversed(), quoted.ip.proto, side as u8);
    let Some(half) = Half::<F>::find(&key) else { return 0 };
    let next = half.next();
    // The port of an expired flow may belong to another one by now.
    if flows::has_expired(quoted.ip.proto, &next, flows::now()) {
        return 0;
    }
    let answer = half.read(F::translated);
    hop.next = next;
    quoted.to = answer.reversed();
    // An error of the far end gets the source address that the sender knows; an error of a router keeps the router's
    // address. Errors from a container's side always get it, since the sender knows no other address there.
    let far_end = F::same(&packet.tuple.src, &quoted.tuple.dst) || packet.side == SIDE_BRIDGE;
    hop.to = Tuple {
        src: if far_end { answer.src } else { packet.tuple.src },
        dst: answer.dst,
        sport: packet.tuple.sport,
        dport: packet.tuple.dport,
    };
    1
}

#[inline(always)]
fn restore_quoted<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>) -> u32 {
    let (packet, quoted) = (&scratch.packet, &scratch.quoted);
    let plain = if packet.l3 == 0 { F::HEADER + HEADER } else { ETHERNET + F::HEADER + HEADER };
    u32::from(restore_all::<F>(ctx, packet.check, plain, quoted).is_some())
}

/// The error's checksum covers the quotation, so each change updates it.
#[inline(always)]
fn restore_all<F: Wire>(ctx: &TcContext, check: usize, l3: usize, quoted: &Quoted<F>) -> Option<()> {
    let (from, to, l4) = (&quoted.tuple, &quoted.to, quoted.ip.l4);
    F::restore_addresses(ctx, check, l3, &quoted.ip, from, to)?;
    match quoted.ip.proto {
        PROTO_UDP => {
            let sum = packet::behind::<Udp>(ctx, l4)?.check;
            if from.ports() != to.ports() {
                put4(ctx, check, l4, from.ports(), to.ports())?;
            }
            if sum != [0; 2] {
                let ports = u64::from(!from.ports()) + u64::from(to.ports());
                let sums = netpath_common::checksum::replaced(sum, u64::from(from.address_difference(to)) + ports);
                put2(ctx, check, l4 + 6, sum, sums)?;
            }
            Some(())
        }
        // TCP's checksum is beyond the required quotation.
        PROTO_TCP if from.ports() != to.ports() => put4(ctx, check, l4, from.ports(), to.ports()),
        // Echo's identifier, and its checksum, which balances it: both together leave the error's own unchanged.
        p if p == F::ICMP => {
            let h = *packet::behind::<Echo>(ctx, l4)?;
            let (old, new) = (u16::from_ne_bytes(from.sport.0), u16::from_ne_bytes(to.sport.0));
            let mut difference = u64::from(!old) + u64::from(new);
            if !F::IS_V4 {
                difference += u64::from(from.address_difference(to));
            }
            put2(ctx, check, l4 + 2, h.check, netpath_common::checksum::replaced(h.check, difference))?;
            put2(ctx, check, l4 + 4, from.sport.0, to.sport.0)
        }
        // Unchanged: SCTP and protocols without ports.
        _ => Some(()),
    }
}

/// Stores four bytes and updates the checksum at `check`. Both together leave a CHECKSUM_COMPLETE sum unchanged.
#[inline(always)]
pub fn put4(ctx: &TcContext, check: usize, at: usize, old: u32, new: u32) -> Option<()> {
    packet::replace_checksum(ctx, check, u64::from(old), u64::from(new), 4).ok()?;
    packet::store(ctx, at, &new, 0).ok()
}

#[inline(always)]
pub fn put2(ctx: &TcContext, check: usize, at: usize, old: [u8; 2], new: [u8; 2]) -> Option<()> {
    let (from, to) = (u16::from_ne_bytes(old), u16::from_ne_bytes(new));
    packet::replace_checksum(ctx, check, u64::from(from), u64::from(to), 2).ok()?;
    packet::store(ctx, at, &new, 0).ok()
}
