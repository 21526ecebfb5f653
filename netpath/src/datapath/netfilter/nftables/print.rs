//! Typed rules as the chains, sets and maps of one table.
//!
//! Published ports are elements of maps: `PROTO_FAMILY` (port → address, port), `PROTO_ranges_FAMILY` (unshifted ports →
//! address), and the same with `_bound` for ports of one host address, which are looked up first. A packet costs at most
//! four lookups, whatever the number of ports. The sets `served_FAMILY` and `sources_FAMILY` record container and SNAT
//! addresses for the next reconcile; no rule uses them.

use super::program::{self, Base, Compare, Element, Expression as E, Layout, Load, Program, Set, Type, padded};
use crate::datapath::netfilter::rules::{
    Body, Chain, Entry, Family, Hook, Match, Place, Ports, Rule, Ruleset, Shift, State, Table, TableKind, Target,
    Translation, Verdict,
};
use crate::model::{HostBind, IfName, Proto, Publish};
use ipnet::IpNet;
use netpath_common::reason::Reason;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// After the NAT chains of the host: those of `nft` at -100 and 100, firewalld's at -90 and 110.
const AFTER_NAT: i32 = 40;
const DSTNAT: i32 = -100;
const SRCNAT: i32 = 100;
const MANGLE: i32 = -150;
/// Before the host's filter chains at 0. A drop is final in any chain.
const BEFORE_FILTER: i32 = -5;

/// `struct iphdr` and `struct ipv6hdr`.
const V4_SOURCE: u32 = 12;
const V4_DESTINATION: u32 = 16;
const V6_SOURCE: u32 = 8;
const V6_DESTINATION: u32 = 24;

/// NF_CT_STATE_BIT of `enum ip_conntrack_info`, and IPS_DST_NAT.
const ESTABLISHED: u32 = 1 << 1;
const RELATED: u32 = 1 << 2;
const NEW: u32 = 1 << 3;
const DST_NAT: u32 = 1 << 5;

/// RTN_LOCAL (`include/uapi/linux/rtnetlink.h`).
const LOCAL: u32 = 2;

/// The table for both families, without accepts at the end of a hook that drops by policy: an accept in one table does not
/// prevent a drop in another.
pub(super) fn program(rulesets: &[Ruleset]) -> Program {
    let mut program = Program::default();
    let mut bases: BTreeMap<String, program::Chain> = BTreeMap::new();
    for ruleset in rulesets.iter().filter(|r| !r.is_empty()) {
        let printer = Printer { family: ruleset.family };
        for table in &ruleset.tables {
            printer.table(table, &mut program, &mut bases);
        }
        for (name, addresses) in [("served", &ruleset.addresses), ("sources", &ruleset.sources)] {
            let elements = addresses.iter().map(|a| element(&[octets(*a)], &[])).collect();
            let layout = Layout { key: vec![printer.address()], value: Vec::new(), ranges: false };
            program.sets.insert(printer.name(name), Set { layout, elements });
        }
    }
    program.chains.extend(bases.into_values());
    program
}

/// Name of a chain or set in this family.
pub(super) fn name(of: &str, family: Family) -> String {
    format!("{of}_{}", if family == Family::V4 { "v4" } else { "v6" })
}

/// The drop reason of a chain.
pub(super) fn reason(chain: &str) -> Reason {
    let chain = chain.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches("_v");
    match chain {
        "mangle_direct" => Reason::DropDirect,
        "mangle_source" => Reason::DropSpoofed,
        "filter_allow" => Reason::DropNotAllowed,
        "filter_input" => Reason::DropMartian,
        _ => Reason::DropIsolated,
    }
}

