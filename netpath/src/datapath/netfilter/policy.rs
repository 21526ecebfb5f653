//! Compiles the desired state into typed rules: a pure function.
//!
//! ```text
//! mangle  prerouting  first             ─→ NETPATH_PREROUTING: drops packets addressed to containers themselves,
//!                                       and those that containers send with foreign addresses
//! filter  forward     first             ─→ NETPATH_FORWARD: drops for internal networks, allow lists, isolation
//!                     last              ─→ NETPATH_FORWARD_ACCEPT: only where the hook drops by policy
//!         input       first             ─→ NETPATH_INPUT: drops loopback addresses from bridges
//!                     last              ─→ NETPATH_INPUT_ACCEPT: DNS of the bridges; only where the hook drops by policy
//! nat     prerouting  last, to the host ─→ NETPATH_PREROUTING ─┐
//!         output      last, to the host ─→ NETPATH_OUTPUT ─────┴→ NETPATH_DNAT ─→ NETPATH_TCP, _UDP, _SCTP: first match wins
//!         postrouting last              ─→ NETPATH_POSTROUTING: hairpin, masquerade
//! ```
//! An administrator's rule takes precedence over a published port, and a published port over the default policy of a
//! chain. So drops come first, and rules that accept or translate come after every foreign rule. Packets of published
//! ports are matched only by addresses and interfaces: with iptables a conntrack match costs 6 % of the rate of small packets.
//!
//! Semantics: docs/architecture.md.

use super::rules::{
    Body, Chain, Family, Hook, Match, Place, Ports, Rule, Ruleset, Shift, State, Table, Target, Translation, Verdict,
};
use crate::model::network::DNS_PORT;
use crate::model::{Desired, HostBind, IfName, Isolation, Network, Proto, Publish, Record, RouteSource};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netpath_common::layout::{NET_ISOLATED, NET_STRICT};
use netpath_common::policy::may_pass;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const KNOWN: &[State] = &[State::Related, State::Established];
const KNOWN_OR_PUBLISHED: &[State] = &[State::Related, State::Established, State::Dnat];

/// Loopback addresses.
fn loopback(family: Family) -> IpNet {
    match family {
        Family::V4 => Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8).into(),
        Family::V6 => Family::host_net(Ipv6Addr::LOCALHOST.into()),
    }
}

fn multicast(family: Family) -> IpNet {
    match family {
        Family::V4 => Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4).into(),
        Family::V6 => Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8).into(),
    }
}

fn broadcast() -> IpNet {
    Family::host_net(Ipv4Addr::BROADCAST.into())
}

fn link_local() -> IpNet {
    Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10).into()
}

/// A bridge and its settings, from the records of its endpoints.
struct Bridge<'a> {
    name: &'a IfName,
    /// From the youngest record, which has the latest settings.
    network: &'a Network,
    /// The subnets of all records, in this family.
    subnets: BTreeSet<IpNet>,
    /// An endpoint publishes a port on a loopback address.
    loopback: bool,
}

impl Bridge<'_> {
    fn input(&self) -> Match {
        Match::In(self.name.clone())
    }

    fn output(&self) -> Match {
        Match::Out(self.name.clone())
    }
}

/// `loopback6`: whether `::1` can be served, see `settings.rs`. `sources`: preferred sources of the host's routes.
pub(super) fn compile(desired: &Desired, family: Family, loopback6: bool, sources: &[RouteSource]) -> Ruleset {
    let bridges = bridges(desired, family);
    let targets = targets(desired, family);
    let mut ruleset = Ruleset::empty(family);
    if bridges.is_empty() {
        return ruleset;
    }
    let [mangle, filter, nat] = &mut ruleset.tables;
    prerouting(mangle, &bridges, family);
    forward(filter, &bridges, &allowed(desired, family));
    input(filter, &bridges, family);
    publish(nat, &bridges, targets, family, loopback6, false);
    masquerade(nat, &bridges, family, sources);
    ruleset.addresses = addresses(desired, family);
    ruleset.sources = sources.iter().filter_map(|s| s.source).filter(|a| Family::of(a) == family).collect();
    ruleset
}

/// Only the accepts of [`compile`], for the nftables rung: an accept in its table does not prevent a drop in a chain of
/// iptables.
pub(super) fn compile_accepts(desired: &Desired, family: Family) -> Ruleset {
    let mut ruleset = compile(desired, family, false, &[]);
    for table in &mut ruleset.tables {
        table.entries.retain(|e| e.place == Place::LastIfDropping);
        table.chains.retain(|c| table.entries.iter().any(|e| e.to == c.name));
    }
    (ruleset.addresses, ruleset.sources) = Default::default();
    ruleset
}

