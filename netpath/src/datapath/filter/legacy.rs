//! The tables of legacy iptables, read as iptables-legacy itself reads them.
//!
//! Source: `include/uapi/linux/netfilter_ipv4/ip_tables.h`, `netfilter_ipv6/ip6_tables.h`, v6.12.

use super::{At, Filter};
use crate::datapath::iptables::PREFIX;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// What `ip_tables` and `ip6_tables` call their own.
struct Family {
    tool: &'static str,
    domain: libc::c_int,
    level: libc::c_int,
    /// Tables of this namespace, one a line. Those that are not there are not asked for, or the kernel would make them.
    names: &'static str,
    /// Where `target_offset` lies in `struct ipt_entry`, `struct ip6t_entry`.
    target_offset: usize,
}

const FAMILIES: [Family; 2] = [
    Family {
        tool: "iptables",
        domain: libc::AF_INET,
        level: libc::SOL_IP,
        names: "/proc/thread-self/net/ip_tables_names",
        target_offset: 88,
    },
    Family {
        tool: "ip6tables",
        domain: libc::AF_INET6,
        level: libc::SOL_IPV6,
        names: "/proc/thread-self/net/ip6_tables_names",
        target_offset: 140,
    },
];

/// IPT_SO_GET_INFO and IPT_SO_GET_ENTRIES, the same for both families.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// NF_INET_PRE_ROUTING, NF_INET_FORWARD
const HOOKS: [(usize, &str, At); 2] = [(0, "PREROUTING", At::Before), (2, "FORWARD", At::Forward)];
/// Offset of `entrytable` in `struct ipt_get_entries`.
const ENTRIES: usize = 40;
/// `struct xt_entry_target`: size, name and revision; the verdict of a standard target follows.
const TARGET: usize = 32;
/// A verdict is written as its negative, less one (`include/linux/netfilter/x_tables.h`).
const DROP: i32 = -1;

/// `struct ipt_getinfo`
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Info {
    name: [u8; 32],
    valid_hooks: u32,
    /// Of each hook, the offsets of the first rule and of the policy behind the last.
    hook_entry: [u32; 5],
    underflow: [u32; 5],
    num_entries: u32,
    size: u32,
}

pub fn foreign() -> io::Result<Vec<Filter>> {
    let mut found = Vec::new();
    for family in &FAMILIES {
        // The file is there exactly where the module is.
        let names = std::fs::read_to_string(family.names).unwrap_or_default();
        // The others have no chain there that filters.
        for table in names.lines().filter(|n| matches!(*n, "raw" | "mangle" | "filter" | "security")) {
            match look(family, table) {
                Ok(filters) => found.extend(filters),
                // It went at this moment.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(found)
}

fn look(family: &Family, table: &str) -> io::Result<Vec<Filter>> {
    let socket = socket(family)?;
    let mut info = [0; size_of::<Info>()];
    info[..table.len()].copy_from_slice(table.as_bytes());
    get(&socket, family, GET_INFO, &mut info)?;
    // SAFETY: as long as the struct, whose fields take any bytes.
    let info: Info = unsafe { info.as_ptr().cast::<Info>().read_unaligned() };
    let hooks: Vec<_> = HOOKS.into_iter().filter(|(hook, ..)| info.valid_hooks & 1 << hook != 0).collect();
    if hooks.is_empty() {
        return Ok(Vec::new());
    }
    let mut entries = vec![0; ENTRIES + info.size as usize];
    entries[..table.len()].copy_from_slice(table.as_bytes());
    entries[32..36].copy_from_slice(&info.size.to_ne_bytes());
    match get(&socket, family, GET_ENTRIES, &mut entries) {
        Ok(()) => {}
        // Somebody has changed the table meanwhile: what is in it now is what a second look shows.
        Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => return look(family, table),
        Err(e) => return Err(e),
    }
    let rules = &entries[ENTRIES..];
    let filter = |(hook, chain, at): (usize, &str, At)| {
        let (first, policy) = (info.hook_entry[hook] as usize, info.underflow[hook] as usize);
        let drops = verdict(rules, policy, family) == Some(DROP);
        let has_rules = first != policy && !is_own_jump(rules, first, policy, chain, family);
        let table = format!("legacy {} table {table}", family.tool);
        (drops || has_rules).then(|| Filter { table, chain: chain.into(), at, drops })
    };
    Ok(hooks.into_iter().filter_map(filter).collect())
}

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    bytes.get(at..at + 2)?.try_into().ok().map(|b| usize::from(u16::from_ne_bytes(b)))
}

/// Of the rule at `entry`, if it has a standard target.
fn verdict(rules: &[u8], entry: usize, family: &Family) -> Option<i32> {
    let target = entry + u16_at(rules, entry + family.target_offset)?;
    // The name behind the size is empty.
    (*rules.get(target + 2)? == 0).then_some(())?;
    rules.get(target + TARGET..target + TARGET + 4)?.try_into().ok().map(i32::from_ne_bytes)
}

/// Whether the only rule of the chain is the jump that the iptables rung puts there.
fn is_own_jump(rules: &[u8], first: usize, policy: usize, chain: &str, family: &Family) -> bool {
    let alone = u16_at(rules, first + family.target_offset + 2).is_some_and(|length| first + length == policy);
    let jumps = verdict(rules, first, family).is_some_and(|v| v >= 0);
    let own = format!("{PREFIX}{chain}");
    // A chain has its name in the entry before its first rule.
    alone && jumps && rules.windows(own.len()).any(|w| w == own.as_bytes())
}

fn socket(family: &Family) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(family.domain, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn get(socket: &OwnedFd, family: &Family, option: libc::c_int, into: &mut [u8]) -> io::Result<()> {
    let mut length = into.len() as libc::socklen_t;
    // SAFETY: the kernel reads and writes at most `length` bytes of `into`.
    let done =
        unsafe { libc::getsockopt(socket.as_raw_fd(), family.level, option, into.as_mut_ptr().cast(), &mut length) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
