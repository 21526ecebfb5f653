//! TCP in a flow: the state of a connection, how segments change it, and how long each state lasts (RFC 5382 §5,
//! RFC 7857 §2).
//!
//! A connection is established when its originator has acknowledged the other end's SYN. From then on a segment ends it only
//! if its sequence number fits what the receiver has acknowledged, since otherwise any host that knows addresses and ports could
//! end connections of others (RFC 5961 §3). The stored acknowledgement is that of the *other* direction: a stranger can forge
//! segments of one direction only.

use crate::flow::{ESTABLISHED, FIN_ORIGINAL, FIN_REPLY, REPLIED, REPLY_HALF, RESET};

pub const TCP_FIN: u8 = 0x01;
pub const TCP_SYN: u8 = 0x02;
pub const TCP_RST: u8 = 0x04;
pub const TCP_ACK: u8 = 0x10;

/// RFC 5382 §5 REQ-5: 2 h 4 min at least.
pub const ESTABLISHED_S: u32 = 7_440;
/// RFC 5382 §5 REQ-5: 4 min at least while a connection is opened or closed.
pub const TRANSITORY_S: u32 = 240;
/// Both sides sent FIN: TIME_WAIT (`include/net/tcp.h, TCP_TIMEWAIT_LEN`: 60 s), with a margin.
pub const CLOSED_S: u32 = 120;
/// RFC 7857 §2.2: the reset may be lost behind this host, and its receiver then continues.
pub const RESET_S: u32 = 240;
/// Nothing was established; for packets in flight.
pub const REFUSED_S: u32 = 10;
/// Sequence numbers that a FIN may be ahead of the last acknowledgement, and an acknowledgement that establishes a connection
/// of the SYN that it acknowledges (RFC 7413: data beside SYN): a forged one is accepted once in 4,096.
pub const WINDOW: u32 = 1 << 20;

const FINS: u8 = FIN_ORIGINAL | FIN_REPLY;

/// The state of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TcpState {
    /// Its originator has not acknowledged a reply.
    Opening,
    Established,
    /// One side sent FIN.
    Closing,
    Closed,
    Reset,
    /// Reset before it was established.
    Refused,
}

impl TcpState {
    /// From the bits of `flow`.
    #[inline(always)]
    pub const fn of(state: u8) -> Self {
        match (state & RESET != 0, state & ESTABLISHED != 0) {
            (true, true) => Self::Reset,
            (true, false) => Self::Refused,
            _ if state & FINS == FINS => Self::Closed,
            _ if state & FINS != 0 => Self::Closing,
            (false, true) => Self::Established,
            (false, false) => Self::Opening,
        }
    }

    /// Seconds that a connection lives without a packet.
    #[inline(always)]
    pub const fn timeout_s(self) -> u32 {
        match self {
            Self::Opening | Self::Closing => TRANSITORY_S,
            Self::Established => ESTABLISHED_S,
            Self::Closed => CLOSED_S,
            Self::Reset => RESET_S,
            Self::Refused => REFUSED_S,
        }
    }

    /// Whether nothing more is expected.
    #[inline(always)]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Closed | Self::Reset | Self::Refused)
    }

    /// The name in output.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::Closed => "closed",
            Self::Reset | Self::Refused => "reset",
        }
    }
}

/// What a segment says of its connection. Numbers are in packet order; all is zero for other protocols.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub struct Segment {
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
}

impl Segment {
    /// Whether its acknowledgement counts. That of a reset does not: its sender may have no connection.
    #[inline(always)]
    pub const fn acknowledges(&self) -> bool {
        self.flags & (TCP_ACK | TCP_RST) == TCP_ACK
    }

    /// The acknowledgement that a SYN asks for, in packet order.
    #[inline(always)]
    pub const fn after_syn(&self) -> u32 {
        u32::from_be(self.seq).wrapping_add(1).to_be()
    }
}

/// The bits that a segment with these flags adds to `state`, if its numbers allow them ([`allowed`]).
#[inline(always)]
pub const fn seen(state: u8, flags: u8) -> u8 {
    let reply = state & REPLY_HALF != 0;
    let mut now = state;
    if reply {
        now |= REPLIED;
    }
    if flags & TCP_FIN != 0 {
        now |= if reply { FIN_REPLY } else { FIN_ORIGINAL };
    }
    if flags & TCP_RST != 0 {
        now |= RESET;
    } else if flags & TCP_ACK != 0 && !reply && state & REPLIED != 0 {
        now |= ESTABLISHED;
    }
    now
}

