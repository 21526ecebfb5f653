//! Decides whether a refusal names the change of a document.
//!
//! Three classes of input:
//!
//! * bytes that are not UTF-8 text: the error names the index of the first bad byte;
//! * text that is not JSON, such as a truncated document: the error names line and column;
//! * JSON: the error names the path of a changed field, of its parent, or of a part of it. A field that must suit others
//!   ([`RELATED`]) may be reported at any field of its network or port mapping. A rejection by the kernel has no path: the error
//!   names a kernel object, or the field's new value.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// A change to a document.
#[derive(Default, Debug)]
pub(crate) struct Change {
    /// The fields, as errors write them: `networks[0].static_ips[1]`, `network_info.front.driver`.
    pub paths: Vec<String>,
    /// New values of type string.
    pub values: Vec<String>,
    /// Description for a failure message.
    pub what: String,
}

/// Fields that may be valid by themselves and conflict with others.
const RELATED: [&str; 11] = [
    "host_port",
    "container_port",
    "subnets",
    "subnet",
    "gateway",
    "name",
    "routes",
    "static_ips",
    "interface_name",
    "host_interface_name",
    "network_interface",
];

/// Words of the errors about kernel objects that are made from a document.
const OBJECTS: [&str; 6] = ["bridge", "interface", "host_interface_name", "address", "veth", "route"];

/// # Errors
/// The refusal does not name it.
pub(crate) fn names_the_change(error: &str, input: &[u8], changes: &[Change]) -> Result<()> {
    let text = match std::str::from_utf8(input) {
        Ok(text) => text,
        Err(e) => {
            let place = format!("index {}", e.valid_up_to());
            ensure!(error.contains("utf-8") && error.contains(&place), "the error does not name {place}: {error}");
            return Ok(());
        }
    };
    let document: Value = match serde_json::from_str(text) {
        Ok(document) => document,
        Err(e) => {
            let place = format!("line {} column {}", e.line(), e.column());
            ensure!(error.contains("not JSON") && error.contains(&place), "the error does not name {place}: {error}");
            return Ok(());
        }
    };
    let changed: Vec<&String> = changes.iter().flat_map(|c| &c.paths).collect();
    let named = named_paths(error);
    if named.is_empty() {
        let values = changes.iter().flat_map(|c| &c.values).filter(|v| v.len() > 1);
        let said =
            values.map(String::as_str).any(|v| error.contains(v)) || OBJECTS.iter().any(|o| is_a_word_of(error, o));
        ensure!(
            said,
            "the error names neither a field nor an object, nor a value of what was changed, {changed:?}: {error}"
        );
        return Ok(());
    }
    let so = named.iter().any(|n| changed.iter().any(|c| is_about(n, c, &document)));
    ensure!(so, "the error names {named:?}, but what was changed is {changed:?}: {error}");
    Ok(())
}

/// The paths at the start of the mistakes of a text: `…input: networks[0].name: it is missing; dns_servers: …`.
fn named_paths(error: &str) -> Vec<String> {
    const TOP: [&str; 7] = [
        "container_id",
        "container_name",
        "container_hostname",
        "dns_servers",
        "port_mappings",
        "networks",
        "network_info",
    ];
    let Some((_, mistakes)) = error.split_once("network options: ") else { return Vec::new() };
    let mut named = Vec::new();
    for mistake in mistakes.split("; ") {
        if mistake.starts_with("the document: ") {
            named.push(String::new());
        }
        let Some((path, _)) = mistake.split_once(": ") else { continue };
        if TOP.contains(&keys(path).first().copied().unwrap_or_default()) {
            named.push(path.to_owned());
        }
    }
    named
}

fn is_about(named: &str, changed: &str, document: &Value) -> bool {
    if holds(named, changed) || holds(changed, named) {
        return true;
    }
    let of_one_network = network(changed, document).is_some_and(|n| network(named, document) == Some(n));
    // Of the items of a list, only subnets can conflict with each other.
    let is_another = last_key(named) != last_key(changed) || last_key(changed).starts_with("subnet");
    if RELATED.contains(&last_key(changed)) && is_another {
        // Two attachments can conflict in interfaces and bridges.
        let item = |path: &str| path.split('.').next().map(str::to_owned);
        let of_interfaces = last_key(changed).ends_with("interface_name") || last_key(changed) == "network_interface";
        return of_interfaces || of_one_network || item(named) == item(changed);
    }
    // A network that was removed or replaced: its other half is wrong with it.
    keys(changed).len() <= 2 && of_one_network
}

