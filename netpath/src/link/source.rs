//! Source addresses that routes prescribe for container traffic (`ip route … src`, RTA_PREFSRC). netfilter's masquerade
//! ignores them and chooses an address of the outgoing interface (`net/netfilter/nf_nat_masquerade.c`).
//!
//! The destinations of all routes and routing rules divide the address space into regions in which all packets from one
//! bridge and source take the same route, except for rules by mark, port or type of service. The kernel is queried for the
//! route to one address of each region. Only regions of routes with a preferred source, and those inside them, matter.

use super::rtnl::{Rtnl, failed};
use crate::model::error::{Context, Result};
use crate::model::{Desired, HostView, IfName, RouteMtus, RouteSource};
use crate::netlink::Netlink;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rtnetlink::packet_core::DefaultNla;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteNextHop, RouteType, RouteVia,
};
use rtnetlink::packet_route::rule::{RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Bound;

/// A host with more routes is an Internet router: reading stops there.
const MAX_ROUTES: usize = 4_096;
/// Route lookups in each family; each takes some microseconds.
const MAX_LOOKUPS: usize = 2_048;

/// Destinations that are never forwarded, or whose route says nothing about that of other destinations.
const NEVER4: [&str; 4] = ["0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4"];
const NEVER6: [&str; 3] = ["::/8", "fe80::/10", "ff00::/8"];

impl Rtnl {
    /// The routes of connections from masqueraded networks, for [`HostView::sources`]; and descriptions of what was left
    /// out. `view` must include the bridges.
    ///
    /// # Errors
    /// The kernel's.
    pub fn sources(&self, view: &HostView, desired: &Desired) -> Result<(Vec<RouteSource>, Vec<String>)> {
        let (mut sources, mut left_out) = (Vec::new(), Vec::new());
        let (v4, v6): (Vec<_>, Vec<_>) =
            masqueraded(view, desired).into_iter().partition(|(_, net)| net.addr().is_ipv4());
        for bridges in [v4, v6].iter().filter(|b| !b.is_empty()) {
            sources.extend(self.sources_of(view, desired, bridges, &mut left_out)?);
        }
        Ok((sources, left_out))
    }

    /// The sources for the subnets of one family, each with the index of its bridge.
    fn sources_of(
        &self,
        view: &HostView,
        desired: &Desired,
        bridges: &[(u32, IpNet)],
        left_out: &mut Vec<String>,
    ) -> Result<Vec<RouteSource>> {
        let v4 = bridges.iter().all(|(_, net)| net.addr().is_ipv4());
        let Some(routes) = routes(v4)? else {
            let family = if v4 { "IPv4" } else { "IPv6" };
            left_out.push(format!("the host has more than {MAX_ROUTES} {family} routes"));
            return Ok(Vec::new());
        };
        let with_source: BTreeSet<IpNet> =
            routes.iter().filter(|r| r.source(view, r.to).is_some()).map(|r| r.to).collect();
        let rules = if with_source.is_empty() { Rules::default() } else { self.rules(v4)? };
        let excluded = routes.iter().filter(|r| !r.is_forwarding).map(|r| r.to).chain(containers(desired));
        let excluded: BTreeSet<IpNet> = excluded.chain(never(v4)).filter(|n| n.addr().is_ipv4() == v4).collect();
        let forwarding = routes.iter().filter(|r| r.is_forwarding).map(|r| r.to);
        let all: BTreeSet<IpNet> = forwarding.chain(rules.to).chain([everything(v4)]).collect();
        let of_bridge = |&(bridge, net)| parts(net, &rules.from).map(move |from| (bridge, net, from));
        let parts: Vec<(u32, IpNet, IpNet)> = bridges.iter().flat_map(of_bridge).collect();

        let mut wanted: Vec<IpNet> =
            all.iter().copied().filter(|to| is_wanted(*to, &with_source) && !excluded.contains(to)).collect();
        wanted.sort_by_key(IpNet::prefix_len);
        let limit = (MAX_LOOKUPS / parts.len().max(1)).max(1);
        if wanted.len() > limit {
            left_out.push(format!("{} prefixes beyond the widest {limit}", wanted.len() - limit));
            wanted.truncate(limit);
        }
        let taken: BTreeSet<IpNet> = all.union(&excluded).copied().collect();
        let wanted: Vec<(IpNet, IpAddr)> = wanted.into_iter().filter_map(|to| Some((to, free(to, &taken)?))).collect();

        let taken: BTreeSet<IpNet> = excluded.iter().copied().chain(parts.iter().map(|(.., from)| *from)).collect();
        let mut sources = Vec::new();
        for (bridge, net, from) in parts {
            let Some(container) = free(from, &taken) else { continue };
            sources.extend(self.route_sources(view, bridge, from, container, &wanted));
            if from != net {
                // Ends with a catch-all, so that this part never falls through to the sources of the whole subnet.
                let rest = RouteSource { from, to: everything(v4), by: Vec::new(), source: None };
                sources.extend(sources.last().is_none_or(|s| s.from != from || s.to != rest.to).then_some(rest));
            }
        }
        Ok(sources)
    }

    /// The sources for one bridge and source prefix, most specific destination first. `wanted`: the destinations, widest
    /// first, each with an address to look up.
    fn route_sources(
        &self,
        view: &HostView,
        bridge: u32,
        from: IpNet,
        container: IpAddr,
        wanted: &[(IpNet, IpAddr)],
    ) -> Vec<RouteSource> {
        let mut sources: Vec<RouteSource> = Vec::new();
        for &(to, address) in wanted {
            // Without a route nothing is forwarded.
            let Some(route) = self.route(bridge, container, address) else { continue };
            let by = route.hops.iter().filter_map(|(index, _)| Some(view.link(*index)?.name.clone()));
            let mut by: Vec<IfName> = by.collect();
            by.sort();
            by.dedup();
            let new = RouteSource { from, to, by, source: route.source(view, to) };
            let enclosing = sources.iter().rev().find(|s| s.to.contains(&to));
            if enclosing.is_none_or(|s| (&s.by, s.source) != (&new.by, new.source)) {
                sources.push(new);
            }
        }
        sources.reverse();
        sources
    }

    /// The MTUs of routes, of all tables; of a family with more than [`MAX_ROUTES`] routes none.
    ///
    /// # Errors
    /// The kernel's.
    pub fn route_mtus(&self) -> Result<RouteMtus> {
        let mut all = mtus(&routes(true)?.unwrap_or_default());
        all.extend(mtus(&routes(false)?.unwrap_or_default()));
        Ok(all)
    }

    /// The interface by which the kernel sends a packet that came from `interface`; 0 = the host's own packet.
    pub fn route_interface(&self, interface: u32, from: IpAddr, to: IpAddr) -> Option<u32> {
        Some(self.way(interface, from, to, None)?.ifindex)
    }

    /// The way of such a packet. `ports`: the number of its protocol, with its source and destination port.
    pub fn way(&self, interface: u32, from: IpAddr, to: IpAddr, ports: Option<(u8, u16, u16)>) -> Option<Way> {
        // include/uapi/linux/rtnetlink.h, enum rtattr_type_t
        const IP_PROTO: u16 = 27;
        const SPORT: u16 = 28;
        const DPORT: u16 = 29;
        let mut message = request(from, to);
        if interface != 0 {
            message.attributes.push(RouteAttribute::Iif(interface));
        }
        if let Some((protocol, source, destination)) = ports {
            let number = |kind, value: Vec<u8>| RouteAttribute::Other(DefaultNla::new(kind, value));
            message.attributes.push(number(IP_PROTO, vec![protocol]));
            message.attributes.push(number(SPORT, source.to_be_bytes().to_vec()));
            message.attributes.push(number(DPORT, destination.to_be_bytes().to_vec()));
        }
        let answers = self.read(RouteNetlinkMessage::GetRoute(message)).ok()?;
        let [RouteNetlinkMessage::NewRoute(route)] = answers.as_slice() else { return None };
        let mut way = Way { ifindex: 0, next_hop: to, mtu: None };
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Oif(index) => way.ifindex = *index,
                RouteAttribute::Gateway(RouteAddress::Inet(a)) | RouteAttribute::Via(RouteVia::Inet(a)) => {
                    way.next_hop = (*a).into();
                }
                RouteAttribute::Gateway(RouteAddress::Inet6(a)) | RouteAttribute::Via(RouteVia::Inet6(a)) => {
                    way.next_hop = (*a).into();
                }
                RouteAttribute::Metrics(metrics) => {
                    way.mtu =
                        metrics.iter().find_map(|m| if let RouteMetric::Mtu(mtu) = m { Some(*mtu) } else { None });
                }
                _ => {}
            }
        }
        (way.ifindex != 0).then_some(way)
    }

    /// The route of a packet from a container.
    fn route(&self, bridge: u32, from: IpAddr, to: IpAddr) -> Option<Route> {
        let mut message = request(from, to);
        message.header.flags = RouteFlags::FibMatch;
        message.attributes.push(RouteAttribute::Iif(bridge));
        let answers = self.read(RouteNetlinkMessage::GetRoute(message)).ok()?;
        answers.iter().find_map(Route::of).filter(|r| r.is_forwarding && !r.hops.is_empty())
    }

    fn rules(&self, v4: bool) -> Result<Rules> {
        let mut request = RuleMessage::default();
        request.header.family = family(v4);
        let answers =
            self.dump(RouteNetlinkMessage::GetRule(request)).map_err(failed("cannot list routing rules".into()))?;
        let mut rules = Rules::default();
        for answer in answers {
            let RouteNetlinkMessage::NewRule(rule) = answer else { continue };
            for attribute in &rule.attributes {
                match attribute {
                    RuleAttribute::Source(ip) => {
                        rules.from.extend(IpNet::new(*ip, rule.header.src_len).map(|n| n.trunc()));
                    }
                    RuleAttribute::Destination(ip) => {
                        rules.to.extend(IpNet::new(*ip, rule.header.dst_len).map(|n| n.trunc()));
                    }
                    _ => {}
                }
            }
        }
        Ok(rules)
    }
}

