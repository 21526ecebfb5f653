//! What a flow has seen, and how long it lives without a packet.
//!
//! Both halves of a flow hold the same bits besides [`REPLY_HALF`]. Bits are only ever added, so that two processors that
//! write at once lose at worst a packet's worth of news, which the next packet brings again.

use crate::layout::{Next, PROTO_TCP, PROTO_UDP};

/// A packet went the other way than the first one.
pub const REPLIED: u8 = 0x01;
pub const FIN_ORIGINAL: u8 = 0x02;
pub const FIN_REPLY: u8 = 0x04;
pub const RESET: u8 = 0x08;
/// The next hop of this half, if it leads outward, was last asked for a while ago.
pub const STALE: u8 = 0x20;
/// Another flow is taking this half's place: of those that want it, one sets this.
pub const CLAIMED: u8 = 0x40;
/// This half translates what comes back to the one who began.
pub const REPLY_HALF: u8 = 0x80;

const CLOSING: u8 = FIN_ORIGINAL | FIN_REPLY | RESET;

pub const TCP_FIN: u8 = 0x01;
pub const TCP_SYN: u8 = 0x02;
pub const TCP_RST: u8 = 0x04;
pub const TCP_ACK: u8 = 0x10;

/// Bits of CLOCK_MONOTONIC's nanoseconds that a tick has.
pub const TICK_BITS: u32 = 27;
/// A tick, in nanoseconds: 0.134 s. A half that has seen a packet within the tick is not written again, since a busy flow
/// must not dirty a cache line for each packet; nor is it asked whether the table still has the other half. That one may be
/// dropped within a second where a full table passes in two.
pub const TICK_NS: u64 = 1 << TICK_BITS;
/// Ticks after which the next hop is asked for again, as a power of two: 1.07 s.
const HOP_BITS: u32 = 3;

/// RFC 5382 §5 REQ-5: 2 h 4 min at least.
pub const TCP_ESTABLISHED_S: u32 = 7_440;
/// RFC 5382 §5 REQ-5: 4 min at least for connections that are being opened or closed.
pub const TCP_TRANSITORY_S: u32 = 240;
/// Both sides said FIN: what is left is TIME_WAIT (`include/net/tcp.h, TCP_TIMEWAIT_LEN`: 60 s) with room.
pub const TCP_CLOSED_S: u32 = 120;
/// After a reset: for the packets still under way.
pub const TCP_RESET_S: u32 = 10;
/// RFC 4787 §4.3 REQ-5: 2 min at least once both sides have spoken; before that as netfilter does
/// (`net/netfilter/nf_conntrack_proto_udp.c, udp_timeouts`).
pub const UDP_S: u32 = 180;
pub const UDP_UNREPLIED_S: u32 = 30;
/// RFC 5508 §3.2 REQ-2: 60 s at least.
pub const ECHO_S: u32 = 60;
/// No flow expires sooner than this, in ticks.
pub const SHORTEST: u32 = ticks(TCP_RESET_S);
/// Where no free port is found, that of a closed connection may be taken after so long, as netfilter does
/// (`net/netfilter/nf_nat_core.c, nf_nat_used_tuple_harder()`), and that of a flow whose first half is gone: its last
/// acknowledgements, or answers, have arrived.
pub const REUSE_AFTER_S: u32 = 2;

/// `state` with what this packet adds. `tcp_flags` is 0 for other protocols.
#[inline(always)]
pub const fn seen(state: u8, tcp_flags: u8) -> u8 {
    let reply = state & REPLY_HALF != 0;
    let mut now = state;
    if reply {
        now |= REPLIED;
    }
    if tcp_flags & TCP_FIN != 0 {
        now |= if reply { FIN_REPLY } else { FIN_ORIGINAL };
    }
    if tcp_flags & TCP_RST != 0 {
        now |= RESET;
    }
    now
}

