//! What the kernel holds, as iptables-save prints it, and the script that makes it what it should be.
//!
//! Rules are never compared one by one: every version prints them differently. Our own digest, the number of rules in
//! each of our chains and the place of our jumps say whether anything has to be written.

use super::print::{Chain, Jump, PREFIX, STATE, Table, digest};
use crate::datapath::netfilter::rules::Place;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

/// The tables that exist, by name.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    pub tables: BTreeMap<String, SnapshotTable>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct SnapshotTable {
    /// Every built-in chain, with its policy.
    policies: BTreeMap<String, String>,
    /// The rules of every built-in chain, without the leading `-A name`.
    rules: BTreeMap<String, Vec<String>>,
    /// Our own chains, with the number of their rules.
    own: BTreeMap<String, usize>,
    /// Their rules as we wrote them; none of a table that was listed.
    written: BTreeMap<String, Vec<String>>,
    /// Chains of others.
    foreign: usize,
    digest: Option<u64>,
    /// The table did not exist before us.
    made: bool,
    /// The container addresses that it serves.
    pub addresses: Vec<IpAddr>,
    /// Sources of routes that its rules name, or have named.
    #[serde(default)]
    pub sources: Vec<IpAddr>,
}

impl Snapshot {
    pub(crate) fn parse(save: &str) -> Self {
        let mut present = Self::default();
        let mut table = SnapshotTable::default();
        let mut name = None;
        for line in save.lines() {
            if let Some(n) = line.strip_prefix('*') {
                name = Some(n.trim().to_owned());
                table = SnapshotTable::default();
            } else if line == "COMMIT" {
                if let Some(name) = name.take() {
                    present.tables.insert(name, std::mem::take(&mut table));
                }
            } else if let Some(chain) = line.strip_prefix(':') {
                table.chain(chain);
            } else if let Some(rule) = line.strip_prefix("-A ") {
                table.rule(rule);
            }
        }
        present
    }

    /// What is there after `script`, which must be one of [`script`]'s, has been committed.
    pub(crate) fn apply(&mut self, script: &str) {
        let mut name = String::new();
        for line in script.lines() {
            if let Some(table) = line.strip_prefix('*') {
                table.clone_into(&mut name);
            } else {
                self.tables.entry(name.clone()).or_default().apply(line);
            }
        }
    }

    /// Sources of routes that rules name, or have named.
    pub(crate) fn sources(&self) -> impl Iterator<Item = IpAddr> {
        self.tables.values().flat_map(|t| &t.sources).copied()
    }

    /// Whether anything of ours is there.
    pub(crate) fn has_ours(&self) -> bool {
        self.tables.values().any(SnapshotTable::has_ours)
    }

    /// Whether there are rules, or a policy that is not the default.
    pub(crate) fn is_used(&self) -> bool {
        let drops = |t: &SnapshotTable| t.policies.values().any(|p| p != "ACCEPT");
        let has_rules = |t: &SnapshotTable| t.foreign > 0 || t.has_ours() || t.rules.values().any(|r| !r.is_empty());
        self.tables.values().any(|t| has_rules(t) || drops(t))
    }
}

impl SnapshotTable {
    fn chain(&mut self, text: &str) {
        let mut words = text.split_whitespace();
        let (Some(name), Some(policy)) = (words.next(), words.next()) else { return };
        if policy != "-" {
            self.policies.insert(name.to_owned(), policy.to_owned());
            self.rules.entry(name.to_owned()).or_default();
        } else if name.starts_with(PREFIX) {
            self.own.insert(name.to_owned(), 0);
        } else {
            self.foreign += 1;
        }
    }

    /// One line of a script of ours.
    fn apply(&mut self, line: &str) {
        if let Some((chain, _)) = line.strip_prefix(':').and_then(|l| l.split_once(' ')) {
            self.empty(chain);
            self.own.insert(chain.to_owned(), 0);
            self.written.insert(chain.to_owned(), Vec::new());
            return;
        }
        let Some((verb, rest)) = line.split_once(' ') else { return };
        let (chain, rule) = rest.split_once(' ').unwrap_or((rest, ""));
        match verb {
            "-A" if !chain.starts_with(PREFIX) => {
                self.rules.entry(chain.to_owned()).or_default().push(rule.to_owned());
            }
            "-A" => {
                self.rule(rest);
                if let Some(written) = self.written.get_mut(chain) {
                    written.push(rule.to_owned());
                }
            }
            "-I" => {
                let rule = rule.strip_prefix("1 ").unwrap_or(rule);
                self.rules.entry(chain.to_owned()).or_default().insert(0, rule.to_owned());
            }
            "-D" => {
                let rules = self.rules.entry(chain.to_owned()).or_default();
                if let Some(at) = rules.iter().position(|r| r == rule) {
                    rules.remove(at);
                }
            }
            "-X" => {
                self.empty(chain);
                self.own.remove(chain);
                self.written.remove(chain);
            }
            // What is flushed goes.
            _ => {}
        }
    }

