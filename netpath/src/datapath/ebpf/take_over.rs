//! Connections that netfilter has translated as flows with the same addresses and ports.
//!
//! The programs start to serve in an order in which no packet of such a connection begins another flow: the flows of
//! connections come before the programs, and until `np_net` has the bridges, which is last, bridges let packets without
//! a flow pass to netfilter.

use super::addr::mapped;
use super::compile::{Slots, Tables};
use super::expire::now;
use super::flow_pair::reverse_of;
use super::maps::{self, Flows, PinnedMap};
use super::pins::Pins;
use crate::datapath::Predecessor;
use crate::datapath::connection::{Connection, Direction, Transport};
use crate::model::error::Result;
use netpath_common::addr::{Be16, Mac};
use netpath_common::family::{Family, Ipv4, Ipv6, Tuple};
use netpath_common::flow::{ESTABLISHED, REPLIED};
use netpath_common::layout::{
    ENDPOINT_XDP, FORWARD_EGRESS, FORWARD_INGRESS, FORWARD_NEIGH, FORWARD_PEER, FORWARD_STACK, FORWARD_XDP, NET_DIRECT,
    NET_MASQUERADE, NatPort, PROTO_TCP, PROTO_UDP, SIDE_BRIDGE, SIDE_EGRESS, SIDE_LO, SIDE_UPLINK, Subnet,
};
use netpath_common::nat_plan::{NewFlow, NextHop};
use netpath_common::reason::Reason;
use netpath_common::rule::{container_port, covers};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Adds the flows of the predecessor's connections that are not known yet. Returns their number.
///
/// # Errors
/// The connections cannot be read, or the maps cannot be written.
pub(super) fn adopt(pins: &Pins, tables: &Tables, from: &Predecessor<'_>) -> Result<usize> {
    let connections = (from.connections)()?;
    let host = Host::new(tables, from.route);
    let mut ports = BTreeSet::new();
    let v4 = |a| if let IpAddr::V4(a) = a { Some(a.octets()) } else { None };
    let v6 = |a| if let IpAddr::V6(a) = a { Some(a.octets()) } else { None };
    let adopted = add::<Ipv4>(pins, &host, &connections, v4, &mut ports)?
        + add::<Ipv6>(pins, &host, &connections, v6, &mut ports)?;
    let ports: Vec<u32> = ports.into_iter().collect();
    let marks = vec![NatPort { tcp: 1, udp: 1, icmp: 1, icmp6: 1 }; ports.len()];
    PinnedMap::open(pins, &maps::NAT_PORT)?.update(&ports, &marks)?;
    Ok(adopted)
}

fn add<F: Flows>(
    pins: &Pins,
    host: &Host<'_>,
    connections: &[Connection],
    address: impl Fn(IpAddr) -> Option<F::Addr>,
    ports: &mut BTreeSet<u32>,
) -> Result<usize> {
    let (map, now) = (PinnedMap::open(pins, &F::FLOWS)?, now()?);
    let mut added = 0;
    for connection in connections {
        let Some(plan) = host.plan::<F>(connection, &address) else { continue };
        let (mut there, mut back) = (plan.flow(now), plan.reverse(now));
        if connection.replied {
            let state = if plan.proto == PROTO_TCP { REPLIED | ESTABLISHED } else { REPLIED };
            F::next_mut(&mut there).state |= state;
            F::next_mut(&mut back).state |= state;
        }
        let (key, reverse_key) = (plan.key(), plan.reverse_key());
        if plan.reverse_side == SIDE_UPLINK {
            ports.insert(u32::from(plan.to.sport.value()));
        }
        map.add(&reverse_key, &back)?;
        if map.add(&key, &there)? {
            added += 1;
            continue;
        }
        // A packet may have begun another flow shortly before this connection was read, which is the older one.
        if let Some(found) = map.get(&key)?.filter(|found| !F::translated(found).same(&plan.to)) {
            let (other, _) = reverse_of::<F>(&map, &key, &found)?;
            map.change(&key, &there)?;
            map.delete(&other)?;
        }
    }
    Ok(added)
}

