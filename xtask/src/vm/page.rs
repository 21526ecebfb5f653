//! The table of kernels in `docs/kernels.md`: one row per kernel, from its last complete run. The data is in `docs/kernels.json`.

use super::results::Row;
use crate::suite::Outcome;
use crate::toolchain::numbers;
use crate::workspace;
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;

/// The page that `--write` without a name writes to.
pub(crate) const PAGE: &str = "docs/kernels.md";
const KEPT: &str = "docs/kernels.json";
const MARK: &str = "kernels";
const SUITES: [&str; 2] = ["packet", "contract"];
/// The rungs and the two hooks of the eBPF rung, by the modules of e2e; a test outside them counts for all.
const RUNGS: [(&str, &str); 4] = [("tcx", "TCX"), ("clsact", "clsact"), ("iptables", "iptables"), ("", "all of them")];

/// The row of a kernel in one run, by its label.
pub(crate) fn row(row: &Row) -> (String, Value) {
    let empty = Outcome::default();
    let of = |suite: &str| row.outcomes.get(suite).unwrap_or(&empty);
    (row.label.clone(), value(&row.release, row.acceleration, of, row.doctor.as_ref()))
}

/// `how`: the acceleration. `doctor`: the output of `netpath doctor --json` there.
pub(crate) fn value<'o>(release: &str, how: &str, of: impl Fn(&str) -> &'o Outcome, doctor: Option<&Value>) -> Value {
    let count = |outcome: &Outcome, rung: Option<&str>| {
        let is_of = |test: &str| rung.is_none_or(|r| rung_of(test) == r);
        let passed = outcome.names.iter().filter(|t| is_of(t)).count();
        let skipped = outcome.skipped.iter().filter(|(t, _)| is_of(t)).count();
        json!({"passed": passed, "skipped": skipped})
    };
    let mut all = Map::new();
    all.insert("release".to_owned(), json!(release));
    all.insert("ran".to_owned(), json!(how));
    for suite in SUITES {
        all.insert(suite.to_owned(), count(of(suite), None));
    }
    for (rung, title) in RUNGS {
        all.insert(format!("e2e, {title}"), count(of("e2e"), Some(rung)));
    }
    let lacks: Map<String, Value> = doctor
        .and_then(|d| d["probes"].as_array())
        .into_iter()
        .flatten()
        .filter(|p| p["answer"] == "no")
        .filter_map(|p| Some((p["name"].as_str()?.to_owned(), p["without"].clone())))
        .collect();
    all.insert("lacks".to_owned(), Value::Object(lacks));
    Value::Object(all)
}

/// The rung in a test's name: a module that starts with it, as in `publish::tcx_offload_tracked::…`.
fn rung_of(test: &str) -> &'static str {
    let is_in = |rung: &str| test.split("::").any(|m| m == rung || m.starts_with(&format!("{rung}_")));
    RUNGS.iter().map(|(rung, _)| *rung).find(|rung| rung.is_empty() || is_in(rung)).unwrap_or_default()
}

/// Writes these rows into `docs/kernels.json`, and all rows of that file into the table of `page`.
///
/// # Errors
/// A file cannot be read or written, or the page has no marks.
pub(crate) fn write(page: &Path, rows: &[(String, Value)]) -> Result<()> {
    let kept = workspace::root().join(KEPT);
    let mut all: Map<String, Value> = match fs::read_to_string(&kept) {
        Ok(text) => serde_json::from_str(&text).with_context(|| format!("{KEPT} is no JSON object"))?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Map::new(),
        Err(e) => return Err(e).with_context(|| format!("cannot read {KEPT}")),
    };
    // A guest without some modules tests the ladder and is not a kernel of its own.
    let is_kernel = |value: &Value| value["packet"]["passed"] != 0;
    all.extend(rows.iter().filter(|(_, value)| is_kernel(value)).cloned());
    report::page::write(page, MARK, &table(&all), &[])?;
    let json = serde_json::to_string_pretty(&Value::Object(all))? + "\n";
    fs::write(&kept, json).with_context(|| format!("cannot write {KEPT}"))?;
    println!("the table of kernels is in {}", page.display());
    Ok(())
}

fn table(all: &Map<String, Value>) -> String {
    let mut kernels: Vec<(&String, &Value)> = all.iter().collect();
    kernels.sort_by_key(|(label, _)| numbers(label));
    let titles: Vec<String> =
        SUITES.iter().map(|s| (*s).to_owned()).chain(RUNGS.map(|(_, title)| format!("e2e, {title}"))).collect();
    let mut text = format!("| Linux | {} | lacks, and what there is instead |\n", titles.join(" | "));
    text += &format!("|{}\n", " --- |".repeat(titles.len() + 2));
    for (_, value) in kernels {
        let word = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let cells: Vec<String> = titles.iter().map(|title| cell(&value[title])).collect();
        let lacks: Vec<String> = value["lacks"].as_object().map_or_else(Vec::new, |lacks| {
            lacks.iter().map(|(name, instead)| format!("`{name}`: {}", instead.as_str().unwrap_or_default())).collect()
        });
        let lacks = if lacks.is_empty() { "–".to_owned() } else { lacks.join("; ") };
        text += &format!("| {} ({}) | {} | {lacks} |\n", word("release"), word("ran"), cells.join(" | "));
    }
    text
}

fn cell(count: &Value) -> String {
    match (count["passed"].as_u64().unwrap_or(0), count["skipped"].as_u64().unwrap_or(0)) {
        (0, _) => "–".to_owned(),
        (passed, 0) => passed.to_string(),
        (passed, skipped) => format!("{passed}, {skipped} skipped"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_the_table_of_the_kept_figures() {
        let read = |file: &str| fs::read_to_string(workspace::root().join(file)).expect(file);
        let all: Map<String, Value> = serde_json::from_str(&read(KEPT)).expect("a JSON object");
        let table = table(&all);
        assert!(read(PAGE).contains(&format!("<!-- {MARK}: begin -->\n\n{table}")), "{PAGE} lacks {table}");
    }

    #[test]
    fn a_row_counts_by_rung_and_says_what_the_kernel_lacks() {
        let e2e = Outcome {
            passed: 3,
            names: ["a::clsact::x", "b::clsact_tracked::x", "ladder::y"].map(str::to_owned).to_vec(),
            skipped: vec![("a::tcx::x".to_owned(), "needs tcx".to_owned())],
            ..Outcome::default()
        };
        let packet = Outcome { names: vec!["p".to_owned()], ..Outcome::default() };
        let empty = Outcome::default();
        let doctor = json!({"probes": [{"name": "tcx", "answer": "no", "without": "clsact is used instead"}, {"name": "bpf", "answer": "yes"}]});
        let of = |suite: &str| match suite {
            "e2e" => &e2e,
            "packet" => &packet,
            _ => &empty,
        };
        let all = Map::from_iter([
            ("7.2".to_owned(), value("7.2.12", "TCG", of, None)),
            ("6.1".to_owned(), value("6.1.0-50", "TCG", of, Some(&doctor))),
        ]);
        let table = table(&all);
        let rows: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!("| 6.1.0-50 (TCG) | 1 | – | – | 2 | – | 1 | `tcx`: clsact is used instead |", rows[0]);
        assert!(rows[1].starts_with("| 7.2.12") && rows[1].ends_with("| – |"), "{table}");
    }
}
