//! Whether packets of an established flow may be carried past the rules of the host.
//!
//! The packets that led to the question have passed all rules in both directions. A rule whose answer and effect depend on
//! the flow alone gives the same answer for the next packet, whatever it says. A rule that depends on more, or does
//! something with each packet, forbids that flows which can meet it are carried.
//!
//! `nft.rs` reads nf_tables and `legacy.rs` the legacy tables, both from the kernel and into the types of `table.rs`, so no program
//! has to be installed. `walk.rs` follows a packet through the chains, with `expr.rs` and `xt.rs` for expressions of nf_tables and
//! for matches and targets of iptables; what they read is in `packet.rs`, with values whose bits may be unknown (`value.rs`).

pub mod changes;
mod decode;
mod expr;
mod flow;
mod ipset;
mod legacy;
mod nft;
mod packet;
mod path;
mod shapers;
mod table;
#[cfg(test)]
mod tests;
mod value;
mod walk;
mod xfrm;
mod xt;

pub use flow::{Flow, Tuple};
pub use shapers::shapers;

use indexmap::IndexSet;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use table::{Expression, Table};
use walk::Walk;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Judgement {
    Carried,
    /// `rule` may answer differently, or act, for each packet.
    Forbidden {
        rule: String,
        why: String,
    },
    /// `rule` drops all packets of the flow.
    Dropped {
        rule: String,
    },
}

/// The rules of a network namespace.
#[derive(Debug, Default, Hash)]
pub struct Ruleset {
    tables: Vec<Table>,
    /// Interfaces below others, by name: links of VLANs, ports of bonds.
    lower: BTreeMap<String, Vec<String>>,
    /// Reasons that concern every flow: what it is, and why.
    for_all: Vec<(String, String)>,
    /// A rule sets marks of conntrack, so the mark may be another in the middle of the rules.
    marks: bool,
}

impl Ruleset {
    /// Of the calling thread's network namespace. Loads no module and runs no program.
    ///
    /// # Errors
    /// The kernel's.
    pub fn read() -> io::Result<Self> {
        let mut tables = nft::read()?;
        tables.extend(legacy::read()?);
        let mut ruleset = Self::of(tables);
        if !ruleset.tables.is_empty() {
            ruleset.lower = path::lower_links()?;
        }
        ruleset.for_all.extend(ipset::unusable(&ruleset.ipsets())?);
        ruleset.for_all.extend(legacy::bridge_rules());
        if let Some(policies) = xfrm::policies()? {
            ruleset.for_all.push((policies, "IPsec decides about each packet".to_owned()));
        }
        Ok(ruleset)
    }

    fn of(tables: Vec<Table>) -> Self {
        let marks = |e: &Expression| match e {
            Expression::MarksConnection => true,
            Expression::Target { name, .. } => name == "CONNMARK",
            _ => false,
        };
        let mut ruleset = Self { tables, ..Self::default() };
        let is_marked = ruleset.expressions().any(marks);
        ruleset.marks = is_marked;
        ruleset
    }

    fn expressions(&self) -> impl Iterator<Item = &Expression> {
        let rules = self.tables.iter().flat_map(|t| t.chains.values()).flat_map(|c| &c.rules);
        rules.flat_map(|r| &r.expressions)
    }

    /// The indexes of the ipsets that rules read.
    fn ipsets(&self) -> BTreeSet<u16> {
        let index = |e: &Expression| match e {
            Expression::Match { name, info, .. } => xt::set_index(name, info),
            _ => None,
        };
        self.expressions().filter_map(index).collect()
    }

    /// Whether all packets of an established flow may be carried past the rules. Its packets are seen before the rules, which may drop
    /// them: a flow that may come to a drop is not carried.
    pub fn judge(&self, flow: &Flow<'_>) -> Judgement {
        if let Some((rule, why)) = self.for_all.first().cloned() {
            return Judgement::Forbidden { rule, why };
        }
        for table in self.tables.iter().filter(|t| !t.dormant) {
            for (name, chain, base) in table.bases() {
                for mut packet in path::packets(flow, table.family, base, &self.lower) {
                    if self.marks {
                        packet.mark = None;
                    }
                    let mut walk = Walk::new(table, &packet);
                    let exits = walk.base(name, chain);
                    if let Some((rule, why)) = walk.forbidding.into_iter().next() {
                        return Judgement::Forbidden { rule, why: why.to_owned() };
                    }
                    match (exits.accepted, exits.dropped) {
                        (_, None) => {}
                        (false, Some(rule)) => return Judgement::Dropped { rule },
                        (true, Some(rule)) => {
                            return Judgement::Forbidden { rule, why: "it may drop the flow".to_owned() };
                        }
                    }
                }
            }
        }
        Judgement::Carried
    }

    /// All rules that can forbid that some flow is carried, each with its reason: for people.
    pub fn forbidding(&self) -> impl Iterator<Item = (String, String)> {
        let mut found: IndexSet<(String, String)> = self.for_all.iter().cloned().collect();
        for table in self.tables.iter().filter(|t| !t.dormant) {
            for (name, chain, base) in table.bases() {
                for packet in path::any(table.family, base) {
                    let mut walk = Walk::new(table, &packet);
                    walk.base(name, chain);
                    found.extend(walk.forbidding.into_iter().map(|(rule, why)| (rule, why.to_owned())));
                }
            }
        }
        found.into_iter()
    }

    /// How many rules count packets.
    pub fn counters(&self) -> usize {
        let tables = self.tables.iter().filter(|t| !t.dormant);
        let rules = tables.flat_map(|t| t.chains.values().flat_map(|c| &c.rules).map(|rule| (t.legacy, rule)));
        rules.filter(|(legacy, rule)| *legacy || rule.words.iter().any(|word| word == "counter")).count()
    }

    /// Changes with rules, sets, policies and stacked interfaces, but not with counters.
    pub fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}