fn request(from: IpAddr, to: IpAddr) -> RouteMessage {
    let len = if to.is_ipv4() { 32 } else { 128 };
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family(to.is_ipv4()),
        destination_prefix_length: len,
        source_prefix_length: len,
        ..RouteHeader::default()
    };
    message.attributes = vec![RouteAttribute::Destination(to.into()), RouteAttribute::Source(from.into())];
    message
}

/// The prefixes that routing rules match.
#[derive(Default)]
struct Rules {
    from: BTreeSet<IpNet>,
    to: BTreeSet<IpNet>,
}

/// Where the kernel sends a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Way {
    pub ifindex: u32,
    /// The destination itself on the link.
    pub next_hop: IpAddr,
    /// Of the route, bytes.
    pub mtu: Option<u32>,
}

struct Route {
    to: IpNet,
    /// Not a local, broadcast, anycast or multicast route.
    is_forwarding: bool,
    preferred: Option<IpAddr>,
    mtu: Option<u32>,
    /// Index and gateway of each next hop's interface.
    hops: Vec<(u32, Option<IpAddr>)>,
}

impl Route {
    fn of(message: &RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewRoute(message) = message else { return None };
        // An exception, as a learned path MTU, which the dump lists beside the routes (5.3).
        if message.header.flags.contains(RouteFlags::Cloned) {
            return None;
        }
        let (mut to, mut preferred, mut mtu, mut hops) = (None, None, None, Vec::new());
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(a) => to = address(a),
                RouteAttribute::PrefSource(a) => preferred = address(a),
                RouteAttribute::Metrics(all) => {
                    mtu = all.iter().find_map(|m| if let RouteMetric::Mtu(mtu) = m { Some(*mtu) } else { None });
                }
                RouteAttribute::MultiPath(all) => hops.extend(all.iter().map(hop)),
                _ => {}
            }
        }
        let one = message.attributes.iter().find_map(|a| if let RouteAttribute::Oif(i) = a { Some(*i) } else { None });
        hops.extend(one.map(|index| (index, gateway(&message.attributes))));
        let to = match to {
            Some(to) => IpNet::new(to, message.header.destination_prefix_length).ok()?.trunc(),
            None => everything(message.header.address_family == AddressFamily::Inet),
        };
        let kinds = [RouteType::Local, RouteType::Broadcast, RouteType::Anycast, RouteType::Multicast];
        Some(Self { to, is_forwarding: !kinds.contains(&message.header.kind), preferred, mtu, hops })
    }

    /// The preferred source, if masquerade of packets to `to` might choose another one.
    fn source(&self, view: &HostView, to: IpNet) -> Option<IpAddr> {
        let source = self.preferred.filter(|_| self.is_forwarding)?;
        let chooses_it = |(index, gateway): &(u32, Option<IpAddr>)| {
            let addresses = view.link(*index).map_or(&[][..], |l| &l.addresses);
            chosen(addresses, gateway.map_or(to, IpNet::from)) == Some(source)
        };
        (!self.hops.iter().all(chooses_it)).then_some(source)
    }
}