/// `new`, the state after `old` by the flags of a segment ([`seen`]), without what its numbers disprove. `own`, `other`: the
/// last acknowledgements of both directions, 0 = unknown; before the originator's first one, `own` is the number that the
/// other end's SYN asks for.
#[inline(always)]
pub const fn allowed(old: u8, new: u8, segment: &Segment, own: u32, other: u32) -> u8 {
    let ahead = distance(segment.seq, other);
    let refused = if old & ESTABLISHED == 0 {
        if own != 0 && distance(segment.ack, own) >= WINDOW { ESTABLISHED } else { 0 }
    } else if ahead >= WINDOW {
        RESET | FINS
    } else if ahead != 0 {
        RESET
    } else {
        0
    };
    new & !(refused & !old)
}

/// Whether the step from `old` to `new` establishes the connection. A reset before was not for it.
#[inline(always)]
pub const fn establishes(old: u8, new: u8) -> bool {
    new & !old & ESTABLISHED != 0
}

#[inline(always)]
const fn distance(number: u32, from: u32) -> u32 {
    u32::from_be(number).wrapping_sub(u32::from_be(from))
}

/// The first packet of a connection.
#[inline(always)]
pub const fn is_syn(flags: u8) -> bool {
    flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN) == TCP_SYN
}

