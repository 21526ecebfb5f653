//! Expressions of nf_tables as the kernel lists them.

use super::packet::Source;
use super::table::{Comparison, Expression, INET, Verdict};
use crate::datapath::netfilter::nftables::raw::Attributes;
use crate::datapath::netfilter::{hold, nftables};

/// More than any expression reads (`NFT_REG32_NUM` registers of 4 bytes).
const MOST: usize = 80;

/// What an expression does with each packet.
const ACTING: [(&str, &str); 4] = [
    ("log", "it logs each packet"),
    ("dup", "it copies each packet"),
    ("notrack", "it keeps packets from being tracked"),
    ("last", "it keeps the time of the last packet"),
];

/// Why an expression forbids that a flow is carried.
const FORBIDDING: [(&str, &str); 9] = [
    ("limit", "it limits a rate"),
    ("quota", "it has a quota"),
    ("connlimit", "it counts connections"),
    ("queue", "a program decides about each packet"),
    ("fwd", "it sends packets by another interface"),
    ("dynset", "it changes a set with each packet"),
    ("synproxy", "it answers in the place of a server"),
    ("tproxy", "it gives packets to a socket of the host"),
    ("flow_offload", "it hands flows to a flowtable of the kernel"),
];

const UNKNOWN_EXPRESSION: &str = "it has an expression that netpath does not know";

pub(super) fn is_own(key: &(u8, String)) -> bool {
    key.0 == INET && [nftables::TABLE, hold::TABLE].contains(&key.1.as_str())
}

/// The expression, and its name as a reader knows it.
pub(super) fn expression(name: &str, data: Attributes<'_>) -> (String, Expression) {
    let decoded = decode(name, data).unwrap_or(Expression::Forbids(UNKNOWN_EXPRESSION));
    let word = match &decoded {
        Expression::Match { name, .. } | Expression::Target { name, .. } => name.clone(),
        Expression::Verdict(Verdict::Accept) => "accept".to_owned(),
        Expression::Verdict(Verdict::Drop) => "drop".to_owned(),
        Expression::Verdict(Verdict::Jump(to)) => format!("jump {to}"),
        Expression::Verdict(Verdict::Goto(to)) => format!("goto {to}"),
        _ => name.to_owned(),
    };
    (word, decoded)
}

