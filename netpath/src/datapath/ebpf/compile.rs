//! Desired endpoints and the current host → the contents of every control map. Pure: no kernel, no state.
//!
//! Publishes may overlap: a range and a single port inside it, a wildcard and one host address, the same port from
//! two containers. A port's chain lists the rules that can answer for it, most specific first; of two rules for the
//! same address and family only the older is in the chain, and the younger replaces it when it is removed. A publish
//! costs one rule, independent of its number of ports, and one more for each port where the rest of its chain
//! changes.

use super::addr::{mapped, prefix};
use super::{allow, subnet_bitmap, xdp_policy};
use crate::model::{
    Desired, HostBind, HostLink, HostView, IfName, Isolation, LinkKind, Proto, Publish, Record, RouteMtus, Xdp,
};
use ipnet::{IpNet, Ipv4Net};
use netpath_common::addr::{Addr, V4, V6};
use netpath_common::layout::{self, Config, Endpoint, Network, RouteMtu, Rule, Subnet, Uplink};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Source ports for flows that cannot keep their own: all unprivileged ones, as netfilter
/// (`net/netfilter/nf_nat_core.c, nf_nat_l4proto_unique_tuple()`); ports of the host's sockets are avoided.
const PORTS: (u16, u16) = (1_024, 65_535);

const PROTOCOLS: [(Proto, u8); 3] =
    [(Proto::Tcp, layout::PROTO_TCP), (Proto::Udp, layout::PROTO_UDP), (Proto::Sctp, layout::PROTO_SCTP)];

const SERVES_V4: u8 = 1;
const SERVES_V6: u8 = 2;

/// `Rule::next` holds 1 + the index in [`Tables::rules`] here; the writer of the map replaces it by the map's index.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tables {
    pub config: Config,
    /// The interface of each address of the host.
    pub locals: BTreeMap<[u8; 16], u32>,
    pub uplinks: BTreeMap<u32, Uplink>,
    /// The uplinks with the XDP program, and the setting that enables it.
    pub xdp: BTreeMap<u32, Xdp>,
    /// By prefix length over the v4-mapped destination; `None`: those in the map stay.
    pub route_mtus: Option<BTreeMap<(u32, [u8; 16]), RouteMtu>>,
    pub networks: BTreeMap<u32, Network>,
    /// By prefix length over the v4-mapped address.
    pub subnets: BTreeMap<(u32, [u8; 16]), Subnet>,
    pub endpoints: BTreeMap<[u8; 16], Endpoint>,
    /// A rule follows all rules that its chain leads to.
    pub rules: Vec<Rule>,
    pub slots: Vec<Slots>,
    pub allow: allow::Lists,
    pub subnet_hints: subnet_bitmap::Words,
    /// The counters of each endpoint, its own and those of its publishes, by its own.
    pub traffic: BTreeMap<u32, Vec<u32>>,
    /// Publishes left out of a full chain of [`layout::RULE_CHAIN`] rules for one port.
    pub left_out: usize,
    /// Uplinks beyond [`layout::UPLINKS`]: published ports are not served there.
    pub unserved: Vec<IfName>,
}

/// `count` ports from `first`, whose chain begins at this index in [`Tables::rules`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slots {
    pub proto: u8,
    pub first: u16,
    pub count: u32,
    pub rule: usize,
}

/// An address that several interfaces have belongs to each of them.
fn locals(host: &HostView) -> BTreeMap<[u8; 16], u32> {
    let mut locals = BTreeMap::new();
    for link in &host.links {
        for address in &link.addresses {
            let owner = locals.entry(mapped(address.addr()).0).or_insert(link.index);
            if *owner != link.index {
                *owner = layout::LOCAL_OF_SEVERAL;
            }
        }
    }
    locals
}