    fn empty(&mut self, chain: &str) {
        if chain == STATE {
            (self.digest, self.made) = (None, false);
            self.addresses.clear();
            self.sources.clear();
        }
    }

    fn rule(&mut self, text: &str) {
        let Some((chain, rule)) = text.split_once(' ').or_else(|| (!text.is_empty()).then_some((text, ""))) else {
            return;
        };
        if let Some(rules) = self.rules.get_mut(chain) {
            rules.push(rule.to_owned());
        } else if let Some(count) = self.own.get_mut(chain) {
            *count += 1;
            if chain == STATE {
                self.state(rule);
            }
        }
    }

    fn state(&mut self, rule: &str) {
        let mut words = rule.split([' ', '"']).filter(|w| !w.is_empty());
        while let Some(word) = words.next() {
            if let Some((hex, maker)) = word.strip_prefix("netpath:").and_then(|w| w.split_once(':')) {
                self.digest = u64::from_str_radix(hex, 16).ok();
                self.made = maker == "made";
            } else if matches!(word, "-d" | "-s") {
                let all = if word == "-d" { &mut self.addresses } else { &mut self.sources };
                let address = words.next().and_then(|w| w.split('/').next()).and_then(|w| w.parse().ok());
                all.extend::<Option<IpAddr>>(address);
            }
        }
    }

    pub(crate) fn has_ours(&self) -> bool {
        !self.own.is_empty() || self.rules.values().flatten().any(|r| self.is_ours(r))
    }

    /// Whether the built-in chain has rules that are not netpath's.
    pub(crate) fn has_foreign_rules(&self, chain: &str) -> bool {
        self.rules.get(chain).is_some_and(|rules| rules.iter().any(|r| !self.is_ours(r)))
    }

    /// Whether netpath accepts at the end of the built-in chain.
    pub(crate) fn accepts(&self, chain: &str) -> bool {
        self.own.contains_key(&format!("{PREFIX}{chain}_ACCEPT"))
    }

    /// Whether the built-in chain drops by policy.
    pub(crate) fn drops(&self, chain: &str) -> bool {
        self.policies.get(chain).is_some_and(|p| p == "DROP")
    }

    fn has_only_state(&self) -> bool {
        self.own.keys().all(|c| c == STATE) && !self.rules.values().flatten().any(|r| self.is_ours(r))
    }

    fn is_ours(&self, rule: &str) -> bool {
        jump_target(rule).is_some_and(|t| t.starts_with(PREFIX))
    }

    /// After our own things went, the table is as empty as it was when it was made for us, and can be removed.
    pub(crate) fn removable(&self) -> bool {
        let others = self.rules.values().flatten().any(|r| !self.is_ours(r));
        self.made && self.foreign == 0 && !others && self.policies.values().all(|p| p == "ACCEPT")
    }
}

/// Where a rule goes on, if it is a jump.
fn jump_target(rule: &str) -> Option<&str> {
    let mut quoted = false;
    let mut jump = false;
    for word in rule.split(' ') {
        if jump {
            return Some(word);
        }
        jump = !quoted && matches!(word, "-j" | "-g");
        // Comments may hold anything; a quote of their own is written with a backslash.
        let quotes = word.matches('"').count() - word.matches("\\\"").count();
        quoted ^= quotes % 2 == 1;
    }
    None
}

