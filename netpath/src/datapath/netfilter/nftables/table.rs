//! Reads netpath's table from the kernel and makes it equal to a program in one transaction.
//!
//! Each rule has a digest in its user data, so that chains are compared without parsing their expressions. Rules that other
//! software has added, removed or replaced are detected. Chains that differ are flushed and written again; of sets only
//! the differing elements are written. If a set or base chain has another type, the whole table is replaced.

use super::encode::{self, Message};
use super::program::{Element, Layout, Program, Set};
use super::raw::{self, Attributes, Raw};
use crate::datapath::netfilter::nfnetlink;
use crate::netlink::Netlink;
use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST};
use netlink_packet_netfilter::nftables::{
    ChainMessage, NfTablesMessage, RuleAttribute, RuleMessage, SetAttribute, SetElementFlags, SetFlags, SetMessage,
    TableFlags,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use std::collections::{BTreeMap, BTreeSet};
use std::io;

// include/uapi/linux/netfilter/nf_tables.h
const NFTA_TABLE_FLAGS: u16 = 2;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_RULE_USERDATA: u16 = 7;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_COUNTER_BYTES: u16 = 1;
const NFTA_COUNTER_PACKETS: u16 = 2;
const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_KEY_LEN: u16 = 5;
const NFTA_SET_DATA_LEN: u16 = 7;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_FLAGS: u16 = 3;
const NFTA_SET_ELEM_KEY_END: u16 = 10;
const NFTA_DATA_VALUE: u16 = 1;

/// A chain in the kernel, with the digests of its rules; `None`: a foreign rule.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct KernelChain {
    base: Option<KernelBase>,
    rules: Vec<Option<u64>>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct KernelBase {
    kind: String,
    hook: Option<u32>,
    priority: Option<i32>,
    policy: Option<u32>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct KernelSet {
    key_length: u32,
    value_length: u32,
    flags: u32,
    elements: BTreeSet<Element>,
}

/// The table in the kernel.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct KernelTable {
    exists: bool,
    /// The kernel does not call its chains.
    dormant: bool,
    chains: BTreeMap<String, KernelChain>,
    sets: BTreeMap<String, KernelSet>,
}

impl KernelTable {
    /// # Errors
    /// A kernel without nf_tables.
    pub(super) fn read() -> io::Result<Self> {
        let mut netlink = raw::open()?;
        let mut table = Self::default();
        let answers = match netlink.read(inet(NfTablesMessage::GetTable(encode::table())).into()) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(table),
            answers => answers?,
        };
        table.exists = !answers.is_empty();
        let flags = answers.iter().find_map(|a| a.attributes().number(NFTA_TABLE_FLAGS));
        table.dormant = flags.is_some_and(|f| f & TableFlags::Dormant.bits() != 0);
        table.read_chains(&mut netlink)?;
        table.read_rules(&mut netlink)?;
        table.read_sets(&mut netlink)?;
        Ok(table)
    }

    fn read_chains(&mut self, netlink: &mut Netlink<Raw>) -> io::Result<()> {
        // The kernel lists the chains of all tables of the family.
        let all = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
        for answer in netlink.dump(inet(all).into())? {
            let chain = answer.attributes();
            let (Some(encode::TABLE), Some(name)) = (chain.text(NFTA_CHAIN_TABLE), chain.text(NFTA_CHAIN_NAME)) else {
                continue;
            };
            let base = chain.nested(NFTA_CHAIN_HOOK).map(|hook| KernelBase {
                kind: chain.text(NFTA_CHAIN_TYPE).unwrap_or_default().to_owned(),
                hook: hook.number(NFTA_HOOK_HOOKNUM),
                priority: hook.number(NFTA_HOOK_PRIORITY).map(u32::cast_signed),
                policy: chain.number(NFTA_CHAIN_POLICY),
            });
            self.chains.insert(name.to_owned(), KernelChain { base, rules: Vec::new() });
        }
        Ok(())
    }

    fn read_rules(&mut self, netlink: &mut Netlink<Raw>) -> io::Result<()> {
        let attributes = vec![RuleAttribute::Table(encode::TABLE.to_owned())];
        for answer in netlink.dump(inet(NfTablesMessage::GetRule(RuleMessage { attributes })).into())? {
            let rule = answer.attributes();
            let (Some(encode::TABLE), Some(chain)) = (rule.text(NFTA_RULE_TABLE), rule.text(NFTA_RULE_CHAIN)) else {
                continue;
            };
            let digest = rule.get(NFTA_RULE_USERDATA).and_then(encode::digest_in);
            self.chains.entry(chain.to_owned()).or_default().rules.push(digest);
        }
        Ok(())
    }

    fn read_sets(&mut self, netlink: &mut Netlink<Raw>) -> io::Result<()> {
        let attributes = vec![SetAttribute::Table(encode::TABLE.to_owned())];
        for answer in netlink.dump(inet(NfTablesMessage::GetSet(SetMessage { attributes })).into())? {
            let set = answer.attributes();
            let (Some(encode::TABLE), Some(name)) = (set.text(NFTA_SET_TABLE), set.text(NFTA_SET_NAME)) else {
                continue;
            };
            let number = |kind| set.number(kind).unwrap_or(0);
            let flags = number(NFTA_SET_FLAGS);
            // netpath's rules have no anonymous sets.
            if flags & SetFlags::Anonymous.bits() == 0 {
                let (key_length, value_length) = (number(NFTA_SET_KEY_LEN), number(NFTA_SET_DATA_LEN));
                let set = KernelSet { key_length, value_length, flags, elements: BTreeSet::new() };
                self.sets.insert(name.to_owned(), set);
            }
        }
        for (name, set) in &mut self.sets {
            set.elements = read_elements(netlink, name, set.flags)?;
        }
        Ok(())
    }

    /// The keys of a set; empty if it does not exist.
    pub(super) fn keys<'a>(&'a self, set: &str) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.sets.get(set).into_iter().flat_map(|s| &s.elements).map(|e| e.key.as_slice())
    }

    /// The messages that make the table equal to `program`, without begin and end of the batch; none if it is equal.
    pub(super) fn changes(&self, program: &Program) -> Vec<(Message, u16)> {
        if program.chains.is_empty() {
            return if self.exists { vec![(NfTablesMessage::DeleteTable(encode::table()), 0)] } else { Vec::new() };
        }
        if self.exists && !self.dormant && self.is_of_kind(program) {
            return self.differences(program);
        }
        let mut changes = Vec::new();
        if self.exists {
            changes.push((NfTablesMessage::DeleteTable(encode::table()), 0));
        }
        changes.push((NfTablesMessage::NewTable(encode::table()), NLM_F_CREATE));
        changes.extend(Self::default().differences(program));
        changes
    }

    /// Whether every set and base chain of the same name is of the same kind.
    fn is_of_kind(&self, program: &Program) -> bool {
        let sets = program.sets.iter().all(|(name, set)| self.sets.get(name).is_none_or(|s| s.is_like(&set.layout)));
        sets && program.chains.iter().all(|chain| {
            self.chains.get(&chain.name).is_none_or(|there| match (&there.base, &chain.base) {
                (None, None) => true,
                (Some(there), Some(base)) => {
                    there.kind == base.kind
                        && there.hook == Some(base.hook)
                        && there.priority == Some(base.priority)
                        // NF_ACCEPT
                        && there.policy == Some(1)
                }
                _ => false,
            })
        })
    }

    /// A transaction that adds the table and removes it, so that the kernel checks every part of it. EEXIST: the table exists.
    pub(super) fn probe(program: &Program) -> Vec<(Message, u16)> {
        let mut changes = vec![(NfTablesMessage::NewTable(encode::table()), NLM_F_CREATE | NLM_F_EXCL)];
        changes.extend(Self::default().differences(program));
        changes.push((NfTablesMessage::DeleteTable(encode::table()), 0));
        changes
    }

    fn differences(&self, program: &Program) -> Vec<(Message, u16)> {
        let mut changes = Vec::new();
        let mut id = 0;
        for (name, set) in program.sets.iter().filter(|(name, _)| !self.sets.contains_key(*name)) {
            id += 1;
            changes.push((NfTablesMessage::NewSet(encode::set(name, set, id)), NLM_F_CREATE));
        }
        for (name, set) in &program.sets {
            changes.extend(self.element_changes(name, set));
        }
        for chain in program.chains.iter().filter(|c| !self.chains.contains_key(&c.name)) {
            changes.push((NfTablesMessage::NewChain(encode::chain(chain)), NLM_F_CREATE));
        }
        let stale: Vec<&String> =
            self.chains.keys().filter(|name| program.chains.iter().all(|c| c.name != **name)).collect();
        let mut changed = Vec::new();
        for chain in &program.chains {
            let wanted: Vec<Option<u64>> = chain.rules.iter().map(|r| Some(encode::digest(r))).collect();
            let there = self.chains.get(&chain.name).map(|c| c.rules.as_slice()).unwrap_or_default();
            if wanted != there {
                changed.push((chain, !there.is_empty()));
            }
        }
        let full = changed.iter().filter(|(_, is_full)| *is_full).map(|(chain, _)| &chain.name);
        for name in full.chain(stale.iter().copied()) {
            changes.push((NfTablesMessage::DeleteRule(encode::rules_of(name)), 0));
        }
        for (chain, _) in &changed {
            let rules = chain.rules.iter().map(|r| NfTablesMessage::NewRule(encode::rule(&chain.name, r)));
            changes.extend(rules.map(|r| (r, NLM_F_CREATE | NLM_F_APPEND)));
        }
        changes.extend(stale.into_iter().map(|name| (NfTablesMessage::DeleteChain(encode::chain_named(name)), 0)));
        let sets = self.sets.keys().filter(|name| !program.sets.contains_key(*name));
        changes.extend(sets.map(|name| (NfTablesMessage::DeleteSet(encode::set_named(name)), 0)));
        changes
    }

    fn element_changes(&self, name: &str, set: &Set) -> Vec<(Message, u16)> {
        let none = BTreeSet::new();
        let there = self.sets.get(name).map_or(&none, |s| &s.elements);
        let gone: Vec<&Element> = there.difference(&set.elements).collect();
        let new: Vec<&Element> = set.elements.difference(there).collect();
        let delete = encode::elements(name, &set.layout, &gone).into_iter();
        let add = encode::elements(name, &set.layout, &new).into_iter();
        delete
            .map(|m| (NfTablesMessage::DeleteSetElement(m), 0))
            .chain(add.map(|m| (NfTablesMessage::NewSetElement(m), NLM_F_CREATE)))
            .collect()
    }
}

