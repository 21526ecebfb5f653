//! Tables of nf_tables and of legacy iptables, as the kernel has them.

use super::packet::Source;
use std::collections::BTreeMap;

// include/uapi/linux/netfilter.h: NFPROTO_…
pub(super) const INET: u8 = 1;
pub(super) const IP: u8 = 2;
pub(super) const NETDEV: u8 = 5;
pub(super) const BRIDGE: u8 = 7;
pub(super) const IP6: u8 = 10;

#[derive(Clone, PartialEq, Eq, Debug, Default, Hash)]
pub(super) struct Table {
    /// NFPROTO_…
    pub family: u8,
    pub name: String,
    /// Of legacy iptables.
    pub legacy: bool,
    /// The kernel does not call its chains.
    pub dormant: bool,
    pub chains: BTreeMap<String, Chain>,
    pub sets: BTreeMap<String, Set>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Hash)]
pub(super) struct Chain {
    pub base: Option<Base>,
    pub rules: Vec<Rule>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub(super) enum Hook {
    Ingress,
    Prerouting,
    Input,
    Forward,
    /// Of a bridge: frames that the host sends.
    Output,
    Postrouting,
    Egress,
    #[default]
    Other,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Hash)]
pub(super) struct Base {
    pub hook: Hook,
    pub priority: i32,
    /// Of type nat: only the first packet of a flow meets it.
    pub translates: bool,
    pub drops: bool,
    /// Names of interfaces at whose ingress or egress it is; one that ends in `*` is the beginning of names.
    pub devices: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Hash)]
pub(super) struct Rule {
    /// In its chain, from 1 on.
    pub number: usize,
    /// Of nf_tables.
    pub handle: Option<u64>,
    /// The expressions, matches and targets by name.
    pub words: Vec<String>,
    pub expressions: Vec<Expression>,
}

#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub(super) enum Verdict {
    Accept,
    Drop,
    Continue,
    Return,
    Jump(String),
    Goto(String),
    /// To a program, or unknown.
    Queue,
}

/// Registers are offsets in bytes.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub(super) enum Expression {
    Load {
        source: Source,
        to: usize,
        length: usize,
    },
    Compare {
        from: usize,
        how: Comparison,
        data: Vec<u8>,
    },
    Range {
        from: usize,
        not: bool,
        first: Vec<u8>,
        last: Vec<u8>,
    },
    Bitwise {
        from: usize,
        to: usize,
        length: usize,
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    Swap {
        from: usize,
        to: usize,
        length: usize,
        size: usize,
    },
    /// A function of registers that is not computed.
    Function {
        from: usize,
        used: usize,
        to: usize,
        length: usize,
    },
    Immediate {
        to: usize,
        data: Vec<u8>,
    },
    Lookup {
        set: String,
        from: usize,
        to: Option<usize>,
        not: bool,
    },
    Verdict(Verdict),
    /// It neither tests nor changes a packet.
    Harmless,
    /// It sets the mark that conntrack has, to the same with each packet.
    MarksConnection,
    /// It may do something different with each packet: the reason.
    Forbids(&'static str),
    /// It does something with each packet, and tests nothing: the reason.
    Acts(&'static str),
    /// An extension of iptables.
    Match {
        name: String,
        revision: u8,
        info: Vec<u8>,
    },
    Target {
        name: String,
        revision: u8,
        info: Vec<u8>,
    },
    /// What a rule of legacy iptables tests itself.
    Header(Header),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// Bytes as packets have them; `invert`: IPT_INV_…
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub(super) struct Header {
    pub source: Vec<u8>,
    pub source_mask: Vec<u8>,
    pub destination: Vec<u8>,
    pub destination_mask: Vec<u8>,
    pub iif: Vec<u8>,
    pub iif_mask: Vec<u8>,
    pub oif: Vec<u8>,
    pub oif_mask: Vec<u8>,
    pub protocol: Option<u8>,
    /// It tests for fragments, or the type of service.
    pub other: bool,
    pub invert: u8,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Hash)]
pub(super) struct Set {
    pub is_verdicts: bool,
    /// Elements are ranges.
    pub is_intervals: bool,
    /// Elements are ranges in each field of a concatenation: the lengths of the fields, without padding.
    pub fields: Vec<usize>,
    /// Why a look-up may answer differently for each packet.
    pub changes: Option<&'static str>,
    /// Elements leave it by themselves.
    pub expires: bool,
    /// In the order of their first keys; without `fields` they do not overlap.
    pub elements: Vec<Element>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Hash)]
pub(super) struct Element {
    /// Both empty: the one for all other keys.
    pub first: Vec<u8>,
    pub last: Vec<u8>,
    pub value: Vec<u8>,
    pub verdict: Option<Verdict>,
    pub expires: bool,
}

impl Table {
    /// The base chains that established packets meet, if a packet comes to their hooks.
    pub(super) fn bases(&self) -> impl Iterator<Item = (&str, &Chain, &Base)> {
        let base = |chain: &'_ Chain| -> bool { chain.base.as_ref().is_some_and(|b| !b.translates) };
        let bases = self.chains.iter().filter(move |(_, chain)| base(chain));
        bases.filter_map(|(name, chain)| Some((name.as_str(), chain, chain.base.as_ref()?)))
    }

    /// `table inet firewalld`, or `legacy iptables table filter`
    pub(super) fn label(&self) -> String {
        let family = match self.family {
            IP => "ip",
            IP6 => "ip6",
            INET => "inet",
            NETDEV => "netdev",
            BRIDGE => "bridge",
            _ => "other",
        };
        match (self.legacy, self.family) {
            (true, IP) => format!("legacy iptables table {}", self.name),
            (true, _) => format!("legacy ip6tables table {}", self.name),
            (false, _) => format!("table {family} {}", self.name),
        }
    }

    /// `table ip filter chain FORWARD rule 2, handle 7 (limit, log)`
    pub(super) fn rule_label(&self, chain: &str, rule: &Rule) -> String {
        let handle = rule.handle.map(|handle| format!(", handle {handle}")).unwrap_or_default();
        format!("{} chain {chain} rule {}{handle} ({})", self.label(), rule.number, rule.words.join(", "))
    }
}
