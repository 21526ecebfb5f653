//! Flows as connections, for a datapath that takes them over.

use super::expire::now;
use super::maps::{CHUNK, Flows, PinnedMap};
use super::migrate_flows;
use super::pins::Pins;
use crate::datapath::connection::{Connection, Direction, Transport};
use crate::model::error::Result;
use netpath_common::family::{Ipv4, Ipv6, Tuple};
use netpath_common::flow::{self, REPLIED, REPLY_HALF};
use netpath_common::layout::{PROTO_TCP, PROTO_UDP, SIDE_BRIDGE, SIDE_EGRESS, SIDE_UPLINK};
use netpath_common::reason::Reason;
use std::net::IpAddr;

/// The live flows of TCP and UDP that are translated. Echoes begin again with the next request, and sockets on `lo` are
/// the host's own.
///
/// # Errors
/// The maps cannot be read.
pub(super) fn connections(pins: &Pins) -> Result<Vec<Connection>> {
    let mut all = of::<Ipv4>(PinnedMap::open(pins, &Ipv4::FLOWS)?.dump(CHUNK)?)?;
    all.extend(of::<Ipv6>(PinnedMap::open(pins, &Ipv6::FLOWS)?.dump(CHUNK)?)?);
    Ok(all)
}

/// Those of an earlier version of netpath, before anything migrates them.
///
/// # Errors
/// The maps cannot be read.
pub(super) fn connections_of_another_layout(version: u32, pins: &Pins) -> Result<Vec<Connection>> {
    let mut all = of::<Ipv4>(migrate_flows::dump::<Ipv4>(version, pins)?)?;
    all.extend(of::<Ipv6>(migrate_flows::dump::<Ipv6>(version, pins)?)?);
    Ok(all)
}

fn of<F: Flows<Addr: Into<IpAddr>>>(flows: Vec<(F::Key, F::Flow)>) -> Result<Vec<Connection>> {
    let now = now()?;
    let connection = |(key, flow): (F::Key, F::Flow)| {
        let (next, proto) = (F::next(&flow), F::protocol_of(&key));
        let transport = match proto {
            PROTO_TCP => Transport::Tcp,
            PROTO_UDP => Transport::Udp,
            _ => return None,
        };
        // Up to layout 5 an uplink's egress could masquerade.
        let is_of_container = match F::side_of(&key) {
            SIDE_UPLINK | SIDE_BRIDGE => true,
            SIDE_EGRESS => next.origin == Reason::FlowMasqueraded as u8,
            _ => false,
        };
        let is_original = next.state & REPLY_HALF == 0 && is_of_container;
        if !is_original || flow::has_expired(proto, next, now) || flow::is_closed(proto, next, now) {
            return None;
        }
        let (original, translated) = (direction::<F>(F::tuple(&key)), direction::<F>(&F::translated(&flow)));
        (original != translated).then(|| Connection {
            transport,
            original,
            translated,
            replied: next.state & REPLIED != 0,
            timeout_s: flow::timeout_s(proto, next.state).saturating_sub(flow::seconds(flow::idle(next, now))),
        })
    };
    Ok(flows.into_iter().filter_map(connection).collect())
}

fn direction<F: Flows<Addr: Into<IpAddr>>>(tuple: &Tuple<F>) -> Direction {
    Direction {
        source: tuple.src.into(),
        destination: tuple.dst.into(),
        source_port: tuple.sport.value(),
        destination_port: tuple.dport.value(),
    }
}