/// The part of an iptables-restore input that makes `present` hold exactly `table` of ours; nothing if it does.
/// One commit: no packet ever meets half of it.
///
/// With `keep_state`, NETPATH_STATE outlives the rest of what goes: it knows who made the table, until that is gone too.
pub(super) fn script(table: &Table, present: Option<&SnapshotTable>, keep_state: bool) -> Option<String> {
    let made = present.is_none_or(|p| p.made);
    let nothing = SnapshotTable::default();
    let present = present.unwrap_or(&nothing);
    let table = &fitted(table, present);
    let digest = digest(table);
    if is_so(table, present, digest, keep_state) {
        return None;
    }
    let mut text = String::new();
    let _ = writeln!(text, "*{}", table.name);
    let maker = if made { "made" } else { "kept" };
    let state = format!("-m comment --comment netpath:{digest:016x}:{maker}");
    let additions = additions(table, present, &state);
    // Naming a chain makes it or empties it.
    for chain in table.chains.iter().filter(|c| !additions.contains_key(c.name)) {
        let _ = writeln!(text, ":{} - [0:0]", chain.name);
    }
    for (from, rules) in &present.rules {
        if !are_in_place(table, from, rules, present) {
            for rule in rules.iter().filter(|r| present.is_ours(r)) {
                let _ = writeln!(text, "-D {from} {rule}");
            }
        }
    }
    for jump in &table.jumps {
        let rules = present.rules.get(jump.from).map(Vec::as_slice).unwrap_or_default();
        if !are_in_place(table, jump.from, rules, present) {
            let place =
                if jump.place == Place::First { format!("-I {} 1", jump.from) } else { format!("-A {}", jump.from) };
            let _ = writeln!(text, "{place} {}-j {}", jump.matches, jump.to);
        }
    }
    for chain in &table.chains {
        let added = additions.get(chain.name);
        if chain.name == STATE && added.is_none() {
            let _ = writeln!(text, "-A {STATE} {state}");
        }
        for rule in added.unwrap_or(&chain.rules) {
            let _ = writeln!(text, "-A {} {rule}", chain.name);
        }
    }
    let stale = || {
        present.own.keys().filter(|n| !(keep_state && *n == STATE || table.chains.iter().any(|c| c.name == n.as_str())))
    };
    for verb in ["-F", "-X"] {
        for chain in stale() {
            let _ = writeln!(text, "{verb} {chain}");
        }
    }
    text.push_str("COMMIT\n");
    Some(text)
}

/// What is to be added to those chains that are right so far. The kernel waits 10 ms and more for a rule to be gone, so
/// what only grows is not written anew; that takes knowing what was written.
fn additions(table: &Table, present: &SnapshotTable, state: &str) -> BTreeMap<&'static str, Vec<String>> {
    let mut additions = BTreeMap::new();
    let written =
        |chain: &Chain| present.written.get(chain.name).filter(|w| present.own.get(chain.name) == Some(&w.len()));
    for chain in table.chains.iter().filter(|c| c.name != STATE) {
        let added = written(chain).and_then(|w| chain.rules.strip_prefix(w.as_slice()));
        additions.extend(added.map(|a| (chain.name, a.to_vec())));
    }
    // The youngest digest counts; the older ones go when something else does.
    let Some(chain) = table.chains.iter().find(|c| c.name == STATE) else { return additions };
    let stays = |w: &&Vec<String>| w.iter().filter(|r| !r.contains("netpath:")).all(|r| chain.rules.contains(r));
    if let Some(written) = written(chain).filter(stays).filter(|_| additions.len() + 1 == table.chains.len()) {
        let mut added: Vec<String> = chain.rules.iter().filter(|r| !written.contains(r)).cloned().collect();
        added.push(state.to_owned());
        additions.insert(STATE, added);
    }
    additions
}

fn is_so(table: &Table, present: &SnapshotTable, digest: u64, keep_state: bool) -> bool {
    if table.chains.is_empty() {
        return !present.has_ours() || (keep_state && present.has_only_state());
    }
    let chains = present.own.len() == table.chains.len()
        && table.chains.iter().all(|c| {
            match present.own.get(c.name) {
                // With digests of earlier times.
                Some(_) if c.name == STATE => present.addresses.len() + present.sources.len() == c.rules.len(),
                there => there == Some(&c.rules.len()),
            }
        });
    let jumps = present.rules.iter().all(|(from, rules)| are_in_place(table, from, rules, present));
    let all_led = table.jumps.iter().all(|j| present.rules.contains_key(j.from));
    present.digest == Some(digest) && chains && jumps && all_led
}

/// The table as the policies there want it: without accepts at the end of chains that accept by themselves.
pub(super) fn fitted(table: &Table, present: &SnapshotTable) -> Table {
    let (jumps, needless): (Vec<Jump>, Vec<Jump>) =
        table.jumps.iter().cloned().partition(|j| j.place != Place::LastIfDropping || present.drops(j.from));
    let is_led_to = |c: &&Chain| !jumps.is_empty() && needless.iter().all(|j| j.to != c.name);
    let chains = table.chains.iter().filter(is_led_to).cloned().collect();
    Table { name: table.name, jumps, chains }
}

/// Every jump of ours from the built-in chain `from` is there once, and where it belongs.
fn are_in_place(table: &Table, from: &str, rules: &[String], present: &SnapshotTable) -> bool {
    let wanted: Vec<&Jump> = table.jumps.iter().filter(|j| j.from == from).collect();
    let ours = rules.iter().filter(|r| present.is_ours(r)).count();
    let leads = |rule: Option<&String>, jump: &Jump| rule.and_then(|r| jump_target(r)) == Some(jump.to);
    ours == wanted.len()
        && wanted.iter().all(|jump| match jump.place {
            Place::First => leads(rules.first(), jump),
            Place::Last | Place::LastIfDropping => leads(rules.last(), jump),
        })
}
