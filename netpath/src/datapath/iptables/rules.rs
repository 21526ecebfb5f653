//! Desired state → rules, as a pure function: what each chain holds, and which built-in chain leads there.
//!
//! ```text
//! mangle  PREROUTING  first             ─→ NETPATH_PREROUTING: drops what is addressed to containers themselves
//! filter  FORWARD     first             ─→ NETPATH_FORWARD: drops for internal networks, allow lists, isolation
//!                     last              ─→ NETPATH_FORWARD_ACCEPT: only where the chain drops by policy
//!         INPUT       first             ─→ NETPATH_INPUT: drops loopback addresses from bridges
//!                     last              ─→ NETPATH_INPUT_ACCEPT: DNS of the bridges; only where the chain drops by policy
//! nat     PREROUTING  last, to the host ─→ NETPATH_PREROUTING ─┐
//!         OUTPUT      last, to the host ─→ NETPATH_OUTPUT ─────┴→ NETPATH_DNAT ─→ NETPATH_TCP, _UDP, _SCTP: first match wins
//!         POSTROUTING last              ─→ NETPATH_POSTROUTING: hairpin, masquerade
//! ```
//! A rule of the administrator's is a decision and holds; a policy is a default, and a published port is more explicit than
//! that. So drops come first, and what accepts or translates comes behind every rule of others. Packets of published ports meet
//! matches of addresses and interfaces alone on their way: asking connection tracking costs 6 % of the small packets.
//!
//! NETPATH_STATE is never jumped to: it keeps a digest of the table, the container addresses that it serves, and the sources
//! of routes that its rules have named.
//! Nothing is read or run here; `present.rs` compares with what the kernel holds. Semantics: docs/architecture.md.

use super::can_be_matched;
use crate::model::{Desired, HostBind, IfName, Isolation, Network, Proto, Publish, Record, RouteSource};
use ipnet::IpNet;
use netpath_common::layout::{NET_ISOLATED, NET_STRICT};
use netpath_common::policy::may_pass;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

/// Begins the name of every chain of ours.
pub(crate) const PREFIX: &str = "NETPATH_";
pub(super) const STATE: &str = "NETPATH_STATE";

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: &IpAddr) -> Self {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

/// Where in a built-in chain a jump stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    First,
    Last,
    /// Last, and only where the chain drops by policy: elsewhere an accept at its end decides nothing.
    LastIfDropping,
}

/// A rule of a built-in chain that leads into one of ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Jump {
    pub from: &'static str,
    pub place: Place,
    /// Ends with a blank unless empty.
    pub matches: &'static str,
    pub to: &'static str,
}

/// A chain of ours, and its rules without the leading `-A name`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Chain {
    pub name: &'static str,
    pub rules: Vec<String>,
}

/// What one table should hold of ours; no chain at all where nothing is wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Table {
    pub name: &'static str,
    pub jumps: Vec<Jump>,
    pub chains: Vec<Chain>,
}

/// The tables of one family, in the order in which they are written: a port is published after it may pass.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Ruleset {
    pub tables: [Table; 3],
}

impl Ruleset {
    pub(super) fn is_empty(&self) -> bool {
        self.tables.iter().all(|t| t.chains.is_empty())
    }

    /// Remembers sources of earlier rules: connections that they have begun may still be there.
    pub(super) fn keep_sources(&mut self, earlier: impl IntoIterator<Item = IpAddr>) {
        let state = self.tables.iter_mut().filter(|t| t.name == "nat").flat_map(|t| &mut t.chains);
        let Some(state) = state.into_iter().find(|c| c.name == STATE) else { return };
        for rule in earlier.into_iter().map(|a| format!("-s {}", host_net(a))) {
            if !state.rules.contains(&rule) {
                state.rules.push(rule);
            }
        }
    }
}

/// Where packets to a published port go; in the order in which the rules are tried.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Target {
    pub publish: Publish,
    pub to: IpAddr,
}

impl Target {
    /// The one host address that it is bound to.
    fn address(&self) -> Option<IpAddr> {
        if let HostBind::Address(a) = self.publish.bind { Some(a) } else { None }
    }
}

/// One bridge and what its endpoints say about it.
struct Bridge<'a> {
    name: &'a IfName,
    /// Of the youngest record: the one that knows the network best.
    network: &'a Network,
    /// The subnets of all records, in this family.
    subnets: BTreeSet<String>,
    /// Serves a port on a loopback address.
    loopback: bool,
}

