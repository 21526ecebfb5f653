//! The expressions of one rule, for one packet.

use super::packet::{Packet, Source, interface};
use super::table::{Comparison, Element, Expression, Header, Rule, Set, Table, Verdict};
use super::value::{Answer, Bits};
use super::xt::{self, Action};

/// 16 registers of 4 bytes behind that of the verdict (`NFT_REG32_NUM`).
const REGISTERS: usize = 80;
const FRAGMENTS: &str = "it tests for fragments, or the type of service";
const EXPIRES: &str = "it looks into a set whose elements expire";

// include/uapi/linux/netfilter_ipv4/ip_tables.h: IPT_INV_…
const INV_IIF: u8 = 1;
const INV_OIF: u8 = 2;
const INV_SOURCE: u8 = 8;
const INV_DESTINATION: u8 = 0x10;
const INV_PROTOCOL: u8 = 0x40;

/// What a rule does with a packet.
#[derive(Default)]
pub(super) struct Outcome {
    /// Why it forbids that the flow is carried.
    pub forbids: Option<&'static str>,
    /// Verdicts that it may give, and whether it certainly gives one of them.
    pub verdicts: Vec<Verdict>,
    pub certain: bool,
    /// Whether only routes make it uncertain, which the flow is bound to: reverse path filters.
    pub is_by_route: bool,
}

/// What stops the expressions of a rule.
struct Ends;

struct Run<'a> {
    packet: &'a Packet<'a>,
    table: &'a Table,
    registers: Bits,
    /// Of all tests until now.
    answer: Answer,
    /// Of those that do not read routes.
    others: Answer,
    /// The last field was one of routes.
    reads_routes: bool,
    /// What has been done with the packet since the last test that may fail: the reason to forbid.
    acted: Option<&'static str>,
    outcome: Outcome,
}

pub(super) fn run(table: &Table, rule: &Rule, packet: &Packet<'_>) -> Outcome {
    let mut run = Run {
        packet,
        table,
        registers: Bits::unknown(REGISTERS),
        answer: Answer::Yes,
        others: Answer::Yes,
        reads_routes: false,
        acted: None,
        outcome: Outcome::default(),
    };
    for expression in &rule.expressions {
        if run.one(expression).is_err() {
            // What was done before the test that failed was done.
            return Outcome { forbids: run.outcome.forbids.or(run.acted), ..Outcome::default() };
        }
    }
    if let Answer::Varies(why) = run.answer {
        run.outcome.forbids.get_or_insert(why);
    }
    // A flow that is still alive does not come to what is done with packets that are dropped.
    let is_over = run.outcome.verdicts == [Verdict::Drop];
    run.outcome.forbids = run.outcome.forbids.or(run.acted.filter(|_| !is_over));
    run.outcome.certain = run.answer == Answer::Yes
        && run.outcome.forbids.is_none()
        && !run.outcome.verdicts.contains(&Verdict::Continue);
    run.outcome.is_by_route = run.others == Answer::Yes;
    run.outcome
}

