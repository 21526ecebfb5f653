//! Typed rules of one address family, independent of a backend. Each rung has a printer for them.

use crate::model::{HostBind, IfName, Proto, Publish};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::IpAddr;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) fn of(address: &IpAddr) -> Self {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// The /32 or /128 of an address.
    pub(crate) fn host_net(address: IpAddr) -> IpNet {
        IpNet::from(address)
    }
}

/// States of a connection (`enum ip_conntrack_info`), and the status bit IPS_DST_NAT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    New,
    Related,
    Established,
    /// Its destination is translated (IPS_DST_NAT).
    Dnat,
}

/// Ports `first..=last`, in host byte order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Ports {
    pub first: u16,
    pub last: u16,
}

/// A condition; a rule applies if all of its conditions hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Match {
    Source(IpNet),
    NotSource(IpNet),
    Destination(IpNet),
    NotDestination(IpNet),
    In(IfName),
    NotIn(IfName),
    Out(IfName),
    NotOut(IfName),
    Protocol(Proto),
    /// The packet's destination port.
    DestinationPorts(Proto, Ports),
    /// The destination port before translation.
    OriginalPorts(Proto, Ports),
    /// From or to an address of the host (`fib … type local`).
    FromHost,
    ToHost,
    /// The host sends to the source address through the interface by which the packet came. Before routing only.
    FromRouted,
    /// In one of these states.
    State(&'static [State]),
    NotState(&'static [State]),
}

/// Destination translation of a published port. Without `shift` the port stays the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Translation {
    pub to: IpAddr,
    pub shift: Option<Shift>,
}

/// Port `host + n` becomes `container + n` for each `n < count`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Shift {
    pub host: u16,
    pub container: u16,
    pub count: u16,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(&'static str),
    Dnat(Translation),
    Snat(IpAddr),
    Masquerade,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Rule {
    pub matches: Vec<Match>,
    pub verdict: Verdict,
}

impl Rule {
    pub(crate) fn new(matches: impl Into<Vec<Match>>, verdict: Verdict) -> Self {
        Self { matches: matches.into(), verdict }
    }
}

/// A published port and the container address behind it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Target {
    pub publish: Publish,
    pub to: IpAddr,
}

impl Target {
    /// The host address that the port is bound to, if it is a single one.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        if let HostBind::Address(a) = self.publish.bind { Some(a) } else { None }
    }

    /// The host ports.
    pub(crate) fn ports(&self) -> Ports {
        let (first, count) = (self.publish.host_port(), self.publish.count());
        Ports { first, last: first + (count - 1) }
    }

    pub(crate) fn translation(&self) -> Translation {
        let (host, container, count) = (self.publish.host_port(), self.publish.container_port(), self.publish.count());
        Translation { to: self.to, shift: (host != container).then_some(Shift { host, container, count }) }
    }

    /// The rule for this target.
    pub(crate) fn rule(&self) -> Rule {
        Rule::new(self.dialled(), Verdict::Dnat(self.translation()))
    }

    /// Conditions that match packets to the published port.
    pub(crate) fn dialled(&self) -> Vec<Match> {
        let address = self.address().map(|a| Match::Destination(Family::host_net(a)));
        address.into_iter().chain([Match::DestinationPorts(self.publish.proto, self.ports())]).collect()
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Body {
    Rules(Vec<Rule>),
    /// Published ports of one protocol: the first matching target applies.
    Ports(Vec<Target>),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Chain {
    pub name: &'static str,
    pub body: Body,
}

/// The netfilter hook at which packets enter a chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

/// Position of a chain relative to foreign chains at the same hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    First,
    Last,
    /// Last, and only if the hook drops by policy: otherwise an accept at the end has no effect.
    LastIfDropping,
}

/// Packets of a hook that enter a chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub hook: Hook,
    pub place: Place,
    pub matches: Vec<Match>,
    pub to: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum TableKind {
    Mangle,
    Filter,
    Nat,
}

impl TableKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            TableKind::Mangle => "mangle",
            TableKind::Filter => "filter",
            TableKind::Nat => "nat",
        }
    }
}

/// The chains of one kind of table; none if no rule is needed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Table {
    pub kind: TableKind,
    pub entries: Vec<Entry>,
    pub chains: Vec<Chain>,
}

impl Table {
    pub(crate) fn new(kind: TableKind) -> Self {
        Self { kind, entries: Vec::new(), chains: Vec::new() }
    }

    pub(crate) fn chain(&mut self, name: &'static str, rules: Vec<Rule>) {
        self.chains.push(Chain { name, body: Body::Rules(rules) });
    }

    /// Adds a chain and the entry into it, unless the chain would be empty.
    pub(crate) fn enter(
        &mut self,
        hook: Hook,
        place: Place,
        matches: impl Into<Vec<Match>>,
        to: &'static str,
        rules: Vec<Rule>,
    ) {
        if !rules.is_empty() {
            self.entries.push(Entry { hook, place, matches: matches.into(), to });
            self.chain(to, rules);
        }
    }
}

/// The tables of one family in the order of writing: filters before NAT, so that a port is published only once its packets
/// are accepted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Ruleset {
    pub family: Family,
    pub tables: [Table; 3],
    /// The container addresses that the rules serve.
    pub addresses: BTreeSet<IpAddr>,
    /// The host addresses that rules use for SNAT, since routes prescribe them as preferred sources.
    pub sources: BTreeSet<IpAddr>,
}

impl Ruleset {
    pub(crate) fn empty(family: Family) -> Self {
        let tables = [TableKind::Mangle, TableKind::Filter, TableKind::Nat].map(Table::new);
        Self { family, tables, addresses: BTreeSet::new(), sources: BTreeSet::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tables.iter().all(|t| t.chains.is_empty())
    }
}
