//! Reads the tables of legacy iptables from the kernel. Layouts are those of `include/uapi/linux/netfilter_ipv4/ip_tables.h`,
//! `netfilter_ipv6/ip6_tables.h` and `netfilter/x_tables.h` on 64-bit machines.

use super::table::{Base, Chain, Expression, Header, Hook, IP, IP6, Rule, Table, Verdict};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;

/// IPT_SO_GET_INFO and IPT_SO_GET_ENTRIES, the same for IPv6.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// `struct ipt_getinfo`
const INFO: usize = 84;
/// `struct ipt_get_entries` without the entries.
const ENTRIES: usize = 40;
/// XT_TABLE_MAXNAMELEN
const NAME: usize = 32;
/// `struct xt_entry_match` without its data; a target's is the same.
const EXTENSION: usize = 32;
const HOOKS: [(&str, Hook); 5] = [
    ("PREROUTING", Hook::Prerouting),
    ("INPUT", Hook::Input),
    ("FORWARD", Hook::Forward),
    ("OUTPUT", Hook::Other),
    ("POSTROUTING", Hook::Postrouting),
];

/// Where `struct ipt_entry` and `struct ip6t_entry` have their parts.
struct Layout {
    family: u8,
    level: libc::c_int,
    address: usize,
    protocol: usize,
    flags: usize,
    invert: usize,
    target: usize,
    counters: usize,
    matches: usize,
}

const V4: Layout = Layout {
    family: IP,
    level: libc::SOL_IP,
    address: 4,
    protocol: 80,
    flags: 82,
    invert: 83,
    target: 88,
    counters: 96,
    matches: 112,
};
const V6: Layout = Layout {
    family: IP6,
    level: libc::SOL_IPV6,
    address: 16,
    protocol: 128,
    flags: 131,
    invert: 132,
    target: 140,
    counters: 152,
    matches: 168,
};

/// All tables; loads no module.
///
/// # Errors
/// A table cannot be read.
pub(super) fn read() -> io::Result<Vec<Table>> {
    each(|layout, name| {
        let (info, entries) = fetch(layout, name)?;
        parse(layout.family, name, &info, &entries)
            .ok_or_else(|| io::Error::other(format!("the rules of the legacy table {name} cannot be parsed")))
    })
}

/// The bytes of all tables without counters.
///
/// # Errors
/// A table cannot be read.
pub(super) fn bytes() -> io::Result<Vec<Vec<u8>>> {
    each(|layout, name| {
        let (_, mut bytes) = fetch(layout, name)?;
        let mut at = 0;
        while let Some(length) = short(&bytes, at + layout.target + 2).filter(|l| *l > 0) {
            if let Some(counters) = bytes.get_mut(at + layout.counters..at + layout.counters + 16) {
                counters.fill(0);
            }
            at += length;
        }
        Ok(bytes)
    })
}

/// Tables of legacy ebtables with rules or a policy that drops: they are not evaluated.
pub(super) fn bridge_rules() -> Vec<(String, String)> {
    // Asking for a table loads its module, which no rule can be in.
    let is_loaded = |name: &&str| std::path::Path::new(&format!("/sys/module/ebtable_{name}")).exists();
    let why = "rules of legacy ebtables are not evaluated";
    let tables = ["filter", "nat", "broute"].into_iter().filter(is_loaded).filter(|name| bridge_table_acts(name));
    tables.map(|name| (format!("legacy ebtables table {name}"), why.to_owned())).collect()
}

/// `struct ebt_replace`: name, hooks, number of entries, size of entries.
fn bridge_table_acts(table: &str) -> bool {
    /// EBT_SO_GET_INFO
    const GET_INFO: libc::c_int = 128;
    /// Of `struct ebt_replace`.
    const SIZE: usize = 120;
    let socket = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw);
    let mut info = vec![0; SIZE];
    info[..table.len()].copy_from_slice(table.as_bytes());
    socket.is_ok_and(|socket| get(socket.as_raw_fd(), libc::SOL_IP, GET_INFO, &mut info).is_ok())
        && number(&info, 36).is_some_and(|entries| entries > 0)
}

