//! Keeps connection tracking active through a flush of all rules.
//!
//! The kernel tracks and translates packets only while a rule needs it. After `nft flush ruleset` or `iptables -F` the host
//! would reset untranslated connections of containers before the rules are restored. Other programs cannot flush a table
//! that a process owns (NFT_TABLE_F_OWNER, 5.12); the kernel removes it with the process.

use super::nfnetlink;
use crate::netlink::Netlink;
use netlink_packet_core::{DefaultNla, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Expressions, Hook, HookNumber, InetHookNumber, NfTablesMessage, RuleAttribute,
    RuleMessage, TableAttribute, TableFlags, TableMessage,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use std::any::Any;
use std::io;

/// Name of the table, in family inet.
pub(crate) const TABLE: &str = "netpath_hold";
const CHAIN: &str = "prerouting";
/// After every other chain of type nat.
const PRIORITY: u32 = 1_000;

/// The socket that owns the table.
struct Hold {
    _socket: Netlink<NetfilterMessage>,
}

/// For [`Backend::hold`](crate::datapath::Backend::hold).
pub(crate) fn take() -> Option<Box<dyn Any + Send>> {
    Some(match Hold::take() {
        Ok(hold) => Box::new(hold),
        Err(e) => {
            tracing::debug!("connections do not outlive a flush of all rules: {e}");
            Box::new(())
        }
    })
}

impl Hold {
    /// # Errors
    /// A kernel before 5.12, or another process of this network namespace holds it.
    fn take() -> io::Result<Self> {
        let mut socket = nfnetlink::open()?;
        let table = vec![TableAttribute::Name(TABLE.to_owned()), TableAttribute::Flags(TableFlags::Owner)];
        let chain = vec![
            ChainAttribute::Table(TABLE.to_owned()),
            ChainAttribute::Name(CHAIN.to_owned()),
            ChainAttribute::Hook(vec![
                Hook::Number(HookNumber::Inet(InetHookNumber::PreRouting)),
                Hook::Priority(PRIORITY),
            ]),
            ChainAttribute::Type("nat".to_owned()),
        ];
        // NFTA_CT_DREG: NFT_REG_1, NFTA_CT_KEY: NFT_CT_STATE
        let state = [1_u32, 0].map(u32::to_be_bytes).into_iter().zip([1, 2]);
        let attributes = state.map(|(value, kind)| DefaultNla::new(kind, value.to_vec())).collect();
        let state = Expressions::Other { expression_type: "ct".to_owned(), attributes };
        let rule = vec![
            RuleAttribute::Table(TABLE.to_owned()),
            RuleAttribute::Chain(CHAIN.to_owned()),
            RuleAttribute::Expressions(vec![state.into()]),
        ];
        let inet = |m| NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0), m);
        let (new, add) = (NLM_F_REQUEST | NLM_F_CREATE, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_APPEND | NLM_F_ACK);
        socket.batch(nfnetlink::transaction(vec![
            (inet(NfTablesMessage::NewTable(TableMessage { attributes: table })), new),
            (inet(NfTablesMessage::NewChain(ChainMessage { attributes: chain })), new),
            (inet(NfTablesMessage::NewRule(RuleMessage { attributes: rule })), add),
        ]))?;
        Ok(Self { _socket: socket })
    }
}
