//! The promoted flows, and which flow may become one.

use super::Known;
use crate::datapath::connection::{Connection, Direction, Entry, Transport};
use crate::datapath::promote::rules::{Flow, Judgement, Tuple, shapers};
use crate::datapath::promote::{Carry, Conntrack, Ends, FlowId, Keys, MOST_CARRIED, MOST_SHOWN, NextHop, Promotions};
use crate::link::{Rtnl, Way};
use netpath_common::layout::{PROTO_TCP, PROTO_UDP};
use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// How long a flow that cannot be promoted is not asked about again, unless the host changes.
const REFUSED: Duration = Duration::from_secs(10);
/// Ticks without a packet after which a flow makes room: 10 s.
const IDLE: u32 = 75;
/// Refused flows that are remembered.
const MOST_REFUSED: usize = 4_096;

struct One {
    keys: Keys,
    /// As it was judged.
    entry: Entry,
    way: (u32, IpAddr, [u8; 6]),
}

pub(super) struct Promoted {
    flows: HashMap<FlowId, One>,
    /// By the direction that was reported.
    refused: HashMap<FlowId, (Instant, Refusal)>,
    /// Traffic control of others on the way between these, that programs would pass by.
    shapers: HashMap<(u32, u32), Option<String>>,
    conntrack: Conntrack,
    /// Since the last change.
    pub is_shown: bool,
}

