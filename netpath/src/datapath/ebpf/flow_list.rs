//! The flow maps as a list, both halves of a flow folded to one line.

use super::expire;
use super::maps::{CHUNK, Flows, PinnedMap};
use super::pins::Pins;
use crate::datapath::inspect::Flow;
use crate::model::error::Result;
use netpath_common::family::{Ipv4, Ipv6, Tuple};
use netpath_common::flow;
use netpath_common::layout::{Next, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP};
use netpath_common::reason::Reason;
use netpath_common::tcp::TcpState;
use std::net::{IpAddr, SocketAddr};

/// One half, with both families' addresses in one type.
struct Half {
    proto: u8,
    side: u8,
    from: (SocketAddr, SocketAddr),
    to: (SocketAddr, SocketAddr),
    next: Next,
}

/// All flows that are alive, the most recently used first.
///
/// # Errors
/// The maps cannot be read.
pub(super) fn flows(pins: &Pins) -> Result<Vec<Flow>> {
    let mut halves = Vec::new();
    read::<Ipv4>(pins, &mut halves)?;
    read::<Ipv6>(pins, &mut halves)?;
    Ok(fold(halves, expire::now()?))
}

fn read<F: Flows<Addr: Into<IpAddr>>>(pins: &Pins, halves: &mut Vec<Half>) -> Result<()> {
    let ends = |t: Tuple<F>| ((t.src.into(), t.sport.value()).into(), (t.dst.into(), t.dport.value()).into());
    let table = PinnedMap::open(pins, &F::FLOWS)?.dump(CHUNK)?;
    halves.extend(table.iter().map(|(key, flow)| Half {
        proto: F::protocol_of(key),
        side: F::side_of(key),
        from: ends(*F::tuple(key)),
        to: ends(F::translated(flow)),
        next: *F::next(flow),
    }));
    Ok(())
}

fn fold(halves: Vec<Half>, now: u32) -> Vec<Flow> {
    // The reverse of a half: what it sends out comes back with its ends exchanged, on the side that `next` names.
    let reverse_of = |h: &Half| (h.proto, h.next.reverse_side, h.to.1, h.to.0);
    let keys: std::collections::HashSet<_> = halves.iter().map(|h| (h.proto, h.side, h.from.0, h.from.1)).collect();
    let mut lines = Vec::new();
    for half in &halves {
        let whole = keys.contains(&reverse_of(half));
        let reply = half.next.state & flow::REPLY_HALF != 0;
        if flow::has_expired(half.proto, &half.next, now) || reply && whole {
            continue;
        }
        // A reply without its other half still has both ends.
        let (from, to) =
            if reply { ((half.to.1, half.to.0), (half.from.1, half.from.0)) } else { (half.from, half.to) };
        let idle_s = flow::seconds(flow::idle(&half.next, now));
        lines.push(Flow {
            protocol: protocol(half.proto),
            origin: origin(half.next.origin),
            source: from.0,
            destination: from.1,
            translated_source: to.0,
            translated_destination: to.1,
            state: state(half.proto, half.next.state),
            idle_s: Some(idle_s),
            expires_s: flow::timeout_s(half.proto, half.next.state).saturating_sub(idle_s),
            whole,
            carrier: "programs",
            why: None,
        });
    }
    lines.sort_by_key(|l| (l.idle_s, l.source, l.destination));
    lines
}

pub(super) fn protocol(number: u8) -> &'static str {
    match number {
        PROTO_TCP => "tcp",
        PROTO_UDP => "udp",
        PROTO_ICMP => "icmp",
        PROTO_ICMPV6 => "icmp6",
        _ => "other",
    }
}

pub(super) fn origin(number: u8) -> &'static str {
    let reason = Reason::ALL.iter().find(|r| **r as u32 == u32::from(number));
    reason.map_or("unknown", |r| r.word().strip_prefix("flow_").unwrap_or(r.word()))
}

fn state(proto: u8, state: u8) -> &'static str {
    match proto {
        PROTO_TCP => TcpState::of(state).word(),
        _ if state & flow::REPLIED != 0 => "replied",
        _ => "unreplied",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half(from: (&str, &str), to: (&str, &str), sides: (u8, u8), state: u8) -> Half {
        let at = |a: &str| a.parse::<SocketAddr>().expect("an address");
        Half {
            proto: PROTO_TCP,
            side: sides.0,
            from: (at(from.0), at(from.1)),
            to: (at(to.0), at(to.1)),
            next: Next { last_seen: flow::ticks(90), reverse_side: sides.1, state, origin: 1, ..Next::default() },
        }
    }

    const CLIENT: &str = "192.0.2.9:40000";
    const PUBLISHED: &str = "192.0.2.1:8080";
    const WEB: &str = "10.88.0.2:80";
    const OPEN: u8 = flow::REPLIED | flow::ESTABLISHED;

    #[test]
    fn both_halves_are_one_line_in_the_direction_of_the_first_packet() {
        let there = half((CLIENT, PUBLISHED), (CLIENT, WEB), (0, 1), OPEN);
        let back = half((WEB, CLIENT), (PUBLISHED, CLIENT), (1, 0), OPEN | flow::REPLY_HALF);
        let lines = fold(vec![back, there], flow::ticks(100) + 1);
        assert_eq!(1, lines.len(), "{lines:?}");
        let line = &lines[0];
        assert_eq!((CLIENT.parse(), WEB.parse()), (Ok(line.source), Ok(line.translated_destination)));
        assert_eq!(("established", "published", Some(10), true), (line.state, line.origin, line.idle_s, line.whole));
    }

    #[test]
    fn a_reply_whose_reverse_is_gone_is_shown_the_right_way_round() {
        let back = half((WEB, CLIENT), (PUBLISHED, CLIENT), (1, 0), OPEN | flow::REPLY_HALF);
        let lines = fold(vec![back], flow::ticks(100) + 1);
        assert_eq!((CLIENT.parse(), PUBLISHED.parse()), (Ok(lines[0].source), Ok(lines[0].destination)));
        assert_eq!(Ok(lines[0].translated_destination), WEB.parse());
        assert!(!lines[0].whole);
    }

    #[test]
    fn an_expired_flow_is_none() {
        let there = half((CLIENT, PUBLISHED), (CLIENT, WEB), (0, 1), flow::RESET);
        assert!(fold(vec![there], flow::ticks(90) + flow::ticks(TcpState::Refused.timeout_s()) + 1).is_empty());
    }
}