pub(super) fn compile(desired: &Desired, host: &HostView) -> Tables {
    let mut tables = Tables {
        subnet_hints: subnet_bitmap::of(desired.bridged().flat_map(|(r, _)| r.network.subnets.iter().map(|s| s.net))),
        config: Config {
            netns_cookie: host.cookie,
            port_min: PORTS.0,
            port_max: PORTS.1,
            lo_ifindex: host.links.iter().find(|l| l.kind == LinkKind::Loopback).map_or(1, |l| l.index),
        },
        locals: locals(host),
        route_mtus: host.route_mtus.as_ref().map(route_mtus),
        ..Tables::default()
    };
    // If there are too many, those with addresses, the oldest first: the rest of the host is served normally.
    let mut all: Vec<&HostLink> = uplinks(desired, host).collect();
    all.sort_by_key(|l| (!has_address(l), l.index));
    tables.unserved = all.iter().skip(layout::UPLINKS as usize).map(|l| l.name.clone()).collect();
    let elsewhere = elsewhere(desired, host);
    for link in all.into_iter().take(layout::UPLINKS as usize) {
        tables.uplinks.insert(link.index, uplink(link, link.master.is_some(), &elsewhere));
        if link.mac.is_some()
            && let Some(asked) = xdp_policy::asked(desired.bridged().map(|(r, _)| &r.network), link)
        {
            tables.xdp.insert(link.index, asked);
        }
    }
    for (record, links) in desired.bridged() {
        let network = network(record, host);
        for subnet in &record.network.subnets {
            let (len, base) = prefix(&subnet.net);
            tables.subnets.insert((len, base), Subnet { bridge: links.bridge_index, flags: network.flags });
        }
        tables.networks.insert(links.bridge_index, network);
        let own = u32::from(record.traffic.own);
        if own != 0 {
            let published = record.traffic.publishes.iter().filter(|id| **id != 0).map(|id| u32::from(*id));
            tables.traffic.insert(own, std::iter::once(own).chain(published).collect());
        }
        let mut flags = if links.takes_xdp { layout::ENDPOINT_XDP } else { 0 };
        if record.publishes.iter().any(Publish::is_moved_sctp) {
            flags |= layout::ENDPOINT_MOVED_SCTP;
        }
        for address in &record.endpoint.addresses {
            tables.endpoints.insert(
                mapped(address.addr()).0,
                Endpoint {
                    veth: links.veth_index,
                    bridge: links.bridge_index,
                    mac: links.container_mac.bytes(),
                    bridge_mac: links.bridge_mac.bytes(),
                    // The largest MTU of an interface.
                    mtu: u16::try_from(links.mtu).unwrap_or(u16::MAX),
                    flags,
                    traffic: own,
                },
            );
        }
    }
    publish_all(desired.bridged().map(|(r, links)| (r, links.bridge_index)), &mut tables);
    tables
}

/// Half of the map, so that new elements find room before old ones are removed.
fn route_mtus(all: &RouteMtus) -> BTreeMap<(u32, [u8; 16]), RouteMtu> {
    let first = all.iter().take(layout::ROUTE_MTUS as usize / 2);
    let mut mtus: BTreeMap<_, _> = first.map(|(net, mtu)| (prefix(net), *mtu)).collect();
    // An IPv6 prefix that contains the v4-mapped range, as the default route, says nothing about IPv4.
    mtus.entry(prefix(&IpNet::V4(Ipv4Net::default()))).or_insert(0);
    mtus
}

/// `endpoints`: each with the ifindex of its bridge.
pub(super) fn publish_all<'a>(endpoints: impl Iterator<Item = (&'a Record, u32)> + Clone, tables: &mut Tables) {
    for (proto, number) in PROTOCOLS {
        let offers = publishes(endpoints.clone(), proto, number, &mut tables.allow);
        chain(&offers, number, tables);
    }
}

/// Kinds of interfaces through which packets pass that have arrived by another one, or copies of them.
const NO_UPLINKS: [&str; 2] = ["ifb", "nlmon"];

/// Uplinks: interfaces with an address, or up without one (the host's address may be on `lo`, and the next hops on-link), that
/// belong neither to a bridge or bond nor to netpath itself. Members of a VRF are included.
fn uplinks<'a>(desired: &'a Desired, host: &'a HostView) -> impl Iterator<Item = &'a HostLink> {
    let bridges: BTreeSet<&IfName> = desired.bridges().collect();
    let veths: BTreeSet<u32> = desired.bridged().map(|(_, l)| l.veth_index).collect();
    host.links.iter().filter(move |l| {
        let taken = l.master.is_some_and(|m| host.link(m).is_none_or(|m| m.kind != LinkKind::Vrf));
        let is_kind = l.kind != LinkKind::Loopback && l.driver.as_deref().is_none_or(|d| !NO_UPLINKS.contains(&d));
        // A veth that is about to become a container's is down.
        let passes = l.up || has_address(l);
        is_kind && !taken && passes && !veths.contains(&l.index) && !bridges.contains(&l.name)
    })
}

/// More than the kernel's link-local address of a veth.
fn has_address(link: &HostLink) -> bool {
    link.addresses.iter().any(|a| link.kind != LinkKind::Veth || !is_link_local(a.addr()))
}