/// A SYN on a flow that is closing begins another connection between the same ports (RFC 9293 §3.6.1, TIME-WAIT).
#[inline(always)]
pub const fn reopens(state: u8, flags: u8) -> bool {
    is_syn(flags) && state & (FINS | RESET) != 0 && state & REPLY_HALF == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Both entries of a flow, as the programs record segments in them (`flows.rs`, `refresh_flow`).
    #[derive(Clone, Copy, Debug)]
    struct Flow {
        states: [u8; 2],
        acks: [u32; 2],
    }

    impl Flow {
        const NEW: Self = Self { states: [0, REPLY_HALF], acks: [0; 2] };

        fn record(&mut self, reply: bool, segment: Segment) {
            let (own, other) = (usize::from(reply), usize::from(!reply));
            let old = self.states[own];
            let new = allowed(old, seen(old, segment.flags), &segment, self.acks[own], self.acks[other]);
            let clear = if establishes(old, new) { RESET } else { 0 };
            self.states[own] = new & !clear;
            self.states[other] = (self.states[other] | new & !REPLY_HALF) & !clear;
            if reply && segment.flags & TCP_SYN != 0 && old & ESTABLISHED == 0 {
                self.acks[other] = segment.after_syn();
            }
            if segment.acknowledges() {
                self.acks[own] = segment.ack;
            }
        }

        fn state(&self) -> TcpState {
            assert_eq!(TcpState::of(self.states[0]), TcpState::of(self.states[1]), "the halves differ: {self:?}");
            TcpState::of(self.states[0])
        }

        /// SYN, SYN and ACK, ACK; the originator's numbers begin at `a`, the other end's at `b`.
        fn established(a: u32, b: u32) -> Self {
            let mut flow = Self::NEW;
            flow.record(false, segment(TCP_SYN, a, 0));
            flow.record(true, segment(TCP_SYN | TCP_ACK, b, a.wrapping_add(1)));
            assert_eq!(TcpState::Opening, flow.state(), "answered");
            flow.record(false, segment(TCP_ACK, a.wrapping_add(1), b.wrapping_add(1)));
            assert_eq!(TcpState::Established, flow.state());
            flow
        }
    }

    fn segment(flags: u8, seq: u32, ack: u32) -> Segment {
        Segment { seq: seq.to_be(), ack: ack.to_be(), flags }
    }

    fn any_segment() -> impl Strategy<Value = (bool, Segment)> {
        (any::<bool>(), 0u8..0x20, any::<u32>(), any::<u32>())
            .prop_map(|(reply, flags, seq, ack)| (reply, segment(flags, seq, ack)))
    }

    proptest! {
        #[test]
        fn a_forged_segment_ends_no_established_connection(
            a: u32, b: u32, reply: bool, flags in 0u8..0x20, ahead in WINDOW..u32::MAX, ack: u32
        ) {
            let mut flow = Flow::established(a, b);
            let receiver_expects = if reply { b } else { a }.wrapping_add(1);
            flow.record(reply, segment(flags, receiver_expects.wrapping_add(ahead), ack));
            prop_assert_eq!(TcpState::Established, flow.state());
        }

        #[test]
        fn the_reset_that_its_receiver_expects_ends_the_connection_and_no_other_does(
            a: u32, b: u32, reply: bool, ahead: u32
        ) {
            let mut flow = Flow::established(a, b);
            let receiver_expects = if reply { b } else { a }.wrapping_add(1);
            flow.record(reply, segment(TCP_RST, receiver_expects.wrapping_add(ahead), 0));
            prop_assert_eq!(if ahead == 0 { TcpState::Reset } else { TcpState::Established }, flow.state());
        }

        #[test]
        fn only_the_acknowledgement_of_the_reply_establishes_a_connection(
            a: u32, b: u32, ahead in WINDOW..u32::MAX, flags in 0u8..0x20
        ) {
            let mut flow = Flow::NEW;
            flow.record(false, segment(TCP_SYN, a, 0));
            flow.record(true, segment(TCP_SYN | TCP_ACK, b, a.wrapping_add(1)));
            flow.record(false, segment(flags, a.wrapping_add(1), b.wrapping_add(1).wrapping_add(ahead)));
            prop_assert!(flow.states[0] & ESTABLISHED == 0, "{:?}", flow);
        }

        #[test]
        fn without_a_reply_nothing_is_established(segments in prop::collection::vec(any_segment(), 0..20)) {
            let mut flow = Flow::NEW;
            for (_, segment) in segments {
                flow.record(false, segment);
                prop_assert!(flow.states[0] & (ESTABLISHED | REPLIED) == 0, "{:?}", flow);
                prop_assert!(flow.state().timeout_s() <= TRANSITORY_S);
            }
        }

        #[test]
        fn whatever_comes_both_halves_have_one_state_and_nothing_is_forgotten_but_a_reset(
            segments in prop::collection::vec(any_segment(), 0..40)
        ) {
            let mut flow = Flow::NEW;
            for (reply, segment) in segments {
                let before = flow.states;
                flow.record(reply, segment);
                flow.state();
                for (before, after) in before.into_iter().zip(flow.states) {
                    prop_assert_eq!(before & !RESET, before & !RESET & after);
                    prop_assert!(before & RESET & !after == 0 || establishes(before, after));
                }
            }
        }

        #[test]
        fn data_may_be_in_flight_when_a_side_closes(a: u32, b: u32, reply: bool, in_flight in 0..WINDOW) {
            let mut flow = Flow::established(a, b);
            let at = if reply { b } else { a }.wrapping_add(1).wrapping_add(in_flight);
            flow.record(reply, segment(TCP_FIN | TCP_ACK, at, if reply { a } else { b }.wrapping_add(1)));
            prop_assert_eq!(TcpState::Closing, flow.state());
        }
    }

    #[test]
    fn a_connection_goes_through_its_states() {
        let mut flow = Flow::established(100, 200);
        flow.record(false, segment(TCP_FIN | TCP_ACK, 101, 201));
        assert_eq!(TcpState::Closing, flow.state());
        flow.record(true, segment(TCP_FIN | TCP_ACK, 201, 102));
        assert_eq!(TcpState::Closed, flow.state());
        assert!(reopens(flow.states[0], TCP_SYN), "the same ports again");
    }

    #[test]
    fn a_forged_reset_of_a_connection_that_is_opening_does_not_outlast_it() {
        let mut flow = Flow::NEW;
        flow.record(false, segment(TCP_SYN, 100, 0));
        flow.record(false, segment(TCP_RST, 7, 0));
        assert_eq!(TcpState::Refused, flow.state());
        flow.record(true, segment(TCP_SYN | TCP_ACK, 200, 101));
        flow.record(false, segment(TCP_ACK, 101, 201));
        assert_eq!(TcpState::Established, flow.state());
    }

    #[test]
    fn two_ends_that_dial_each_other_establish_one_connection() {
        let mut flow = Flow::NEW;
        flow.record(false, segment(TCP_SYN, 100, 0));
        flow.record(true, segment(TCP_SYN, 200, 0));
        assert_eq!(TcpState::Opening, flow.state());
        flow.record(false, segment(TCP_SYN | TCP_ACK, 100, 201));
        assert_eq!(TcpState::Established, flow.state());
    }

    #[test]
    fn only_a_syn_on_a_closing_flow_reopens_it() {
        assert!(reopens(REPLIED | FIN_ORIGINAL, TCP_SYN));
        assert!(reopens(RESET, TCP_SYN));
        assert!(!reopens(REPLIED | ESTABLISHED, TCP_SYN), "a repeated syn");
        assert!(!reopens(REPLIED | RESET, TCP_SYN | TCP_ACK));
        assert!(!reopens(REPLIED | RESET | REPLY_HALF, TCP_SYN), "not in reply direction");
    }
}
