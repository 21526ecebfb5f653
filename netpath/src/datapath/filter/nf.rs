//! Base chains in nf_tables, which is also where today's iptables puts its own.

use super::Filter;
use crate::datapath::iptables::netlink::Netlink;
use crate::datapath::iptables::{PREFIX, netfilter};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Hook, HookNumber, InetHookNumber, NfTablesMessage, TableAttribute, TableFlags,
    TableMessage,
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
    let acting = |c: &&Chain| c.at_forward && (c.rules > own_jumps(c, &chains) || c.drops);
    if !chains.iter().any(|c| acting(&c)) {
        return Ok(Vec::new());
    }
    let asleep = dormant(&mut netlink)?;
    let awake = chains.iter().filter(acting).filter(|c| !asleep.contains(&c.table));
    Ok(awake
        .map(|c| Filter { table: format!("table {} {}", c.table.0, c.table.1), chain: c.name.clone(), drops: c.drops })
        .collect())
}

struct Chain {
    table: Place,
    name: String,
    at_forward: bool,
    drops: bool,
    /// In a base chain, to which nothing can jump, every use is a rule of its own.
    rules: u32,
}

/// netpath's own jump: the iptables rung has one, as the first rule of the chain.
fn own_jumps(chain: &Chain, all: &[Chain]) -> u32 {
    let own = format!("{PREFIX}{}", chain.name);
    u32::from(all.iter().any(|c| c.table == chain.table && c.name == own))
}

/// Of the families that forward IP packets.
fn chains(netlink: &mut Netlink<NetfilterMessage>) -> io::Result<Vec<Chain>> {
    let mut chains = Vec::new();
    let all = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
    for (family, answer) in dump(netlink, all)? {
        let NfTablesMessage::NewChain(message) = answer else { continue };
        let mut chain =
            Chain { table: (family, String::new()), name: String::new(), at_forward: false, drops: false, rules: 0 };
        for attribute in message.attributes {
            match attribute {
                ChainAttribute::Table(name) => chain.table.1 = name,
                ChainAttribute::Name(name) => chain.name = name,
                ChainAttribute::Policy(policy) => chain.drops = policy == NF_DROP,
                ChainAttribute::Use(uses) => chain.rules = uses,
                ChainAttribute::Hook(hook) => {
                    let forward = Hook::Number(HookNumber::Inet(InetHookNumber::Forward));
                    chain.at_forward = hook.contains(&forward);
                }
                _ => {}
            }
        }
        chains.push(chain);
    }
    Ok(chains)
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
            _ => return None,
        };
        match answer.inner {
            NetfilterMessageInner::NfTables(message) => Some((family, message)),
            _ => None,
        }
    };
    Ok(answers.into_iter().filter_map(named).collect())
}