/// `loopback6`: whether `::1` can be served, see `bridge.rs`. `sources`: those of the host's routes.
pub(super) fn compile(desired: &Desired, family: Family, loopback6: bool, sources: &[RouteSource]) -> Ruleset {
    let bridges = bridges(desired, family);
    let targets = targets(desired, family);
    let [mut mangle, mut filter, mut nat] =
        ["mangle", "filter", "nat"].map(|name| Table { name, jumps: Vec::new(), chains: Vec::new() });
    if bridges.iter().any(|b| !b.subnets.is_empty()) {
        close(&mut mangle, &bridges);
        forward(&mut filter, &bridges, &allowed(desired, family));
        input(&mut filter, &bridges, family);
        publish(&mut nat, &bridges, &targets, family, loopback6, dnat_rule);
        masquerade(&mut nat, &bridges, family, sources);
        for table in [&mut mangle, &mut filter, &mut nat] {
            remember(table, if table.name == "nat" { addresses(desired, family) } else { BTreeSet::new() });
        }
    }
    let mut ruleset = Ruleset { tables: [mangle, filter, nat] };
    ruleset.keep_sources(named(sources, family));
    ruleset
}

/// What the rungs above leave to netfilter: the ports that [`moved_sctp`] names, and nothing else. An allow list is asked
/// before the translation, so that the host's own filter stays as it is; who is on none reaches the host's port, where
/// no server listens.
pub(super) fn compile_moved_sctp(desired: &Desired, family: Family, loopback6: bool) -> Ruleset {
    let moved = moved_sctp(desired);
    let targets = targets(&moved, family);
    let [mangle, mut filter, mut nat] =
        ["mangle", "filter", "nat"].map(|name| Table { name, jumps: Vec::new(), chains: Vec::new() });
    if !targets.is_empty() {
        let (all, serving) = (bridges(desired, family), bridges(&moved, family));
        let guards: Vec<String> = serving.iter().flat_map(|b| guard(b, family)).collect();
        if !guards.is_empty() {
            lead(&mut filter, "INPUT", Place::First, "", "NETPATH_INPUT", guards);
            remember(&mut filter, BTreeSet::new());
        }
        let internal = all.iter().filter(|b| b.network.internal);
        publish(&mut nat, &[], &targets, family, loopback6, asking_rules);
        if let Some(wire) = nat.chains.iter_mut().find(|c| c.name == "NETPATH_PREROUTING") {
            // It has no way out and none in.
            wire.rules.splice(0..0, internal.map(|b| format!("-i {} -j RETURN", b.name)));
        }
        let mut rules = vec!["-o lo -j RETURN".to_owned()];
        rules.extend(from_loopback(&serving, family));
        rules.extend(to_hairpin(&all));
        lead(&mut nat, "POSTROUTING", Place::Last, "", "NETPATH_POSTROUTING", rules);
        nat.chains.push(hairpin(&all));
        remember(&mut nat, addresses(&moved, family));
    }
    Ruleset { tables: [mangle, filter, nat] }
}

/// The endpoints that publish SCTP on other ports than their own, with these ports alone and who may use them.
pub(super) fn moved_sctp(desired: &Desired) -> Desired {
    let moved = |record: &Record| {
        let mut moved = record.clone();
        moved.publishes.retain(Publish::is_moved_sctp);
        moved.publishes.iter_mut().for_each(|p| p.allow = Some(record.allow_of(p).to_vec()));
        (!moved.publishes.is_empty() && !moved.network.internal).then_some(moved)
    };
    Desired { records: desired.records.iter().filter_map(moved).collect() }
}

/// What is published in this family: a port bound to one address before the same port on all, the older before the younger.
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
    // Stable: within each half the order of the records stays.
    targets.sort_by_key(|t| t.address().is_none());
    targets
}

/// The addresses of all endpoints in this family.
pub(super) fn addresses(desired: &Desired, family: Family) -> BTreeSet<IpAddr> {
    let all = desired.bridged().flat_map(|(r, _)| &r.endpoint.addresses).map(IpNet::addr);
    all.filter(|a| Family::of(a) == family).collect()
}

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
        bridge.subnets.extend(subnets.filter(|n| Family::of(&n.addr()) == family).map(|n| n.to_string()));
        bridge.loopback |= serves_loopback(record, family);
    }
    bridges.into_values().filter(|b| !b.subnets.is_empty()).collect()
}