/// The first address of each family that an interface without one uses as source, as the kernel chooses it (`net/ipv4/devinet.c,
/// inet_select_addr()`).
fn elsewhere(desired: &Desired, host: &HostView) -> Vec<IpAddr> {
    let bridges: BTreeSet<&IfName> = desired.bridges().collect();
    let others = host.links.iter().filter(|l| l.master.is_none() && !bridges.contains(&l.name));
    let all = others.flat_map(|l| &l.addresses).map(IpNet::addr).filter(is_global);
    let (v4, v6): (Vec<_>, Vec<_>) = all.partition(IpAddr::is_ipv4);
    v4.into_iter().take(1).chain(v6.into_iter().take(1)).collect()
}

fn is_global(address: &IpAddr) -> bool {
    !is_link_local(*address) && !address.is_loopback()
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.segments()[0] & 0xffc0 == 0xfe80,
    }
}

/// `in_vrf`: the only kind of master whose members are uplinks.
fn uplink(link: &HostLink, in_vrf: bool, elsewhere: &[IpAddr]) -> Uplink {
    let elsewhere = if in_vrf { &[] } else { elsewhere };
    let source = |v4: bool| {
        let all = link.addresses.iter().map(IpNet::addr).filter(is_global).chain(elsewhere.iter().copied());
        all.into_iter().find(|a| a.is_ipv4() == v4)
    };
    let (mut source4, mut source6): (V4, V6) = ([0; 4], [0; 16]);
    if let Some(IpAddr::V4(a)) = source(true) {
        source4 = a.octets();
    }
    if let Some(IpAddr::V6(a)) = source(false) {
        source6 = a.octets();
    }
    let kind = if in_vrf { layout::ETHERNET_IN_VRF } else { layout::ETHERNET };
    let (mac, ethernet) = link.mac.map_or(([0; 6], 0), |m| (m.bytes(), kind));
    Uplink { mtu: link.mtu, mac, ethernet, source4, source6 }
}

fn network(record: &Record, host: &HostView) -> Network {
    let net = &record.network;
    let mut flags = match net.isolation {
        Isolation::Open => 0,
        Isolation::Isolated => layout::NET_ISOLATED,
        Isolation::Strict => layout::NET_STRICT,
    };
    for (is_so, flag) in [
        (net.internal, layout::NET_INTERNAL),
        (net.masquerade && !net.internal, layout::NET_MASQUERADE),
        (net.direct && !net.internal, layout::NET_DIRECT),
        (net.dns, layout::NET_DNS),
    ] {
        flags |= if is_so { flag } else { 0 };
    }
    let gateway = |v4: bool| net.gateways().map(|(a, _)| a).find(|a| a.is_ipv4() == v4);
    let (mut gateway4, mut gateway6): (V4, V6) = ([0; 4], [0; 16]);
    if let Some(IpAddr::V4(a)) = gateway(true) {
        gateway4 = a.octets();
    }
    if let Some(IpAddr::V6(a)) = gateway(false) {
        gateway6 = a.octets();
    }
    let of_bridge = || host.link_named(net.bridge()?).map(|l| l.mtu);
    let mtu = net.mtu.map(crate::model::network::Mtu::bytes).or_else(of_bridge).unwrap_or(1500);
    Network {
        flags,
        mtu,
        gateway4,
        gateway6,
        outbound4: net.outbound4.map_or([0; 4], |a| a.octets()),
        outbound6: net.outbound6.map_or([0; 16], |a| a.octets()),
    }
}

/// One publish of one endpoint, as the rule it becomes without overlaps.
struct Offer {
    rule: Rule,
    families: u8,
}

impl Offer {
    fn ports(&self) -> (u32, u32) {
        let first = u32::from(self.rule.host_port);
        (first, first + u32::from(self.rule.count))
    }
}

