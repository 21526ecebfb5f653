//! The two entries of a flow: one translates packets of the originator, the reverse entry translates replies.

use crate::addr::Mac;
use crate::family::{Family, Tuple};
use crate::flow;
use crate::layout::Next;
use crate::reason::Reason;

/// The next hop of translated packets. The hardware addresses are those of [`Next`].
#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub struct NextHop {
    pub ifindex: u32,
    pub match_dmac: Mac,
    pub next_hop_mac: Mac,
    /// One of `layout::FORWARD_*`.
    pub forward: u8,
    pub mtu: u16,
}

/// A flow that is about to begin.
#[derive(Clone, Copy, Debug)]
pub struct NewFlow<F: Family> {
    /// The packet as sent, and the side on which it was seen.
    pub from: Tuple<F>,
    pub side: u8,
    /// The packet after translation, and the side on which its reply will be seen.
    pub to: Tuple<F>,
    pub reverse_side: u8,
    pub proto: u8,
    /// The `Reason` of a flow.
    pub origin: u8,
    pub traffic: u16,
    /// [`Next::serial`].
    pub serial: u32,
    pub there: NextHop,
    pub back: NextHop,
}

impl<F: Family> NewFlow<F> {
    #[inline(always)]
    pub fn key(&self) -> F::Key {
        F::key(&self.from, self.proto, self.side)
    }

    #[inline(always)]
    pub fn flow(&self, now: u32) -> F::Flow {
        F::flow(&self.to, self.next(&self.there, self.reverse_side, 0, now))
    }

    /// Whether the other end must see the container's own address and port.
    #[inline(always)]
    pub fn keeps_source(&self) -> bool {
        let may_keep = self.origin == Reason::FlowMasqueraded as u8 || self.origin == Reason::FlowDirect as u8;
        may_keep && F::same(&self.from.src, &self.to.src)
    }

    /// The reverse entry's key. The flow that holds it in the table owns the source port of `to`.
    #[inline(always)]
    pub fn reverse_key(&self) -> F::Key {
        F::key(&self.to.reversed(), self.proto, self.reverse_side)
    }

    #[inline(always)]
    pub fn reverse(&self, now: u32) -> F::Flow {
        F::flow(&self.from.reversed(), self.next(&self.back, self.side, flow::REPLY_HALF, now))
    }

    /// Whether `reverse`, found under [`Self::reverse_key`], belongs to this same flow, whose first entry was
    /// evicted.
    #[inline(always)]
    pub fn owns(&self, reverse: &F::Flow) -> bool {
        F::next(reverse).reverse_side == self.side && F::translated(reverse).same(&self.from.reversed())
    }

    /// Whether `first`, found under the key of the entry that `reverse` leads to, is its counterpart and `reverse`
    /// has the key that this flow needs.
    #[inline(always)]
    pub fn displaces(&self, first: &F::Flow) -> bool {
        F::next(first).reverse_side == self.reverse_side && F::translated(first).same(&self.to)
    }

    #[inline(always)]
    fn next(&self, hop: &NextHop, reverse_side: u8, state: u8, now: u32) -> Next {
        Next {
            ifindex: hop.ifindex,
            last_seen: now,
            ack: 0,
            serial: self.serial,
            match_dmac: hop.match_dmac,
            next_hop_mac: hop.next_hop_mac,
            mtu: hop.mtu,
            forward: hop.forward,
            reverse_side,
            state,
            origin: self.origin,
            traffic: self.traffic,
        }
    }
}

/// The key of the other entry of `flow`.
#[inline(always)]
pub fn other_key<F: Family>(flow: &F::Flow, proto: u8) -> F::Key {
    F::key(&F::translated(flow).reversed(), proto, F::next(flow).reverse_side)
}

