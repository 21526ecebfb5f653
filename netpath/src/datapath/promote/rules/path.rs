//! The packets of a flow at the hooks that they come to.

use super::flow::{Flow, Tuple};
use super::packet::Packet;
use super::table::{BRIDGE, Base, Hook, INET, IP, IP6, NETDEV};
use crate::netlink::Netlink;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{InfoKind, InfoPortKind, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use std::collections::{BTreeMap, BTreeSet};
use std::io;

// include/uapi/linux/netfilter_ipv4.h: NF_IP_PRI_…
const CONNTRACK: i32 = -200;
const NAT_DST: i32 = -100;
const NAT_SRC: i32 = 100;

/// One direction of a flow.
struct Way<'a> {
    tuple: Tuple,
    /// After translation.
    translated: Tuple,
    iif: &'a str,
    iif_port: Option<&'a str>,
    oif: &'a str,
    oif_port: Option<&'a str>,
    is_reply: bool,
}

/// The packets that come to a base chain; none: the flow does not.
pub(super) fn packets<'a>(
    flow: &Flow<'a>,
    family: u8,
    base: &Base,
    lower: &'a BTreeMap<String, Vec<String>>,
) -> Vec<Packet<'a>> {
    let v6 = flow.original.source.is_ipv6();
    if family == if v6 { IP } else { IP6 } || ![IP, IP6, INET, NETDEV, BRIDGE].contains(&family) {
        return Vec::new();
    }
    let turned = |t: Tuple| Tuple { source: t.destination, destination: t.source };
    let (original, reply) = (flow.original, flow.reply);
    let ways = [
        Way {
            tuple: original,
            translated: turned(reply),
            iif: flow.ingress,
            iif_port: flow.ingress_port,
            oif: flow.egress,
            oif_port: flow.egress_port,
            is_reply: false,
        },
        Way {
            tuple: reply,
            translated: turned(original),
            iif: flow.egress,
            iif_port: flow.egress_port,
            oif: flow.ingress,
            oif_port: flow.ingress_port,
            is_reply: true,
        },
    ];
    let mut packets = Vec::new();
    for way in ways {
        let common = Packet {
            v6,
            protocol: Some(flow.protocol),
            nfproto: nfproto(family, v6),
            tracked: true,
            reply_direction: Some(way.is_reply),
            original: Some(original),
            reply: Some(reply),
            mark: Some(flow.mark),
            ..Packet::default()
        };
        for place in places(&way, family, base, lower) {
            packets.push(Packet {
                source: place
                    .source
                    .then_some(way.tuple.source)
                    .or(place.source_after.then_some(way.translated.source)),
                destination: place
                    .destination
                    .then_some(way.tuple.destination)
                    .or(place.destination_after.then_some(way.translated.destination)),
                iif: place.iif,
                oif: place.oif,
                tracked: place.tracked,
                below: place.below,
                ..common.clone()
            });
        }
    }
    packets
}

/// Of the family inet and of devices that of the packet, as `meta nfproto` gives it.
fn nfproto(family: u8, v6: bool) -> u8 {
    match family {
        NETDEV | BRIDGE => family,
        _ if v6 => IP6,
        _ => IP,
    }
}

/// Which addresses a packet has at a hook: those before translation, after it, or unknown.
#[derive(Clone, Copy, Default)]
struct Place<'a> {
    source: bool,
    source_after: bool,
    destination: bool,
    destination_after: bool,
    iif: Option<&'a str>,
    oif: Option<&'a str>,
    tracked: bool,
    below: bool,
}

fn places<'a>(way: &Way<'a>, family: u8, base: &Base, lower: &'a BTreeMap<String, Vec<String>>) -> Vec<Place<'a>> {
    const NO_INTERFACE: Option<&str> = Some("");
    let (source, destination) = (true, true);
    let before = Place { source, destination, tracked: true, ..Place::default() };
    let routed = Place { source, destination_after: true, tracked: true, ..Place::default() };
    let after = Place { source_after: true, destination_after: true, tracked: true, ..Place::default() };
    let (iif, oif) = (Some(way.iif), Some(way.oif));
    if family == BRIDGE {
        // Frames of bridge ports, as the port and the bridge see them.
        let (from, to) = (way.iif_port, way.oif_port);
        let came = Place { iif: from, oif: NO_INTERFACE, tracked: false, ..before };
        let goes = Place { iif: NO_INTERFACE, oif: to, tracked: false, ..after };
        return match base.hook {
            Hook::Prerouting if from.is_some() => vec![came],
            // br_netfilter has translated the destination.
            Hook::Input if from.is_some() => vec![Place { destination: false, ..came }],
            Hook::Output if to.is_some() => vec![goes],
            Hook::Postrouting if to.is_some() => vec![Place { iif: None, ..goes }],
            Hook::Forward if from.is_some() && to.is_some() && way.iif == way.oif => {
                vec![Place { iif: from, oif: to, tracked: false, ..Place::default() }]
            }
            _ => Vec::new(),
        };
    }
    let devices = |port: Option<&'a str>, interface: &'a str| {
        let stack = below([port.unwrap_or(interface), interface], lower);
        stack.into_iter().filter(|name| base.devices.iter().any(|device| is_at(device, name))).collect::<Vec<_>>()
    };
    let is_below = |device: &str, port: Option<&str>, interface: &str| device != interface && Some(device) != port;
    match base.hook {
        Hook::Ingress => {
            let place = |device| Place {
                iif: Some(device),
                oif: NO_INTERFACE,
                tracked: false,
                below: is_below(device, way.iif_port, way.iif),
                ..before
            };
            devices(way.iif_port, way.iif).into_iter().map(place).collect()
        }
        Hook::Egress => {
            let place = |device| Place {
                iif: None,
                oif: Some(device),
                below: is_below(device, way.oif_port, way.oif),
                ..after
            };
            devices(way.oif_port, way.oif).into_iter().map(place).collect()
        }
        Hook::Prerouting => {
            let place = match base.priority {
                ..NAT_DST => before,
                NAT_DST => Place { destination: false, ..before },
                _ => routed,
            };
            vec![Place { iif, oif: NO_INTERFACE, tracked: base.priority > CONNTRACK, ..place }]
        }
        Hook::Forward => vec![Place { iif, oif, ..routed }],
        Hook::Postrouting => {
            let place = match base.priority {
                ..NAT_SRC => routed,
                NAT_SRC => Place { source: false, ..routed },
                _ => after,
            };
            vec![Place { iif, oif, ..place }]
        }
        _ => Vec::new(),
    }
}

