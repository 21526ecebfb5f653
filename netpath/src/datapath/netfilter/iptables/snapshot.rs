//! The tables in the kernel, parsed from iptables-save, and the iptables-restore input that makes them equal to the wanted
//! ones.
//!
//! Rules are not compared one by one, since each version prints them differently. A table is up to date if its digest, the
//! number of rules in netpath's chains and the positions of netpath's jumps are right.

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
    /// netpath's chains, with the number of their rules.
    pub(super) own: BTreeMap<String, usize>,
    /// The rules of netpath's chains as they were written; empty if the table was listed.
    written: BTreeMap<String, Vec<String>>,
    /// Number of foreign chains.
    foreign: usize,
    digest: Option<u64>,
    /// netpath has created the table.
    made: bool,
    /// The served container addresses.
    pub addresses: Vec<IpAddr>,
    /// SNAT addresses of present and earlier rules.
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

    /// Updates the snapshot as a commit of `script` changes the kernel. `script` must come from [`script`].
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

    /// SNAT addresses of present and earlier rules.
    pub(crate) fn sources(&self) -> impl Iterator<Item = IpAddr> {
        self.tables.values().flat_map(|t| &t.sources).copied()
    }

    /// Whether netpath has chains or jumps.
    pub(crate) fn has_own_rules(&self) -> bool {
        self.tables.values().any(SnapshotTable::has_own_rules)
    }

    /// Whether there are rules, or a policy that is not the default.
    pub(crate) fn is_used(&self) -> bool {
        let drops = |t: &SnapshotTable| t.policies.values().any(|p| p != "ACCEPT");
        let has_rules =
            |t: &SnapshotTable| t.foreign > 0 || t.has_own_rules() || t.rules.values().any(|r| !r.is_empty());
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

    /// Applies one line of a script.
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
            // -F only precedes -X.
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

    pub(crate) fn has_own_rules(&self) -> bool {
        !self.own.is_empty() || self.rules.values().flatten().any(|r| self.is_own(r))
    }

    /// Whether the built-in chain has rules that are not netpath's.
    pub(crate) fn has_foreign_rules(&self, chain: &str) -> bool {
        self.rules.get(chain).is_some_and(|rules| rules.iter().any(|r| !self.is_own(r)))
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
        self.own.keys().all(|c| c == STATE) && !self.rules.values().flatten().any(|r| self.is_own(r))
    }

    fn is_own(&self, rule: &str) -> bool {
        jump_target(rule).is_some_and(|t| t.starts_with(PREFIX))
    }

    /// Whether the table was created for netpath and has nothing but netpath's rules.
    pub(crate) fn removable(&self) -> bool {
        let has_foreign = self.rules.values().flatten().any(|r| !self.is_own(r));
        self.made && self.foreign == 0 && !has_foreign && self.policies.values().all(|p| p == "ACCEPT")
    }
}

/// The target of a jump or goto.
fn jump_target(rule: &str) -> Option<&str> {
    let mut quoted = false;
    let mut jump = false;
    for word in rule.split(' ') {
        if jump {
            return Some(word);
        }
        jump = !quoted && matches!(word, "-j" | "-g");
        // Comments may contain any text, with quotes escaped by a backslash.
        let quotes = word.matches('"').count() - word.matches("\\\"").count();
        quoted ^= quotes % 2 == 1;
    }
    None
}