/// The rules that complement the eBPF rung: only the ports of [`moved_sctp`]. Allow lists apply before translation, so
/// that forwarded packets meet no rule in the filter table; packets of other clients go to the host's port, where no server
/// listens.
pub(super) fn compile_moved_sctp(desired: &Desired, family: Family, loopback6: bool) -> Ruleset {
    let moved = moved_sctp(desired);
    let targets = targets(&moved, family);
    let mut ruleset = Ruleset::empty(family);
    if targets.is_empty() {
        return ruleset;
    }
    let [_, filter, nat] = &mut ruleset.tables;
    let (all, serving) = (bridges(desired, family), bridges(&moved, family));
    let guards = serving.iter().flat_map(|b| guard(b, family)).collect();
    filter.enter(Hook::Input, Place::First, [], "NETPATH_INPUT", guards);
    publish(nat, &[], targets, family, loopback6, true);
    let rules = nat.chains.iter_mut().find(|c| c.name == "NETPATH_PREROUTING").map(|c| &mut c.body);
    if let Some(Body::Rules(rules)) = rules {
        // Containers of internal networks do not reach published ports.
        let internal = all.iter().filter(|b| b.network.internal);
        rules.splice(0..0, internal.map(|b| Rule::new([b.input()], Verdict::Return)));
    }
    let mut rules = vec![on_loopback_link()];
    rules.extend(from_loopback(&serving, family));
    rules.extend(to_hairpin(&all));
    nat.enter(Hook::Postrouting, Place::Last, [], "NETPATH_POSTROUTING", rules);
    nat.chain("NETPATH_HAIRPIN", hairpin(&all));
    ruleset.addresses = addresses(&moved, family);
    ruleset
}

/// The endpoints that publish SCTP under another host port, with only these ports, and their allow lists on the ports.
pub(super) fn moved_sctp(desired: &Desired) -> Desired {
    let moved = |record: &Record| {
        let mut moved = record.clone();
        moved.publishes.retain(Publish::is_moved_sctp);
        moved.publishes.iter_mut().for_each(|p| p.allow = Some(record.allow_of(p).to_vec()));
        (!moved.publishes.is_empty() && !moved.network.internal).then_some(moved)
    };
    Desired { records: desired.records.iter().filter_map(moved).collect() }
}

/// Published ports of this family in order of precedence: ports bound to one address first, then by age.
pub(super) fn targets(desired: &Desired, family: Family) -> Vec<Target> {
    let mut records: Vec<&Record> = desired.bridged().map(|(r, _)| r).filter(|r| !r.network.internal).collect();
    records.sort_by_key(|r| r.order);
    let mut targets = Vec::new();
    for record in records {
        let Some(to) = first_address(record, family) else { continue };
        let serves = |b: HostBind| if family == Family::V4 { b.serves_v4() } else { b.serves_v6() };
        let published = record.publishes.iter().filter(|p| serves(p.bind));
        targets.extend(published.map(|p| Target { publish: p.clone(), to }));
    }
    // The sort is stable, so within each half the order of the records is kept.
    targets.sort_by_key(|t| t.address().is_none());
    targets
}

/// The addresses of all endpoints in this family.
pub(super) fn addresses(desired: &Desired, family: Family) -> BTreeSet<IpAddr> {
    let all = desired.bridged().flat_map(|(r, _)| &r.endpoint.addresses).map(IpNet::addr);
    all.filter(|a| Family::of(a) == family).collect()
}

/// The bridges with a subnet in this family.
fn bridges(desired: &Desired, family: Family) -> Vec<Bridge<'_>> {
    let mut records: Vec<&Record> = desired.bridged().map(|(r, _)| r).collect();
    records.sort_by_key(|r| r.order);
    let mut bridges: BTreeMap<&str, Bridge<'_>> = BTreeMap::new();
    for record in records {
        let network = &record.network;
        let Some(name) = network.bridge() else { continue };
        let bridge = bridges.entry(name.as_str()).or_insert_with(|| Bridge {
            name,
            network,
            subnets: BTreeSet::new(),
            loopback: false,
        });
        bridge.network = network;
        let subnets = network.subnets.iter().map(|s| s.net.trunc());
        bridge.subnets.extend(subnets.filter(|n| Family::of(&n.addr()) == family));
        bridge.loopback |= serves_loopback(record, family);
    }
    bridges.into_values().filter(|b| !b.subnets.is_empty()).collect()
}