/// Whether this endpoint publishes something that clients can reach through a loopback address.
pub(super) fn serves_loopback(record: &Record, family: Family) -> bool {
    let has_address = match family {
        Family::V4 => record.endpoint.first_v4().is_some(),
        Family::V6 => record.endpoint.first_v6().is_some(),
    };
    has_address
        && !record.network.internal
        && record.publishes.iter().any(|p| match (p.bind, family) {
            (HostBind::Any, _) | (HostBind::AnyV4, Family::V4) | (HostBind::AnyV6, Family::V6) => true,
            (HostBind::Address(a), _) => Family::of(&a) == family && a.is_loopback(),
            _ => false,
        })
}

/// Who may reach published ports, as rules: for each port with a list its networks, then no other client, and then the same for
/// the container's other ports. A new connection is asked; the host's own are not forwarded and so never are.
fn allowed(desired: &Desired, family: Family) -> Vec<String> {
    let mut records: Vec<&Record> = desired.bridged().map(|(r, _)| r).filter(|r| !r.network.internal).collect();
    records.sort_by_key(|r| r.order);
    let mut rules = Vec::new();
    for record in records {
        let Some(to) = first_address(record, family) else { continue };
        let to = format!("-d {to}/{}", if to.is_ipv4() { 32 } else { 128 });
        let own = record.publishes.iter().filter_map(|p| Some((original_port(p), p.allow.as_deref()?)));
        let rest =
            record.publishes.iter().any(|p| p.allow.is_none()).then_some((String::new(), record.allow.as_slice()));
        for (port, list) in own.chain(rest).filter(|(_, list)| !list.is_empty()) {
            let clients = list.iter().filter(|n| Family::of(&n.addr()) == family);
            rules.extend(clients.map(|net| format!("-s {net} {to}{port} -j RETURN")));
            rules.push(format!("{to}{port} -j DROP"));
        }
    }
    rules
}

/// Matches what was sent to these ports of the host, after their translation.
fn original_port(publish: &Publish) -> String {
    let (proto, first, more) = (publish.proto, publish.host_port(), publish.count() - 1);
    let last = if more > 0 { format!(":{}", first + more) } else { String::new() };
    format!(" -p {proto} -m conntrack --ctorigdstport {first}{last}")
}

fn first_address(record: &Record, family: Family) -> Option<IpAddr> {
    match family {
        Family::V4 => record.endpoint.first_v4().map(IpAddr::from),
        Family::V6 => record.endpoint.first_v6().map(IpAddr::from),
    }
}

