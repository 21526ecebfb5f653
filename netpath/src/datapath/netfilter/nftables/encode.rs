//! Encodes chains, rules, sets and elements as nf_tables messages (`include/uapi/linux/netfilter/nf_tables.h`).

use super::program::{Chain, Compare, Element, Expression, Layout, Load, Set, Type};
use crate::datapath::netfilter::nfnetlink::nested;
use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, ExpressionAttribute, Expressions, Hook, HookNumber,
    Immediate, ListAttribute, Lookup, Meta, MetaKey, NfTablesMessage, Operator, Payload, Register, RuleAttribute,
    RuleMessage, SetAttribute, SetDescription, SetElementAttribute, SetElementFlags, SetElementList, SetElementMessage,
    SetFlags, SetMessage, TableAttribute, TableMessage, Verdict, VerdictAttribute,
};

/// Name of netpath's table, in family inet.
pub(crate) const TABLE: &str = "netpath";
/// Type of the digest in the user data of a rule; `nft` ignores unknown types.
const DIGEST: u8 = 200;
/// A message may have 64 KiB of elements, each of at most 100 bytes.
const ELEMENTS: usize = 500;

const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;

type ListedExpression = ListAttribute<ExpressionAttribute>;

pub(super) fn table() -> TableMessage {
    TableMessage { attributes: vec![TableAttribute::Name(TABLE.to_owned())] }
}

pub(super) fn chain(chain: &Chain) -> ChainMessage {
    let mut attributes = vec![ChainAttribute::Table(TABLE.to_owned()), ChainAttribute::Name(chain.name.clone())];
    if let Some(base) = chain.base {
        // Two's complement.
        let priority = base.priority.cast_unsigned();
        attributes.extend([
            ChainAttribute::Hook(vec![Hook::Number(HookNumber::Other(base.hook)), Hook::Priority(priority)]),
            ChainAttribute::Policy(NF_ACCEPT),
            ChainAttribute::Type(base.kind.to_owned()),
        ]);
    }
    ChainMessage { attributes }
}

pub(super) fn chain_named(name: &str) -> ChainMessage {
    let name = ChainAttribute::Name(name.to_owned());
    ChainMessage { attributes: vec![ChainAttribute::Table(TABLE.to_owned()), name] }
}

/// Selects all rules of a chain, for deletion.
pub(super) fn rules_of(chain: &str) -> RuleMessage {
    let chain = RuleAttribute::Chain(chain.to_owned());
    RuleMessage { attributes: vec![RuleAttribute::Table(TABLE.to_owned()), chain] }
}

pub(super) fn rule(chain: &str, expressions: &[Expression]) -> RuleMessage {
    let mut message = rules_of(chain);
    message.attributes.push(RuleAttribute::Expressions(expressions.iter().flat_map(expression).collect()));
    let mut user_data = vec![DIGEST, 8];
    user_data.extend_from_slice(&digest(expressions).to_be_bytes());
    message.attributes.push(RuleAttribute::UserData(user_data));
    message
}

