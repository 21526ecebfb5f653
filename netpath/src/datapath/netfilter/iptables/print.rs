//! Prints typed rules in the syntax of iptables-restore.

use super::can_be_matched;
use crate::datapath::netfilter::rules::{
    self, Body, Family, Hook, Match, Place, Ports, Rule, Ruleset, State, TableKind, Translation, Verdict,
};
use std::fmt::Write as _;
use std::net::IpAddr;

/// Prefix of the names of netpath's chains.
pub(crate) const PREFIX: &str = "NETPATH_";
/// A chain without jumps to it, which stores the served addresses, the SNAT addresses, the digest of the table and its
/// creator. `script` adds the latter two, since the creator is known only then.
pub(crate) const STATE: &str = "NETPATH_STATE";

/// A jump from a built-in chain to one of netpath.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Jump {
    pub from: &'static str,
    pub place: Place,
    /// Ends with a space unless empty.
    pub matches: String,
    pub to: &'static str,
}

/// A chain of netpath. Its rules are without the leading `-A name`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Chain {
    pub name: &'static str,
    pub rules: Vec<String>,
}

/// The wanted contents of a table; no chain if no rule is needed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Table {
    pub name: &'static str,
    pub jumps: Vec<Jump>,
    pub chains: Vec<Chain>,
}

pub(super) fn tables(ruleset: &Ruleset) -> [Table; 3] {
    ruleset.tables.each_ref().map(|t| table(t, ruleset))
}

fn table(table: &rules::Table, ruleset: &Ruleset) -> Table {
    let jumps = table.entries.iter().map(|e| Jump {
        from: built_in(e.hook),
        place: e.place,
        matches: e.matches.iter().filter_map(matching).map(|m| m + " ").collect(),
        to: e.to,
    });
    let mut chains: Vec<Chain> = table.chains.iter().map(|c| Chain { name: c.name, rules: body(&c.body) }).collect();
    if !chains.is_empty() {
        let (mut addresses, mut sources) = (Vec::new(), Vec::new());
        if table.kind == TableKind::Nat {
            addresses = ruleset.addresses.iter().map(|a| format!("-d {}", Family::host_net(*a))).collect();
            sources = ruleset.sources.iter().map(|a| format!("-s {}", Family::host_net(*a))).collect();
        }
        addresses.append(&mut sources);
        chains.push(Chain { name: STATE, rules: addresses });
    }
    Table { name: table.kind.name(), jumps: jumps.collect(), chains }
}

fn built_in(hook: Hook) -> &'static str {
    match hook {
        Hook::Prerouting => "PREROUTING",
        Hook::Input => "INPUT",
        Hook::Forward => "FORWARD",
        Hook::Output => "OUTPUT",
        Hook::Postrouting => "POSTROUTING",
    }
}

fn body(body: &Body) -> Vec<String> {
    match body {
        Body::Rules(rules) => rules.iter().filter_map(rule).collect(),
        Body::Ports(targets) => targets.iter().filter_map(|t| rule(&t.rule())).collect(),
    }
}

/// `None`: the rule has an interface whose name iptables would read as a pattern. Bridges with such names are refused; for
/// a route through such an interface the preferred source is ignored.
fn rule(rule: &Rule) -> Option<String> {
    let mut text = String::new();
    for one in &rule.matches {
        let _ = write!(text, "{} ", matching(one)?);
    }
    let _ = match &rule.verdict {
        Verdict::Accept => write!(text, "-j ACCEPT"),
        Verdict::Drop => write!(text, "-j DROP"),
        Verdict::Return => write!(text, "-j RETURN"),
        Verdict::Jump(chain) => write!(text, "-j {chain}"),
        Verdict::Dnat(translation) => write!(text, "-j DNAT --to-destination {}", destination(translation)),
        Verdict::Snat(source) => write!(text, "-j SNAT --to-source {source}"),
        Verdict::Masquerade => write!(text, "-j MASQUERADE"),
    };
    Some(text)
}

const ROUTED: &str = "-m rpfilter";

/// The script without rules of [`Match::FromRouted`].
pub(super) fn without_routed(script: &str) -> String {
    script.split_inclusive('\n').filter(|line| !line.contains(ROUTED)).collect()
}

fn matching(one: &Match) -> Option<String> {
    Some(match one {
        Match::Source(net) => format!("-s {net}"),
        Match::NotSource(net) => format!("! -s {net}"),
        Match::Destination(net) => format!("-d {net}"),
        Match::NotDestination(net) => format!("! -d {net}"),
        Match::In(name) | Match::NotIn(name) | Match::Out(name) | Match::NotOut(name) if !can_be_matched(name) => {
            return None;
        }
        Match::In(name) => format!("-i {name}"),
        Match::NotIn(name) => format!("! -i {name}"),
        Match::Out(name) => format!("-o {name}"),
        Match::NotOut(name) => format!("! -o {name}"),
        Match::Protocol(proto) => format!("-p {proto}"),
        Match::DestinationPorts(proto, range) => format!("-p {proto} -m {proto} --dport {}", ports(*range)),
        Match::OriginalPorts(proto, range) => {
            format!("-p {proto} -m conntrack --ctorigdstport {}", ports(*range))
        }
        Match::FromHost => "-m addrtype --src-type LOCAL".to_owned(),
        Match::ToHost => "-m addrtype --dst-type LOCAL".to_owned(),
        // `--loose` is not given: through this interface.
        Match::FromRouted => ROUTED.to_owned(),
        Match::State(states) => format!("-m conntrack --ctstate {}", names(states)),
        Match::NotState(states) => format!("-m conntrack ! --ctstate {}", names(states)),
    })
}

fn ports(range: Ports) -> String {
    let Ports { first, last } = range;
    if first == last { first.to_string() } else { format!("{first}:{last}") }
}

fn names(states: &[State]) -> String {
    let name = |state: &State| match state {
        State::New => "NEW",
        State::Related => "RELATED",
        State::Established => "ESTABLISHED",
        State::Dnat => "DNAT",
    };
    states.iter().map(name).collect::<Vec<_>>().join(",")
}

fn destination(translation: &Translation) -> String {
    let Some(shift) = translation.shift else { return translation.to.to_string() };
    let (container, last) = (shift.container, shift.container + (shift.count - 1));
    let to = match translation.to {
        IpAddr::V4(to) => format!("{to}:{container}"),
        IpAddr::V6(to) => format!("[{to}]:{container}"),
    };
    // With a base port the range is shifted (NF_NAT_RANGE_PROTO_OFFSET, 4.18): the third host port becomes the third
    // container port.
    if shift.count > 1 { format!("{to}-{last}/{}", shift.host) } else { to }
}

/// FNV-1a of the wanted contents. Tables with equal digests count as equal.
pub(super) fn digest(table: &Table) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut feed = |text: &str| {
        for byte in text.bytes().chain([b'\n']) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    };
    for jump in &table.jumps {
        let place = if jump.place == Place::First { "first" } else { "last" };
        [jump.from, place, &jump.matches, jump.to].into_iter().for_each(&mut feed);
    }
    for chain in &table.chains {
        feed(chain.name);
        chain.rules.iter().for_each(|r| feed(r));
    }
    hash
}