/// Whether a chain at `device` is at the interface `name`.
fn is_at(device: &str, name: &str) -> bool {
    device.strip_suffix('*').map_or(device == name, |begin| name.starts_with(begin))
}

/// The interfaces and those below them.
fn below<'a>(names: [&'a str; 2], lower: &'a BTreeMap<String, Vec<String>>) -> BTreeSet<&'a str> {
    let mut found: BTreeSet<&str> = BTreeSet::new();
    let mut next: Vec<&str> = names.to_vec();
    while let Some(name) = next.pop() {
        if found.insert(name) {
            next.extend(lower.get(name).into_iter().flatten().map(String::as_str));
        }
    }
    found
}

/// A packet of any flow, of each family that comes to the chain.
pub(super) fn any(family: u8, base: &Base) -> Vec<Packet<'static>> {
    let is_met = match base.hook {
        Hook::Ingress | Hook::Prerouting | Hook::Forward | Hook::Postrouting | Hook::Egress => true,
        Hook::Input | Hook::Output => family == BRIDGE,
        Hook::Other => false,
    };
    let tracked = !(family == BRIDGE
        || base.hook == Hook::Ingress
        || (base.hook == Hook::Prerouting && base.priority <= CONNTRACK));
    let below = matches!(base.hook, Hook::Ingress | Hook::Egress);
    let packet = |v6| Packet { v6, nfproto: nfproto(family, v6), tracked, below, ..Packet::default() };
    match family {
        _ if !is_met => Vec::new(),
        IP => vec![packet(false)],
        IP6 => vec![packet(true)],
        INET | NETDEV | BRIDGE => vec![packet(false), packet(true)],
        _ => Vec::new(),
    }
}

/// For each interface those directly below it, except ports of bridges, which a flow names itself.
pub(super) fn lower_links() -> io::Result<BTreeMap<String, Vec<String>>> {
    let all = Netlink::open(NETLINK_ROUTE)?.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let links: Vec<LinkMessage> =
        all.into_iter().filter_map(|m| if let RouteNetlinkMessage::NewLink(l) = m { Some(l) } else { None }).collect();
    let name = |link: &LinkMessage| {
        link.attributes.iter().find_map(|a| if let LinkAttribute::IfName(name) = a { Some(name.clone()) } else { None })
    };
    let names: BTreeMap<u32, String> = links.iter().filter_map(|l| Some((l.header.index, name(l)?))).collect();
    let mut lower: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for link in &links {
        let Some(own) = names.get(&link.header.index) else { continue };
        let is_elsewhere = link.attributes.iter().any(|a| matches!(a, LinkAttribute::LinkNetNsId(_)));
        let is_veth = link.attributes.iter().any(|a| is_info(a, &LinkInfo::Kind(InfoKind::Veth)));
        let is_port = link.attributes.iter().any(|a| is_info(a, &LinkInfo::PortKind(InfoPortKind::Bridge)));
        for attribute in &link.attributes {
            match attribute {
                // Of a veth it is the other end.
                LinkAttribute::Link(of) if !is_elsewhere && !is_veth => {
                    lower.entry(own.clone()).or_default().extend(names.get(of).cloned());
                }
                LinkAttribute::Controller(of) if !is_port => {
                    if let Some(upper) = names.get(of) {
                        lower.entry(upper.clone()).or_default().push(own.clone());
                    }
                }
                _ => {}
            }
        }
    }
    Ok(lower)
}

fn is_info(attribute: &LinkAttribute, info: &LinkInfo) -> bool {
    matches!(attribute, LinkAttribute::LinkInfo(infos) if infos.contains(info))
}