/// Rules of every kind, to probe the kernel.
pub(super) fn examples() -> [Ruleset; 2] {
    let v4 = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
    let v6 = (IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]), IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 2]));
    [(Family::V4, v4), (Family::V6, v6)].map(|(family, (host, container))| {
        let mut ruleset = Ruleset::empty(family);
        let [mangle, filter, nat] = &mut ruleset.tables;
        let known =
            Rule::new([Match::State(&[State::New, State::Dnat]), Match::Source(Family::host_net(host))], Verdict::Drop);
        let routed = Rule::new([Match::FromRouted], Verdict::Return);
        mangle.enter(Hook::Prerouting, Place::First, [], "NETPATH_PREROUTING", vec![known, routed]);
        let original = Match::OriginalPorts(Proto::Tcp, Ports { first: 1, last: 2 });
        let rules = vec![Rule::new([original, Match::FromHost], Verdict::Accept)];
        filter.enter(Hook::Forward, Place::First, [], "NETPATH_FORWARD", rules);
        let snat = Rule::new([Match::Out(IfName::loopback())], Verdict::Snat(host));
        let rules = vec![snat, Rule::new([], Verdict::Masquerade)];
        nat.enter(Hook::Postrouting, Place::Last, [], "NETPATH_POSTROUTING", rules);
        let jump = vec![Rule::new([], Verdict::Jump("NETPATH_TCP"))];
        nat.enter(Hook::Prerouting, Place::Last, [Match::ToHost], "NETPATH_PREROUTING", jump);
        let publishes = [HostBind::Address(host), HostBind::Any].into_iter().flat_map(|bind| {
            [(1, 1, 1), (10, 10, 2)].into_iter().filter_map(move |(from, to, count)| {
                Publish::new(bind, Proto::Tcp, from, to, count).ok().map(|publish| Target { publish, to: container })
            })
        });
        nat.chains.push(Chain { name: "NETPATH_TCP", body: Body::Ports(publishes.collect()) });
        ruleset
    })
}

struct Printer {
    family: Family,
}

impl Printer {
    fn name(&self, of: &str) -> String {
        name(of, self.family)
    }

    fn chain_name(&self, kind: TableKind, name: &str) -> String {
        let kind = kind.name();
        self.name(&format!("{kind}_{}", name.trim_start_matches("NETPATH_").to_lowercase()))
    }

    fn address(&self) -> Type {
        if self.family == Family::V4 { Type::Ipv4Addr } else { Type::Ipv6Addr }
    }

    fn destination(&self) -> (u32, u32) {
        if self.family == Family::V4 { (V4_DESTINATION, 4) } else { (V6_DESTINATION, 16) }
    }

    fn table(&self, table: &Table, program: &mut Program, bases: &mut BTreeMap<String, program::Chain>) {
        let entries: Vec<&Entry> = table.entries.iter().filter(|e| e.place != Place::LastIfDropping).collect();
        let is_accepting = |name: &str| table.entries.iter().any(|e| e.place == Place::LastIfDropping && e.to == name);
        for chain in table.chains.iter().filter(|c| !is_accepting(c.name)) {
            let name = self.chain_name(table.kind, chain.name);
            let rules = match &chain.body {
                Body::Rules(rules) => rules.iter().flat_map(|r| self.rule(table.kind, r)).collect(),
                Body::Ports(targets) => self.ports(targets, program),
            };
            program.chains.push(program::Chain { name, base: None, rules });
        }
        for entry in entries {
            let name = format!("{}_{}", table.kind.name(), hook_name(entry.hook));
            let base = Base {
                kind: if table.kind == TableKind::Nat { "nat" } else { "filter" },
                hook: hook_number(entry.hook),
                priority: priority(table.kind, entry.hook),
            };
            let chain = bases.entry(name.clone()).or_insert_with(|| program::Chain {
                name,
                base: Some(base),
                rules: if (table.kind, entry.hook) == (TableKind::Mangle, Hook::Prerouting) {
                    vec![known()]
                } else {
                    Vec::new()
                },
            });
            let nfproto = if self.family == Family::V4 { libc::NFPROTO_IPV4 } else { libc::NFPROTO_IPV6 };
            let mut rule = vec![E::Load(Load::Nfproto), equal(&[u8::try_from(nfproto).unwrap_or_default()])];
            rule.extend(entry.matches.iter().flat_map(|m| self.matching(m)));
            rule.push(E::Jump(self.chain_name(table.kind, entry.to)));
            chain.rules.push(rule);
        }
    }

