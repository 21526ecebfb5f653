//! nfnetlink requests: chains and tables of nf_tables, its generation, and removal of tables that iptables has created
//! and never removes.

use super::rules::Family;
use crate::netlink::Netlink;
use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED, NLM_F_ACK, NLM_F_NONREC, NLM_F_REQUEST};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, GenAttribute, GenMessage, NfTablesMessage, TableAttribute, TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;
use std::io;

/// NFNL_SUBSYS_NFTABLES: the subsystem of a batch.
const NFTABLES: u16 = 10;

/// # Errors
/// A kernel without nfnetlink.
pub(crate) fn open() -> io::Result<Netlink<NetfilterMessage>> {
    Netlink::open(NETLINK_NETFILTER)
}

pub(crate) fn message(family: Family, inner: impl Into<NetfilterMessageInner>) -> NetfilterMessage {
    let protocol = match family {
        Family::V4 => NetfilterProtoFamily::IPv4,
        Family::V6 => NetfilterProtoFamily::IPv6,
    };
    NetfilterMessage::new(NetfilterHeader::new(protocol, 0, 0), inner)
}

/// Wraps messages of nf_tables into one transaction.
pub(crate) fn transaction(messages: Vec<(NetfilterMessage, u16)>) -> Vec<(NetfilterMessage, u16)> {
    let control = |c| {
        let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, NFTABLES);
        (NetfilterMessage::new(header, c), NLM_F_REQUEST)
    };
    let (begin, end) = (control(ControlMessage::BatchBegin), control(ControlMessage::BatchEnd));
    [begin].into_iter().chain(messages).chain([end]).collect()
}

/// Whether nf_tables has a chain in this family whose name begins so. `false` on kernels without nf_tables.
pub(crate) fn has_chains(family: Family, prefix: &str) -> bool {
    open()
        .and_then(|mut n| chains(&mut n, family))
        .is_ok_and(|all| all.iter().any(|(_, name)| name.starts_with(prefix)))
}

/// Whether a built-in chain of iptables in nf_tables drops forwarded packets, or packets to the host, by policy.
///
/// # Errors
/// The kernel's.
pub(crate) fn iptables_drops() -> io::Result<bool> {
    let mut netlink = open()?;
    for family in [Family::V4, Family::V6] {
        let all = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
        for answer in netlink.dump(message(family, all))? {
            let NetfilterMessageInner::NfTables(NfTablesMessage::NewChain(chain)) = answer.inner else { continue };
            let has = |wanted: fn(&ChainAttribute) -> bool| chain.attributes.iter().any(wanted);
            if has(|a| matches!(a, ChainAttribute::Table(t) if t == "filter"))
                && has(|a| matches!(a, ChainAttribute::Name(n) if n == "FORWARD" || n == "INPUT"))
                // NF_DROP
                && has(|a| matches!(a, ChainAttribute::Policy(0)))
            {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// The number of the last commit to nf_tables in this namespace, by any software and in any family.
///
/// # Errors
/// A kernel without nf_tables.
pub(crate) fn generation() -> io::Result<u32> {
    let question = NfTablesMessage::GetGen(GenMessage { attributes: Vec::new() });
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
    for answer in open()?.read(NetfilterMessage::new(header, question))? {
        let NetfilterMessageInner::NfTables(NfTablesMessage::NewGen(answer)) = answer.inner else { continue };
        let id = |a: &GenAttribute| if let GenAttribute::Id(id) = a { Some(*id) } else { None };
        if let Some(id) = answer.attributes.iter().find_map(id) {
            return Ok(id);
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer has no generation"))
}

/// The handle of a table of family inet. A recreated table has another handle.
///
/// # Errors
/// A kernel without nf_tables.
pub(crate) fn table_handle(name: &str) -> io::Result<Option<u64>> {
    let question = NfTablesMessage::GetTable(TableMessage { attributes: vec![TableAttribute::Name(name.to_owned())] });
    let header = NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0);
    let answers = match open()?.read(NetfilterMessage::new(header, question)) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        answers => answers?,
    };
    let handle = |a: &TableAttribute| if let TableAttribute::Handle(handle) = a { Some(*handle) } else { None };
    Ok(answers.into_iter().find_map(|answer| match answer.inner {
        NetfilterMessageInner::NfTables(NfTablesMessage::NewTable(table)) => table.attributes.iter().find_map(handle),
        _ => None,
    }))
}

/// Removes tables with their base chains, and with their chain `own` and its rules, in one transaction, which fails if a table has other
/// rules or chains.
///
/// # Errors
/// EBUSY: a table is in use.
pub(crate) fn remove_tables(tables: &[(Family, String)], own: &str) -> io::Result<()> {
    let mut netlink = open()?;
    let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_NONREC;
    let mut batch = Vec::new();
    for (family, table) in tables {
        for (_, name) in chains(&mut netlink, *family)?.into_iter().filter(|(t, _)| t == table) {
            let flags = if name == own { NLM_F_REQUEST | NLM_F_ACK } else { flags };
            let attributes = vec![ChainAttribute::Table(table.clone()), ChainAttribute::Name(name)];
            batch.push((message(*family, NfTablesMessage::DeleteChain(ChainMessage { attributes })), flags));
        }
        let attributes = vec![TableAttribute::Name(table.clone())];
        batch.push((message(*family, NfTablesMessage::DeleteTable(TableMessage { attributes })), flags));
    }
    netlink.batch(transaction(batch))
}

/// Table and name of all chains of a family.
fn chains(netlink: &mut Netlink<NetfilterMessage>, family: Family) -> io::Result<Vec<(String, String)>> {
    let all = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
    let mut chains = Vec::new();
    for answer in netlink.dump(message(family, all))? {
        let NetfilterMessageInner::NfTables(NfTablesMessage::NewChain(chain)) = answer.inner else { continue };
        let (mut table, mut name) = (None, None);
        for attribute in chain.attributes {
            match attribute {
                ChainAttribute::Table(t) => table = Some(t),
                ChainAttribute::Name(n) => name = Some(n),
                _ => {}
            }
        }
        chains.extend(table.zip(name));
    }
    Ok(chains)
}

/// An attribute that holds these attributes.
pub(crate) fn nested(kind: u16, inner: &[DefaultNla]) -> DefaultNla {
    let mut bytes = vec![0; inner.buffer_len()];
    inner.emit(&mut bytes);
    DefaultNla::new(kind | NLA_F_NESTED, bytes)
}