/// Seconds that a flow lives without a packet.
#[inline(always)]
pub const fn timeout_s(proto: u8, state: u8) -> u32 {
    match proto {
        PROTO_TCP => {
            if state & RESET != 0 {
                TCP_RESET_S
            } else if state & CLOSING == FIN_ORIGINAL | FIN_REPLY {
                TCP_CLOSED_S
            } else if state & CLOSING != 0 || state & REPLIED == 0 {
                TCP_TRANSITORY_S
            } else {
                TCP_ESTABLISHED_S
            }
        }
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

/// In ticks, rounded up: what is to live so long at least, does.
#[inline(always)]
pub const fn ticks(seconds: u32) -> u32 {
    (seconds as u64 * 1_000_000_000).div_ceil(TICK_NS) as u32
}

/// In seconds, rounded down.
#[inline(always)]
pub const fn seconds(ticks: u32) -> u32 {
    ((ticks as u64) * TICK_NS / 1_000_000_000) as u32
}

/// Ticks since the last packet; 0 when another processor's clock was read a moment later.
#[inline(always)]
pub const fn idle(next: &Next, now: u32) -> u32 {
    let idle = now.wrapping_sub(next.last_seen);
    if idle > u32::MAX / 2 { 0 } else { idle }
}

/// Whether nothing need be written for another packet now.
#[inline(always)]
pub const fn is_fresh(next: &Next, now: u32) -> bool {
    idle(next, now) == 0
}

/// Whether a packet is the first for a while: about once a second in a busy flow.
#[inline(always)]
pub const fn is_late(next: &Next, now: u32) -> bool {
    const WINDOW: u32 = 1 << HOP_BITS;
    // Since the window began in which the last packet came; less than nothing if another processor's clock was later.
    let passed = now.wrapping_sub(next.last_seen & !(WINDOW - 1)) as i32;
    passed >= WINDOW as i32
}

/// An expired flow counts as absent, whoever finds it.
#[inline(always)]
pub const fn has_expired(proto: u8, next: &Next, now: u32) -> bool {
    let idle = idle(next, now);
    idle > SHORTEST && idle > ticks(timeout_s(proto, next.state))
}

/// Whether nothing of a flow is left to come, though its answers still have a place for latecomers.
#[inline(always)]
pub const fn is_closed(proto: u8, next: &Next, now: u32) -> bool {
    let has_closed = next.state & RESET != 0 || next.state & CLOSING == FIN_ORIGINAL | FIN_REPLY;
    proto == PROTO_TCP && has_closed && idle(next, now) >= ticks(REUSE_AFTER_S)
}

/// Whether a flow that is not TCP's has been quiet for so long that its port may be given away, should the half that was
/// sent by be gone: the table drops that half first, since answers come by the other, and what is left would keep the
/// ports of one more flow out of two.
#[inline(always)]
pub const fn may_be_orphaned(proto: u8, next: &Next, now: u32) -> bool {
    proto != PROTO_TCP && idle(next, now) >= ticks(REUSE_AFTER_S)
}

/// A SYN on a flow that is closing begins another connection between the same ports (RFC 9293 §3.6.1, TIME-WAIT).
#[inline(always)]
pub const fn begins_anew(state: u8, tcp_flags: u8) -> bool {
    is_syn(tcp_flags) && state & CLOSING != 0 && state & REPLY_HALF == 0
}

/// The first packet of a connection.
#[inline(always)]
pub const fn is_syn(tcp_flags: u8) -> bool {
    tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN) == TCP_SYN
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(state: u8, last_seen: u32) -> Next {
        Next { state, last_seen, ..Next::default() }
    }

    #[test]
    fn a_flow_expires_by_the_clock_of_its_state() {
        for (what, proto, state, timeout_s) in [
            ("a syn without an answer", PROTO_TCP, 0, TCP_TRANSITORY_S),
            ("an established connection", PROTO_TCP, REPLIED, TCP_ESTABLISHED_S),
            ("a half-closed one", PROTO_TCP, REPLIED | FIN_ORIGINAL, TCP_TRANSITORY_S),
            ("a closed one", PROTO_TCP, REPLIED | FIN_ORIGINAL | FIN_REPLY, TCP_CLOSED_S),
            ("a reset one", PROTO_TCP, REPLIED | FIN_ORIGINAL | RESET, TCP_RESET_S),
            ("a question", PROTO_UDP, 0, UDP_UNREPLIED_S),
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
    fn a_clock_that_is_behind_expires_nothing() {
        assert!(!has_expired(PROTO_UDP, &next(0, 1_001), 1_000));
        assert_eq!(0, idle(&next(0, 1_001), 1_000));
    }

    #[test]
    fn the_clock_may_wrap() {
        assert_eq!(6, idle(&next(0, u32::MAX - 1), 4));
    }

    #[test]
    fn what_both_sides_have_closed_is_spent_after_a_while() {
        let closed = REPLIED | FIN_ORIGINAL | FIN_REPLY;
        for (what, proto, state, idle_s, is) in [
            ("closed", PROTO_TCP, closed, REUSE_AFTER_S, true),
            ("closed, other half", PROTO_TCP, closed | REPLY_HALF, REUSE_AFTER_S, true),
            ("reset", PROTO_TCP, REPLIED | RESET, REUSE_AFTER_S, true),
            ("closed just now", PROTO_TCP, closed, REUSE_AFTER_S - 1, false),
            ("half-closed", PROTO_TCP, REPLIED | FIN_REPLY, TCP_TRANSITORY_S, false),
            ("established", PROTO_TCP, REPLIED, TCP_ESTABLISHED_S, false),
            ("a conversation", PROTO_UDP, REPLIED, UDP_S, false),
        ] {
            assert_eq!(is, is_closed(proto, &next(state, 1_000), 1_000 + ticks(idle_s)), "{what}");
        }
    }

    #[test]
    fn only_what_is_no_connection_drifts_and_only_when_it_is_quiet() {
        assert!(may_be_orphaned(PROTO_UDP, &next(REPLIED | REPLY_HALF, 1_000), 1_000 + ticks(REUSE_AFTER_S)));
        assert!(!may_be_orphaned(PROTO_UDP, &next(REPLIED | REPLY_HALF, 1_000), 999 + ticks(REUSE_AFTER_S)));
        assert!(!may_be_orphaned(PROTO_TCP, &next(REPLIED | REPLY_HALF, 1_000), 1_000 + ticks(TCP_TRANSITORY_S)));
    }

    #[test]
    fn ticks_are_about_an_eighth_of_a_second() {
        assert_eq!((8, 55_433), (ticks(1), ticks(TCP_ESTABLISHED_S)));
        assert_eq!((0, 1, 7_440), (seconds(7), seconds(8), seconds(ticks(TCP_ESTABLISHED_S))));
    }

    #[test]
    fn a_flow_is_fresh_for_a_tick_and_its_hop_is_asked_for_about_once_a_second() {
        let at = |last_seen| next(REPLIED, last_seen);
        assert!(is_fresh(&at(1_000), 1_000) && is_fresh(&at(1_001), 1_000) && !is_fresh(&at(1_000), 1_001));
        let busy = (8_000..8_100).filter(|now| is_late(&at(now - 1), *now)).count();
        assert_eq!(100 / 8 + 1, busy, "a packet in each tick");
        assert!((8_000..8_100).all(|now| is_late(&at(now - 8), now)), "a packet each second");
        assert!((8_000..8_100).all(|now| !is_late(&at(now + 100), now)), "another processor's clock is later");
        assert!(is_late(&at(u32::MAX), 0) && !is_late(&at(u32::MAX), u32::MAX - 7), "the clock may wrap");
    }

    #[test]
    fn each_direction_marks_its_own_fin() {
        assert_eq!(FIN_ORIGINAL, seen(0, TCP_FIN | TCP_ACK));
        assert_eq!(REPLY_HALF | REPLIED | FIN_REPLY, seen(REPLY_HALF, TCP_FIN | TCP_ACK));
        assert_eq!(REPLIED, seen(REPLIED, TCP_ACK), "nothing new, nothing to write");
    }

    #[test]
    fn only_a_syn_on_a_closing_flow_begins_anew() {
        assert!(begins_anew(REPLIED | FIN_ORIGINAL, TCP_SYN));
        assert!(begins_anew(RESET, TCP_SYN));
        assert!(!begins_anew(REPLIED, TCP_SYN), "a repeated syn");
        assert!(!begins_anew(REPLIED | RESET, TCP_SYN | TCP_ACK));
        assert!(!begins_anew(REPLIED | RESET | REPLY_HALF, TCP_SYN), "not from the side that was called");
    }
}
