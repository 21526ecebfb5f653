//! What a setup has made, as values by their place: links, addresses, routes, sysctls, DNS files, the answer.

use anyhow::Result;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use support::host::Netns;

pub(super) type Values = BTreeMap<String, String>;

/// Fields of a link that a driver decides.
const LINK: [&str; 7] = ["flags", "mtu", "txqlen", "group", "promiscuity", "allmulti", "ifalias"];
const INFO: [&str; 8] =
    ["mode", "flags", "bcqueuelen", "vlan_filtering", "stp_state", "mcast_snooping", "forward_delay", "ageing_time"];
const ROUTE: [&str; 9] = ["type", "gateway", "dev", "protocol", "scope", "prefsrc", "metric", "table", "pref"];

/// The place of the host's namespace.
pub(super) const HOST: &str = "host";

/// Whose hardware addresses can be compared, and the places of links in one namespace.
pub(super) struct Eye<'a> {
    pub pinned: &'a BTreeSet<String>,
}

impl Eye<'_> {
    /// The values of a namespace, below `place`.
    pub(super) fn look(&self, netns: &Netns, place: &str, all: &mut Values) -> Result<()> {
        let links = netns.ip_json(&["address", "show"])?;
        let links: Vec<&Value> = links.as_array().into_iter().flatten().collect();
        let names = names(&links);
        // An engine's interfaces come in the order of the document; the host's are not promised.
        let order: Vec<&str> = links.iter().filter_map(|l| Some(names.get(text(&l["ifname"]))?.as_str())).collect();
        if place != HOST {
            all.insert(format!("{place}/order of links"), order.join(" "));
        }
        for link in &links {
            let Some(name) = names.get(text(&link["ifname"])) else { continue };
            self.link(link, &names, &format!("{place}/{name}"), all);
        }
        for family in ["-4", "-6"] {
            routes(netns, family, &names, &format!("{place}/route"), all)?;
        }
        let real: Vec<(&str, &String)> = names.iter().map(|(real, name)| (real.as_str(), name)).collect();
        netns.run(|| {
            for (real, name) in real {
                for family in ["ipv4", "ipv6"] {
                    let dir = format!("/proc/sys/net/{family}/conf/{real}");
                    sysctls(Path::new(&dir), &format!("{place}/{name}/{family}"), all);
                }
            }
            for (family, shared) in [("ipv4", "all"), ("ipv4", "default"), ("ipv6", "all"), ("ipv6", "default")] {
                let dir = format!("/proc/sys/net/{family}/conf/{shared}");
                sysctls(Path::new(&dir), &format!("{place}/conf {shared}/{family}"), all);
            }
            sysctls(Path::new("/proc/sys/net/ipv4"), &format!("{place}/ipv4"), all);
        });
        Ok(())
    }

    fn link(&self, link: &Value, names: &BTreeMap<String, String>, place: &str, all: &mut Values) {
        let mut put = |what: &str, value: &Value| {
            if !value.is_null() {
                all.insert(format!("{place}/{what}"), plain(value));
            }
        };
        for field in LINK {
            put(field, &link[field]);
        }
        let info = &link["linkinfo"];
        put("kind", &info["info_kind"]);
        for field in INFO {
            put(&format!("{field} of its kind"), &info["info_data"][field]);
        }
        for field in ["isolated", "hairpin", "learning", "flood"] {
            put(&format!("port {field}"), &info["info_slave_data"][field]);
        }
        if info["info_kind"] == "macvlan" {
            put("parent", &link["link_index"]);
        }
        put("mac", &self.mac(&link["address"]).into());
        put("master", &names.get(text(&link["master"])).map_or("", String::as_str).into());
        for address in link["addr_info"].as_array().into_iter().flatten().filter(|a| a["scope"] != "link") {
            let net = format!("{}/{}", text(&address["local"]), address["prefixlen"]);
            for field in ["scope", "broadcast", "noprefixroute", "label", "valid_life_time"] {
                // A label is a name.
                let is_label = field == "label" && address["label"] == link["ifname"];
                put(&format!("address {net}/{field}"), if is_label { &Value::Null } else { &address[field] });
            }
        }
    }

    fn mac(&self, value: &Value) -> String {
        let mac = text(value).to_lowercase();
        if self.pinned.contains(&mac) || mac == "00:00:00:00:00:00" { mac } else { "the kernel's".to_owned() }
    }

    /// The leaves of an answer.
    pub(super) fn answer(&self, value: &Value, place: &str, all: &mut Values) {
        match value {
            Value::Object(map) => {
                map.iter().for_each(|(key, value)| match key.as_str() {
                    "mac_address" => drop(all.insert(format!("{place}/{key}"), self.mac(value))),
                    _ => self.answer(value, &format!("{place}/{key}"), all),
                });
                let keys: BTreeSet<&str> = map.keys().map(String::as_str).collect();
                all.insert(format!("{place} keys"), keys.into_iter().collect::<Vec<_>>().join(" "));
            }
            Value::Array(list) => {
                list.iter().enumerate().for_each(|(n, value)| self.answer(value, &format!("{place}/{n}"), all));
                all.insert(format!("{place} length"), list.len().to_string());
            }
            leaf => drop(all.insert(place.to_owned(), leaf.to_string())),
        }
    }
}

