//! Base chains in nf_tables, which is also where today's iptables puts its own.

use super::{At, Chain};
use crate::datapath::netfilter::iptables::PREFIX;
use crate::datapath::netfilter::{hold, nfnetlink, nftables};
use crate::netlink::Netlink;
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Hook, NfTablesMessage, TableAttribute, TableFlags, TableMessage,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use std::collections::BTreeSet;
use std::io;

/// `include/uapi/linux/netfilter.h`
const NF_DROP: u32 = 0;

const OWN_TABLES: [&str; 2] = [nftables::TABLE, hold::TABLE];

type Place = (&'static str, String);

pub(super) fn foreign() -> io::Result<Vec<Chain>> {
    match ask() {
        // No nfnetlink, or no nf_tables behind it (`net/netfilter/nfnetlink.c, nfnetlink_rcv_msg()`).
        Err(e) if matches!(e.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::EINVAL | libc::EOPNOTSUPP)) => {
            Ok(Vec::new())
        }
        other => other,
    }
}

fn ask() -> io::Result<Vec<Chain>> {
    let mut netlink = nfnetlink::open()?;
    let chains = chains(&mut netlink)?;
    let own: BTreeSet<(&Place, &str)> =
        chains.iter().filter(|c| c.name.starts_with(PREFIX)).map(|c| (&c.table, c.name.as_str())).collect();
    let acting: Vec<&Listed> =
        chains.iter().filter(|c| c.at.is_some() && (c.drops || c.rules > own_jumps(c, &own))).collect();
    if acting.is_empty() {
        return Ok(Vec::new());
    }
    let dormant = dormant(&mut netlink)?;
    let chain = |c: &Listed| {
        let table = format!("table {} {}", c.table.0, c.table.1);
        let accepted = own.contains(&(&c.table, own_names(&c.name)[1].as_str()));
        let (name, translates, drops) = (c.name.clone(), c.translates, c.drops);
        c.at.map(|at| Chain { table, name, at, translates, drops, accepted })
    };
    Ok(acting.into_iter().filter(|c| !dormant.contains(&c.table)).filter_map(chain).collect())
}

/// A chain as the kernel lists it.
#[derive(Default)]
struct Listed {
    table: Place,
    name: String,
    /// Of base chains that forwarded packets meet.
    at: Option<At>,
    translates: bool,
    drops: bool,
    /// The use count: no rule can jump to a base chain, so each use is one of its rules.
    rules: u32,
}

/// The number of netpath's own jumps: the iptables rung's, each into a chain named after the chain with the jump.
fn own_jumps(chain: &Listed, own: &BTreeSet<(&Place, &str)>) -> u32 {
    own_names(&chain.name).iter().filter(|name| own.contains(&(&chain.table, name.as_str()))).count() as u32
}

fn own_names(chain: &str) -> [String; 2] {
    [format!("{PREFIX}{chain}"), format!("{PREFIX}{chain}_ACCEPT")]
}

/// Of the families that forward IP packets or frames, and of devices.
fn chains(netlink: &mut Netlink<NetfilterMessage>) -> io::Result<Vec<Listed>> {
    let mut chains = Vec::new();
    let all = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
    for (family, answer) in dump(netlink, all)? {
        let NfTablesMessage::NewChain(message) = answer else { continue };
        let mut chain = Listed { table: (family, String::new()), ..Listed::default() };
        for attribute in message.attributes {
            match attribute {
                ChainAttribute::Table(name) => chain.table.1 = name,
                ChainAttribute::Name(name) => chain.name = name,
                ChainAttribute::Policy(policy) => chain.drops = policy == NF_DROP,
                ChainAttribute::Use(uses) => chain.rules = uses,
                ChainAttribute::Type(name) => chain.translates = name == "nat",
                ChainAttribute::Hook(hook) => chain.at = hook.iter().find_map(|h| place(h, family)),
                _ => {}
            }
        }
        if !(chain.table.0 == "inet" && OWN_TABLES.contains(&chain.table.1.as_str())) {
            chains.push(chain);
        }
    }
    Ok(chains)
}

/// By the number alone; the name of a device follows it (`include/uapi/linux/netfilter.h`, `netfilter_bridge.h`).
fn place(hook: &Hook, family: &str) -> Option<At> {
    let Hook::Number(number) = hook else { return None };
    match (family, u32::from(*number)) {
        ("bridge", _) => Some(At::Bridge),
        ("netdev", 0) => Some(At::Before),
        ("netdev", 1) => Some(At::After),
        ("netdev", _) => None,
        (_, 0 | 5) => Some(At::Before),
        (_, 2) => Some(At::Forward),
        (_, 4) => Some(At::After),
        _ => None,
    }
}

/// Tables that are disabled as a whole.
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
            NetfilterProtoFamily::Bridge => "bridge",
            _ => return None,
        };
        match answer.inner {
            NetfilterMessageInner::NfTables(message) => Some((family, message)),
            _ => None,
        }
    };
    Ok(answers.into_iter().filter_map(named).collect())
}