    /// One rule, or two if a condition holds for either a state or the translated destination.
    fn rule(&self, kind: TableKind, rule: &Rule) -> Vec<Vec<E>> {
        if let Verdict::Dnat(Translation { to, shift: Some(shift) }) = rule.verdict
            && shift.count > 1
        {
            // The `nat` expression cannot shift a range, so each port has a rule.
            return (0..shift.count).flat_map(|n| self.rule(kind, &one_port(rule, to, shift, n))).collect();
        }
        let mut heads: Vec<Vec<E>> = vec![Vec::new()];
        for one in &rule.matches {
            let alternatives = match one {
                Match::State(states) => state(states),
                other => vec![self.matching(other)],
            };
            heads = heads
                .iter()
                .flat_map(|head| alternatives.iter().map(move |tail| [head.as_slice(), tail].concat()))
                .collect();
        }
        let verdict = self.verdict(kind, &rule.verdict);
        heads.into_iter().map(|head| [head, verdict.clone()].concat()).collect()
    }

    fn matching(&self, one: &Match) -> Vec<E> {
        let (source, destination, length) = match self.family {
            Family::V4 => (V4_SOURCE, V4_DESTINATION, 4),
            Family::V6 => (V6_SOURCE, V6_DESTINATION, 16),
        };
        // A prefix of whole bytes needs no mask, which saves time for each packet.
        let net = |offset, net: &IpNet, compare| {
            let (bytes, bits) = (usize::from(net.prefix_len() / 8), net.prefix_len() % 8);
            if bytes > 0 && bits == 0 {
                let length = u32::from(net.prefix_len() / 8);
                let prefix = octets(net.network())[..bytes].to_vec();
                return vec![E::Load(Load::Network { offset, length }), E::Compare(compare, prefix)];
            }
            vec![
                E::Load(Load::Network { offset, length }),
                E::Mask(octets(net.netmask())),
                E::Compare(compare, octets(net.network())),
            ]
        };
        let name = |load, name: &IfName, compare| {
            let mut bytes = name.as_str().as_bytes().to_vec();
            bytes.resize(libc::IFNAMSIZ, 0);
            vec![E::Load(load), E::Compare(compare, bytes)]
        };
        let local = |load| vec![E::Load(load), equal(&LOCAL.to_ne_bytes())];
        match one {
            Match::Source(n) => net(source, n, Compare::Equal),
            Match::NotSource(n) => net(source, n, Compare::NotEqual),
            Match::Destination(n) => net(destination, n, Compare::Equal),
            Match::NotDestination(n) => net(destination, n, Compare::NotEqual),
            Match::In(n) => name(Load::Iifname, n, Compare::Equal),
            Match::NotIn(n) => name(Load::Iifname, n, Compare::NotEqual),
            Match::Out(n) => name(Load::Oifname, n, Compare::Equal),
            Match::NotOut(n) => name(Load::Oifname, n, Compare::NotEqual),
            Match::Protocol(proto) => protocol(*proto),
            Match::DestinationPorts(proto, ports) => between(*proto, Load::Dport, *ports),
            Match::OriginalPorts(proto, ports) => between(*proto, Load::OriginalDport, *ports),
            Match::FromHost => local(Load::FibSource),
            Match::ToHost => local(Load::FibDestination),
            Match::FromRouted => {
                vec![E::Load(Load::FibReverse), E::Compare(Compare::NotEqual, 0_u32.to_ne_bytes().to_vec())]
            }
            Match::State(states) => state(states).concat(),
            Match::NotState(states) => {
                let (in_state, in_status) = bits(states);
                let mut all = Vec::new();
                for (load, bits) in [(Load::CtState, in_state), (Load::CtStatus, in_status)] {
                    if bits != 0 {
                        all.extend(masked(load, bits, Compare::Equal));
                    }
                }
                all
            }
        }
    }

