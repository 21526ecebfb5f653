//! Checks the table of allowed imports (docs/architecture.md) against the sources, inside some rooms too, and reports files
//! that are too long.

mod circles;

use crate::workspace;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The rooms of netpath, in groups: a room imports only from groups further down. `main` and `lib` are above all.
const GROUPS: [&[&str]; 7] = [
    &["cli", "face"],
    &["agent"],
    &["ops", "observe"],
    &["driver"],
    &["plan", "datapath", "link", "dns", "dhcp"],
    &["state"],
    &["model", "netlink"],
];

/// Crates that only some rooms may name: crate, and the allowed paths below `netpath/src`.
const WORDS: [(&str, &[&str]); 3] = [
    ("rtnetlink", &["link", "datapath"]),
    ("netlink_packet_route", &["link", "datapath"]),
    ("aya", &["datapath/ebpf"]),
];

/// The rungs: no other room names one.
const RUNGS: [&str; 3] = ["ebpf", "netfilter", "none"];

/// A file longer than the first limit often has a second purpose; past the second limit it nearly always has.
const LONG: usize = 500;
const TOO_LONG: usize = 700;

pub(crate) fn run() -> Result<ExitCode> {
    let findings = findings()?;
    for finding in &findings {
        println!("{finding}");
    }
    for warning in long_files()? {
        println!("warning: {warning}");
    }
    println!(
        "lint: {}",
        if findings.is_empty() { "imports point one way".to_owned() } else { format!("{} findings", findings.len()) }
    );
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Every violation of the import rules, as `file:line: …`.
///
/// # Errors
/// A source cannot be read.
pub(crate) fn findings() -> Result<Vec<String>> {
    let root = workspace::root();
    let mut found = Vec::new();
    for file in sources(&root.join("netpath/src"))? {
        let inside = file.strip_prefix(root.join("netpath/src")).unwrap_or(&file).to_owned();
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let shown = file.strip_prefix(&root).unwrap_or(&file).display().to_string();
        found.extend(in_netpath(&inside, &text).into_iter().map(|(line, what)| format!("{shown}:{line}: {what}")));
    }
    found.extend(circles::findings(&root)?);
    let tests = fs::read_to_string(root.join("tests/Cargo.toml")).context("cannot read tests/Cargo.toml")?;
    if tests.lines().any(|l| l.trim_start().starts_with("netpath ") || l.trim_start().starts_with("netpath.")) {
        found.push("tests/Cargo.toml: the tests see the netpath binary, never its library".to_owned());
    }
    Ok(found)
}

fn in_netpath(inside: &Path, text: &str) -> Vec<(usize, String)> {
    let module = module_path(inside);
    let mut found = Vec::new();
    let from = module.first().map(String::as_str).unwrap_or_default();
    // A test may build its fixtures with any room.
    let is_test = module.last().is_some_and(|m| m.ends_with("tests"));
    for (line, target) in imports(text, &module) {
        if !is_test && !may_import(from, &target) {
            found.push((line, format!("{from} may not use {target}")));
        }
    }
    if from != "datapath" {
        let below = named_below(text, "crate::datapath::").into_iter();
        let rungs = below.filter(|(_, name)| RUNGS.contains(&name.as_str()));
        found.extend(rungs.map(|(line, rung)| (line, format!("{from} may not use the {rung} rung itself"))));
    }
    let is_of_rung = RUNGS.iter().any(|rung| module.get(1).is_some_and(|m| m == rung || m == "ladder"));
    if from == "datapath" && !is_of_rung {
        let handed_on = exports(text).into_iter().filter(|(_, what)| words(what).any(|(w, _)| RUNGS.contains(&w)));
        found
            .extend(handed_on.map(|(line, what)| (line, format!("datapath may not hand on a part of a rung: {what}"))));
    }
    for (word, places) in WORDS {
        if is_test || places.iter().any(|p| inside.starts_with(p)) {
            continue;
        }
        for (number, line) in code_lines(text) {
            if words(line).any(|(w, rest)| w == word && rest.starts_with("::")) {
                found.push((number, format!("{word} stops at {}", places.join(", "))));
            }
        }
    }
    found
}

/// `datapath/ebpf/maps.rs` → datapath, ebpf, maps; `link/mod.rs` → link; `main.rs` and `lib.rs` → nothing.
fn module_path(inside: &Path) -> Vec<String> {
    let mut parts: Vec<String> =
        inside.with_extension("").components().map(|c| c.as_os_str().to_string_lossy().into_owned()).collect();
    if matches!(parts.last().map(String::as_str), Some("mod" | "main" | "lib")) {
        parts.pop();
    }
    parts
}

fn may_import(from: &str, target: &str) -> bool {
    let group = |room: &str| GROUPS.iter().position(|g| g.contains(&room));
    match (group(from), group(target)) {
        _ if from == target => true,
        (_, None) | (None, _) => true,
        // The interpreter runs against a trait that `ops` implements.
        (Some(_), Some(_)) if from == "plan" => target == "model",
        (Some(f), Some(t)) => f < t,
    }
}

/// The rooms that a source names by `crate::`, or by enough `super::` to reach the crate root.
fn imports(text: &str, module: &[String]) -> Vec<(usize, String)> {
    let mut found = named_below(text, "crate::");
    if !module.is_empty() {
        found.extend(named_below(text, &"super::".repeat(module.len())));
    }
    found
}

/// What a source names directly below the path `root`, each with its line.
fn named_below(text: &str, root: &str) -> Vec<(usize, String)> {
    let code: Vec<&str> = code_lines(text).map(|(_, line)| line).collect();
    let code = code.join("\n");
    let mut found = Vec::new();
    for (position, _) in code.match_indices(root) {
        let before = code[..position].chars().next_back();
        if before.is_some_and(|c| is_word(c) || c == ':' || c == '$') {
            continue;
        }
        let line = code[..position].matches('\n').count() + 1;
        let rest = &code[position + root.len()..];
        let names = match rest.strip_prefix('{') {
            None => first_word(rest).into_iter().collect(),
            Some(group) => heads_of_group(group),
        };
        found.extend(names.into_iter().map(|name| (line, name)));
    }
    found
}

/// What a source makes public by `use`, each with its line.
fn exports(text: &str) -> Vec<(usize, String)> {
    let code: Vec<&str> = code_lines(text).map(|(_, line)| line).collect();
    let code = code.join("\n");
    let mut found = Vec::new();
    for (position, _) in code.match_indices("pub") {
        let rest = &code[position + "pub".len()..];
        let rest = rest.strip_prefix('(').and_then(|r| r.split_once(')')).map_or(rest, |(_, after)| after);
        if let Some((path, _)) = rest.strip_prefix(" use ").and_then(|r| r.split_once(';')) {
            found.push((code[..position].matches('\n').count() + 1, path.to_owned()));
        }
    }
    found
}

/// The first path segments of `a::b, c::{d, e}, f}`: a, c and f.
fn heads_of_group(text: &str) -> Vec<String> {
    let (mut depth, mut head, mut heads) = (0usize, String::new(), Vec::new());
    for c in text.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => heads.extend(first_word(&std::mem::take(&mut head))),
            _ if depth == 0 => head.push(c),
            _ => {}
        }
    }
    heads.extend(first_word(&head));
    heads
}

