//! Reads nf_tables from the kernel: also the rules of today's iptables. Numbers are those of
//! `include/uapi/linux/netfilter/nf_tables.h`.

use super::decode::{self, is_own};
use super::table::{Base, Chain, Element, Hook, NETDEV, Rule, Set, Table};
use crate::datapath::netfilter::nfnetlink;
use crate::datapath::netfilter::nftables::raw::{self, Attributes, Raw};
use crate::netlink::Netlink;
use std::collections::BTreeMap;
use std::io;

const GET_TABLE: u16 = 1;
const GET_CHAIN: u16 = 4;
const GET_RULE: u16 = 7;
const GET_SET: u16 = 10;
const GET_ELEMENTS: u16 = 13;

pub(super) type Key = (u8, String);

/// The tables of others; empty on a kernel without nf_tables.
///
/// # Errors
/// The kernel's.
pub(super) fn read() -> io::Result<Vec<Table>> {
    match nfnetlink::generation() {
        // As in `filter/nf.rs`: no nfnetlink, or no nf_tables behind it.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::EINVAL | libc::EOPNOTSUPP)) => {
            Ok(Vec::new())
        }
        Err(e) => Err(e),
        Ok(_) => consistent(),
    }
}

/// The tables of one generation.
fn consistent() -> io::Result<Vec<Table>> {
    for _ in 0..100 {
        let before = nfnetlink::generation()?;
        // A set may be gone since the list of sets.
        let tables = match ask() {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => continue,
            other => other?,
        };
        if before == nfnetlink::generation()? {
            return Ok(tables);
        }
    }
    Err(io::Error::other("the rules in nf_tables kept changing while they were read"))
}

fn ask() -> io::Result<Vec<Table>> {
    let mut netlink = raw::open()?;
    let mut tables = BTreeMap::new();
    for message in netlink.dump(Raw::nf_tables(GET_TABLE, 0, &[]))? {
        let (key, table) = table(&message).ok_or_else(unreadable)?;
        if !is_own(&key) {
            tables.insert(key, table);
        }
    }
    for message in netlink.dump(Raw::nf_tables(GET_CHAIN, 0, &[]))? {
        let (key, name, chain) = chain(&message).ok_or_else(unreadable)?;
        if let Some(table) = tables.get_mut(&key) {
            table.chains.insert(name, chain);
        }
    }
    for message in netlink.dump(Raw::nf_tables(GET_RULE, 0, &[]))? {
        let (key, chain, mut rule) = rule(&message).ok_or_else(unreadable)?;
        if let Some(chain) = tables.get_mut(&key).and_then(|t| t.chains.get_mut(&chain)) {
            rule.number = chain.rules.len() + 1;
            chain.rules.push(rule);
        }
    }
    for message in netlink.dump(Raw::nf_tables(GET_SET, 0, &[]))? {
        let attributes = message.attributes();
        let (Some(of), Some(name)) = (attributes.text(1), attributes.text(2)) else { continue };
        let key = (message.family(), of.to_owned());
        if let Some(table) = tables.get_mut(&key) {
            table.sets.insert(name.to_owned(), set(attributes));
        }
    }
    for ((family, of), table) in &mut tables {
        for (name, set) in &mut table.sets {
            // Its elements change by themselves.
            if set.changes.is_none() {
                elements(&mut netlink, *family, of, name, set)?;
            }
        }
    }
    Ok(tables.into_values().collect())
}

fn unreadable() -> io::Error {
    io::Error::other("a table, chain or rule in nf_tables has no name that can be read")
}

pub(super) fn table(message: &Raw) -> Option<(Key, Table)> {
    const DORMANT: u32 = 1;
    let (attributes, family) = (message.attributes(), message.family());
    let name = attributes.text(1)?.to_owned();
    let dormant = attributes.number(2).unwrap_or(0) & DORMANT != 0;
    Some(((family, name.clone()), Table { family, name, dormant, ..Table::default() }))
}

pub(super) fn chain(message: &Raw) -> Option<(Key, String, Chain)> {
    let (attributes, family) = (message.attributes(), message.family());
    let base = attributes.nested(4).map(|hook| Base {
        hook: self::hook(family, hook.number(1).unwrap_or(u32::MAX)),
        priority: hook.number(2).unwrap_or(0) as i32,
        translates: attributes.text(7) == Some("nat"),
        // NF_DROP
        drops: attributes.number(5) == Some(0),
        devices: devices(hook),
    });
    let key = (family, attributes.text(1)?.to_owned());
    Some((key, attributes.text(3)?.to_owned(), Chain { base, rules: Vec::new() }))
}

fn hook(family: u8, number: u32) -> Hook {
    match (family, number) {
        (NETDEV, 0) => Hook::Ingress,
        (NETDEV, 1) => Hook::Egress,
        (NETDEV, _) => Hook::Other,
        (_, 0) => Hook::Prerouting,
        (_, 1) => Hook::Input,
        (_, 2) => Hook::Forward,
        (_, 3) => Hook::Output,
        (_, 4) => Hook::Postrouting,
        // NF_INET_INGRESS
        (_, 5) => Hook::Ingress,
        _ => Hook::Other,
    }
}