fn decode(name: &str, data: Attributes<'_>) -> Option<Expression> {
    let length = |kind| data.number(kind).map(|n| (n as usize).min(MOST));
    let value = |kind| data.nested(kind).and_then(|d| d.get(1)).map(<[u8]>::to_vec);
    let load = |source, to: u16, length| Some(Expression::Load { source, to: register(data, to)?, length });
    match name {
        "payload" if data.get(5).is_some() => Some(Expression::Acts("it changes the payload of each packet")),
        "payload" => load(Source::Payload { base: data.number(2)?, offset: data.number(3)? }, 1, length(4)?),
        "meta" if data.get(3).is_some() => Some(Expression::Acts(match data.number(2)? {
            2 => "it sets the priority of each packet",
            3 => "it sets the mark of each packet",
            12 => "it traces each packet",
            _ => "it sets a field of each packet",
        })),
        "meta" => load(Source::Meta(data.number(2)?), 1, MOST),
        "ct" if data.get(4).is_some() => Some(match data.number(2)? {
            3 => Expression::MarksConnection,
            // Labels and the mask of events.
            13 | 18 => Expression::Harmless,
            _ => Expression::Acts("it sets how a packet is tracked"),
        }),
        "ct" => {
            let direction = data.get(3).and_then(|d| d.first().copied());
            load(Source::Ct { key: data.number(2)?, direction }, 1, MOST)
        }
        "fib" => load(Source::Routes, 1, 16),
        "rt" => load(Source::Routes, 1, 16),
        "exthdr" if data.get(7).is_some() || data.get(1).is_none() => {
            Some(Expression::Acts("it changes options of each packet"))
        }
        "exthdr" => load(Source::Varying("it reads options or extension headers"), 1, length(4)?),
        "numgen" => load(Source::Varying("it depends on chance or on the number of packets"), 1, 4),
        "osf" => load(Source::Varying("it reads the fingerprint of a packet"), 1, 16),
        "socket" => load(Source::Varying("it reads the socket of a packet"), 1, 16),
        "hash" => {
            // NFT_HASH_SYM has no source; it hashes addresses and ports.
            let used = data.number(1).map_or(0, |_| length(3).unwrap_or(MOST));
            let from = if data.number(1).is_some() { register(data, 1)? } else { 0 };
            Some(Expression::Function { from, used, to: register(data, 2)?, length: 4 })
        }
        "cmp" => {
            let how = match data.number(2)? {
                0 => Comparison::Equal,
                1 => Comparison::NotEqual,
                2 => Comparison::Less,
                3 => Comparison::LessOrEqual,
                4 => Comparison::Greater,
                5 => Comparison::GreaterOrEqual,
                _ => return None,
            };
            Some(Expression::Compare { from: register(data, 1)?, how, data: value(3)? })
        }
        "range" => {
            let not = data.number(2)? != 0;
            Some(Expression::Range { from: register(data, 1)?, not, first: value(3)?, last: value(4)? })
        }
        "bitwise" => {
            let (from, to, length) = (register(data, 1)?, register(data, 2)?, length(3)?);
            // NFT_BITWISE_MASK_XOR; others shift, or take a second register.
            if data.number(6).unwrap_or(0) == 0 {
                return Some(Expression::Bitwise { from, to, length, mask: value(4)?, xor: value(5)? });
            }
            if data.get(8).is_some() {
                return None;
            }
            Some(Expression::Function { from, used: length, to, length })
        }
        "byteorder" => {
            let (from, to, length) = (register(data, 1)?, register(data, 2)?, length(4)?);
            Some(Expression::Swap { from, to, length, size: data.number(5)? as usize })
        }
        "lookup" => Some(Expression::Lookup {
            set: data.text(1)?.to_owned(),
            from: register(data, 2)?,
            to: if data.get(3).is_some() { Some(register_of(data.number(3)?)?) } else { None },
            not: data.number(5).unwrap_or(0) & 1 != 0,
        }),
        "immediate" => {
            let to = register_of(data.number(1)?)?;
            match data.nested(2)?.nested(2) {
                Some(verdict) => Some(Expression::Verdict(self::verdict(verdict))),
                None => Some(Expression::Immediate { to, data: value(2)? }),
            }
        }
        "counter" => Some(Expression::Harmless),
        "objref" => Some(match data.number(1) {
            // NFT_OBJECT_COUNTER
            Some(1) => Expression::Harmless,
            Some(2) => Expression::Forbids("it has a quota"),
            Some(3) => Expression::Forbids("it sets a helper of connection tracking"),
            Some(4) => Expression::Forbids("it limits a rate"),
            Some(5) => Expression::Forbids("it counts connections"),
            _ => Expression::Forbids("it uses an object"),
        }),
        "reject" => Some(Expression::Verdict(Verdict::Drop)),
        "match" => {
            let (name, revision) = (data.text(1)?.to_owned(), data.number(2)? as u8);
            Some(Expression::Match { name, revision, info: data.get(3)?.to_vec() })
        }
        "target" => {
            let (name, revision) = (data.text(1)?.to_owned(), data.number(2)? as u8);
            Some(Expression::Target { name, revision, info: data.get(3)?.to_vec() })
        }
        _ => {
            let of = |list: &[(&str, &'static str)]| list.iter().find(|(n, _)| *n == name).map(|(_, why)| *why);
            of(&ACTING).map(Expression::Acts).or_else(|| of(&FORBIDDING).map(Expression::Forbids))
        }
    }
}

/// The offset of a register in bytes: 1 to 4 are of 16 bytes, those from 8 on of 4 bytes.
fn register(data: Attributes<'_>, kind: u16) -> Option<usize> {
    register_of(data.number(kind)?)
}

fn register_of(number: u32) -> Option<usize> {
    match number {
        0..=4 => Some(number as usize * 16),
        8..=23 => Some((number as usize - 8) * 4 + 16),
        _ => None,
    }
}

pub(super) fn verdict(data: Attributes<'_>) -> Verdict {
    let to = || data.text(2).unwrap_or_default().to_owned();
    match data.number(1).map(|code| code as i32) {
        Some(0) => Verdict::Drop,
        Some(1) => Verdict::Accept,
        Some(-1 | -2) => Verdict::Continue,
        Some(-3) => Verdict::Jump(to()),
        Some(-4) => Verdict::Goto(to()),
        Some(-5) => Verdict::Return,
        _ => Verdict::Queue,
    }
}
