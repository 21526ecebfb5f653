//! State of a flow, and its lifetime without a packet.
//!
//! Both entries of a flow hold the same bits except [`REPLY_HALF`]. Bits are added (only the acknowledgement that establishes
//! a connection takes a reset back): if two processors write at once, one update is lost at most, and the next packet repeats
//! it. How segments change them: [`crate::tcp`].

use crate::layout::{Next, PROTO_TCP, PROTO_UDP};
use crate::tcp::{self, TcpState};

/// A packet in reply direction was seen.
pub const REPLIED: u8 = 0x01;
pub const FIN_ORIGINAL: u8 = 0x02;
pub const FIN_REPLY: u8 = 0x04;
pub const RESET: u8 = 0x08;
/// TCP: the originator has acknowledged the reply to its SYN.
pub const ESTABLISHED: u8 = 0x10;
/// The next hop of this entry, if it leads outward, was last looked up more than a second ago.
pub const STALE: u8 = 0x20;
/// Another flow is taking over the slot of this entry; of several, one sets this bit.
pub const CLAIMED: u8 = 0x40;
/// This entry translates the replies.
pub const REPLY_HALF: u8 = 0x80;

/// Number of low bits of CLOCK_MONOTONIC's nanoseconds within a tick.
pub const TICK_BITS: u32 = 27;
/// A tick in nanoseconds: 0.134 s. An entry is written once per tick, and when TCP's acknowledgement moves, since a busy flow
/// must not dirty a cache line with each packet; the check for the other entry has the same rate. A full table may evict that entry
/// within a second if its whole content is replaced in two.
pub const TICK_NS: u64 = 1 << TICK_BITS;
/// Ticks after which the next hop is looked up again, as a power of two: 1.07 s.
const HOP_BITS: u32 = 3;

/// RFC 4787 §4.3 REQ-5: 2 min at least once both sides have sent; before that as netfilter does
/// (`net/netfilter/nf_conntrack_proto_udp.c, udp_timeouts`).
pub const UDP_S: u32 = 180;
pub const UDP_UNREPLIED_S: u32 = 30;
/// RFC 5508 §3.2 REQ-2: 60 s at least.
pub const ECHO_S: u32 = 60;
/// No flow expires sooner than this, in ticks.
pub const SHORTEST: u32 = ticks(tcp::REFUSED_S);
/// If no port is free, the port of a closed connection may be reused after this time, as netfilter does
/// (`net/netfilter/nf_nat_core.c, nf_nat_used_tuple_harder()`), and the port of a flow that has lost its first entry:
/// its last acknowledgements, or replies, have arrived.
pub const REUSE_AFTER_S: u32 = 2;

/// Seconds that a flow lives without a packet.
#[inline(always)]
pub const fn timeout_s(proto: u8, state: u8) -> u32 {
    match proto {
        PROTO_TCP => TcpState::of(state).timeout_s(),
        PROTO_UDP => {
            if state & REPLIED != 0 {
                UDP_S
            } else {
                UDP_UNREPLIED_S
            }
        }
        _ => ECHO_S,
    }
}

/// In ticks, rounded up: a lower bound of a lifetime stays one.
#[inline(always)]
pub const fn ticks(seconds: u32) -> u32 {
    (seconds as u64 * 1_000_000_000).div_ceil(TICK_NS) as u32
}

/// In seconds, rounded down.
#[inline(always)]
pub const fn seconds(ticks: u32) -> u32 {
    ((ticks as u64) * TICK_NS / 1_000_000_000) as u32
}

/// Of a promoted flow: whether a direction has sent a segment that ends it, or begins another connection. Conntrack sees the
/// rest of it.
#[inline(always)]
pub const fn has_ended(next: &Next) -> bool {
    next.state & RESET != 0
}

/// Ticks since the last packet; 0 when another processor's clock was read a moment later.
#[inline(always)]
pub const fn idle(next: &Next, now: u32) -> u32 {
    let idle = now.wrapping_sub(next.last_seen);
    if idle > u32::MAX / 2 { 0 } else { idle }
}

/// Whether the entry needs no write for another packet now.
#[inline(always)]
pub const fn is_fresh(next: &Next, now: u32) -> bool {
    idle(next, now) == 0
}

/// Whether a packet is the first of its 1.07 s window: about once a second in a busy flow.
#[inline(always)]
pub const fn starts_window(next: &Next, now: u32) -> bool {
    const WINDOW: u32 = 1 << HOP_BITS;
    // Since the start of the window of the last packet; negative if another processor's clock was later.
    let passed = now.wrapping_sub(next.last_seen & !(WINDOW - 1)) as i32;
    passed >= WINDOW as i32
}

/// An expired flow counts as absent for every reader.
#[inline(always)]
pub const fn has_expired(proto: u8, next: &Next, now: u32) -> bool {
    let idle = idle(next, now);
    idle > SHORTEST && idle > ticks(timeout_s(proto, next.state))
}

/// Whether a connection is closed and its last packets have arrived.
#[inline(always)]
pub const fn is_closed(proto: u8, next: &Next, now: u32) -> bool {
    proto == PROTO_TCP && TcpState::of(next.state).is_over() && idle(next, now) >= ticks(REUSE_AFTER_S)
}