fn devices(hook: Attributes<'_>) -> Vec<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned();
    let listed = hook.nested(4).into_iter().flat_map(Attributes::all).map(|(kind, name)| match kind {
        1 => text(name),
        // The beginning of names, or unknown.
        _ => text(name) + "*",
    });
    hook.get(3).map(text).into_iter().chain(listed).collect()
}

pub(super) fn rule(message: &Raw) -> Option<(Key, String, Rule)> {
    let attributes = message.attributes();
    let mut rule = Rule { handle: attributes.long_number(3), ..Rule::default() };
    for (_, item) in attributes.nested(4).into_iter().flat_map(Attributes::all) {
        let item = Attributes(item);
        let name = item.text(1).unwrap_or("unknown");
        let data = item.nested(2).unwrap_or(Attributes(&[]));
        let (word, expression) = decode::expression(name, data);
        rule.words.extend(Some(word).filter(|w| rule.words.last() != Some(w)));
        rule.expressions.push(expression);
    }
    Some(((message.family(), attributes.text(1)?.to_owned()), attributes.text(2)?.to_owned(), rule))
}

pub(super) fn set(attributes: Attributes<'_>) -> Set {
    const MAP: u32 = 8;
    const INTERVAL: u32 = 4;
    const TIMEOUT: u32 = 0x10;
    const EVAL: u32 = 0x20;
    const OBJECT: u32 = 0x40;
    /// NFT_DATA_VERDICT
    const VERDICTS: u32 = 0xffff_ff00;
    let flags = attributes.number(3).unwrap_or(0);
    let fields = attributes.nested(9).and_then(|d| d.nested(2)).into_iter().flat_map(Attributes::all);
    let field = |(_, item): (u16, &[u8])| Attributes(item).number(1).map(|n| n.min(64) as usize);
    let named = |list: Attributes<'_>| list.all().all(|(_, item)| Attributes(item).text(1) == Some("counter"));
    let one = attributes.nested(17).is_none_or(|e| e.text(1) == Some("counter"));
    let counts = one && attributes.nested(18).is_none_or(named);
    let changes = match () {
        () if flags & EVAL != 0 => Some("it looks into a set that packets change"),
        () if flags & OBJECT != 0 => Some("its map has objects, such as limits"),
        () if !counts => Some("it looks into a set whose elements limit or count packets"),
        () => None,
    };
    Set {
        is_verdicts: flags & MAP != 0 && attributes.number(6) == Some(VERDICTS),
        is_intervals: flags & INTERVAL != 0,
        fields: if flags & INTERVAL == 0 { Vec::new() } else { fields.filter_map(field).collect() },
        changes,
        expires: flags & TIMEOUT != 0,
        elements: Vec::new(),
    }
}

fn elements(netlink: &mut Netlink<Raw>, family: u8, of: &str, name: &str, set: &mut Set) -> io::Result<()> {
    let mut list = Vec::new();
    for message in netlink.dump(Raw::nf_tables(GET_ELEMENTS, family, &[(1, of), (2, name)]))? {
        add_elements(&message, &mut list);
    }
    set.elements = joined(list, set.is_intervals && set.fields.is_empty());
    Ok(())
}

/// An element, and whether it ends a range of single keys: the key after the last one.
pub(super) fn add_elements(message: &Raw, list: &mut Vec<(Element, bool)>) {
    const INTERVAL_END: u32 = 1;
    const CATCH_ALL: u32 = 2;
    for (_, item) in message.attributes().nested(3).into_iter().flat_map(Attributes::all) {
        let item = Attributes(item);
        let value = |kind| item.nested(kind).and_then(|d| d.get(1)).map(<[u8]>::to_vec);
        let flags = item.number(3).unwrap_or(0);
        let first = if flags & CATCH_ALL == 0 { value(1).unwrap_or_default() } else { Vec::new() };
        let element = Element {
            last: value(10).unwrap_or_default(),
            first,
            value: value(2).unwrap_or_default(),
            verdict: item.nested(2).and_then(|d| d.nested(2)).map(decode::verdict),
            expires: item.get(5).is_some(),
        };
        list.push((element, flags & INTERVAL_END != 0));
    }
}

/// Joins begin and end of ranges. `open`: a begin without an end goes on to the last of all keys.
pub(super) fn joined(mut list: Vec<(Element, bool)>, open: bool) -> Vec<Element> {
    // An end before a begin with the same key.
    list.sort_by(|(a, a_ends), (b, b_ends)| a.first.cmp(&b.first).then(b_ends.cmp(a_ends)));
    let mut elements: Vec<Element> = Vec::new();
    for (mut element, ends) in list {
        if ends {
            let before = before(&element.first);
            if let Some(begin) = elements.last_mut().filter(|e| !e.first.is_empty()) {
                begin.last = before;
            }
            continue;
        }
        if element.last.is_empty() {
            element.last = if open { vec![0xff; element.first.len()] } else { element.first.clone() };
        }
        elements.push(element);
    }
    elements
}

fn before(key: &[u8]) -> Vec<u8> {
    let mut key = key.to_vec();
    for byte in key.iter_mut().rev() {
        let (less, borrowed) = byte.overflowing_sub(1);
        *byte = less;
        if !borrowed {
            break;
        }
    }
    key
}
