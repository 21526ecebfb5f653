//! Flows as connections, for a datapath that takes them over.

use super::expire::now;
use super::maps::{CHUNK, Flows, PinnedMap};
use super::pins::Pins;
use crate::datapath::connection::{Connection, Direction, Transport};
use crate::model::error::Result;
use netpath_common::family::{Ipv4, Ipv6, Tuple};
use netpath_common::flow::{self, REPLIED, REPLY_HALF};
use netpath_common::layout::{PROTO_TCP, PROTO_UDP, SIDE_BRIDGE, SIDE_UPLINK};
use std::net::IpAddr;

/// The live flows of TCP and UDP that are translated. Echoes begin again with the next request, and sockets on `lo` are
/// the host's own.
///
/// # Errors
/// The maps cannot be read.
pub(super) fn connections(pins: &Pins) -> Result<Vec<Connection>> {
    let mut all = of::<Ipv4>(pins)?;
    all.extend(of::<Ipv6>(pins)?);
    Ok(all)
}

fn of<F: Flows<Addr: Into<IpAddr>>>(pins: &Pins) -> Result<Vec<Connection>> {
    let now = now()?;
    let connection = |(key, flow): (F::Key, F::Flow)| {
        let (next, proto) = (F::next(&flow), F::protocol_of(&key));
        let transport = match proto {
            PROTO_TCP => Transport::Tcp,
            PROTO_UDP => Transport::Udp,
            _ => return None,
        };
        let is_original = next.state & REPLY_HALF == 0 && matches!(F::side_of(&key), SIDE_UPLINK | SIDE_BRIDGE);
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
    Ok(PinnedMap::open(pins, &F::FLOWS)?.dump(CHUNK)?.into_iter().filter_map(connection).collect())
}

fn direction<F: Flows<Addr: Into<IpAddr>>>(tuple: &Tuple<F>) -> Direction {
    Direction {
        source: tuple.src.into(),
        destination: tuple.dst.into(),
        source_port: tuple.sport.value(),
        destination_port: tuple.dport.value(),
    }
}