    fn verdict(&self, kind: TableKind, verdict: &Verdict) -> Vec<E> {
        let v6 = self.family == Family::V6;
        match verdict {
            Verdict::Accept => vec![E::Accept],
            Verdict::Drop => vec![E::Counter, E::Drop],
            Verdict::Return => vec![E::Return],
            Verdict::Jump(to) => vec![E::Jump(self.chain_name(kind, to))],
            Verdict::Dnat(translation) => match translation.shift {
                None => vec![E::Immediate(octets(translation.to)), E::Nat { source: false, v6, ports: false }],
                Some(shift) => vec![
                    E::Immediate(padded(&[&octets(translation.to), &shift.container.to_be_bytes()])),
                    E::Nat { source: false, v6, ports: true },
                ],
            },
            Verdict::Snat(source) => {
                vec![E::Immediate(octets(*source)), E::Nat { source: true, v6, ports: false }]
            }
            Verdict::Masquerade => vec![E::Masquerade],
        }
    }

    /// Adds the maps of one protocol and returns the rules that look them up.
    fn ports(&self, targets: &[Target], program: &mut Program) -> Vec<Vec<E>> {
        let v6 = self.family == Family::V6;
        let Some(proto) = targets.first().map(|t| t.publish.proto) else { return Vec::new() };
        let (offset, length) = self.destination();
        let bound: BTreeSet<IpAddr> = targets.iter().filter_map(Target::address).collect();
        let mut maps: BTreeMap<(bool, bool), BTreeSet<Element>> = BTreeMap::new();
        for address in bound.into_iter().map(Some).chain([None]) {
            let same = targets.iter().filter(|t| t.address() == address);
            for (ports, target) in disjoint(same) {
                let (host, container) = (target.publish.host_port(), target.publish.container_port());
                let to = octets(target.to);
                let key = |port: u16| match address {
                    Some(a) => vec![octets(a), port.to_be_bytes().to_vec()],
                    None => vec![port.to_be_bytes().to_vec()],
                };
                let is_range = ports.first != ports.last && host == container;
                let elements = maps.entry((address.is_none(), is_range)).or_default();
                if is_range {
                    let (key, last) = (join(&key(ports.first)), join(&key(ports.last)));
                    elements.insert(Element { key, last, value: to });
                } else {
                    elements.extend((ports.first..=ports.last).map(|port| {
                        element(&key(port), &[to.clone(), (container + (port - host)).to_be_bytes().to_vec()])
                    }));
                }
            }
        }
        let mut rules = Vec::new();
        // Ports of one address first.
        for ((any, ranges), elements) in maps {
            let name = format!("{proto}{}{}", if ranges { "_ranges" } else { "" }, if any { "" } else { "_bound" });
            let name = self.name(&name);
            let mut layout = Layout { key: vec![Type::InetService], value: vec![self.address()], ranges };
            let mut rule = vec![E::Load(Load::Dport)];
            if !any {
                layout.key.insert(0, self.address());
                rule = vec![E::LoadAddressAndPort { offset, length }];
            }
            if !ranges {
                layout.value.push(Type::InetService);
            }
            rule.insert(0, equal(&[protocol_number(proto)]));
            rule.insert(0, E::Load(Load::L4proto));
            rule.extend([E::Map(name.clone()), E::Nat { source: false, v6, ports: !ranges }]);
            rules.push(rule);
            program.sets.insert(name, Set { layout, elements });
        }
        rules
    }
}

/// Every check ahead of translation lets packets of known connections pass (`policy.rs`), so the kernel evaluates one rule for them.
fn known() -> Vec<E> {
    let mut rule = masked(Load::CtState, ESTABLISHED | RELATED, Compare::NotEqual);
    rule.push(E::Accept);
    rule
}

/// The rule for port `n` of a shifted range.
fn one_port(rule: &Rule, to: IpAddr, shift: Shift, n: u16) -> Rule {
    let shift = Shift { host: shift.host + n, container: shift.container + n, count: 1 };
    let ports = Ports { first: shift.host, last: shift.host };
    let matches = rule.matches.iter().map(|m| match m {
        Match::DestinationPorts(proto, _) => Match::DestinationPorts(*proto, ports),
        other => other.clone(),
    });
    Rule::new(matches.collect::<Vec<_>>(), Verdict::Dnat(Translation { to, shift: Some(shift) }))
}

