//! Follows a packet through the chains of a table.

use super::expr;
use super::packet::Packet;
use super::table::{Chain, Rule, Table, Verdict};
use std::collections::BTreeMap;

/// As deep as the kernel follows jumps (`NFT_JUMP_STACK_SIZE`), legacy iptables deeper.
const DEPTH: usize = 64;

/// How packets can leave a chain.
#[derive(Clone, Default, Debug)]
pub(super) struct Exits {
    pub accepted: bool,
    /// The label of a rule that drops.
    pub dropped: Option<String>,
    /// By its end or a return.
    pub returned: bool,
}

pub(super) struct Walk<'a> {
    table: &'a Table,
    packet: &'a Packet<'a>,
    /// Chains that were followed already.
    chains: BTreeMap<&'a str, (Exits, Vec<Forbidding>)>,
    /// In the order of the packet's way.
    pub forbidding: Vec<Forbidding>,
}

/// The label of a rule that forbids that the flow is carried, and the reason.
pub(super) type Forbidding = (String, &'static str);

impl<'a> Walk<'a> {
    pub(super) fn new(table: &'a Table, packet: &'a Packet<'a>) -> Self {
        Self { table, packet, chains: BTreeMap::new(), forbidding: Vec::new() }
    }

    /// Through a base chain.
    pub(super) fn base(&mut self, name: &'a str, chain: &'a Chain) -> Exits {
        let mut exits = self.chain(name, chain, 0);
        if exits.returned && chain.base.as_ref().is_some_and(|b| b.drops) {
            exits.dropped.get_or_insert_with(|| format!("{} chain {name} policy drop", self.table.label()));
        } else {
            exits.accepted |= exits.returned;
        }
        exits.returned = false;
        exits
    }

    fn chain(&mut self, name: &'a str, chain: &'a Chain, depth: usize) -> Exits {
        let mut exits = Exits::default();
        for rule in &chain.rules {
            if !self.rule(name, rule, depth, &mut exits) {
                return exits;
            }
        }
        exits.returned = true;
        exits
    }

    /// Returns whether the packet can go on to the next rule.
    fn rule(&mut self, chain: &str, rule: &'a Rule, depth: usize, exits: &mut Exits) -> bool {
        let outcome = expr::run(self.table, rule, self.packet);
        if let Some(why) = outcome.forbids {
            self.forbid(chain, rule, why);
        }
        let mut goes_on = !outcome.certain || outcome.verdicts.is_empty();
        let label = || self.table.rule_label(chain, rule);
        for verdict in outcome.verdicts {
            match verdict {
                Verdict::Accept => exits.accepted = true,
                // By a reverse path filter that only routes decide about: the flow is bound to its way.
                Verdict::Drop if !outcome.certain && outcome.is_by_route => {}
                Verdict::Drop => {
                    exits.dropped.get_or_insert_with(label);
                }
                Verdict::Continue => goes_on = true,
                Verdict::Return => exits.returned = true,
                Verdict::Queue => {
                    // The program may accept.
                    exits.accepted = true;
                    self.forbidding.push((label(), "a program decides about each packet"));
                }
                Verdict::Jump(to) => {
                    let there = self.called(&to, chain, rule, depth);
                    exits.accepted |= there.accepted;
                    exits.dropped = exits.dropped.take().or(there.dropped);
                    goes_on |= there.returned;
                }
                Verdict::Goto(to) => {
                    let there = self.called(&to, chain, rule, depth);
                    exits.accepted |= there.accepted;
                    exits.dropped = exits.dropped.take().or(there.dropped);
                    exits.returned |= there.returned;
                }
            }
        }
        goes_on
    }

    fn called(&mut self, to: &str, from: &str, rule: &'a Rule, depth: usize) -> Exits {
        if let Some((exits, forbidding)) = self.chains.get(to) {
            self.forbidding.extend(forbidding.iter().cloned());
            return exits.clone();
        }
        let table = self.table;
        let Some((name, chain)) = table.chains.get_key_value(to).filter(|_| depth < DEPTH) else {
            self.forbid(from, rule, "its chain cannot be followed");
            return Exits { returned: true, ..Exits::default() };
        };
        let before = self.forbidding.len();
        let exits = self.chain(name, chain, depth + 1);
        if !exits.accepted && !exits.returned {
            // All packets that come here are dropped, so a flow that is still alive does not come here.
            self.forbidding.truncate(before);
        }
        self.chains.insert(name, (exits.clone(), self.forbidding[before..].to_vec()));
        exits
    }

    fn forbid(&mut self, chain: &str, rule: &Rule, why: &'static str) {
        self.forbidding.push((self.table.rule_label(chain, rule), why));
    }
}