impl Promoted {
    pub(super) fn new(conntrack: Conntrack) -> Self {
        Self { flows: HashMap::new(), refused: HashMap::new(), shapers: HashMap::new(), conntrack, is_shown: false }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Whether a flow leaves by this neighbour with another hardware address.
    pub(super) fn is_moved(&self, ifindex: u32, address: IpAddr, mac: Option<[u8; 6]>) -> bool {
        self.flows.values().any(|one| one.way.0 == ifindex && one.way.1 == address && Some(one.way.2) != mac)
    }

    pub(super) fn end_all(&mut self, carrier: &mut dyn Carry) {
        self.flows.drain().for_each(|(_, one)| carrier.demote(&one.keys));
        self.refused.clear();
        self.shapers.clear();
        self.is_shown = false;
    }

    /// A refusal that may be over counts for as long as one is not asked about again.
    pub(super) fn show(&mut self, why_not: Option<String>) -> Promotions {
        self.is_shown = true;
        let counts = |(when, refusal): &(Instant, Refusal)| refusal.lasts || when.elapsed() < REFUSED;
        let mut refused: Vec<_> = self.refused.iter().filter(|(_, refused)| counts(refused)).collect();
        refused.sort_by_key(|(_, (when, _))| Reverse(*when));
        let refused = refused.into_iter().take(MOST_SHOWN).map(|(id, (_, refusal))| (*id, refusal.why.clone()));
        Promotions { why_not, carried: self.flows.keys().copied().collect(), refused: refused.collect() }
    }

    /// Ends the promotion of flows whose entry is gone from conntrack, is another one or about to end, and of idle flows.
    pub(super) fn check(&mut self, carrier: &mut dyn Carry) {
        let conntrack = &mut self.conntrack;
        self.flows.retain(|(transport, original), one| {
            let found = conntrack.entry(*transport, *original);
            let stays = found.is_ok_and(|entry| entry.is_some_and(|e| e.is_same(&one.entry) && e.is_plain))
                && carrier.idle(&one.keys).is_some_and(|idle| idle < IDLE);
            if !stays {
                tracing::debug!(?transport, ?original, "the promotion of a flow has ended");
                carrier.demote(&one.keys);
                self.is_shown = false;
            }
            stays
        });
    }

    /// Promotes the flow of a report, if it may be.
    pub(super) fn consider(
        &mut self,
        protocol: u8,
        (seen, interface): (Direction, u32),
        known: &Known,
        rtnl: &Rtnl,
        carrier: &mut dyn Carry,
        epoch: u32,
    ) {
        let transport = match protocol {
            PROTO_TCP => Transport::Tcp,
            PROTO_UDP => Transport::Udp,
            _ => return,
        };
        let is_refused = |(when, refusal): &(Instant, Refusal)| refusal.lasts && when.elapsed() < REFUSED;
        let is_refused = self.refused.get(&(transport, seen)).is_some_and(is_refused);
        if is_refused || self.flows.len() >= MOST_CARRIED {
            return;
        }
        let tried = self.try_promote(transport, (seen, interface), known, rtnl, carrier, epoch);
        self.is_shown = false;
        let Err(refusal) = tried else { return };
        tracing::debug!(?transport, ?seen, "not promoted: {}", refusal.why);
        if self.refused.len() >= MOST_REFUSED {
            self.refused.clear();
        }
        self.refused.insert((transport, seen), (Instant::now(), refusal));
    }

    fn try_promote(
        &mut self,
        transport: Transport,
        (seen, interface): (Direction, u32),
        known: &Known,
        rtnl: &Rtnl,
        carrier: &mut dyn Carry,
        epoch: u32,
    ) -> Result<(), Refusal> {
        let entry = self.conntrack.entry(transport, seen).map_err(now)?;
        let entry = entry.ok_or_else(|| now("conntrack has no plain entry for it"))?;
        let id = (transport, entry.connection.original);
        if self.flows.contains_key(&id) {
            return Ok(());
        }
        if !entry.is_plain {
            return Err(now("it is not established"));
        }
        let ends = carrier
            .ends(&entry.connection, &|by, from, to| rtnl.route_interface(by, from, to))
            .ok_or_else(|| always("it is not between a container and an uplink"))?;
        let way = way_out(rtnl, &entry.connection, &ends).ok_or_else(|| now("its route cannot be read"))?;
        if way.ifindex != ends.uplink || ![ends.uplink, ends.veth].contains(&interface) {
            return Err(always("its packets come by another uplink than they leave"));
        }
        let mac = rtnl.neighbour(way.ifindex, way.next_hop).ok_or_else(|| now("its next hop is not resolved"))?;
        let flow = known.flow(&entry, &ends).ok_or_else(|| now("an interface has gone"))?;
        if let Some(shaper) = self.shaper(&ends, known, carrier).map_err(now)? {
            return Err(always(shaper));
        }
        match known.ruleset.judge(&flow) {
            Judgement::Carried => {}
            Judgement::Forbidden { rule, why } => return Err(always(format!("{rule}: {why}"))),
            Judgement::Dropped { rule } => return Err(always(format!("{rule} drops it"))),
        }
        self.conntrack.make_liberal(&entry).map_err(now)?;
        let hop = NextHop { ifindex: way.ifindex, mac, mtu: way.mtu.and_then(|mtu| mtu.try_into().ok()) };
        let keys = carrier.promote(&entry.connection, hop, &ends, epoch).map_err(now)?;
        let keys = keys.ok_or_else(|| always("the programs cannot carry it"))?;
        tracing::debug!(?transport, original = ?entry.connection.original, "promoted");
        self.flows.insert(id, One { keys, entry, way: (way.ifindex, way.next_hop, mac) });
        Ok(())
    }
}

impl Promoted {
    fn shaper(&mut self, ends: &Ends, known: &Known, carrier: &dyn Carry) -> std::io::Result<Option<String>> {
        if let Some(found) = self.shapers.get(&(ends.uplink, ends.veth)) {
            return Ok(found.clone());
        }
        let name = |index: u32| known.names.get(&index).map_or("", String::as_str);
        let names = [ends.uplink, ends.bridge, ends.veth].map(name);
        let others = carrier.beside_others(names).map(|name| format!("a program of others at {name} (bpftool net)"));
        let found = others.map_or_else(|| shapers(names[0], names[1], Some(names[2])), |others| Ok(Some(others)))?;
        self.shapers.insert((ends.uplink, ends.veth), found.clone());
        Ok(found)
    }
}

/// Why a flow is not promoted.
struct Refusal {
    why: String,
    /// Until the host changes.
    lasts: bool,
}

fn now(why: impl ToString) -> Refusal {
    Refusal { why: why.to_string(), lasts: false }
}

fn always(why: impl ToString) -> Refusal {
    Refusal { why: why.to_string(), lasts: true }
}

/// The way of packets from the container to the other end.
fn way_out(rtnl: &Rtnl, connection: &Connection, ends: &Ends) -> Option<Way> {
    let Connection { transport, original, translated, .. } = connection;
    let out = if ends.is_begun_inside { *original } else { translated.reversed() };
    let protocol = if *transport == Transport::Tcp { PROTO_TCP } else { PROTO_UDP };
    rtnl.way(ends.bridge, out.source, out.destination, Some((protocol, out.source_port, out.destination_port)))
}

impl Known {
    fn flow(&self, entry: &Entry, ends: &Ends) -> Option<Flow<'_>> {
        let name = |index: u32| self.names.get(&index).map(String::as_str);
        let (uplink, bridge, veth) = (name(ends.uplink)?, name(ends.bridge)?, name(ends.veth)?);
        let Connection { transport, original, translated, .. } = entry.connection;
        let of_container = (bridge, Some(veth));
        let of_uplink = (uplink, None);
        let ((ingress, ingress_port), (egress, egress_port)) =
            if ends.is_begun_inside { (of_container, of_uplink) } else { (of_uplink, of_container) };
        Some(Flow {
            protocol: if transport == Transport::Tcp { PROTO_TCP } else { PROTO_UDP },
            original: tuple(original),
            reply: tuple(translated.reversed()),
            ingress,
            ingress_port,
            egress,
            egress_port,
            mark: entry.mark,
        })
    }
}

fn tuple(direction: Direction) -> Tuple {
    Tuple {
        source: SocketAddr::new(direction.source, direction.source_port),
        destination: SocketAddr::new(direction.destination, direction.destination_port),
    }
}