/// Ports of one protocol and address without overlaps: the first target keeps shared ports.
fn disjoint<'a>(targets: impl Iterator<Item = &'a Target>) -> Vec<(Ports, &'a Target)> {
    // The ranges so far, by first port.
    let mut taken: BTreeMap<u16, u16> = BTreeMap::new();
    let mut all = Vec::new();
    for target in targets {
        let ports = target.ports();
        let mut free = Vec::new();
        let mut from = Some(ports.first);
        let overlapping: Vec<(u16, u16)> = taken
            .range(..=ports.last)
            .rev()
            .take_while(|(_, last)| **last >= ports.first)
            .map(|(first, last)| (*first, *last))
            .collect();
        for (first, last) in overlapping.into_iter().rev() {
            if let Some(from) = from.filter(|f| *f < first) {
                free.push(Ports { first: from, last: first - 1 });
            }
            from = last.checked_add(1);
        }
        if let Some(from) = from.filter(|f| *f <= ports.last) {
            free.push(Ports { first: from, last: ports.last });
        }
        for part in free {
            taken.insert(part.first, part.last);
            all.push((part, target));
        }
    }
    all
}

fn element(key: &[Vec<u8>], value: &[Vec<u8>]) -> Element {
    let key = join(key);
    Element { last: key.clone(), key, value: join(value) }
}

fn join(parts: &[Vec<u8>]) -> Vec<u8> {
    padded(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

fn equal(bytes: &[u8]) -> E {
    E::Compare(Compare::Equal, bytes.to_vec())
}

fn protocol_number(proto: Proto) -> u8 {
    match proto {
        Proto::Tcp => 6,
        Proto::Udp => 17,
        Proto::Sctp => 132,
    }
}

fn protocol(proto: Proto) -> Vec<E> {
    vec![E::Load(Load::L4proto), equal(&[protocol_number(proto)])]
}

fn between(proto: Proto, load: Load, ports: Ports) -> Vec<E> {
    let mut all = protocol(proto);
    all.push(E::Load(load));
    if ports.first == ports.last {
        all.push(equal(&ports.first.to_be_bytes()));
    } else {
        all.push(E::Compare(Compare::AtLeast, ports.first.to_be_bytes().to_vec()));
        all.push(E::Compare(Compare::AtMost, ports.last.to_be_bytes().to_vec()));
    }
    all
}

/// Bits of the conntrack state, and of the conntrack status.
fn bits(states: &[State]) -> (u32, u32) {
    states.iter().fold((0, 0), |(state, status), one| match one {
        State::New => (state | NEW, status),
        State::Related => (state | RELATED, status),
        State::Established => (state | ESTABLISHED, status),
        State::Dnat => (state, status | DST_NAT),
    })
}

/// Alternative conditions: one of them must hold.
fn state(states: &[State]) -> Vec<Vec<E>> {
    let (in_state, in_status) = bits(states);
    let both = [(Load::CtState, in_state), (Load::CtStatus, in_status)];
    both.into_iter().filter(|(_, bits)| *bits != 0).map(|(load, bits)| masked(load, bits, Compare::NotEqual)).collect()
}

fn masked(load: Load, bits: u32, compare: Compare) -> Vec<E> {
    vec![E::Load(load), E::Mask(bits.to_ne_bytes().to_vec()), E::Compare(compare, vec![0; 4])]
}

fn hook_name(hook: Hook) -> &'static str {
    match hook {
        Hook::Prerouting => "prerouting",
        Hook::Input => "input",
        Hook::Forward => "forward",
        Hook::Output => "output",
        Hook::Postrouting => "postrouting",
    }
}

fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    }
}

fn priority(kind: TableKind, hook: Hook) -> i32 {
    match (kind, hook) {
        (TableKind::Mangle, _) => MANGLE,
        (TableKind::Filter, _) => BEFORE_FILTER,
        (TableKind::Nat, Hook::Postrouting | Hook::Input) => SRCNAT + AFTER_NAT,
        (TableKind::Nat, _) => DSTNAT + AFTER_NAT,
    }
}
