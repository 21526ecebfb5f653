//! Circles of imports among the modules of one directory.

use super::{named_below, sources};
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::Path;

/// Directories whose modules import each other in one direction, each with the path of its root module below `crate`.
const DIRECTORIES: [(&str, &[&str]); 5] = [
    ("netpath/src/datapath/ebpf", &["datapath", "ebpf"]),
    ("netpath/src/datapath/netfilter", &["datapath", "netfilter"]),
    ("netpath/src/datapath/promote/rules", &["datapath", "promote", "rules"]),
    ("netpath/src/ops", &["ops"]),
    ("netpath-ebpf/src", &[]),
];

/// The root module, for what its children import from it.
const ROOT: &str = "mod";

/// Each module with the modules that it imports.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// One message per circle.
pub(super) fn findings(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for (directory, above) in DIRECTORIES {
        let circles = circles(&graph(&root.join(directory), above)?).into_iter().map(|circle| circle.join(" → "));
        found.extend(circles.map(|circle| format!("{directory}: imports form a circle: {circle}")));
    }
    Ok(found)
}

fn graph(directory: &Path, above: &[&str]) -> Result<Graph> {
    let mut texts: BTreeMap<String, String> = BTreeMap::new();
    for file in sources(directory)? {
        let inside = file.strip_prefix(directory).unwrap_or(&file);
        let stem = inside.with_extension("");
        let parts: Vec<String> = stem.components().map(|c| c.as_os_str().to_string_lossy().into_owned()).collect();
        let is_test = parts.iter().any(|p| p.ends_with("tests"));
        let Some(module) = parts.first().filter(|m| !is_test && !["mod", "main", "lib"].contains(&m.as_str())) else {
            continue;
        };
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let depth = parts.len() - usize::from(parts.last().is_some_and(|p| p == "mod"));
        let all = texts.entry(module.clone()).or_default();
        // As a path from the crate, whatever the file says.
        let parent = above.iter().map(|a| format!("{a}::")).collect::<String>();
        let text = without_tests(&text).replace(&"super::".repeat(depth), &format!("crate::{parent}"));
        all.push_str(&text);
        all.push('\n');
    }
    let root = format!("crate::{}", above.iter().map(|a| format!("{a}::")).collect::<String>());
    let modules: BTreeSet<String> = texts.keys().cloned().collect();
    let import = |(module, text): (String, String)| {
        let all = named_below(&text, &root).into_iter().map(|(_, name)| name);
        // A path that leads further up.
        let inside = all.filter(|name| name != "crate");
        let named = inside.map(|name| if modules.contains(&name) { name } else { ROOT.to_owned() });
        let others: BTreeSet<String> = named.filter(|name| *name != module).collect();
        (module, others)
    };
    let mut graph: Graph = texts.into_iter().map(import).collect();
    graph.insert(ROOT.to_owned(), modules.clone());
    Ok(graph)
}

/// Up to the tests at the end, which may import anything.
fn without_tests(text: &str) -> &str {
    text.split("\n#[cfg(test)]").next().unwrap_or_default()
}

/// The shortest circle of each group of modules that all lead to each other.
fn circles(graph: &Graph) -> Vec<Vec<String>> {
    let mut reported: BTreeSet<&str> = BTreeSet::new();
    let mut circles = Vec::new();
    for module in graph.keys().filter(|m| *m != ROOT) {
        if reported.contains(module.as_str()) {
            continue;
        }
        if let Some(circle) = shortest(graph, module) {
            circles.push(circle.into_iter().map(str::to_owned).collect());
            let ahead = reached(graph, module);
            reported.extend(ahead.into_iter().filter(|other| reached(graph, other).contains(module.as_str())));
        }
    }
    circles
}

/// All modules that `module` imports, directly or not.
fn reached<'a>(graph: &'a Graph, module: &'a str) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    let mut open = vec![module];
    while let Some(at) = open.pop() {
        open.extend(graph.get(at).into_iter().flatten().map(String::as_str).filter(|next| found.insert(*next)));
    }
    found
}

/// From `module` back to it.
fn shortest<'a>(graph: &'a Graph, module: &'a str) -> Option<Vec<&'a str>> {
    let mut before: BTreeMap<&str, &str> = BTreeMap::new();
    let mut queue = VecDeque::from([module]);
    while let Some(at) = queue.pop_front() {
        for next in graph.get(at).into_iter().flatten() {
            if next == module {
                let mut circle = vec![module, at];
                while let Some(earlier) = circle.last().and_then(|last| before.get(last)) {
                    circle.push(earlier);
                }
                circle.reverse();
                return Some(circle);
            }
            if !before.contains_key(next.as_str()) {
                before.insert(next, at);
                queue.push_back(next);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph_of(edges: &[(&str, &[&str])]) -> Graph {
        let names = |all: &[&str]| all.iter().map(|s| (*s).to_owned()).collect();
        edges.iter().map(|(module, imports)| ((*module).to_owned(), names(imports))).collect()
    }

    #[test]
    fn a_circle_is_found_with_its_modules_and_a_tree_has_none() {
        let tree = graph_of(&[("mod", &["a", "b"]), ("a", &["b", "c"]), ("b", &["c"]), ("c", &[])]);
        assert!(circles(&tree).is_empty());
        let circle = graph_of(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"]), ("d", &["a"])]);
        assert_eq!(vec![vec!["b", "c", "b"]], circles(&circle));
        let tangle = graph_of(&[("a", &["b", "c"]), ("b", &["a"]), ("c", &["d"]), ("d", &["a"])]);
        assert_eq!(1, circles(&tangle).len());
        let by_root = graph_of(&[("mod", &["a"]), ("a", &["mod"])]);
        assert_eq!(vec![vec!["a", "mod", "a"]], circles(&by_root));
    }

    #[test]
    fn imports_are_found_in_groups_and_paths_and_not_in_tests() {
        let text = "use crate::x::{a, b::{c, d}};\nfn f() { crate::x::e::g(); $crate::x::h(); }\n// crate::x::i\n\n#[cfg(test)]\nuse crate::x::j;";
        let names: Vec<String> = named_below(without_tests(text), "crate::x::").into_iter().map(|(_, n)| n).collect();
        assert_eq!(vec!["a", "b", "e"], names);
    }
}
