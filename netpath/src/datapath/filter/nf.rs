//! Base chains in nf_tables, which is also where today's iptables puts its own.

use super::{At, Filter};
use crate::datapath::iptables::{PREFIX, netfilter};
use crate::netlink::Netlink;
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DevHookNumber, Hook, HookNumber, InetHookNumber, NfTablesMessage, TableAttribute,
    TableFlags, TableMessage,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use std::collections::BTreeSet;
use std::io;

/// `include/uapi/linux/netfilter.h`
const NF_DROP: u32 = 0;

type Place = (&'static str, String);

pub fn foreign() -> io::Result<Vec<Filter>> {
    match ask() {
        // No nfnetlink, or nobody behind it (`net/netfilter/nfnetlink.c, nfnetlink_rcv_msg()`).
        Err(e) if matches!(e.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::EINVAL | libc::EOPNOTSUPP)) => {
            Ok(Vec::new())
        }
        other => other,
    }
}

fn ask() -> io::Result<Vec<Filter>> {
    let mut netlink = netfilter::open()?;
    let chains = chains(&mut netlink)?;
    let acting = |c: &&Chain| c.filters && c.at.is_some() && (c.rules > own_jumps(c, &chains) || c.drops);
    if !chains.iter().any(|c| acting(&c)) {
        return Ok(Vec::new());
    }
    let asleep = dormant(&mut netlink)?;
    let awake = chains.iter().filter(acting).filter(|c| !asleep.contains(&c.table));
    let filter = |c: &Chain| {
        let table = format!("table {} {}", c.table.0, c.table.1);
        c.at.map(|at| Filter { table, chain: c.name.clone(), at, drops: c.drops })
    };
    Ok(awake.filter_map(filter).collect())
}

struct Chain {
    table: Place,
    name: String,
    at: Option<At>,
    /// Others translate, or choose a route.
    filters: bool,
    drops: bool,
    /// In a base chain, to which nothing can jump, every use is a rule of its own.
    rules: u32,
}

/// netpath's own jump: the iptables rung has one, as the first rule of the chain.
fn own_jumps(chain: &Chain, all: &[Chain]) -> u32 {
    let own = format!("{PREFIX}{}", chain.name);
    u32::from(all.iter().any(|c| c.table == chain.table && c.name == own))
}

/// Of the families that forward IP packets, and of devices.
fn chains(netlink: &mut Netlink<NetfilterMessage>) -> io::Result<Vec<Chain>> {
    let mut chains = Vec::new();
    let all = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
    for (family, answer) in dump(netlink, all)? {
        let NfTablesMessage::NewChain(message) = answer else { continue };
        let mut chain = Chain {
            table: (family, String::new()),
            name: String::new(),
            at: None,
            filters: true,
            drops: false,
            rules: 0,
        };
        for attribute in message.attributes {
            match attribute {
                ChainAttribute::Table(name) => chain.table.1 = name,
                ChainAttribute::Name(name) => chain.name = name,
                ChainAttribute::Policy(policy) => chain.drops = policy == NF_DROP,
                ChainAttribute::Use(uses) => chain.rules = uses,
                ChainAttribute::Type(name) => chain.filters = name == "filter",
                ChainAttribute::Hook(hook) => chain.at = hook.iter().find_map(place),
                _ => {}
            }
        }
        chains.push(chain);
    }
    Ok(chains)
}

fn place(hook: &Hook) -> Option<At> {
    match hook {
        Hook::Number(HookNumber::Inet(InetHookNumber::Forward)) => Some(At::Forward),
        Hook::Number(
            HookNumber::Inet(InetHookNumber::PreRouting | InetHookNumber::Ingress)
            | HookNumber::Dev(DevHookNumber::Ingress),
        ) => Some(At::Before),
        _ => None,
    }
}

/// Tables that are switched off as a whole.
fn dormant(netlink: &mut Netlink<NetfilterMessage>) -> io::Result<BTreeSet<Place>> {
    let mut dormant = BTreeSet::new();
    let all = NfTablesMessage::GetTable(TableMessage { attributes: Vec::new() });
    for (family, answer) in dump(netlink, all)? {
        let NfTablesMessage::NewTable(table) = answer else { continue };
        let is_dormant = |a: &TableAttribute| matches!(a, TableAttribute::Flags(f) if f.contains(TableFlags::Dormant));
        let name = table.attributes.iter().find_map(|a| if let TableAttribute::Name(n) = a { Some(n) } else { None });
        if let (Some(name), true) = (name, table.attributes.iter().any(is_dormant)) {
            dormant.insert((family, name.clone()));
        }
    }
    Ok(dormant)
}

fn dump(
    netlink: &mut Netlink<NetfilterMessage>,
    question: NfTablesMessage,
) -> io::Result<Vec<(&'static str, NfTablesMessage)>> {
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
    let answers = netlink.dump(NetfilterMessage::new(header, question))?;
    let named = |answer: NetfilterMessage| {
        let family = match answer.header.family {
            NetfilterProtoFamily::IPv4 => "ip",
            NetfilterProtoFamily::IPv6 => "ip6",
            NetfilterProtoFamily::Inet => "inet",
            NetfilterProtoFamily::NetDev => "netdev",
            _ => return None,
        };
        match answer.inner {
            NetfilterMessageInner::NfTables(message) => Some((family, message)),
            _ => None,
        }
    };
    Ok(answers.into_iter().filter_map(named).collect())
}