/// The host as connections find it.
pub(super) struct Host<'a> {
    tables: &'a Tables,
    route: &'a dyn Fn(u32, IpAddr, IpAddr) -> Option<u32>,
    slots: BTreeMap<(u8, u16), &'a Slots>,
}

/// An address inside a network of containers.
struct Inside {
    subnet: Subnet,
    hop: NextHop,
    bridge_mac: Mac,
    /// Its counter.
    traffic: u16,
}

impl<'a> Host<'a> {
    pub(super) fn new(tables: &'a Tables, route: &'a dyn Fn(u32, IpAddr, IpAddr) -> Option<u32>) -> Self {
        let slots = tables.slots.iter().map(|s| ((s.proto, s.first), s)).collect();
        Self { tables, route, slots }
    }

    /// The flow of a connection as the programs would have begun it; `None`: they need none for it, or cannot carry it.
    pub(super) fn plan<F: Flows>(
        &self,
        connection: &Connection,
        address: &impl Fn(IpAddr) -> Option<F::Addr>,
    ) -> Option<NewFlow<F>> {
        let Connection { transport, original, translated, .. } = *connection;
        let proto = match transport {
            Transport::Tcp => PROTO_TCP,
            Transport::Udp => PROTO_UDP,
        };
        let tuple = |d: Direction| {
            let (sport, dport) = (Be16::new(d.source_port), Be16::new(d.destination_port));
            Some(Tuple { src: address(d.source)?, dst: address(d.destination)?, sport, dport })
        };
        let (from, to) = (tuple(original)?, tuple(translated)?);
        if F::is_link_local(&from.src) {
            return None;
        }
        let (sender, target) = (self.inside(original.source), self.inside(translated.destination));
        let outward = |bridge: u32, source: IpAddr, destination: IpAddr, match_dmac: Mac| {
            let ifindex = (self.route)(bridge, source, destination)?;
            let mtu = self.tables.uplinks.get(&ifindex)?.mtu as u16;
            Some(NextHop { ifindex, match_dmac, next_hop_mac: Mac::default(), forward: FORWARD_NEIGH, mtu })
        };
        let (sides, origin, there, back, traffic) = match (sender, target) {
            // On one bridge, or routed between two.
            (Some(_), Some(_)) if original == translated => return None,
            (Some(sender), Some(target)) => {
                let traffic = self.traffic_of_port(proto, original, translated).unwrap_or(target.traffic);
                ((SIDE_BRIDGE, SIDE_BRIDGE), Reason::FlowHairpin, target.hop, sender.hop, traffic)
            }
            (Some(_), None) if self.is_local(translated.destination) => return None,
            (Some(sender), None) => {
                let is_open = sender.subnet.flags & (NET_MASQUERADE | NET_DIRECT) == NET_DIRECT;
                if is_open && original == translated {
                    return None;
                }
                let there = outward(sender.subnet.bridge, original.source, translated.destination, sender.bridge_mac)?;
                ((SIDE_BRIDGE, SIDE_UPLINK), Reason::FlowMasqueraded, there, sender.hop, sender.traffic)
            }
            (None, Some(_)) if self.is_local(original.source) && original == translated => return None,
            (None, Some(target)) if self.is_local(original.source) => {
                let mut there = target.hop;
                if there.forward != FORWARD_NEIGH {
                    there.forward = FORWARD_EGRESS;
                }
                let lo = self.tables.config.lo_ifindex;
                let back = NextHop { ifindex: lo, forward: FORWARD_INGRESS, mtu: u16::MAX, ..NextHop::default() };
                let traffic = self.traffic_of_port(proto, original, translated).unwrap_or(target.traffic);
                ((SIDE_LO, SIDE_BRIDGE), Reason::FlowLoopback, there, back, traffic)
            }
            (None, Some(target)) => {
                let origin = if original == translated { Reason::FlowDirect } else { Reason::FlowPublished };
                let back = outward(target.subnet.bridge, translated.destination, translated.source, target.bridge_mac)?;
                let traffic = self.traffic_of_port(proto, original, translated).unwrap_or(target.traffic);
                ((SIDE_UPLINK, SIDE_BRIDGE), origin, target.hop, back, traffic)
            }
            // The host's own, with another port than its socket's.
            (None, None) if self.is_local(original.source) && original != translated => {
                let ifindex = (self.route)(0, original.source, translated.destination)?;
                self.tables.uplinks.get(&ifindex)?;
                let hop = NextHop { ifindex, forward: FORWARD_STACK, mtu: u16::MAX, ..NextHop::default() };
                ((SIDE_EGRESS, SIDE_UPLINK), Reason::FlowHost, hop, hop, 0)
            }
            (None, None) => return None,
        };
        let ((side, reverse_side), origin) = (sides, origin as u8);
        Some(NewFlow { from, side, to, reverse_side, proto, origin, traffic, serial: 0, there, back })
    }