/// Whether this endpoint publishes a port on a loopback address.
pub(super) fn serves_loopback(record: &Record, family: Family) -> bool {
    first_address(record, family).is_some()
        && !record.network.internal
        && record.publishes.iter().any(|p| match (p.bind, family) {
            (HostBind::Any, _) | (HostBind::AnyV4, Family::V4) | (HostBind::AnyV6, Family::V6) => true,
            (HostBind::Address(a), _) => Family::of(&a) == family && a.is_loopback(),
            _ => false,
        })
}

/// Allow lists of published ports: for each port with its own list, returns for the allowed networks and a drop; then the
/// same for the container's other ports. Only new connections are checked. Those of the host itself are not forwarded, so
/// they are never checked.
fn allowed(desired: &Desired, family: Family) -> Vec<Rule> {
    let mut records: Vec<&Record> = desired.bridged().map(|(r, _)| r).filter(|r| !r.network.internal).collect();
    records.sort_by_key(|r| r.order);
    let mut rules = Vec::new();
    for record in records {
        let Some(to) = first_address(record, family) else { continue };
        let to = Match::Destination(Family::host_net(to));
        let original = |p: &Publish| {
            let (first, last) = (p.host_port(), p.host_port() + (p.count() - 1));
            Match::OriginalPorts(p.proto, Ports { first, last })
        };
        let own = record.publishes.iter().filter_map(|p| Some((Some(original(p)), p.allow.as_deref()?)));
        let rest = record.publishes.iter().any(|p| p.allow.is_none()).then_some((None, record.allow.as_slice()));
        for (port, list) in own.chain(rest).filter(|(_, list)| !list.is_empty()) {
            let matches = |net: Option<&IpNet>| -> Vec<Match> {
                net.map(|n| Match::Source(*n)).into_iter().chain([to.clone()]).chain(port.clone()).collect()
            };
            let clients = list.iter().filter(|n| Family::of(&n.addr()) == family);
            rules.extend(clients.map(|net| Rule::new(matches(Some(net)), Verdict::Return)));
            rules.push(Rule::new(matches(None), Verdict::Drop));
        }
    }
    rules
}

fn first_address(record: &Record, family: Family) -> Option<IpAddr> {
    match family {
        Family::V4 => record.endpoint.first_v4().map(IpAddr::from),
        Family::V6 => record.endpoint.first_v6().map(IpAddr::from),
    }
}