/// The smallest of the routes to one destination, and 0 for routes inside without one.
fn mtus(routes: &[Route]) -> RouteMtus {
    let forwarding = || routes.iter().filter(|r| r.is_forwarding);
    let mut mtus = RouteMtus::new();
    for (to, mtu) in forwarding().filter_map(|r| Some((r.to, r.mtu?))) {
        mtus.entry(to).and_modify(|known| *known = mtu.min(*known)).or_insert(mtu);
    }
    let is_inside = |to: &IpNet| mtus.keys().any(|net| net != to && net.contains(to));
    let without: Vec<IpNet> = forwarding().map(|r| r.to).filter(is_inside).collect();
    for to in without {
        mtus.entry(to).or_insert(0);
    }
    mtus
}

fn hop(hop: &RouteNextHop) -> (u32, Option<IpAddr>) {
    (hop.interface_index, gateway(&hop.attributes))
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|a| if let RouteAttribute::Gateway(ip) = a { address(ip) } else { None })
}

fn address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

/// The address that masquerade chooses for a next hop, if the choice is predictable and the same for all of `hop`: the first
/// whose subnet contains the next hop, else the first of all (`net/ipv4/devinet.c, inet_select_addr()`). The kernel lists
/// addresses in that order, secondary ones last. For IPv6 the choice follows RFC 6724 and is not predicted.
fn chosen(addresses: &[IpNet], hop: IpNet) -> Option<IpAddr> {
    let mut v4 = addresses.iter().filter(|a| a.addr().is_ipv4() && hop.addr().is_ipv4());
    let on_link = v4.clone().find(|a| a.contains(&hop) || hop.contains(&a.trunc()));
    match on_link {
        Some(on_link) => on_link.contains(&hop).then(|| on_link.addr()),
        None => v4.next().map(IpNet::addr),
    }
}

