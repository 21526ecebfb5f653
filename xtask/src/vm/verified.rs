//! Compares how many instructions the verifier of each kernel processed for each program with the committed counts: a growing
//! program approaches the limit (a million), at which a kernel rejects it.

use crate::workspace;
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

const PAGE: &str = "docs/verified-instructions.json";
/// Tolerated growth, in percent.
const SLACK: u64 = 10;

pub(super) type Counts = BTreeMap<String, u64>;

/// Parses lines of the packet suite: `np_lo_in: 1234 verified instructions`.
pub(super) fn read(text: &str) -> Counts {
    let line = |l: &str| {
        // The line bypasses libtest's capture, so it may follow the name of a test.
        let l = l.rsplit(" ... ").next().unwrap_or(l);
        let (name, rest) = l.split_once(": ")?;
        let count = rest.strip_suffix(" verified instructions")?.parse().ok()?;
        name.starts_with("np_").then(|| (name.to_owned(), count))
    };
    text.lines().filter_map(line).collect()
}

/// Messages for the programs that have grown too much, are new, or are gone.
///
/// # Errors
/// The page cannot be read.
pub(super) fn compare(kernel: &str, counts: &Counts) -> Result<Vec<String>> {
    Ok(grown(kernel, &committed()?, counts))
}

fn grown(kernel: &str, committed: &Map<String, Value>, counts: &Counts) -> Vec<String> {
    let mut found = Vec::new();
    for (program, count) in counts {
        match committed.get(kernel).and_then(|k| k[program].as_u64()) {
            Some(before) if *count * 100 > before * (100 + SLACK) => found.push(format!(
                "{program} on {kernel}: {count} verified instructions, {before} before; more than {SLACK} % more"
            )),
            Some(_) => {}
            None => found.push(format!("{program} on {kernel}: {count} verified instructions, not in {PAGE} yet")),
        }
    }
    let gone = committed.get(kernel).and_then(Value::as_object).into_iter().flat_map(Map::keys);
    found.extend(
        gone.filter(|p| !counts.contains_key(*p)).map(|p| format!("{p} on {kernel}: in {PAGE}, but not loaded")),
    );
    found
}

/// Writes the counts of `kernel` into the page, and returns the changes.
///
/// # Errors
/// The page cannot be read or written.
pub(super) fn accept(kernel: &str, counts: &Counts) -> Result<()> {
    let mut all = committed()?;
    for (program, count) in counts {
        match all.get(kernel).and_then(|k| k[program].as_u64()) {
            Some(before) if before == *count => {}
            Some(before) => println!("{program} on {kernel}: {before} → {count} verified instructions"),
            None => println!("{program} on {kernel}: {count} verified instructions, new"),
        }
    }
    all.insert(kernel.to_owned(), json!(counts));
    let text = serde_json::to_string_pretty(&Value::Object(all))? + "\n";
    fs::write(page(), text).with_context(|| format!("cannot write {PAGE}"))
}

fn committed() -> Result<Map<String, Value>> {
    let text = match fs::read_to_string(page()) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(e) => return Err(e).with_context(|| format!("cannot read {PAGE}")),
    };
    serde_json::from_str(&text).with_context(|| format!("{PAGE} is no JSON object"))
}

fn page() -> PathBuf {
    workspace::root().join(PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_over_the_slack_and_programs_that_are_new_or_gone_are_found() {
        let text = "test cost::every ... np_lo_in: 111 verified instructions\nnp_bridge_in: 110 verified instructions\nnp_new: 5 verified instructions\nok\n";
        let counts = read(text);
        assert_eq!(3, counts.len());
        let before: Value = json!({"6.1": {"np_lo_in": 100, "np_bridge_in": 100, "np_gone": 7}});
        let found = grown("6.1", before.as_object().expect("an object"), &counts);
        assert_eq!(3, found.len(), "{found:?}");
        assert!(found[0].starts_with("np_lo_in on 6.1: 111") && found[1].starts_with("np_new"), "{found:?}");
        assert!(found[2].starts_with("np_gone"), "{found:?}");
    }
}