/// Whether `other`, found under [`other_key`] of the entry at `key`, is its counterpart: the slot may belong to
/// another flow by now.
#[inline(always)]
pub fn leads_back<F: Family>(other: &F::Flow, key: &F::Key) -> bool {
    F::translated(other).reversed().same(F::tuple(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Be16;
    use crate::family::{Ipv4, Ipv6};
    use crate::layout::{
        PROTO_ICMP, PROTO_ICMPV6, PROTO_SCTP, PROTO_TCP, PROTO_UDP, SIDE_BRIDGE, SIDE_EGRESS, SIDE_UPLINK,
    };
    use proptest::prelude::*;

    fn tuple(a: ([u8; 4], [u8; 4], u16, u16)) -> Tuple<Ipv4> {
        ends(a)
    }

    fn ends<F: Family>((src, dst, sport, dport): (F::Addr, F::Addr, u16, u16)) -> Tuple<F> {
        Tuple { src, dst, sport: Be16::new(sport), dport: Be16::new(dport) }
    }

    /// ICMP echo has one identifier in both ports.
    fn ends_of<F: Family>(proto: u8, (src, dst, sport, dport): (F::Addr, F::Addr, u16, u16)) -> Tuple<F> {
        ends((src, dst, sport, if proto == F::ICMP { sport } else { dport }))
    }

    fn there_and_back<F: Family>(proto: u8, from: Tuple<F>, to: Tuple<F>, sides: (u8, u8)) -> Result<(), TestCaseError>
    where
        F::Key: PartialEq + core::fmt::Debug,
    {
        let plan = NewFlow {
            from,
            side: sides.0,
            to,
            reverse_side: sides.1,
            proto,
            origin: 1,
            traffic: 0,
            serial: 7,
            there: NextHop::default(),
            back: NextHop::default(),
        };
        let (there, back) = (plan.flow(7), plan.reverse(7));
        prop_assert_eq!(plan.to, F::translated(&there));
        // The reply is the translated packet reversed; it is found under the reverse key …
        prop_assert_eq!(plan.reverse_key(), F::key(&F::translated(&there).reversed(), proto, sides.1));
        // … and becomes the first packet reversed.
        prop_assert_eq!(plan.from.reversed(), F::translated(&back));
        // Each entry leads to the other.
        prop_assert_eq!(plan.reverse_key(), other_key::<F>(&there, proto));
        prop_assert_eq!(plan.key(), other_key::<F>(&back, proto));
        prop_assert!(plan.owns(&back));
        Ok(())
    }

    /// Protocols with and without ports; 47 (GRE) has none.
    fn protocol() -> impl Strategy<Value = u8> {
        prop_oneof![Just(PROTO_TCP), Just(PROTO_UDP), Just(PROTO_SCTP), Just(PROTO_ICMP), Just(PROTO_ICMPV6), Just(47)]
    }

    proptest! {
        #[test]
        fn a_reply_to_a_translated_packet_becomes_the_reply_to_the_original(
            proto in protocol(), sides in (0..=SIDE_EGRESS, 0..=SIDE_EGRESS),
            from4: ([u8; 4], [u8; 4], u16, u16), to4: ([u8; 4], [u8; 4], u16, u16),
            from6: ([u8; 16], [u8; 16], u16, u16), to6: ([u8; 16], [u8; 16], u16, u16)
        ) {
            there_and_back::<Ipv4>(proto, ends_of(proto, from4), ends_of(proto, to4), sides)?;
            there_and_back::<Ipv6>(proto, ends_of(proto, from6), ends_of(proto, to6), sides)?;
        }

        #[test]
        fn a_port_search_changes_only_the_source_port(
            proto in protocol(), port: u16, from: ([u8; 16], [u8; 16], u16, u16)
        ) {
            let tuple: Tuple<Ipv6> = ends_of(proto, from);
            let moved = tuple.from_port(proto, Be16::new(port));
            prop_assert_eq!(Be16::new(port), moved.sport);
            prop_assert_eq!(tuple, moved.from_port(proto, tuple.sport), "and back");
            prop_assert_eq!(if proto == PROTO_ICMPV6 { moved.sport } else { tuple.dport }, moved.dport);
        }
    }

    #[test]
    fn the_reverse_entry_of_another_flow_is_not_owned() {
        let plan = NewFlow {
            from: tuple(([1; 4], [2; 4], 1, 2)),
            side: SIDE_UPLINK,
            to: tuple(([1; 4], [3; 4], 1, 2)),
            reverse_side: SIDE_BRIDGE,
            proto: PROTO_UDP,
            origin: 1,
            traffic: 0,
            serial: 7,
            there: NextHop::default(),
            back: NextHop::default(),
        };
        let other = NewFlow { from: tuple(([1; 4], [4; 4], 1, 2)), ..plan };
        assert!(!plan.owns(&other.reverse(0)), "another host address leads to the same container");
        assert!(!plan.owns(&NewFlow { side: SIDE_BRIDGE, ..plan }.reverse(0)), "the same tuple on another side");
    }
}
