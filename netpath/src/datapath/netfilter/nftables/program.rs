//! The contents of netpath's table as values: chains, rules of expressions, sets and maps.
//!
//! The types follow `include/uapi/linux/netfilter/nf_tables.h`; `encode.rs` puts them into messages. All numbers in keys
//! and values are in network byte order unless an expression says otherwise.

use std::collections::{BTreeMap, BTreeSet};

/// A value that is loaded into register 1. Further parts of keys and translations are in the following registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Load {
    /// NFPROTO_IPV4 or NFPROTO_IPV6, one byte.
    Nfproto,
    /// The transport protocol, one byte.
    L4proto,
    /// Interface names, 16 bytes with zeros at the end.
    Iifname,
    Oifname,
    /// `length` bytes of the network header.
    Network {
        offset: u32,
        length: u32,
    },
    /// The destination port.
    Dport,
    /// The destination port of the connection's first packet (4.18).
    OriginalDport,
    /// Bits of `enum ip_conntrack_info` and `enum ip_conntrack_status`, four bytes in host order.
    CtState,
    CtStatus,
    /// The type of an address in the routing table (`RTN_*`), four bytes in host order.
    FibSource,
    FibDestination,
    /// The interface by which packets came if the host sends to their source through it, otherwise 0; four bytes in host
    /// order. Not in postrouting.
    FibReverse,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Compare {
    Equal,
    NotEqual,
    AtLeast,
    AtMost,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Expression {
    Load(Load),
    /// Loads an address followed by the destination port, as the key of a map.
    LoadAddressAndPort {
        offset: u32,
        length: u32,
    },
    /// Register 1 & mask.
    Mask(Vec<u8>),
    /// Ends the rule unless the comparison with register 1 holds.
    Compare(Compare, Vec<u8>),
    /// Ends the rule unless register 1 and the following are a key of this map. Its value replaces them.
    Map(String),
    Immediate(Vec<u8>),
    Counter,
    /// Translates the source or destination to the address in register 1 and, with `ports`, to the port after it.
    Nat {
        source: bool,
        v6: bool,
        ports: bool,
    },
    Masquerade,
    Accept,
    Drop,
    Return,
    Jump(String),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Base {
    /// `filter` or `nat`.
    pub kind: &'static str,
    /// `enum nf_inet_hooks`.
    pub hook: u32,
    pub priority: i32,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Chain {
    pub name: String,
    pub base: Option<Base>,
    pub rules: Vec<Vec<Expression>>,
}

/// Types for the output of `nft list` (`enum datatypes` in nftables' datatype.h); the kernel does not use them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Type {
    Ipv4Addr = 7,
    Ipv6Addr = 8,
    InetService = 13,
}

impl Type {
    pub(super) fn length(self) -> u32 {
        match self {
            Type::Ipv4Addr => 4,
            Type::Ipv6Addr => 16,
            Type::InetService => 2,
        }
    }
}

/// The types of a set's elements.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    pub key: Vec<Type>,
    /// Empty: a set without values.
    pub value: Vec<Type>,
    pub ranges: bool,
}

/// `last` = `key` in a set without ranges.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Element {
    pub key: Vec<u8>,
    pub last: Vec<u8>,
    pub value: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Set {
    pub layout: Layout,
    pub elements: BTreeSet<Element>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Program {
    /// A chain may jump to regular chains before it.
    pub chains: Vec<Chain>,
    pub sets: BTreeMap<String, Set>,
}

/// Parts of keys and values are padded to registers of four bytes.
pub(super) fn padded(parts: &[&[u8]]) -> Vec<u8> {
    if let [one] = parts {
        return one.to_vec();
    }
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}