/// From outside only published ports are reachable, and containers send only from addresses of their networks. In this
/// chain, before translation, packets to published ports and replies to masqueraded connections are addressed to the
/// host. So a packet addressed to a container that does not arrive from a bridge passes only as a reply.
fn prerouting(mangle: &mut Table, bridges: &[Bridge<'_>], family: Family) {
    let known = Rule::new([Match::State(KNOWN)], Verdict::Return);
    // Gateways are addresses of the host, which the input chain filters.
    let mut direct = vec![Rule::new([Match::ToHost], Verdict::Return)];
    let (mut gates, mut checks, mut spoofed) = (Vec::new(), Vec::new(), Vec::new());
    for b in bridges {
        let own: Vec<Rule> =
            b.subnets.iter().map(|s| Rule::new([Match::Source(*s), b.input()], Verdict::Return)).collect();
        if !b.network.internal {
            direct.extend(own.iter().cloned());
        }
        if b.network.direct {
            continue;
        }
        if !b.network.internal {
            gates.extend(b.subnets.iter().map(|s| {
                Rule::new([Match::Destination(*s), Match::NotIn(b.name.clone())], Verdict::Jump("NETPATH_DIRECT"))
            }));
        }
        let only = b.subnets.first().filter(|_| b.subnets.len() == 1);
        let other = only.map(|s| Match::NotSource(*s));
        let sent: Vec<Match> = [b.input()].into_iter().chain(other).collect();
        checks.push(Rule::new(sent, Verdict::Jump("NETPATH_SOURCE")));
        if only.is_none() {
            spoofed.extend(own);
        }
    }
    // For DHCP, SLAAC and neighbour discovery.
    spoofed.push(Rule::new([Match::Destination(multicast(family))], Verdict::Return));
    spoofed.extend(match family {
        Family::V4 => vec![Rule::new([Match::Destination(broadcast())], Verdict::Return)],
        Family::V6 => [link_local(), Family::host_net(Ipv6Addr::UNSPECIFIED.into())]
            .map(|net| Rule::new([Match::Source(net)], Verdict::Return))
            .into(),
    });
    // A container may be the router of further subnets.
    spoofed.push(Rule::new([Match::FromRouted], Verdict::Return));
    // A container replies through its default route, also to a request from another of its networks.
    for rules in [&mut direct, &mut spoofed] {
        rules.extend([known.clone(), Rule::new([], Verdict::Drop)]);
    }
    let is_gated = !gates.is_empty();
    let is_checked = !checks.is_empty();
    mangle.enter(Hook::Prerouting, Place::First, [], "NETPATH_PREROUTING", [gates, checks].concat());
    if is_gated {
        mangle.chain("NETPATH_DIRECT", direct);
    }
    if is_checked {
        mangle.chain("NETPATH_SOURCE", spoofed);
    }
}

fn forward(filter: &mut Table, bridges: &[Bridge<'_>], allowed: &[Rule]) {
    let (internal, open): (Vec<&Bridge<'_>>, Vec<_>) = bridges.iter().partition(|b| b.network.internal);
    let mut drops = Vec::new();
    for b in &internal {
        // With br_netfilter, frames between ports of the bridge pass this chain too.
        drops.push(Rule::new([b.input(), b.output()], Verdict::Return));
        drops.push(Rule::new([b.input()], Verdict::Drop));
        drops.push(Rule::new([b.output()], Verdict::Drop));
    }
    if !allowed.is_empty() {
        let published = [Match::State(&[State::New]), Match::State(&[State::Dnat])];
        drops.push(Rule::new(published, Verdict::Jump("NETPATH_ALLOW")));
    }
    let mut isolation_chains = Vec::new();
    for (isolation, chain) in [
        (Isolation::Open, "NETPATH_FROM_OPEN"),
        (Isolation::Isolated, "NETPATH_FROM_ISOL"),
        (Isolation::Strict, "NETPATH_FROM_STRICT"),
    ] {
        let from: Vec<_> = open.iter().filter(|b| b.network.isolation == isolation).collect();
        let to: Vec<_> = open.iter().filter(|b| are_isolated(isolation, b.network.isolation)).collect();
        if from.is_empty() || to.is_empty() {
            continue;
        }
        drops.extend(from.iter().map(|b| Rule::new([b.input(), Match::NotOut(b.name.clone())], Verdict::Jump(chain))));
        // Published ports are reachable in spite of isolation.
        let new = Match::NotState(KNOWN_OR_PUBLISHED);
        isolation_chains
            .push((chain, to.iter().map(|b| Rule::new([b.output(), new.clone()], Verdict::Drop)).collect()));
    }
    filter.enter(Hook::Forward, Place::First, [], "NETPATH_FORWARD", drops);
    if !allowed.is_empty() {
        filter.chain("NETPATH_ALLOW", allowed.to_vec());
    }
    for (name, rules) in isolation_chains {
        filter.chain(name, rules);
    }
    let mut accepts: Vec<Rule> = internal.iter().map(|b| Rule::new([b.input(), b.output()], Verdict::Accept)).collect();
    for b in &open {
        let known = Match::State(KNOWN_OR_PUBLISHED);
        accepts.extend([b.output(), b.input()].map(|side| Rule::new([side, known.clone()], Verdict::Accept)));
        accepts.extend(b.subnets.iter().map(|s| Rule::new([Match::Source(*s), b.input()], Verdict::Accept)));
        accepts.extend(b.network.direct.then(|| Rule::new([b.output()], Verdict::Accept)));
    }
    filter.enter(Hook::Forward, Place::LastIfDropping, [], "NETPATH_FORWARD_ACCEPT", accepts);
}

/// Whether packets between two networks of these kinds are dropped, in either direction.
fn are_isolated(a: Isolation, b: Isolation) -> bool {
    let flag = |i| match i {
        Isolation::Open => 0,
        Isolation::Isolated => NET_ISOLATED,
        Isolation::Strict => NET_STRICT,
    };
    !may_pass(flag(a), flag(b))
}

fn input(filter: &mut Table, bridges: &[Bridge<'_>], family: Family) {
    let guards = bridges.iter().flat_map(|b| guard(b, family)).collect();
    filter.enter(Hook::Input, Place::First, [], "NETPATH_INPUT", guards);
    let accepts = bridges.iter().flat_map(|b| {
        dns(b, family)
            .map(|(_, [gateway, port])| Rule::new([gateway, b.input(), port], Verdict::Accept))
            .collect::<Vec<_>>()
    });
    filter.enter(Hook::Input, Place::LastIfDropping, [], "NETPATH_INPUT_ACCEPT", accepts.collect());
}

/// With route_localnet the bridge accepts loopback addresses; only replies of published ports may have them.
fn guard(b: &Bridge<'_>, family: Family) -> Vec<Rule> {
    if !b.loopback || family == Family::V6 {
        return Vec::new();
    }
    let drop = |end| Rule::new([end, b.input(), Match::NotState(KNOWN)], Verdict::Drop);
    [Match::Destination(loopback(family)), Match::Source(loopback(family))].map(drop).into()
}

fn publish(nat: &mut Table, bridges: &[Bridge<'_>], targets: Vec<Target>, family: Family, loopback6: bool, asks: bool) {
    // A published port 53 must not intercept DNS queries to the gateway.
    let mut dnat: Vec<Rule> = bridges.iter().flat_map(|b| dns(b, family)).map(|(query, _)| query).collect();
    if targets.is_empty() && dnat.iter().all(|rule| rule.verdict == Verdict::Return) {
        return;
    }
    let mut ports = Vec::new();
    for (proto, name) in [(Proto::Tcp, "NETPATH_TCP"), (Proto::Udp, "NETPATH_UDP"), (Proto::Sctp, "NETPATH_SCTP")] {
        let targets: Vec<Target> = targets.iter().filter(|t| t.publish.proto == proto).cloned().collect();
        if !targets.is_empty() {
            dnat.push(Rule::new([Match::Protocol(proto)], Verdict::Jump(name)));
            ports.push(Chain { name, body: serve(targets, asks) });
        }
    }
    // Ports are not published on loopback addresses on the wire. Clients of link-local addresses have a link-local source,
    // which cannot be forwarded.
    let (wire, own) = match family {
        Family::V4 => (vec![loopback(family)], vec![]),
        Family::V6 if loopback6 => (vec![loopback(family), link_local()], vec![link_local()]),
        Family::V6 => (vec![loopback(family), link_local()], vec![loopback(family), link_local()]),
    };
    for (hook, to, not) in [(Hook::Prerouting, "NETPATH_PREROUTING", wire), (Hook::Output, "NETPATH_OUTPUT", own)] {
        let mut rules: Vec<Rule> =
            not.into_iter().map(|n| Rule::new([Match::Destination(n)], Verdict::Return)).collect();
        rules.push(Rule::new([], Verdict::Jump("NETPATH_DNAT")));
        nat.enter(hook, Place::Last, [Match::ToHost], to, rules);
    }
    nat.chain("NETPATH_DNAT", dnat);
    nat.chains.extend(ports);
}

/// With `asks`, these rules also check the allow list, which no other rule does: one rule for the host, which is always
/// allowed, one for each allowed network, and a return.
fn serve(targets: Vec<Target>, asks: bool) -> Body {
    if !asks {
        return Body::Ports(targets);
    }
    let rules = targets.iter().flat_map(|target| {
        let list = target.publish.allow.as_deref().unwrap_or_default();
        if list.is_empty() {
            return vec![target.rule()];
        }
        let dnat = |from: Vec<Match>| Rule::new(from, Verdict::Dnat(target.translation()));
        let own = dnat(target.dialled().into_iter().chain([Match::FromHost]).collect());
        let clients = list.iter().filter(|n| Family::of(&n.addr()) == Family::of(&target.to));
        let allowed = clients.map(|net| dnat([Match::Source(*net)].into_iter().chain(target.dialled()).collect()));
        [own].into_iter().chain(allowed).chain([Rule::new(target.dialled(), Verdict::Return)]).collect()
    });
    Body::Rules(rules.collect())
}

/// Packets on `lo` stay on the host.
fn on_loopback_link() -> Rule {
    Rule::new([Match::Out(IfName::loopback())], Verdict::Return)
}

fn masquerade(nat: &mut Table, bridges: &[Bridge<'_>], family: Family, sources: &[RouteSource]) {
    let mut rules = vec![on_loopback_link()];
    rules.extend(from_loopback(bridges, family));
    rules.extend(to_hairpin(bridges));
    rules.extend(bridges.iter().map(|b| Rule::new([b.output()], Verdict::Return)));
    for b in bridges.iter().filter(|b| !b.network.internal && b.network.masquerade) {
        let outbound = match family {
            Family::V4 => b.network.outbound4.map(IpAddr::from),
            Family::V6 => b.network.outbound6.map(IpAddr::from),
        };
        for subnet in &b.subnets {
            if outbound.is_none() {
                rules.extend(by_routes(*subnet, sources, family));
            }
            let outside = [Match::Source(*subnet), Match::NotDestination(multicast(family))];
            rules.push(Rule::new(outside, outbound.map_or(Verdict::Masquerade, Verdict::Snat)));
        }
    }
    nat.enter(Hook::Postrouting, Place::Last, [], "NETPATH_POSTROUTING", rules);
    nat.chain("NETPATH_HAIRPIN", hairpin(bridges));
}

/// Masquerade ignores preferred sources of routes. One SNAT rule for each route whose source masquerade would not choose,
/// and a masquerade rule for each route without a source inside such a route.
fn by_routes(subnet: IpNet, sources: &[RouteSource], family: Family) -> Vec<Rule> {
    let within = || sources.iter().filter(|s| subnet.contains(&s.from));
    if within().all(|s| s.source.is_none()) {
        return Vec::new();
    }
    let mut rules = vec![Rule::new([Match::Source(subnet), Match::Destination(multicast(family))], Verdict::Return)];
    for RouteSource { from, to, by, source } in within() {
        let is_all = to.prefix_len() == 0;
        if is_all && source.is_none() && *from == subnet {
            // The masquerade rule of the subnet covers it.
            continue;
        }
        let verdict = || source.map_or(Verdict::Masquerade, Verdict::Snat);
        let ends = [Match::Source(*from), Match::Destination(*to)];
        // The rule also matches the interface: if the route changes to another one, masquerade applies.
        if by.is_empty() || is_all && source.is_none() {
            rules.push(Rule::new(ends, verdict()));
        } else {
            let by = by.iter().map(|by| ends.iter().cloned().chain([Match::Out(by.clone())]).collect::<Vec<_>>());
            rules.extend(by.map(|matches| Rule::new(matches, verdict())));
        }
    }
    rules
}

/// Replies to clients with a loopback address must come back through the bridge.
fn from_loopback<'a>(bridges: &'a [Bridge<'_>], family: Family) -> impl Iterator<Item = Rule> + 'a {
    let serving = bridges.iter().filter(|b| b.loopback);
    serving.map(move |b| Rule::new([Match::Source(loopback(family)), b.output()], Verdict::Masquerade))
}

/// Connections of containers to published ports. The target may be on the same bridge, or the client itself, and would
/// reply directly, without translation.
fn to_hairpin<'a>(bridges: &'a [Bridge<'_>]) -> impl Iterator<Item = Rule> + 'a {
    let subnets = bridges.iter().flat_map(|b| &b.subnets);
    subnets.map(|subnet| {
        Rule::new([Match::Source(*subnet), Match::State(&[State::Dnat])], Verdict::Jump("NETPATH_HAIRPIN"))
    })
}

fn hairpin(bridges: &[Bridge<'_>]) -> Vec<Rule> {
    bridges.iter().map(|b| Rule::new([b.output()], Verdict::Masquerade)).collect()
}

/// For DNS queries to the gateways of a network: the rule that leads them to the server, and what they match behind it.
fn dns<'a>(bridge: &'a Bridge<'_>, family: Family) -> impl Iterator<Item = (Rule, [Match; 2])> + 'a {
    let Network { dns: has_dns, dns_port: own, .. } = *bridge.network;
    let gateways = bridge.network.gateways().filter(move |_| has_dns).map(|(g, _)| g);
    gateways.filter(move |g| Family::of(g) == family).flat_map(move |gateway| {
        let to = Match::Destination(Family::host_net(gateway));
        let shift = Shift { host: DNS_PORT, container: own, count: 1 };
        let verdict = match own {
            DNS_PORT => Verdict::Return,
            _ => Verdict::Dnat(Translation { to: gateway, shift: Some(shift) }),
        };
        [Proto::Udp, Proto::Tcp].map(|proto| {
            let at = |port| [to.clone(), Match::DestinationPorts(proto, Ports { first: port, last: port })];
            (Rule::new(at(DNS_PORT), verdict.clone()), at(own))
        })
    })
}