impl KernelSet {
    fn is_like(&self, layout: &Layout) -> bool {
        let wanted = encode::set("", &Set { layout: layout.clone(), elements: BTreeSet::new() }, 0);
        let mut like = true;
        let mut value_length = 0;
        for attribute in wanted.attributes {
            match attribute {
                SetAttribute::KeyLen(length) => like &= length == self.key_length,
                SetAttribute::DataLen(length) => value_length = length,
                SetAttribute::Flags(flags) => like &= flags.bits() == self.flags,
                _ => {}
            }
        }
        like && value_length == self.value_length
    }
}

/// Packets and bytes that the rules of each chain have counted.
///
/// # Errors
/// A kernel without nf_tables.
pub(super) fn counters() -> io::Result<BTreeMap<String, (u64, u64)>> {
    let mut counters = BTreeMap::new();
    let attributes = vec![RuleAttribute::Table(encode::TABLE.to_owned())];
    for answer in raw::open()?.dump(inet(NfTablesMessage::GetRule(RuleMessage { attributes })).into())? {
        let rule = answer.attributes();
        let (Some(encode::TABLE), Some(chain)) = (rule.text(NFTA_RULE_TABLE), rule.text(NFTA_RULE_CHAIN)) else {
            continue;
        };
        let expressions = rule.nested(NFTA_RULE_EXPRESSIONS).into_iter().flat_map(Attributes::all);
        for data in expressions.map(|(_, e)| Attributes(e)).filter(|e| e.text(NFTA_EXPR_NAME) == Some("counter")) {
            let Some(data) = data.nested(NFTA_EXPR_DATA) else { continue };
            let sum: &mut (u64, u64) = counters.entry(chain.to_owned()).or_default();
            sum.0 += data.long_number(NFTA_COUNTER_PACKETS).unwrap_or(0);
            sum.1 += data.long_number(NFTA_COUNTER_BYTES).unwrap_or(0);
        }
    }
    Ok(counters)
}