/// FNV-1a of a rule. Rules with equal digests count as equal.
pub(super) fn digest(expressions: &[Expression]) -> u64 {
    format!("{expressions:?}")
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// The digest in the user data that [`rule`] writes.
pub(super) fn digest_in(user_data: &[u8]) -> Option<u64> {
    match user_data {
        [DIGEST, 8, digest @ ..] => Some(u64::from_be_bytes(digest.try_into().ok()?)),
        _ => None,
    }
}

/// `id` must be unique in the transaction.
pub(super) fn set(name: &str, set: &Set, id: u32) -> SetMessage {
    let Layout { key, value, ranges } = &set.layout;
    let mut flags = SetFlags::empty();
    let mut attributes = vec![
        SetAttribute::Table(TABLE.to_owned()),
        SetAttribute::Name(name.to_owned()),
        SetAttribute::KeyType(type_number(key)),
        SetAttribute::KeyLen(length(key)),
        SetAttribute::Id(id),
    ];
    if !value.is_empty() {
        flags |= SetFlags::Map;
        attributes.extend([SetAttribute::DataType(type_number(value)), SetAttribute::DataLen(length(value))]);
    }
    if *ranges {
        flags |= SetFlags::Interval;
        if key.len() > 1 {
            // NFTA_LIST_ELEM of NFTA_SET_FIELD_LEN.
            let field = |t: &Type| nested(1, &[number(1, t.length())]);
            flags |= SetFlags::Concat;
            attributes.push(SetAttribute::Description(vec![SetDescription::Concat(key.iter().map(field).collect())]));
        }
    }
    attributes.push(SetAttribute::Flags(flags));
    SetMessage { attributes }
}

pub(super) fn set_named(name: &str) -> SetMessage {
    let name = SetAttribute::Name(name.to_owned());
    SetMessage { attributes: vec![SetAttribute::Table(TABLE.to_owned()), name] }
}

/// Messages to add or remove elements.
pub(super) fn elements(name: &str, layout: &Layout, elements: &[&Element]) -> Vec<SetElementMessage> {
    let chunks = elements.chunks(ELEMENTS);
    let message = |chunk: &[&Element]| {
        let list = chunk.iter().flat_map(|e| element(layout, e)).map(ListAttribute::Element).collect();
        let mut message = elements_of(name);
        message.attributes.push(SetElementList::Elements(list));
        message
    };
    chunks.map(message).collect()
}

pub(super) fn elements_of(name: &str) -> SetElementMessage {
    let name = SetElementList::Set(name.to_owned());
    SetElementMessage { attributes: vec![SetElementList::Table(TABLE.to_owned()), name] }
}

/// A range of single keys is two elements: its first key, and the key after its last.
fn element(layout: &Layout, element: &Element) -> Vec<Vec<SetElementAttribute>> {
    let mut first = vec![SetElementAttribute::Key(DataAttribute::Value(element.key.clone()))];
    if !layout.value.is_empty() {
        first.push(SetElementAttribute::Data(DataAttribute::Value(element.value.clone())));
    }
    if !layout.ranges {
        return vec![first];
    }
    if layout.key.len() > 1 {
        // NFTA_DATA_VALUE
        first.push(SetElementAttribute::KeyEnd(vec![DefaultNla::new(1, element.last.clone())]));
        return vec![first];
    }
    let end = after(&element.last).map(|key| {
        vec![
            SetElementAttribute::Key(DataAttribute::Value(key)),
            SetElementAttribute::Flags(SetElementFlags::IntervalEnd),
        ]
    });
    [first].into_iter().chain(end).collect()
}

/// The next key; `None` after the last possible key.
pub(super) fn after(key: &[u8]) -> Option<Vec<u8>> {
    let mut next = key.to_vec();
    for byte in next.iter_mut().rev() {
        let (sum, carry) = byte.overflowing_add(1);
        *byte = sum;
        if !carry {
            return Some(next);
        }
    }
    None
}

/// The inverse of [`after`].
pub(super) fn before(key: &[u8]) -> Vec<u8> {
    let mut previous = key.to_vec();
    for byte in previous.iter_mut().rev() {
        let (difference, borrow) = byte.overflowing_sub(1);
        *byte = difference;
        if !borrow {
            break;
        }
    }
    previous
}

fn length(types: &[Type]) -> u32 {
    match types {
        [one] => one.length(),
        several => several.iter().map(|t| t.length().next_multiple_of(4)).sum(),
    }
}

/// Concatenations have six bits for each type (TYPE_BITS).
fn type_number(types: &[Type]) -> u32 {
    types.iter().fold(0, |number, t| number << 6 | *t as u32)
}

fn expression(one: &Expression) -> Vec<ListedExpression> {
    let one = match one {
        Expression::Load(load) => self::load(*load),
        Expression::LoadAddressAndPort { offset, length } => {
            // The port is in the register after the address.
            let behind = if *length == 4 { Register::Reg32_01 } else { Register::Reg2 };
            return vec![
                payload(NETWORK_HEADER, *offset, *length, Register::Reg1).into(),
                payload(TRANSPORT_HEADER, DPORT_OFFSET, 2, behind).into(),
            ];
        }
        Expression::Mask(mask) => Expressions::Bitwise(vec![
            Bitwise::SourceRegister(Register::Reg1),
            Bitwise::DestinationRegister(Register::Reg1),
            Bitwise::Length(u32::try_from(mask.len()).unwrap_or(u32::MAX)),
            Bitwise::Mask(DataAttribute::Value(mask.clone())),
            Bitwise::Xor(DataAttribute::Value(vec![0; mask.len()])),
        ]),
        Expression::Compare(compare, bytes) => Expressions::Cmp(vec![
            Cmp::SourceRegister(Register::Reg1),
            Cmp::Op(match compare {
                Compare::Equal => Operator::Equal,
                Compare::NotEqual => Operator::NotEqual,
                Compare::AtLeast => Operator::GreatherThanEqual,
                Compare::AtMost => Operator::LessThanEqual,
            }),
            Cmp::Data(DataAttribute::Value(bytes.clone())),
        ]),
        Expression::Map(name) => Expressions::Lookup(vec![
            Lookup::Set(name.clone()),
            Lookup::SourceRegister(Register::Reg1),
            Lookup::DestinationRegister(Register::Reg1),
        ]),
        Expression::Immediate(bytes) => {
            // Values longer than a register are loaded in pieces of 16 bytes.
            let (head, tail) = bytes.split_at(bytes.len().min(16));
            let head = immediate(Register::Reg1, DataAttribute::Value(head.to_vec()));
            let behind = (!tail.is_empty()).then(|| immediate(Register::Reg2, DataAttribute::Value(tail.to_vec())));
            return [head].into_iter().chain(behind).map(Into::into).collect();
        }
        Expression::Counter => other("counter", Vec::new()),
        Expression::Nat { source, v6, ports } => {
            let family = if *v6 { libc::NFPROTO_IPV6 } else { libc::NFPROTO_IPV4 };
            // NFTA_NAT_TYPE, NFTA_NAT_FAMILY, NFTA_NAT_REG_ADDR_MIN, NFTA_NAT_REG_PROTO_MIN
            let mut attributes = vec![
                number(1, u32::from(!source)),
                number(2, family.cast_unsigned()),
                number(3, Register::Reg1.into()),
            ];
            if *ports {
                let behind = if *v6 { Register::Reg2 } else { Register::Reg32_01 };
                attributes.push(number(5, behind.into()));
            }
            other("nat", attributes)
        }
        Expression::Masquerade => other("masq", Vec::new()),
        Expression::Accept => verdict(Verdict::Other(NF_ACCEPT), None),
        Expression::Drop => verdict(Verdict::Other(NF_DROP), None),
        Expression::Return => verdict(Verdict::Return, None),
        Expression::Jump(to) => verdict(Verdict::Jump, Some(to)),
    };
    vec![one.into()]
}

const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
/// Offset of the destination port in TCP, UDP and SCTP headers.
const DPORT_OFFSET: u32 = 2;

fn load(load: Load) -> Expressions {
    /// `enum nft_ct_keys`
    const STATE: u32 = 0;
    const STATUS: u32 = 2;
    const PROTO_DST: u32 = 12;
    /// `enum nft_fib_flags`
    const SADDR: u32 = 1;
    const DADDR: u32 = 2;
    const IIF: u32 = 8;
    /// `enum nft_fib_result`
    const OUTPUT_INTERFACE: u32 = 1;
    const ADDRESS_TYPE: u32 = 3;
    let meta = |key| Expressions::Meta(vec![Meta::DestinationRegister(Register::Reg1), Meta::Key(key)]);
    match load {
        Load::Nfproto => meta(MetaKey::Nfproto),
        Load::L4proto => meta(MetaKey::L4Proto),
        Load::Iifname => meta(MetaKey::Iifname),
        Load::Oifname => meta(MetaKey::Oifname),
        Load::Network { offset, length } => payload(NETWORK_HEADER, offset, length, Register::Reg1),
        Load::Dport => payload(TRANSPORT_HEADER, DPORT_OFFSET, 2, Register::Reg1),
        // NFTA_CT_DIRECTION: IP_CT_DIR_ORIGINAL
        Load::OriginalDport => connection(PROTO_DST, Some(DefaultNla::new(3, vec![0]))),
        Load::CtState => connection(STATE, None),
        Load::CtStatus => connection(STATUS, None),
        Load::FibSource => route(ADDRESS_TYPE, SADDR),
        Load::FibDestination => route(ADDRESS_TYPE, DADDR),
        Load::FibReverse => route(OUTPUT_INTERFACE, SADDR | IIF),
    }
}

/// NFTA_CT_DREG, NFTA_CT_KEY
fn connection(key: u32, direction: Option<DefaultNla>) -> Expressions {
    let attributes = [number(1, Register::Reg1.into()), number(2, key)];
    other("ct", attributes.into_iter().chain(direction).collect())
}

/// NFTA_FIB_DREG, NFTA_FIB_RESULT, NFTA_FIB_FLAGS
fn route(result: u32, flags: u32) -> Expressions {
    other("fib", vec![number(1, Register::Reg1.into()), number(2, result), number(3, flags)])
}

fn payload(base: u32, offset: u32, length: u32, register: Register) -> Expressions {
    Expressions::Payload(vec![
        Payload::DestinationRegister(register),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
}

fn immediate(register: Register, data: DataAttribute) -> Expressions {
    Expressions::Immediate(vec![Immediate::DestinationRegister(register), Immediate::Data(data)])
}

fn verdict(code: Verdict, chain: Option<&String>) -> Expressions {
    let mut attributes = vec![VerdictAttribute::Code(code)];
    attributes.extend(chain.map(|c| VerdictAttribute::Chain(c.clone())));
    immediate(Register::Verdict, DataAttribute::Verdict(attributes))
}

fn other(name: &str, attributes: Vec<DefaultNla>) -> Expressions {
    Expressions::Other { expression_type: name.to_owned(), attributes }
}

/// An attribute with a number in network byte order.
fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().to_vec())
}

pub(super) type Message = NfTablesMessage;