fn each<T>(mut read: impl FnMut(&'static Layout, &str) -> io::Result<T>) -> io::Result<Vec<T>> {
    let mut all = Vec::new();
    for (layout, list) in [(&V4, "ip_tables_names"), (&V6, "ip6_tables_names")] {
        let names = match std::fs::read_to_string(format!("/proc/thread-self/net/{list}")) {
            Ok(names) => names,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        for name in names.lines().map(str::trim).filter(|n| !n.is_empty() && n.len() < NAME) {
            all.push(read(layout, name)?);
        }
    }
    Ok(all)
}

/// What the kernel says of a table, and its entries.
fn fetch(layout: &Layout, table: &str) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let family = if layout.family == IP { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
    // Between the two requests the table may grow or shrink, which the kernel reports as EAGAIN.
    for _ in 0..100 {
        let mut info = vec![0; INFO];
        info[..table.len()].copy_from_slice(table.as_bytes());
        get(socket.as_raw_fd(), layout.level, GET_INFO, &mut info)?;
        let size = number(&info, 80).unwrap_or(0);
        let mut entries = vec![0; ENTRIES + size as usize];
        entries[..table.len()].copy_from_slice(table.as_bytes());
        entries[NAME..NAME + 4].copy_from_slice(&size.to_ne_bytes());
        match get(socket.as_raw_fd(), layout.level, GET_ENTRIES, &mut entries) {
            Ok(()) => return Ok((info, entries.split_off(ENTRIES))),
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::other(format!("the legacy table {table} kept changing while it was read")))
}

fn get(socket: libc::c_int, level: libc::c_int, option: libc::c_int, buffer: &mut [u8]) -> io::Result<()> {
    let mut length = buffer.len() as libc::socklen_t;
    // SAFETY: the buffer is writable for `length` bytes, which is its own length.
    let result = unsafe { libc::getsockopt(socket, level, option, buffer.as_mut_ptr().cast(), &raw mut length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

fn short(bytes: &[u8], at: usize) -> Option<usize> {
    bytes.get(at..)?.first_chunk().map(|b| usize::from(u16::from_ne_bytes(*b)))
}

/// A text that ends at a NUL.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}

/// One entry: its rule, and whether its target is a jump by an offset.
struct Entry {
    at: usize,
    expressions: Vec<Expression>,
    words: Vec<String>,
    target: Target,
}

enum Target {
    /// `goto`: without a return.
    Jump {
        to: usize,
        goto: bool,
    },
    /// The beginning of a chain of this name.
    Begin(String),
    Other,
}

pub(super) fn parse(family: u8, name: &str, info: &[u8], bytes: &[u8]) -> Option<Table> {
    let layout = if family == IP { &V4 } else { &V6 };
    let mut entries = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let length = short(bytes, at + layout.target + 2).filter(|l| *l >= layout.matches)?;
        entries.push(entry(layout, at, bytes.get(at..at + length)?)?);
        at += length;
    }
    let valid = number(info, NAME)?;
    let mut begins: BTreeMap<usize, (String, Option<Hook>)> = BTreeMap::new();
    for (index, (chain, hook)) in HOOKS.iter().enumerate().filter(|(index, _)| valid & (1 << index) != 0) {
        begins.insert(number(info, NAME + 4 + 4 * index)? as usize, ((*chain).to_owned(), Some(*hook)));
    }
    for pair in entries.windows(2) {
        if let [Entry { target: Target::Begin(chain), .. }, first] = pair {
            begins.insert(first.at, (chain.clone(), None));
        }
    }
    let priority = match name {
        "raw" => -300,
        "mangle" => -150,
        "security" => 50,
        _ => 0,
    };
    let mut table = Table { family, name: name.to_owned(), legacy: true, ..Table::default() };
    let mut current = None;
    for entry in entries {
        if let Some((chain, hook)) = begins.get(&entry.at) {
            let base = hook.map(|hook| Base { hook, priority, translates: name == "nat", ..Base::default() });
            table.chains.insert(chain.clone(), Chain { base, rules: Vec::new() });
            current = Some(chain.clone());
        }
        let chain = match (&current, &entry.target) {
            (_, Target::Begin(_)) => continue,
            (Some(chain), _) => table.chains.get_mut(chain)?,
            (None, _) => return None,
        };
        let (number, handle) = (chain.rules.len() + 1, None);
        let mut rule = Rule { number, handle, words: entry.words, expressions: entry.expressions };
        if let Target::Jump { to, goto } = entry.target {
            let to = begins.get(&to)?.0.clone();
            rule.words.push(format!("{} {to}", if goto { "goto" } else { "jump" }));
            rule.expressions.push(Expression::Verdict(if goto { Verdict::Goto(to) } else { Verdict::Jump(to) }));
        }
        chain.rules.push(rule);
    }
    // The last entry of a built-in chain is its policy.
    for chain in table.chains.values_mut() {
        if let Some(base) = &mut chain.base {
            let policy = chain.rules.pop()?;
            base.drops = policy.expressions.contains(&Expression::Verdict(Verdict::Drop));
        }
    }
    Some(table)
}

fn entry(layout: &Layout, at: usize, bytes: &[u8]) -> Option<Entry> {
    /// IPT_F_GOTO, IP6T_F_GOTO; of the other flags only IP6T_F_PROTO is no test.
    const GOTO: [u8; 2] = [2, 4];
    let is_v6 = layout.family == IP6;
    let (flags, goto) = (*bytes.get(layout.flags)?, GOTO[usize::from(is_v6)]);
    let mut expressions = vec![Expression::Header(header(layout, bytes, flags & !goto)?)];
    let mut words = Vec::new();
    let target_at = short(bytes, layout.target)?;
    let mut next = layout.matches;
    while next < target_at {
        let length = short(bytes, next).filter(|l| *l >= EXTENSION)?;
        let (name, revision, info) = extension(bytes.get(next..next + length)?);
        words.push(name.clone());
        expressions.push(Expression::Match { name, revision, info });
        next += length;
    }
    let (name, revision, info) = extension(bytes.get(target_at..)?);
    let mut target = Target::Other;
    match name.as_str() {
        "" => {
            let verdict = number(&info, 0)? as i32;
            let fixed = match verdict {
                -1 => Some((Verdict::Drop, "drop")),
                -2 => Some((Verdict::Accept, "accept")),
                -5 => Some((Verdict::Return, "return")),
                ..0 => Some((Verdict::Queue, "queue")),
                _ => None,
            };
            match fixed {
                Some((verdict, word)) => {
                    words.push(word.to_owned());
                    expressions.push(Expression::Verdict(verdict));
                }
                None => target = Target::Jump { to: verdict as usize, goto: flags & goto != 0 },
            }
        }
        "ERROR" => target = Target::Begin(text(&info)),
        _ => {
            words.push(name.clone());
            expressions.push(Expression::Target { name, revision, info });
        }
    }
    Some(Entry { at, expressions, words, target })
}

/// Name, revision and data.
fn extension(bytes: &[u8]) -> (String, u8, Vec<u8>) {
    let name = text(bytes.get(2..31).unwrap_or_default());
    (name, bytes.get(31).copied().unwrap_or(0), bytes.get(EXTENSION..).unwrap_or_default().to_vec())
}

fn header(layout: &Layout, bytes: &[u8], flags: u8) -> Option<Header> {
    const PROTOCOL: u8 = 1;
    const FRAGMENTS_OR_TOS: u8 = 0x20 | 4;
    let (is_v6, length) = (layout.family == IP6, layout.address);
    let part = |at: usize, length: usize| bytes.get(at..at + length).map(<[u8]>::to_vec);
    let names = 4 * length;
    let protocol = short(bytes, layout.protocol)? as u8;
    let invert = *bytes.get(layout.invert)?;
    Some(Header {
        source: part(0, length)?,
        destination: part(length, length)?,
        source_mask: part(2 * length, length)?,
        destination_mask: part(3 * length, length)?,
        iif: part(names, 16)?,
        oif: part(names + 16, 16)?,
        iif_mask: part(names + 32, 16)?,
        oif_mask: part(names + 48, 16)?,
        protocol: Some(protocol).filter(|p| if is_v6 { flags & PROTOCOL != 0 } else { *p != 0 }),
        other: (if is_v6 { flags & !PROTOCOL } else { flags }) != 0 || invert & FRAGMENTS_OR_TOS != 0,
        invert,
    })
}