/// By the real name, a name that is the same on both hosts: the kernel's for veths are the bridge's and a number.
fn names(links: &[&Value]) -> BTreeMap<String, String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut names = BTreeMap::new();
    for link in links {
        let (real, master) = (text(&link["ifname"]), text(&link["master"]));
        let is_kernels = real.strip_prefix("veth").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_hexdigit()));
        let count = counts.entry(master).or_default();
        let name = if is_kernels { format!("veth {count} of {master}") } else { real.to_owned() };
        *count += usize::from(is_kernels);
        names.insert(real.to_owned(), name);
    }
    names
}

fn routes(netns: &Netns, family: &str, names: &BTreeMap<String, String>, place: &str, all: &mut Values) -> Result<()> {
    let found = netns.ip_json(&[family, "route", "show", "table", "all"])?;
    for route in found.as_array().into_iter().flatten() {
        let destination = text(&route["dst"]);
        // The kernel's own: of addresses that are compared, and of link-local ones.
        if route["table"] == "local" || destination.starts_with("fe80") || destination.starts_with("ff00") {
            continue;
        }
        let field = |f: &&str| -> Option<String> {
            let value = route.get(*f)?;
            let value = if *f == "dev" {
                names.get(text(value)).map_or(text(value), String::as_str).into()
            } else {
                plain(value)
            };
            Some(format!("{f} {value}"))
        };
        let fields: Vec<String> = ROUTE.iter().filter_map(field).collect();
        let at = format!("{place} {destination}");
        // Several routes to one destination, in the kernel's order.
        all.entry(at).and_modify(|v| *v = format!("{v}; {}", fields.join(" "))).or_insert_with(|| fields.join(" "));
    }
    Ok(())
}

/// The files of a directory, in the namespace of the calling thread.
fn sysctls(dir: &Path, place: &str, all: &mut Values) {
    for file in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if file.file_type().is_ok_and(|t| t.is_file())
            && let Ok(value) = std::fs::read_to_string(file.path())
        {
            all.insert(format!("{place}/{}", file.file_name().to_string_lossy()), value.trim().to_owned());
        }
    }
}

/// The files of DNS servers.
pub(super) fn dns_files(config: &Path, all: &mut Values) {
    for file in std::fs::read_dir(config.join("aardvark-dns")).into_iter().flatten().flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        if let Ok(content) = std::fs::read_to_string(file.path())
            && name != "aardvark.pid"
        {
            all.insert(format!("dns/{name}"), content.trim_end().to_owned());
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Lists are sorted: flags have no order.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => {
            let mut words: Vec<String> = list.iter().map(plain).collect();
            words.sort();
            words.join(" ")
        }
        other => other.to_string(),
    }
}