fn read_elements(netlink: &mut Netlink<Raw>, name: &str, flags: u32) -> io::Result<BTreeSet<Element>> {
    let mut elements = BTreeSet::new();
    // In ranges of single keys the end is a separate element, with the key after the last one.
    let (mut starts, mut ends) = (Vec::new(), BTreeSet::new());
    let question = NfTablesMessage::GetSetElement(encode::elements_of(name));
    for answer in netlink.dump(inet(question).into())? {
        let list = answer.attributes().nested(NFTA_SET_ELEM_LIST_ELEMENTS);
        for (_, item) in list.into_iter().flat_map(Attributes::all) {
            let item = Attributes(item);
            let bytes = |kind| item.nested(kind).and_then(|data| data.get(NFTA_DATA_VALUE)).map(<[u8]>::to_vec);
            let Some(key) = bytes(NFTA_SET_ELEM_KEY) else { continue };
            let (last, value) = (bytes(NFTA_SET_ELEM_KEY_END), bytes(NFTA_SET_ELEM_DATA).unwrap_or_default());
            let is_end = item.number(NFTA_SET_ELEM_FLAGS).unwrap_or(0) & SetElementFlags::IntervalEnd.bits() != 0;
            if flags & SetFlags::Interval.bits() == 0 || last.is_some() {
                let last = last.unwrap_or_else(|| key.clone());
                elements.insert(Element { key, last, value });
            } else if is_end {
                ends.insert(key);
            } else {
                starts.push((key, value));
            }
        }
    }
    for (key, value) in starts {
        let end = ends.range(key.clone()..).find(|end| **end > key);
        let last = end.map_or_else(|| vec![0xff; key.len()], |end| encode::before(end));
        elements.insert(Element { key, last, value });
    }
    Ok(elements)
}

/// Commits the changes in one transaction.
///
/// # Errors
/// That of the first refused change.
pub(super) fn commit(changes: Vec<(Message, u16)>) -> io::Result<()> {
    if changes.is_empty() {
        return Ok(());
    }
    let last = changes.len() - 1;
    // The kernel reports errors also of messages without NLM_F_ACK.
    let messages = changes.into_iter().enumerate().map(|(at, (change, flags))| {
        let acknowledged = if at == last { NLM_F_ACK } else { 0 };
        (inet(change), NLM_F_REQUEST | flags | acknowledged)
    });
    nfnetlink::open()?.batch(nfnetlink::transaction(messages.collect()))
}

fn inet(message: NfTablesMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0), message)
}