fn first_word(text: &str) -> Option<String> {
    let word: String = text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!word.is_empty()).then_some(word)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The identifiers of a line, each with the text after it.
fn words(line: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = line;
    std::iter::from_fn(move || {
        let begin = rest.find(is_word)?;
        let tail = &rest[begin..];
        let end = tail.find(|c| !is_word(c)).unwrap_or(tail.len());
        rest = &tail[end..];
        Some((&tail[..end], rest))
    })
}

/// Lines without comments, numbered from 1.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(n, l)| (n + 1, l.split("//").next().unwrap_or_default()))
}

/// Files that are too long, as messages.
///
/// # Errors
/// A source cannot be read.
pub(crate) fn long_files() -> Result<Vec<String>> {
    let root = workspace::root();
    let mut found = Vec::new();
    for room in ["netpath", "netpath-common", "netpath-ebpf", "tests", "xtask"] {
        for file in sources(&root.join(room))? {
            let lines =
                fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?.lines().count();
            let shown = file.strip_prefix(&root).unwrap_or(&file).display();
            match lines {
                0..=LONG => {}
                n if n <= TOO_LONG => found.push(format!("{shown}: {n} lines; has it a second purpose?")),
                n => found.push(format!("{shown}: {n} lines; it has a second purpose")),
            }
        }
    }
    Ok(found)
}