/// Whether `outer` is `inner` or an ancestor of it.
fn holds(outer: &str, inner: &str) -> bool {
    inner.strip_prefix(outer).is_some_and(|rest| outer.is_empty() || rest.is_empty() || rest.starts_with(['.', '[']))
}

/// The keys of a path, without indexes.
fn keys(path: &str) -> Vec<&str> {
    path.split('.').map(|part| part.split('[').next().unwrap_or(part).trim_matches('"')).collect()
}

fn last_key(path: &str) -> &str {
    keys(path).last().copied().unwrap_or_default()
}

/// The name of the network that a path leads into.
fn network<'a>(path: &'a str, document: &'a Value) -> Option<&'a str> {
    if let Some(index) = path.strip_prefix("networks[").and_then(|rest| rest.split(']').next()) {
        return document["networks"][index.parse::<usize>().ok()?]["name"].as_str();
    }
    let keys = keys(path);
    matches!(keys.first(), Some(&"networks" | &"network_info")).then(|| keys.get(1).copied()).flatten()
}

/// How errors write a JSON pointer into `document`.
pub(crate) fn path(document: &Value, pointer: &str) -> String {
    let (mut path, mut value) = (String::new(), document);
    for part in pointer.split('/').skip(1) {
        value = match value {
            Value::Array(items) => {
                path += &format!("[{part}]");
                part.parse::<usize>().ok().and_then(|i| items.get(i)).unwrap_or(&Value::Null)
            }
            other => {
                path = below(&path, part);
                &other[part]
            }
        };
    }
    path
}

fn below(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// The paths at which two documents differ.
pub(crate) fn differences(one: &Value, other: &Value) -> Vec<String> {
    fn collect(one: &Value, other: &Value, at: &str, all: &mut Vec<String>) {
        match (one, other) {
            (Value::Object(a), Value::Object(b)) => {
                for key in a.keys().chain(b.keys().filter(|k| !a.contains_key(*k))) {
                    let null = Value::Null;
                    collect(a.get(key).unwrap_or(&null), b.get(key).unwrap_or(&null), &below(at, key), all);
                }
            }
            (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
                a.iter().zip(b).enumerate().for_each(|(i, (a, b))| collect(a, b, &format!("{at}[{i}]"), all));
            }
            _ if one == other => {}
            _ => all.push(at.to_owned()),
        }
    }
    let mut all = Vec::new();
    collect(one, other, "", &mut all);
    all
}

/// `id` is a word of "networks[0].id: …" and none of "invalid".
fn is_a_word_of(text: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + word.len()..]);
        !before.chars().next_back().is_some_and(part) && !after.chars().next().is_some_and(part)
    })
}

#[test]
fn an_error_about_another_field_names_no_change() -> Result<()> {
    let input = serde_json::json!({"networks": {"front": {}}, "network_info": {"front": {}, "back": {}}}).to_string();
    let change = |path: &str| [Change { paths: vec![path.to_owned()], ..Change::default() }];
    let names = |error: &str, path: &str| {
        names_the_change(
            &format!("failed to load network options: {error}; nothing was changed"),
            input.as_bytes(),
            &change(path),
        )
    };
    names("network_info.front.driver: it is missing", "network_info.front.driver").context("itself")?;
    names("network_info.front.routes[0]: wrong", "network_info.front.routes[0].metric").context("what holds it")?;
    names("networks.front.static_ips[0]: in none", "network_info.front.subnets[0].subnet").context("beside it")?;
    for (error, path) in [
        ("network_info.front.driver: it is missing", "network_info.front.internal"),
        ("network_info.front.driver: it is missing", "network_info.back.driver"),
        ("networks.front.static_ips[0]: in none", "network_info.back.subnets[0].subnet"),
        ("networks.front.static_ips[10]: wrong", "networks.front.static_ips[1]"),
        ("dns_servers[0]: wrong", "port_mappings[0].range"),
    ] {
        ensure!(names(error, path).is_err(), "{error} is taken for one about {path}");
    }
    let cut = &input.as_bytes()[..20];
    let told = "failed to load network options: it is not JSON: EOF while parsing an object at line 1 column 20";
    names_the_change(told, cut, &[])?;
    ensure!(names_the_change(&told.replace("20", "19"), cut, &[]).is_err(), "another column");
    Ok(())
}