/// Whether a flow other than TCP has been idle long enough for its port to be reused if its original entry is gone. A
/// full table evicts that entry first, since replies use only the other one; without reuse the remaining entries
/// would hold the ports of every second flow.
#[inline(always)]
pub const fn may_be_orphaned(proto: u8, next: &Next, now: u32) -> bool {
    proto != PROTO_TCP && idle(next, now) >= ticks(REUSE_AFTER_S)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: u8 = REPLIED | ESTABLISHED;

    fn next(state: u8, last_seen: u32) -> Next {
        Next { state, last_seen, ..Next::default() }
    }

    #[test]
    fn a_flow_expires_after_the_time_out_of_its_state() {
        for (what, proto, state, timeout_s) in [
            ("a syn without an answer", PROTO_TCP, 0, tcp::TRANSITORY_S),
            ("an answered one", PROTO_TCP, REPLIED, tcp::TRANSITORY_S),
            ("a refused one", PROTO_TCP, REPLIED | RESET, tcp::REFUSED_S),
            ("an established connection", PROTO_TCP, OPEN, tcp::ESTABLISHED_S),
            ("a half-closed one", PROTO_TCP, OPEN | FIN_ORIGINAL, tcp::TRANSITORY_S),
            ("a closed one", PROTO_TCP, OPEN | FIN_ORIGINAL | FIN_REPLY, tcp::CLOSED_S),
            ("a reset one", PROTO_TCP, OPEN | FIN_ORIGINAL | RESET, tcp::RESET_S),
            ("a request", PROTO_UDP, 0, UDP_UNREPLIED_S),
            ("a conversation", PROTO_UDP, REPLIED, UDP_S),
            ("an echo", crate::layout::PROTO_ICMP, REPLIED, ECHO_S),
        ] {
            assert!(!has_expired(proto, &next(state, 1_000), 1_000 + ticks(timeout_s)), "{what} lives");
            assert!(has_expired(proto, &next(state, 1_000), 1_001 + ticks(timeout_s)), "{what} ends");
            assert!(
                has_expired(proto, &next(state | REPLY_HALF, 1_000), 1_001 + ticks(timeout_s)),
                "{what}, other half"
            );
        }
    }

    #[test]
    fn a_flow_does_not_expire_by_a_clock_that_is_behind() {
        assert!(!has_expired(PROTO_UDP, &next(0, 1_001), 1_000));
        assert_eq!(0, idle(&next(0, 1_001), 1_000));
    }

    #[test]
    fn the_clock_may_wrap() {
        assert_eq!(6, idle(&next(0, u32::MAX - 1), 4));
    }

    #[test]
    fn the_port_of_a_closed_connection_is_reused_after_a_time() {
        let closed = OPEN | FIN_ORIGINAL | FIN_REPLY;
        for (what, proto, state, idle_s, is) in [
            ("closed", PROTO_TCP, closed, REUSE_AFTER_S, true),
            ("closed, other half", PROTO_TCP, closed | REPLY_HALF, REUSE_AFTER_S, true),
            ("reset", PROTO_TCP, OPEN | RESET, REUSE_AFTER_S, true),
            ("closed just now", PROTO_TCP, closed, REUSE_AFTER_S - 1, false),
            ("half-closed", PROTO_TCP, OPEN | FIN_REPLY, tcp::TRANSITORY_S, false),
            ("established", PROTO_TCP, OPEN, tcp::ESTABLISHED_S, false),
            ("a conversation", PROTO_UDP, REPLIED, UDP_S, false),
        ] {
            assert_eq!(is, is_closed(proto, &next(state, 1_000), 1_000 + ticks(idle_s)), "{what}");
        }
    }

    #[test]
    fn only_an_idle_flow_of_another_protocol_may_be_orphaned() {
        assert!(may_be_orphaned(PROTO_UDP, &next(REPLIED | REPLY_HALF, 1_000), 1_000 + ticks(REUSE_AFTER_S)));
        assert!(!may_be_orphaned(PROTO_UDP, &next(REPLIED | REPLY_HALF, 1_000), 999 + ticks(REUSE_AFTER_S)));
        assert!(!may_be_orphaned(PROTO_TCP, &next(REPLIED | REPLY_HALF, 1_000), 1_000 + ticks(tcp::TRANSITORY_S)));
    }

    #[test]
    fn ticks_are_about_an_eighth_of_a_second() {
        assert_eq!((8, 55_433), (ticks(1), ticks(tcp::ESTABLISHED_S)));
        assert_eq!((0, 1, 7_440), (seconds(7), seconds(8), seconds(ticks(tcp::ESTABLISHED_S))));
    }

    #[test]
    fn a_flow_is_fresh_for_a_tick_and_its_next_hop_is_looked_up_about_once_a_second() {
        let at = |last_seen| next(REPLIED, last_seen);
        assert!(is_fresh(&at(1_000), 1_000) && is_fresh(&at(1_001), 1_000) && !is_fresh(&at(1_000), 1_001));
        let busy = (8_000..8_100).filter(|now| starts_window(&at(now - 1), *now)).count();
        assert_eq!(100 / 8 + 1, busy, "a packet in each tick");
        assert!((8_000..8_100).all(|now| starts_window(&at(now - 8), now)), "a packet each second");
        assert!((8_000..8_100).all(|now| !starts_window(&at(now + 100), now)), "another processor's clock is later");
        assert!(starts_window(&at(u32::MAX), 0) && !starts_window(&at(u32::MAX), u32::MAX - 7), "the clock may wrap");
    }
}