/// Every Rust source below a directory, sorted, without build output; empty where the directory does not exist.
fn sources(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(directory) else { return Ok(found) };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_none_or(|n| n != "target") {
                found.extend(sources(&path)?);
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaches(file: &str, text: &str) -> Vec<String> {
        in_netpath(Path::new(file), text).into_iter().map(|(_, what)| what).collect()
    }

    #[test]
    fn a_room_imports_from_groups_further_down_only() {
        assert!(breaches("ops/setup.rs", "use crate::{link::veth, model::{Record, Rung}, state};").is_empty());
        assert_eq!(vec!["link may not use datapath"], breaches("link/veth.rs", "use crate::datapath::Sysctl;"));
        assert_eq!(vec!["model may not use state"], breaches("model/record.rs", "fn f(s: crate::state::Store) {}"));
        assert_eq!(
            vec!["plan may not use state"],
            breaches("plan/run.rs", "use crate::{\n    model::Record,\n    state::Lock,\n};")
        );
    }

    #[test]
    fn imports_by_super_are_seen_too() {
        assert_eq!(
            vec!["datapath may not use link"],
            breaches("datapath/ebpf/maps.rs", "use super::super::super::link;")
        );
        assert!(breaches("datapath/ebpf/maps.rs", "use super::super::Sysctl;").is_empty());
    }

    #[test]
    fn no_other_room_names_a_rung() {
        let text = "use crate::datapath::ebpf::pins::Pins;\nuse crate::datapath::{self, filter};";
        assert_eq!(vec!["ops may not use the ebpf rung itself"], breaches("ops/gc.rs", text));
        assert!(breaches("datapath/filter/nf.rs", "use crate::datapath::netfilter::nfnetlink;").is_empty());
        assert_eq!(1, breaches("ops/gc.rs", "use crate::datapath::{\n    filter, netfilter::nfnetlink,\n};").len());
        assert!(breaches("ops/gc.rs", "use crate::datapath::nonexistent::x;").is_empty());
    }

    #[test]
    fn the_datapath_hands_on_no_part_of_a_rung() {
        let of = |path: &str| vec![format!("datapath may not hand on a part of a rung: {path}")];
        assert_eq!(of("ebpf::dns::Sockets"), breaches("datapath/mod.rs", "pub use ebpf::dns::Sockets;"));
        let text = "pub(in crate::datapath) use super::netfilter::{\n    adopt,\n};";
        assert_eq!(of("super::netfilter::{\n    adopt,\n}"), breaches("datapath/promote/mod.rs", text));
        assert!(breaches("datapath/mod.rs", "use ebpf::x;\npub use inspect::Inspect;\npub mod ebpf;").is_empty());
        assert!(breaches("datapath/ladder.rs", "pub use super::ebpf::BACKEND;").is_empty());
        assert!(breaches("datapath/netfilter/x.rs", "pub(crate) use super::netfilter::y;").is_empty());
    }

    #[test]
    fn main_comments_and_other_crates_are_left_alone() {
        assert!(breaches("main.rs", "use netpath::face; use crate::cli;").is_empty());
        assert!(breaches("model/mod.rs", "// see crate::ops\nuse other_crate::ops;").is_empty());
    }

    #[test]
    fn restricted_crates_stay_in_their_rooms() {
        assert_eq!(vec!["aya stops at datapath/ebpf"], breaches("ops/mod.rs", "use aya::Ebpf;"));
        assert!(breaches("datapath/ebpf/load.rs", "use aya::Ebpf;").is_empty());
        assert_eq!(1, breaches("state/pins.rs", "let h = rtnetlink::new_connection();").len());
    }
}