/// All publishes of a protocol in order of precedence: one address before every address, older before younger.
fn publishes<'a>(
    endpoints: impl Iterator<Item = (&'a Record, u32)>,
    proto: Proto,
    number: u8,
    lists: &mut allow::Lists,
) -> Vec<Offer> {
    let mut offers: Vec<(bool, u64, Offer)> = Vec::new();
    for (record, bridge) in endpoints {
        let (v4, v6) = (record.endpoint.first_v4(), record.endpoint.first_v6());
        let ours = |p: &&Publish| p.proto == proto && !p.is_moved_sctp();
        for (at, publish) in record.publishes.iter().enumerate().filter(|(_, p)| ours(p)) {
            let bind = match publish.bind {
                HostBind::Address(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => HostBind::AnyV4,
                HostBind::Address(IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => HostBind::AnyV6,
                other => other,
            };
            let host = if let HostBind::Address(a) = bind { mapped(a) } else { Addr::ANY };
            let serves_v4 = bind.serves_v4() && v4.is_some();
            let serves_v6 = bind.serves_v6() && v6.is_some();
            let families = if serves_v4 { SERVES_V4 } else { 0 } | if serves_v6 { SERVES_V6 } else { 0 };
            if families == 0 {
                continue;
            }
            let rule = Rule {
                host,
                to4: v4.unwrap_or(Ipv4Addr::UNSPECIFIED).octets(),
                to6: v6.unwrap_or(Ipv6Addr::UNSPECIFIED).octets(),
                host_port: publish.host_port(),
                container_port: publish.container_port(),
                count: publish.count(),
                proto: number,
                flags: if bind == HostBind::AnyV4 { layout::RULE_V4_ONLY } else { 0 },
                bridge,
                allow: lists.number(record.allow_of(publish)),
                traffic: record.traffic.publishes.get(at).map_or(0, |id| u32::from(*id)),
                ..Rule::default()
            };
            offers.push((host == Addr::ANY, record.order, Offer { rule, families }));
        }
    }
    offers.sort_by_key(|(any, order, _)| (*any, *order));
    offers.into_iter().map(|(_, _, o)| o).collect()
}

/// Processes the ports in order, at each port where a publish begins or ends.
fn chain(offers: &[Offer], proto: u8, tables: &mut Tables) {
    let mut edges: BTreeMap<u32, (Vec<usize>, Vec<usize>)> = BTreeMap::new();
    for (i, offer) in offers.iter().enumerate() {
        let (first, end) = offer.ports();
        edges.entry(first).or_default().0.push(i);
        edges.entry(end).or_default().1.push(i);
    }
    let mut active: BTreeSet<usize> = BTreeSet::new();
    // (offer, families, next) of a rule → its index: the rule grows while the rest of its chain is unchanged.
    let mut open: HashMap<(usize, u8, u32), usize> = HashMap::new();
    let ends: Vec<u32> = edges.keys().copied().skip(1).collect();
    for ((start, (begin, end)), stop) in edges.into_iter().zip(ends) {
        for i in end {
            active.remove(&i);
        }
        active.extend(begin);
        let members = answering(offers, &active, &mut tables.left_out);
        let mut next = 0;
        for (i, families) in members.into_iter().rev() {
            let grown = open.get(&(i, families, next)).copied().filter(|r| {
                let rule = &tables.rules[*r];
                u32::from(rule.host_port) + u32::from(rule.count) == start
            });
            let index = if let Some(index) = grown {
                // Both ends are within the offer, which has at most 65,535 ports.
                tables.rules[index].count += (stop - start) as u16;
                index
            } else {
                tables.rules.push(part(&offers[i], families, start, stop, next));
                tables.rules.len() - 1
            };
            open.insert((i, families, next), index);
            next = index as u32 + 1;
        }
        if next != 0 {
            publish_slots(&mut tables.slots, proto, start, stop, next as usize - 1);
        }
    }
}

/// The offers that still serve a family on their address, with those families.
fn answering(offers: &[Offer], active: &BTreeSet<usize>, left_out: &mut usize) -> Vec<(usize, u8)> {
    let mut taken: Vec<(Addr, u8)> = Vec::new();
    let mut members = Vec::new();
    for &i in active {
        let host = offers[i].rule.host;
        let before = taken.iter().filter(|(h, _)| *h == host).fold(0, |f, (_, more)| f | more);
        let families = offers[i].families & !before;
        if families == 0 {
            continue;
        }
        if members.len() == layout::RULE_CHAIN as usize {
            *left_out += 1;
            continue;
        }
        taken.push((host, families));
        members.push((i, families));
    }
    members
}

fn part(offer: &Offer, families: u8, start: u32, stop: u32, next: u32) -> Rule {
    let mut rule = offer.rule;
    rule.container_port += (start - u32::from(rule.host_port)) as u16;
    rule.host_port = start as u16;
    rule.count = (stop - start) as u16;
    rule.next = next;
    if families & SERVES_V4 == 0 {
        rule.to4 = [0; 4];
    }
    if families & SERVES_V6 == 0 {
        rule.to6 = [0; 16];
    }
    rule
}

fn publish_slots(slots: &mut Vec<Slots>, proto: u8, start: u32, stop: u32, rule: usize) {
    if let Some(last) = slots.last_mut()
        && last.proto == proto
        && last.rule == rule
        && u32::from(last.first) + last.count == start
    {
        last.count += stop - start;
        return;
    }
    slots.push(Slots { proto, first: start as u16, count: stop - start, rule });
}

#[cfg(test)]
#[path = "compile_tests.rs"]
mod tests;