/// Bridges and their masqueraded subnets.
fn masqueraded(view: &HostView, desired: &Desired) -> BTreeSet<(u32, IpNet)> {
    let mut bridges = BTreeSet::new();
    for (record, _) in desired.bridged() {
        let network = &record.network;
        let is_masqueraded = network.masquerade && !network.internal;
        let Some(bridge) = network.bridge().filter(|_| is_masqueraded).and_then(|b| view.link_named(b)) else {
            continue;
        };
        let is_fixed =
            |n: &IpNet| if n.addr().is_ipv4() { network.outbound4.is_some() } else { network.outbound6.is_some() };
        let subnets = network.subnets.iter().map(|s| s.net.trunc()).filter(|n| !is_fixed(n));
        bridges.extend(subnets.map(|net| (bridge.index, net)));
    }
    bridges
}

/// Subnets of containers, to which packets are not masqueraded.
fn containers(desired: &Desired) -> impl Iterator<Item = IpNet> {
    desired.bridged().flat_map(|(r, _)| &r.network.subnets).map(|s| s.net.trunc())
}

/// All routes of all tables; `None` if there are too many.
fn routes(v4: bool) -> Result<Option<Vec<Route>>> {
    let what = || "cannot list routes".to_owned();
    let mut request = RouteMessage::default();
    request.header.address_family = family(v4);
    let socket = Netlink::open(NETLINK_ROUTE).context(what)?;
    let answers = socket.dump_at_most(RouteNetlinkMessage::GetRoute(request), MAX_ROUTES).context(what)?;
    Ok(answers.map(|a| a.iter().filter_map(Route::of).collect()))
}

/// The parts of a subnet that routing rules match, smallest first, and then the subnet itself.
fn parts(net: IpNet, matched: &BTreeSet<IpNet>) -> impl Iterator<Item = IpNet> {
    let mut parts: Vec<IpNet> = matched.iter().copied().filter(|n| *n != net && net.contains(n)).collect();
    parts.sort_by_key(|n| std::cmp::Reverse(n.prefix_len()));
    parts.into_iter().chain([net])
}

/// Whether a destination lies in a route with a preferred source. The default route is always wanted.
fn is_wanted(to: IpNet, with_source: &BTreeSet<IpNet>) -> bool {
    to.prefix_len() == 0 || with_source.iter().any(|n| n.contains(&to))
}

