//! Decides whether a refusal names the change of a document.
//!
//! Three classes of input:
//!
//! * bytes that are not UTF-8 text: the error names the index of the first bad byte;
//! * text that is not JSON, such as a truncated document: the error names line and column;
//! * JSON: the error names the path of a changed field, of its parent, or of a part of it. A field may be valid by itself and
//!   conflict with another: [`BESIDE`] lists these pairs. A rejection by the kernel has no path: the error names the kernel
//!   object of the field ([`OBJECTS`]), or the field's new value.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// A change to a document.
#[derive(Default, Debug)]
pub struct Change {
    /// The fields, as errors write them: `networks[0].static_ips[1]`, `network_info.front.driver`.
    pub paths: Vec<String>,
    /// New values of type string.
    pub values: Vec<String>,
    /// Description for a failure message.
    pub what: String,
}

/// The whole of one attachment: `networks[0]`, `networks.front`.
const ATTACHMENT: &str = "";

/// A changed field, and the fields at which its error is reported. Only within one network, or between two where they share a
/// host.
const BESIDE: [(&str, &[&str]); 11] = [
    // The end of a port range depends on its start.
    ("host_port", &["range"]),
    ("container_port", &["range"]),
    // Addresses, gateways and routes must lie in subnets, and an MTU depends on their family.
    ("subnets", &["static_ips", "subnets", "routes", "mtu", ATTACHMENT]),
    ("subnet", &["static_ips", "subnets", "routes", "mtu", ATTACHMENT]),
    // A container cannot have the gateway's address; a default route exists.
    ("gateway", &["static_ips", "subnets", "routes", ATTACHMENT]),
    // An attachment without its network, which has another name now.
    ("name", &[ATTACHMENT]),
    // A route needs an address beside its gateway.
    ("routes", &[ATTACHMENT]),
    ("static_ips", &[ATTACHMENT]),
    // Two attachments with the same name: reported at the second.
    ("interface_name", &[ATTACHMENT]),
    ("host_interface_name", &[ATTACHMENT]),
    ("network_interface", &[ATTACHMENT]),
];

/// A changed field, and the kernel object created from it.
const OBJECTS: [(&str, &[&str]); 8] = [
    ("network_interface", &["bridge"]),
    ("subnets", &["bridge", "address"]),
    ("interface_name", &["interface"]),
    ("host_interface_name", &["host_interface_name"]),
    ("static_ips", &["address"]),
    ("static_mac", &["veth"]),
    ("routes", &["route"]),
    ("mtu", &["veth", "bridge"]),
];

/// # Errors
/// The refusal does not name it.
pub fn names_the_change(error: &str, input: &[u8], changes: &[Change]) -> Result<()> {
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
        let said = values.map(String::as_str).any(|v| error.contains(v))
            || changed.iter().any(|c| objects_of(c).iter().any(|o| is_a_word_of(error, o)));
        ensure!(said, "the error names no field, and neither object nor value of a changed one, {changed:?}: {error}");
        return Ok(());
    }
    let so = named.iter().any(|n| changed.iter().any(|c| is_about(n, c, &document)));
    ensure!(so, "the error names {named:?}, but what was changed is {changed:?}: {error}");
    Ok(())
}

/// The paths at the start of the mistakes of a text: `…input: networks[0].name: it is missing; dns_servers: …`.
fn named_paths(error: &str) -> Vec<String> {
    const TOP: [&str; 6] =
        ["container_id", "container_name", "dns_servers", "port_mappings", "networks", "network_info"];
    let Some((_, mistakes)) = error.split_once("input: ") else { return Vec::new() };
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
    let beside = BESIDE.iter().filter(|(field, _)| last_key(changed) == *field);
    let attachment = keys(named)[0] == "networks" && !named.replacen("networks.", "", 1).contains('.');
    if beside.flat_map(|(_, at)| *at).any(|at| if at.is_empty() { attachment } else { keys(named).contains(at) }) {
        // Two attachments can conflict in interfaces and bridges; other errors concern one network, or one published port.
        let item = |path: &str| path.split('.').next().map(str::to_owned);
        return last_key(changed).ends_with("interface_name")
            || last_key(changed) == "network_interface"
            || network(changed, document)
                .map_or(item(named) == item(changed), |n| network(named, document) == Some(n));
    }
    // A network that was removed or replaced: its other half is wrong with it.
    keys(changed).len() <= 2 && network(named, document).is_some_and(|n| Some(n) == network(changed, document))
}

/// Whether `outer` is `inner` or an ancestor of it.
fn holds(outer: &str, inner: &str) -> bool {
    inner.strip_prefix(outer).is_some_and(|rest| outer.is_empty() || rest.is_empty() || rest.starts_with(['.', '[']))
}

fn objects_of(path: &str) -> Vec<&'static str> {
    let keys = keys(path);
    let of_it = OBJECTS.iter().filter(|(field, _)| keys.contains(field));
    of_it.flat_map(|(_, objects)| *objects).copied().collect()
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
pub fn path(document: &Value, pointer: &str) -> String {
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
pub fn differences(one: &Value, other: &Value) -> Vec<String> {
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
            &format!("cannot read setup input: {error}; nothing was changed"),
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
    let told = "cannot read setup input: it is not JSON: EOF while parsing an object at line 1 column 20";
    names_the_change(told, cut, &[])?;
    ensure!(names_the_change(&told.replace("20", "19"), cut, &[]).is_err(), "another column");
    Ok(())
}