impl Run<'_> {
    fn one(&mut self, expression: &Expression) -> Result<(), Ends> {
        match expression {
            Expression::Load { source, to, length } => {
                let Some(mut bits) = self.packet.load(source, *length) else { return Err(Ends) };
                self.reads_routes = *source == Source::Routes;
                bits.append(&Bits::known(&[0; 4][..bits.len().next_multiple_of(4) - bits.len()]));
                self.registers.store(*to, &bits);
            }
            Expression::Compare { from, how, data } => {
                let bits = self.registers.slice(*from, data.len());
                return self.test(match how {
                    Comparison::Equal => bits.equal(data),
                    Comparison::NotEqual => bits.equal(data).inverted_if(true),
                    Comparison::Less => bits.test(|b| b < data.as_slice()),
                    Comparison::LessOrEqual => bits.test(|b| b <= data.as_slice()),
                    Comparison::Greater => bits.test(|b| b > data.as_slice()),
                    Comparison::GreaterOrEqual => bits.test(|b| b >= data.as_slice()),
                });
            }
            Expression::Range { from, not, first, last } => {
                let bits = self.registers.slice(*from, first.len());
                return self.test(bits.between(first, last).inverted_if(*not));
            }
            Expression::Bitwise { from, to, length, mask, xor } => {
                let bits = self.registers.slice(*from, *length).masked(mask, xor);
                self.registers.store(*to, &bits);
            }
            Expression::Swap { from, to, length, size } => {
                let bits = self.registers.slice(*from, *length);
                let swapped = if cfg!(target_endian = "little") { bits.swapped(*size) } else { bits };
                self.registers.store(*to, &swapped);
            }
            Expression::Function { from, used, to, length } => {
                let bits = self.registers.slice(*from, *used).function(*length);
                self.registers.store(*to, &bits);
            }
            Expression::Immediate { to, data } => self.registers.store(*to, &Bits::known(data)),
            Expression::Lookup { set, from, to, not } => return self.look_up(set, *from, *to, *not),
            Expression::Verdict(verdict) => self.outcome.verdicts.push(verdict.clone()),
            Expression::Harmless | Expression::MarksConnection => {}
            Expression::Forbids(why) => {
                self.outcome.forbids.get_or_insert(why);
            }
            Expression::Acts(why) => {
                self.acted.get_or_insert(why);
            }
            Expression::Match { name, revision, info } => {
                self.reads_routes = name == "rpfilter";
                return self.test(xt::matches(name, *revision, info, self.packet));
            }
            Expression::Target { name, revision, info } => match xt::target(name, *revision, info) {
                Action::Verdict(verdict) => self.outcome.verdicts.push(verdict),
                Action::Harmless => {}
                Action::Forbids(why) => {
                    self.outcome.forbids.get_or_insert(why);
                }
            },
            Expression::Header(header) => {
                self.reads_routes = false;
                return self.test(has_header(header, self.packet));
            }
        }
        Ok(())
    }

    fn test(&mut self, answer: Answer) -> Result<(), Ends> {
        self.answer = self.answer.and(answer);
        if !self.reads_routes {
            self.others = self.others.and(answer);
        }
        if !matches!(answer, Answer::Yes | Answer::No) {
            self.outcome.forbids = self.outcome.forbids.or(self.acted.take());
        }
        if answer == Answer::No { Err(Ends) } else { Ok(()) }
    }

    fn look_up(&mut self, name: &str, from: usize, to: Option<usize>, not: bool) -> Result<(), Ends> {
        let Some(set) = self.table.sets.get(name) else {
            return self.test(Answer::Varies("it looks into a set that cannot be read"));
        };
        if let Some(why) = set.changes {
            return self.test(Answer::Varies(why));
        }
        let mut found = matching(set, &self.registers.slice(from, REGISTERS));
        let rest = set.elements.first().filter(|e| e.first.is_empty());
        let mut answer = found.iter().fold(Answer::No, |all, (answer, _)| all.or(*answer));
        if let Some(rest) = rest.filter(|_| answer != Answer::Yes) {
            found.push((Answer::Maybe, rest));
            answer = if let Answer::Varies(_) = answer { answer } else { Answer::Yes };
        }
        if answer != Answer::No && set.expires && found.iter().any(|(_, e)| e.expires) {
            answer = Answer::Varies(EXPIRES);
        }
        match to {
            // The register of verdicts.
            Some(0) if set.is_verdicts => {
                self.outcome.verdicts.extend(found.iter().filter_map(|(_, e)| e.verdict.clone()));
            }
            Some(to) => {
                let length = found.first().map_or(0, |(_, e)| e.value.len());
                let value = match (found.as_slice(), answer) {
                    ([(_, only)], Answer::Yes) => Bits::known(&only.value),
                    (_, Answer::Varies(why)) => Bits::varying(length, why),
                    _ => Bits::unknown(length),
                };
                self.registers.store(to, &value);
            }
            None => {}
        }
        self.test(answer.inverted_if(not))
    }
}

/// The elements that may be the one for `key`, or the one that is.
fn matching<'s>(set: &'s Set, key: &Bits) -> Vec<(Answer, &'s Element)> {
    let keyed = || set.elements.iter().filter(|e| !e.first.is_empty());
    let length = keyed().next().map_or(0, |e| e.first.len());
    if let (true, Some(key)) = (set.fields.is_empty(), key.slice(0, length).all_known()) {
        let next = set.elements.partition_point(|e| e.first <= key);
        let element = next.checked_sub(1).and_then(|at| set.elements.get(at));
        let is_it = |e: &&Element| !e.first.is_empty() && key <= e.last;
        return element.filter(is_it).map(|e| (Answer::Yes, e)).into_iter().collect();
    }
    let mut found = Vec::new();
    for element in keyed() {
        match contains(set, element, key) {
            Answer::No => {}
            Answer::Yes => return vec![(Answer::Yes, element)],
            other => found.push((other, element)),
        }
    }
    found
}

fn contains(set: &Set, element: &Element, key: &Bits) -> Answer {
    if set.fields.is_empty() {
        return key.between(&element.first, &element.last);
    }
    let (mut answer, mut at) = (Answer::Yes, 0);
    for length in &set.fields {
        let part = |bytes: &[u8]| bytes.get(at..at + length).map(<[u8]>::to_vec);
        let (Some(first), Some(last)) = (part(&element.first), part(&element.last)) else { return Answer::Maybe };
        answer = answer.and(key.slice(at, *length).between(&first, &last));
        at += length.next_multiple_of(4);
    }
    answer
}

fn has_header(header: &Header, packet: &Packet<'_>) -> Answer {
    let equal = |bits: Bits, value: &[u8], mask: &[u8], invert: u8| {
        bits.masked(mask, &[]).equal(value).inverted_if(header.invert & invert != 0)
    };
    // The name of a pattern has its `+`, outside the mask.
    let named = |name: Option<&str>, value: &[u8], mask: &[u8], invert: u8| {
        let value: Vec<u8> = value.iter().zip(mask).map(|(value, mask)| value & mask).collect();
        equal(interface(name), &value, mask, invert)
    };
    let protocol = header.protocol.map_or(Answer::Yes, |p| {
        Bits::maybe(packet.protocol.map(|p| [p])).equal(&[p]).inverted_if(header.invert & INV_PROTOCOL != 0)
    });
    let other = if header.other { Answer::Varies(FRAGMENTS) } else { Answer::Yes };
    [
        equal(packet.address(packet.source), &header.source, &header.source_mask, INV_SOURCE),
        equal(packet.address(packet.destination), &header.destination, &header.destination_mask, INV_DESTINATION),
        named(packet.iif, &header.iif, &header.iif_mask, INV_IIF),
        named(packet.oif, &header.oif, &header.oif_mask, INV_OIF),
        protocol,
        other,
    ]
    .into_iter()
    .fold(Answer::Yes, Answer::and)
}