    fn is_local(&self, address: IpAddr) -> bool {
        self.tables.locals.contains_key(&mapped(address).0) || address.is_loopback()
    }

    /// `None`: in no network, or the host's own.
    fn inside(&self, address: IpAddr) -> Option<Inside> {
        let tables = self.tables;
        let key = mapped(address).0;
        if self.is_local(address) {
            return None;
        }
        let bits = u128::from_be_bytes(key);
        let contains = |(len, base): &(u32, [u8; 16])| {
            let mask = u128::MAX.checked_shl(128 - len).unwrap_or(0);
            bits & mask == u128::from_be_bytes(*base)
        };
        let (_, subnet) =
            tables.subnets.iter().filter(|(prefix, _)| contains(prefix)).max_by_key(|((len, _), _)| *len)?;
        let (hop, bridge_mac, traffic) = match tables.endpoints.get(&key) {
            Some(e) => {
                let forward = if e.flags & ENDPOINT_XDP == 0 { FORWARD_PEER } else { FORWARD_XDP };
                let hop =
                    NextHop { ifindex: e.veth, match_dmac: e.mac, next_hop_mac: e.bridge_mac, forward, mtu: e.mtu };
                (hop, e.bridge_mac, e.traffic as u16)
            }
            // Of a container, but not by netpath.
            None => {
                let ifindex = subnet.bridge;
                let hop = NextHop { ifindex, forward: FORWARD_NEIGH, mtu: u16::MAX, ..NextHop::default() };
                (hop, Mac::default(), 0)
            }
        };
        Some(Inside { subnet: *subnet, hop, bridge_mac, traffic })
    }

    /// The counter of the published port by which a connection has come.
    fn traffic_of_port(&self, proto: u8, original: Direction, translated: Direction) -> Option<u16> {
        let port = original.destination_port;
        let (_, slots) = self.slots.range(..=(proto, port)).next_back().filter(|((p, _), _)| *p == proto)?;
        if u32::from(port - slots.first) >= slots.count {
            return None;
        }
        let (host, to) = (mapped(original.destination), mapped(translated.destination));
        let mut at = Some(slots.rule);
        while let Some(rule) = at.and_then(|at| self.tables.rules.get(at)) {
            let leads_there = Ipv4::mapped(rule.to4) == to || rule.to6 == to.0;
            if covers(rule, &host, port, proto)
                && leads_there
                && container_port(rule, port) == translated.destination_port
            {
                return Some(rule.traffic as u16);
            }
            at = (rule.next as usize).checked_sub(1);
        }
        None
    }
}

#[cfg(test)]
#[path = "take_over_tests.rs"]
mod tests;