/// Only published ports are reached from outside. Before their translation packets to them are addressed to the host, and so
/// are the answers to what is masqueraded: what is addressed to a container here, from elsewhere than a bridge, is let in only
/// as an answer.
fn close(mangle: &mut Table, bridges: &[Bridge<'_>]) {
    // The gateways are the host's own addresses, and decided at INPUT.
    let (mut gates, mut rules) = (Vec::new(), vec!["-m addrtype --dst-type LOCAL -j RETURN".to_owned()]);
    for b in bridges.iter().filter(|b| !b.network.internal) {
        if !b.network.direct {
            gates.extend(b.subnets.iter().map(|s| format!("-d {s} ! -i {} -j NETPATH_DIRECT", b.name)));
        }
        rules.extend(b.subnets.iter().map(|s| format!("-s {s} -i {} -j RETURN", b.name)));
    }
    if gates.is_empty() {
        return;
    }
    rules.push("-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN".into());
    rules.push("-j DROP".into());
    lead(mangle, "PREROUTING", Place::First, "", "NETPATH_PREROUTING", gates);
    mangle.chains.push(Chain { name: "NETPATH_DIRECT", rules });
}

fn forward(filter: &mut Table, bridges: &[Bridge<'_>], allowed: &[String]) {
    let (internal, open): (Vec<&Bridge<'_>>, Vec<_>) = bridges.iter().partition(|b| b.network.internal);
    let mut drops = Vec::new();
    for b in internal.iter().map(|b| b.name) {
        // Frames between ports of the bridge come here too where br_netfilter is on.
        drops.push(format!("-i {b} -o {b} -j RETURN"));
        drops.push(format!("-i {b} -j DROP"));
        drops.push(format!("-o {b} -j DROP"));
    }
    if !allowed.is_empty() {
        drops.push("-m conntrack --ctstate NEW -m conntrack --ctstate DNAT -j NETPATH_ALLOW".into());
    }
    let mut isolation_chains = Vec::new();
    for (isolation, chain) in [
        (Isolation::Open, "NETPATH_FROM_OPEN"),
        (Isolation::Isolated, "NETPATH_FROM_ISOL"),
        (Isolation::Strict, "NETPATH_FROM_STRICT"),
    ] {
        let from: Vec<_> = open.iter().filter(|b| b.network.isolation == isolation).collect();
        let to: Vec<_> = open.iter().filter(|b| apart(isolation, b.network.isolation)).collect();
        if from.is_empty() || to.is_empty() {
            continue;
        }
        drops.extend(from.iter().map(|b| format!("-i {0} ! -o {0} -j {chain}", b.name)));
        // Published ports cross isolation.
        let new = "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP";
        let rules = to.iter().map(|b| format!("-o {} {new}", b.name)).collect();
        isolation_chains.push(Chain { name: chain, rules });
    }
    lead(filter, "FORWARD", Place::First, "", "NETPATH_FORWARD", drops);
    if !allowed.is_empty() {
        filter.chains.push(Chain { name: "NETPATH_ALLOW", rules: allowed.to_vec() });
    }
    filter.chains.extend(isolation_chains);

    let mut accepts: Vec<String> = internal.iter().map(|b| format!("-i {0} -o {0} -j ACCEPT", b.name)).collect();
    for b in &open {
        let known = "-m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT";
        accepts.extend(["-o", "-i"].map(|side| format!("{side} {} {known}", b.name)));
        accepts.extend(b.subnets.iter().map(|s| format!("-s {s} -i {} -j ACCEPT", b.name)));
        accepts.extend(b.network.direct.then(|| format!("-o {} -j ACCEPT", b.name)));
    }
    lead(filter, "FORWARD", Place::LastIfDropping, "", "NETPATH_FORWARD_ACCEPT", accepts);
}

/// Whether packets between two networks of these kinds are dropped, in either direction.
fn apart(a: Isolation, b: Isolation) -> bool {
    let flag = |i| match i {
        Isolation::Open => 0,
        Isolation::Isolated => NET_ISOLATED,
        Isolation::Strict => NET_STRICT,
    };
    !may_pass(flag(a), flag(b))
}

fn input(filter: &mut Table, bridges: &[Bridge<'_>], family: Family) {
    let guards = bridges.iter().flat_map(|b| guard(b, family)).collect();
    lead(filter, "INPUT", Place::First, "", "NETPATH_INPUT", guards);
    let mut accepts = Vec::new();
    for b in bridges {
        for gateway in dns_gateways(b, family) {
            for proto in ["udp", "tcp"] {
                accepts.push(format!("-d {gateway} -i {} -p {proto} -m {proto} --dport 53 -j ACCEPT", b.name));
            }
        }
    }
    lead(filter, "INPUT", Place::LastIfDropping, "", "NETPATH_INPUT_ACCEPT", accepts);
}

/// route_localnet lets loopback addresses in from this bridge; only the replies of our own flows may use it.
fn guard(b: &Bridge<'_>, family: Family) -> Vec<String> {
    if !b.loopback || family == Family::V6 {
        return Vec::new();
    }
    let drop = |end| format!("{end} 127.0.0.0/8 -i {} -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP", b.name);
    ["-d", "-s"].map(drop).into()
}

fn publish(
    nat: &mut Table,
    bridges: &[Bridge<'_>],
    targets: &[Target],
    family: Family,
    loopback6: bool,
    rules_of: fn(&Target) -> Vec<String>,
) {
    if targets.is_empty() {
        return;
    }
    let mut dnat = Vec::new();
    for b in bridges {
        for gateway in dns_gateways(b, family) {
            // A container that publishes port 53 must not take the names of the network away.
            for proto in ["udp", "tcp"] {
                dnat.push(format!("-d {gateway} -p {proto} -m {proto} --dport 53 -j RETURN"));
            }
        }
    }
    let mut ports = Vec::new();
    for (proto, name) in [(Proto::Tcp, "NETPATH_TCP"), (Proto::Udp, "NETPATH_UDP"), (Proto::Sctp, "NETPATH_SCTP")] {
        let rules: Vec<String> = targets.iter().filter(|t| t.publish.proto == proto).flat_map(&rules_of).collect();
        if !rules.is_empty() {
            dnat.push(format!("-p {proto} -j {name}"));
            ports.push(Chain { name, rules });
        }
    }
    // A loopback address on a wire is not published, and a link-local source cannot be forwarded.
    let (wire, own): (&[&str], &[&str]) = match family {
        Family::V4 => (&["127.0.0.0/8"], &[]),
        Family::V6 if loopback6 => (&["::1/128", "fe80::/10"], &["fe80::/10"]),
        Family::V6 => (&["::1/128", "fe80::/10"], &["::1/128", "fe80::/10"]),
    };
    for (from, to, not) in [("PREROUTING", "NETPATH_PREROUTING", wire), ("OUTPUT", "NETPATH_OUTPUT", own)] {
        let mut rules: Vec<String> = not.iter().map(|n| format!("-d {n} -j RETURN")).collect();
        rules.push("-j NETPATH_DNAT".into());
        lead(nat, from, Place::Last, "-m addrtype --dst-type LOCAL ", to, rules);
    }
    nat.chains.push(Chain { name: "NETPATH_DNAT", rules: dnat });
    nat.chains.extend(ports);
}

/// One rule for any number of ports.
fn dnat_rule(target: &Target) -> Vec<String> {
    vec![format!("{} -j DNAT --to-destination {}", dialled(target), translation(target))]
}

/// The same with the allow list, which no other rule asks: one rule for each of its networks, before them the host, which is
/// always answered, and behind them a return.
fn asking_rules(target: &Target) -> Vec<String> {
    let list = target.publish.allow.as_deref().filter(|list| !list.is_empty());
    let Some(list) = list else { return dnat_rule(target) };
    let (port, to) = (dialled(target), translation(target));
    let own = format!("{port} -m addrtype --src-type LOCAL -j DNAT --to-destination {to}");
    let clients = list.iter().filter(|n| n.addr().is_ipv4() == target.to.is_ipv4());
    let allowed = clients.map(|net| format!("-s {net} {port} -j DNAT --to-destination {to}"));
    [own].into_iter().chain(allowed).chain([format!("{port} -j RETURN")]).collect()
}

fn dialled(target: &Target) -> String {
    let p = &target.publish;
    let (first, more) = (p.host_port(), p.count() - 1);
    let mut port = String::new();
    if let Some(address) = target.address() {
        let _ = write!(port, "-d {address}/{} ", if address.is_ipv4() { 32 } else { 128 });
    }
    let _ = write!(port, "-p {0} -m {0} --dport {first}", p.proto);
    if more > 0 {
        let _ = write!(port, ":{}", first + more);
    }
    port
}

fn translation(target: &Target) -> String {
    let p = &target.publish;
    let (host, container, more) = (p.host_port(), p.container_port(), p.count() - 1);
    let to = match (host == container, target.to) {
        // Without ports in the target, each keeps its own.
        (true, to) => to.to_string(),
        (false, IpAddr::V4(to)) => format!("{to}:{container}"),
        (false, IpAddr::V6(to)) => format!("[{to}]:{container}"),
    };
    // The base makes it a shift (NF_NAT_RANGE_PROTO_OFFSET, 4.18): the third port of the host is the third there.
    if host != container && more > 0 { format!("{to}-{}/{host}", container + more) } else { to }
}

fn masquerade(nat: &mut Table, bridges: &[Bridge<'_>], family: Family, sources: &[RouteSource]) {
    let mut rules = vec!["-o lo -j RETURN".to_owned()];
    rules.extend(from_loopback(bridges, family));
    rules.extend(to_hairpin(bridges));
    rules.extend(bridges.iter().map(|b| format!("-o {} -j RETURN", b.name)));
    let multicast = if family == Family::V4 { "224.0.0.0/4" } else { "ff00::/8" };
    for b in bridges.iter().filter(|b| !b.network.internal && b.network.masquerade) {
        let outbound = match family {
            Family::V4 => b.network.outbound4.map(IpAddr::from),
            Family::V6 => b.network.outbound6.map(IpAddr::from),
        };
        let target = outbound.map_or_else(|| "MASQUERADE".to_owned(), |a| format!("SNAT --to-source {a}"));
        for subnet in &b.subnets {
            if outbound.is_none() {
                rules.extend(by_routes(subnet, sources, multicast));
            }
            rules.push(format!("-s {subnet} ! -d {multicast} -j {target}"));
        }
    }
    lead(nat, "POSTROUTING", Place::Last, "", "NETPATH_POSTROUTING", rules);
    nat.chains.push(hairpin(bridges));
}

/// MASQUERADE does not ask a route for its source: one rule for each route with a source that it would not choose, and for
/// what lies inside such a route without one.
fn by_routes(subnet: &str, sources: &[RouteSource], multicast: &str) -> Vec<String> {
    let Ok(whole) = subnet.parse::<IpNet>() else { return Vec::new() };
    let within = || sources.iter().filter(|s| whole.contains(&s.from));
    if within().all(|s| s.source.is_none()) {
        return Vec::new();
    }
    let mut rules = vec![format!("-s {subnet} -d {multicast} -j RETURN")];
    for RouteSource { from, to, by, source } in within() {
        let is_all = to.prefix_len() == 0;
        if is_all && source.is_none() && *from == whole {
            // The subnet's own rule follows.
            continue;
        }
        let target = source.map_or_else(|| "MASQUERADE".to_owned(), |a| format!("SNAT --to-source {a}"));
        // By its interface: once the route leads out of another one, it is no more than what masquerade makes of it.
        match by.as_slice() {
            by if by.is_empty() || is_all && source.is_none() => rules.push(format!("-s {from} -d {to} -j {target}")),
            by => rules.extend(
                by.iter().filter(|by| can_be_matched(by)).map(|by| format!("-s {from} -d {to} -o {by} -j {target}")),
            ),
        }
    }
    rules
}

/// The sources that rules of [`compile`] name.
fn named(sources: &[RouteSource], family: Family) -> BTreeSet<IpAddr> {
    sources.iter().filter_map(|s| s.source).filter(|a| Family::of(a) == family).collect()
}

fn host_net(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

/// A client that is bound to a loopback address has to be answered by way of the bridge.
fn from_loopback<'a>(bridges: &'a [Bridge<'_>], family: Family) -> impl Iterator<Item = String> + 'a {
    let loopback = if family == Family::V4 { "127.0.0.0/8" } else { "::1/128" };
    bridges.iter().filter(|b| b.loopback).map(move |b| format!("-s {loopback} -o {} -j MASQUERADE", b.name))
}

/// A container that reached a published port: the target may be its neighbour, or itself, and would answer past us.
fn to_hairpin<'a>(bridges: &'a [Bridge<'_>]) -> impl Iterator<Item = String> + 'a {
    let subnets = bridges.iter().flat_map(|b| &b.subnets);
    subnets.map(|subnet| format!("-s {subnet} -m conntrack --ctstate DNAT -j NETPATH_HAIRPIN"))
}

fn hairpin(bridges: &[Bridge<'_>]) -> Chain {
    let rules = bridges.iter().map(|b| format!("-o {} -j MASQUERADE", b.name)).collect();
    Chain { name: "NETPATH_HAIRPIN", rules }
}

fn dns_gateways<'a>(bridge: &'a Bridge<'_>, family: Family) -> impl Iterator<Item = String> + 'a {
    let gateways = bridge.network.gateways().filter(|_| bridge.network.dns).map(|(g, _)| g);
    gateways.filter(move |g| Family::of(g) == family).map(|g| format!("{g}/{}", if g.is_ipv4() { 32 } else { 128 }))
}

/// A chain and the jump that leads to it, unless it would hold nothing.
fn lead(
    table: &mut Table,
    from: &'static str,
    place: Place,
    matches: &'static str,
    to: &'static str,
    rules: Vec<String>,
) {
    if !rules.is_empty() {
        table.jumps.push(Jump { from, place, matches, to });
        table.chains.push(Chain { name: to, rules });
    }
}

/// The chain that nothing jumps to: the addresses that the table serves, and those of the host that routes have as source. The digest of all that it should hold joins them
/// when it is written, since only then is it known who made the table.
fn remember(table: &mut Table, addresses: BTreeSet<IpAddr>) {
    let rules: Vec<String> = addresses.iter().map(|a| format!("-d {}", host_net(*a))).collect();
    table.chains.push(Chain { name: STATE, rules });
}

/// FNV-1a of everything that a table should hold: equal digests, equal rules.
pub(super) fn digest(table: &Table) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut feed = |text: &str| {
        for byte in text.bytes().chain([b'\n']) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    };
    for jump in &table.jumps {
        let place = if jump.place == Place::First { "first" } else { "last" };
        [jump.from, place, jump.matches, jump.to].into_iter().for_each(&mut feed);
    }
    for chain in &table.chains {
        feed(chain.name);
        chain.rules.iter().for_each(|r| feed(r));
    }
    hash
}

#[cfg(test)]
mod tests;