/// The first address of a prefix that is in none of the smaller prefixes of `taken`.
fn free(net: IpNet, taken: &BTreeSet<IpNet>) -> Option<IpAddr> {
    let (mut at, last) = ends(net);
    let inside = taken.range((Bound::Excluded(net), Bound::Unbounded)).take_while(|n| ends(**n).0 <= last);
    for (first, end) in inside.filter(|n| net.contains(*n)).map(|n| ends(*n)) {
        if first > at {
            break;
        }
        at = at.max(end.checked_add(1)?);
    }
    let free = (at <= last).then_some(at)?;
    match net {
        IpNet::V4(_) => Some(Ipv4Addr::from(u32::try_from(free).ok()?).into()),
        IpNet::V6(_) => Some(Ipv6Addr::from(free).into()),
    }
}

fn ends(net: IpNet) -> (u128, u128) {
    match net {
        IpNet::V4(net) => (u32::from(net.network()).into(), u32::from(net.broadcast()).into()),
        IpNet::V6(net) => (net.network().into(), net.broadcast().into()),
    }
}

fn everything(v4: bool) -> IpNet {
    if v4 { Ipv4Net::default().into() } else { Ipv6Net::default().into() }
}

fn never(v4: bool) -> impl Iterator<Item = IpNet> {
    let never: &[&str] = if v4 { &NEVER4 } else { &NEVER6 };
    never.iter().filter_map(|n| n.parse().ok())
}

fn family(v4: bool) -> AddressFamily {
    if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
        texts.iter().map(|t| net(t)).collect()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn the_address_that_represents_a_region_is_in_no_other() {
        let taken = nets(&["0.0.0.0/0", "0.0.0.0/8", "1.0.0.0/24", "1.0.1.0/32", "192.0.2.0/24"]);
        assert_eq!(Some(ip("1.0.1.1")), free(net("0.0.0.0/0"), &taken));
        assert_eq!(Some(ip("1.0.0.0")), free(net("1.0.0.0/24"), &taken), "enclosing prefixes do not matter");
        assert_eq!(Some(ip("1.0.1.0")), free(net("1.0.1.0/32"), &taken));
        let taken = nets(&["192.0.2.0/24", "192.0.2.0/25", "192.0.2.128/25"]);
        assert_eq!(None, free(net("192.0.2.0/24"), &taken), "other regions cover it");
        let taken = nets(&["255.255.255.0/24", "255.255.255.0/25", "255.255.255.128/25"]);
        assert_eq!(None, free(net("255.255.255.0/24"), &taken));
        let taken = nets(&["::/0", "::/8", "100::/16", "8000::/1"]);
        assert_eq!(Some(ip("101::")), free(net("::/0"), &taken));
        assert_eq!(None, free(net("8000::/1"), &nets(&["8000::/2", "c000::/2"])));
    }

    #[test]
    fn masquerade_chooses_an_address_in_the_subnet_of_the_next_hop_or_the_first() {
        let addresses = [net("192.0.2.1/24"), net("198.51.100.1/25"), net("192.0.2.10/24"), net("2001:db8::1/64")];
        assert_eq!(Some(ip("192.0.2.1")), chosen(&addresses, net("192.0.2.2/32")));
        assert_eq!(Some(ip("198.51.100.1")), chosen(&addresses, net("198.51.100.2/32")));
        assert_eq!(Some(ip("192.0.2.1")), chosen(&addresses, net("203.0.113.5/32")));
        assert_eq!(Some(ip("198.51.100.1")), chosen(&addresses, net("198.51.100.0/25")), "all of a subnet");
        assert_eq!(None, chosen(&addresses, net("198.51.100.0/24")), "it depends on the address");
        assert_eq!(None, chosen(&addresses, net("2001:db8::2/128")));
        assert_eq!(None, chosen(&[], net("192.0.2.2/32")));
    }

    #[test]
    fn only_routes_with_a_source_and_those_inside_them_are_looked_up() {
        let with_source = nets(&["203.0.113.0/24"]);
        let wanted = |to: &str| is_wanted(net(to), &with_source);
        assert!(wanted("203.0.113.0/24") && wanted("203.0.113.128/25") && wanted("0.0.0.0/0"));
        assert!(!wanted("198.51.100.0/24") && !wanted("203.0.112.0/23"));
    }

    #[test]
    fn a_part_of_a_subnet_comes_before_it() {
        let matched = nets(&["10.89.7.0/24", "10.89.7.5/32", "10.89.7.0/28", "10.89.8.0/24", "10.0.0.0/8"]);
        let parts: Vec<IpNet> = parts(net("10.89.7.0/24"), &matched).collect();
        assert_eq!(["10.89.7.5/32", "10.89.7.0/28", "10.89.7.0/24"].map(net).to_vec(), parts);
    }
}