/// The iptables-restore input that makes netpath's part of `present` equal to `table`; `None` if it is equal. One commit, so
/// that packets never see a partial change.
///
/// With `keep_state` NETPATH_STATE stays when all other chains are removed, since it records the creator of the table.
pub(super) fn script(table: &Table, present: Option<&SnapshotTable>, keep_state: bool) -> Option<String> {
    let made = present.is_none_or(|p| p.made);
    let nothing = SnapshotTable::default();
    let present = present.unwrap_or(&nothing);
    let table = &without_needless_accepts(table, present);
    let digest = digest(table);
    if is_up_to_date(table, present, digest, keep_state) {
        return None;
    }
    let mut text = String::new();
    let _ = writeln!(text, "*{}", table.name);
    let maker = if made { "made" } else { "kept" };
    let state = format!("-m comment --comment netpath:{digest:016x}:{maker}");
    let additions = additions(table, present, &state);
    // A chain line creates or flushes the chain.
    for chain in table.chains.iter().filter(|c| !additions.contains_key(c.name)) {
        let _ = writeln!(text, ":{} - [0:0]", chain.name);
    }
    for (from, rules) in &present.rules {
        if !jumps_are_in_place(table, from, rules, present) {
            for rule in rules.iter().filter(|r| present.is_own(r)) {
                let _ = writeln!(text, "-D {from} {rule}");
            }
        }
    }
    for jump in &table.jumps {
        let rules = present.rules.get(jump.from).map(Vec::as_slice).unwrap_or_default();
        if !jumps_are_in_place(table, jump.from, rules, present) {
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

/// The rules to append to chains that are otherwise up to date. Removing a rule takes the kernel 10 ms and more, so chains
/// that only grow are not rewritten. Needs the rules as they were written.
fn additions(table: &Table, present: &SnapshotTable, state: &str) -> BTreeMap<&'static str, Vec<String>> {
    let mut additions = BTreeMap::new();
    let written =
        |chain: &Chain| present.written.get(chain.name).filter(|w| present.own.get(chain.name) == Some(&w.len()));
    for chain in table.chains.iter().filter(|c| c.name != STATE) {
        let added = written(chain).and_then(|w| chain.rules.strip_prefix(w.as_slice()));
        additions.extend(added.map(|a| (chain.name, a.to_vec())));
    }
    // The last digest is valid; older ones stay until the chain is rewritten. Removing a chain takes time anyway.
    if present.own.keys().any(|name| table.chains.iter().all(|c| c.name != name)) {
        return additions;
    }
    let Some(chain) = table.chains.iter().find(|c| c.name == STATE) else { return additions };
    let stays = |w: &&Vec<String>| w.iter().filter(|r| !r.contains("netpath:")).all(|r| chain.rules.contains(r));
    if let Some(written) = written(chain).filter(stays).filter(|_| additions.len() + 1 == table.chains.len()) {
        let mut added: Vec<String> = chain.rules.iter().filter(|r| !written.contains(r)).cloned().collect();
        added.push(state.to_owned());
        additions.insert(STATE, added);
    }
    additions
}

fn is_up_to_date(table: &Table, present: &SnapshotTable, digest: u64, keep_state: bool) -> bool {
    if table.chains.is_empty() {
        return !present.has_own_rules() || (keep_state && present.has_only_state());
    }
    let chains = present.own.len() == table.chains.len()
        && table.chains.iter().all(|c| {
            match present.own.get(c.name) {
                // Older digests are rules too.
                Some(_) if c.name == STATE => present.addresses.len() + present.sources.len() == c.rules.len(),
                count => count == Some(&c.rules.len()),
            }
        });
    let jumps = present.rules.iter().all(|(from, rules)| jumps_are_in_place(table, from, rules, present));
    let built_in = table.jumps.iter().all(|j| present.rules.contains_key(j.from));
    present.digest == Some(digest) && chains && jumps && built_in
}

/// The table without accepts at the end of chains that accept by policy.
pub(super) fn without_needless_accepts(table: &Table, present: &SnapshotTable) -> Table {
    let (jumps, needless): (Vec<Jump>, Vec<Jump>) =
        table.jumps.iter().cloned().partition(|j| j.place != Place::LastIfDropping || present.drops(j.from));
    let is_needed = |c: &&Chain| !jumps.is_empty() && needless.iter().all(|j| j.to != c.name);
    let chains = table.chains.iter().filter(is_needed).cloned().collect();
    Table { name: table.name, jumps, chains }
}

/// Whether the built-in chain `from` has each wanted jump exactly once, in its position.
fn jumps_are_in_place(table: &Table, from: &str, rules: &[String], present: &SnapshotTable) -> bool {
    let wanted: Vec<&Jump> = table.jumps.iter().filter(|j| j.from == from).collect();
    let ours = rules.iter().filter(|r| present.is_own(r)).count();
    let leads = |rule: Option<&String>, jump: &Jump| rule.and_then(|r| jump_target(r)) == Some(jump.to);
    ours == wanted.len()
        && wanted.iter().all(|jump| match jump.place {
            Place::First => leads(rules.first(), jump),
            Place::Last | Place::LastIfDropping => leads(rules.last(), jump),
        })
}
