//! State of a host namespace and of the machine's shared places, read without netpath's own code: any difference between before
//! and after is a leftover.
//!
//! Other tests run at the same time, so this covers only objects of one topology: its namespaces, the directories named by its
//! cookie, and BPF programs and maps whose `np_cfg` holds it.

use crate::host::{Netns, SOON, wait_for};
use crate::need;
use crate::netavark::is_incumbent;
use crate::topology::{Container, Topology, state_dirs};
use anyhow::{Result, bail};
use aya::maps::{Array, Map, MapData, loaded_maps};
use aya::programs::loaded_programs;
use netpath_common::layout::{Config, name};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Objects by kind. One line per object, printed by a failing test.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot(BTreeMap<&'static str, BTreeSet<String>>);

impl Snapshot {
    /// # Errors
    /// `ip` or another program of the machine fails.
    pub fn take(topology: &Topology, containers: &[&Container]) -> Result<Self> {
        let host = &topology.host;
        let mut all = BTreeMap::new();
        let mut put = |kind, lines: BTreeSet<String>| drop(all.insert(kind, lines));
        put("link", links(host)?);
        put("address", addresses(host)?);
        put("route", routes(host)?);
        put("rule", rules(host)?);
        put("qdisc", qdiscs(host)?);
        put("netfilter", netfilter(host)?);
        put("sysctl", sysctls(host));
        let cookie = format!("{:x}", host.cookie());
        // The agent creates its log and its socket at any time, and rewrites its list of served containers at its first look.
        const ITS_OWN: [&str; 4] = ["/agent.log", "/agent.sock", "/served", "/dns"];
        let state = whole_files(&cookie).into_iter();
        put("state", state.filter(|f| !ITS_OWN.iter().any(|own| f.ends_with(own))).collect());
        // Netavark keeps this one for ever too: a locked file cannot be removed without a race.
        let kept = topology.config_dir().join("aardvark.lock").display().to_string();
        put("config", files(&topology.config_dir()).into_iter().filter(|f| *f != kept).collect());
        put("bpf", bpf_objects(host.cookie()));
        put("process", processes(host, containers));
        let mut inside = BTreeSet::new();
        for container in containers {
            inside.extend(links(container)?.into_iter().chain(addresses(container)?).filter(|l| !l.starts_with("lo ")));
            // Those of `lo` appear when setup brings it up, which is not undone.
            inside.extend(
                routes(container)?.into_iter().filter(|l| !l.contains(" table local ") && !l.contains("4294967295")),
            );
        }
        put("container", inside);
        Ok(Self(all))
    }

    /// `+` for lines that only `later` has, `-` for lines that it lacks.
    pub fn difference(&self, later: &Self) -> Vec<String> {
        let empty = BTreeSet::new();
        let mut lines = Vec::new();
        for (kind, after) in &later.0 {
            let before = self.0.get(kind).unwrap_or(&empty);
            lines.extend(after.difference(before).map(|l| format!("+ {kind} {l}")));
            lines.extend(before.difference(after).map(|l| format!("- {kind} {l}")));
        }
        lines
    }

    /// The lines of one kind.
    pub fn of(&self, kind: &str) -> Vec<&str> {
        self.0.get(kind).into_iter().flatten().map(String::as_str).collect()
    }
}

/// Compares one topology at its creation and its end.
pub struct Residue {
    before: Snapshot,
}

impl Residue {
    /// Call it before the first setup.
    ///
    /// # Errors
    /// As [`Snapshot::take`].
    pub fn watch(topology: &Topology) -> Result<Self> {
        Ok(Self { before: Snapshot::take(topology, &[])? })
    }

    /// Checks that everything is as before. Waits a little, as the kernel frees programs and links asynchronously.
    ///
    /// # Errors
    /// The leftovers and missing objects, line by line.
    pub fn nothing_left(&self, topology: &Topology, containers: &[&Container]) -> Result<()> {
        self.nothing_left_of(topology, containers, |_| true)
    }

    /// The same for the lines for which `counts` is true: others may have changed the host meanwhile.
    ///
    /// # Errors
    /// As [`Residue::nothing_left`].
    pub fn nothing_left_of(
        &self,
        topology: &Topology,
        containers: &[&Container],
        counts: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let mut last = Vec::new();
        let settled = wait_for("an empty host", SOON / 2, || match Snapshot::take(topology, containers) {
            Ok(now) => {
                last = self.before.difference(&now);
                last.retain(|l| counts(l) && !follows_forwarding(l) && !is_late_route(l));
                if is_incumbent() {
                    // Netavark leaves its empty chains, its sysctls and its directories behind.
                    last.retain(|l| !["netfilter", "sysctl", "config"].iter().any(|kind| l[2..].starts_with(kind)));
                }
                last.is_empty().then_some(())
            }
            Err(e) => {
                last = vec![format!("{e:#}")];
                None
            }
        });
        if settled.is_err() {
            bail!("left behind or missing:\n  {}", last.join("\n  "));
        }
        Ok(())
    }
}

fn text(value: &Value, key: &str) -> String {
    match &value[key] {
        Value::Null => String::new(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

fn each(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten().filter(|v| v.as_object().is_some_and(|o| !o.is_empty()))
}

fn links(netns: &Netns) -> Result<BTreeSet<String>> {
    let found = netns.ip_json(&["link", "show"])?;
    let line = |l: &Value| {
        format!(
            "{} mtu {} master {:?} mac {}",
            text(l, "ifname"),
            text(l, "mtu"),
            text(l, "master"),
            text(l, "address")
        )
    };
    Ok(each(&found).map(line).collect())
}

/// Without IPv6 link-local addresses: the kernel adds them asynchronously.
fn addresses(netns: &Netns) -> Result<BTreeSet<String>> {
    let found = netns.ip_json(&["address", "show"])?;
    let of_link = |link: &Value| {
        let name = text(link, "ifname");
        let of_address = |a: &Value| format!("{name} {}/{}", text(a, "local"), text(a, "prefixlen"));
        each(&link["addr_info"]).map(of_address).filter(|l| !l.contains(" fe80:")).collect::<Vec<String>>()
    };
    Ok(each(&found).flat_map(of_link).collect())
}

fn routes(netns: &Netns) -> Result<BTreeSet<String>> {
    let mut lines = BTreeSet::new();
    for family in ["-4", "-6"] {
        let found = netns.ip_json(&[family, "route", "show", "table", "all"])?;
        for r in each(&found) {
            let dst = text(r, "dst");
            // These come and go with the link-local addresses.
            if dst.starts_with("fe80:") || dst.starts_with("ff00:") || text(r, "type") == "anycast" {
                continue;
            }
            let keys = ["type", "dev", "gateway", "table", "metric", "protocol", "prefsrc"];
            let rest: Vec<String> = keys.iter().map(|k| format!("{k} {}", text(r, k))).collect();
            lines.insert(format!("{family} {dst} {}", rest.join(" ")));
        }
    }
    Ok(lines)
}

fn rules(netns: &Netns) -> Result<BTreeSet<String>> {
    let mut lines = BTreeSet::new();
    for family in ["-4", "-6"] {
        lines.extend(each(&netns.ip_json(&[family, "rule", "show"])?).map(|r| format!("{family} {r}")));
    }
    Ok(lines)
}

fn qdiscs(netns: &Netns) -> Result<BTreeSet<String>> {
    let mut lines = BTreeSet::new();
    for line in netns.command("tc", &["qdisc", "show"])?.lines() {
        // "qdisc noqueue 0: dev lo root refcnt 2": default qdiscs are shown with their link.
        if line.contains("clsact") || line.contains("ingress") {
            lines.insert(line.to_owned());
        }
    }
    Ok(lines)
}

/// Rules and chains of iptables in both variants and both families, and tables of nftables that are not iptables' own. Base
/// chains without a rule, which the first `iptables` call creates, do not count.
pub fn netfilter(netns: &Netns) -> Result<BTreeSet<String>> {
    let mut lines = BTreeSet::new();
    for save in ["iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save"] {
        if need::program(save).is_err() {
            continue;
        }
        let mut table = String::new();
        for line in netns.command(save, &[])?.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name.to_owned();
            }
            // ":FORWARD ACCEPT [0:0]" is a base chain, ":NAME - [0:0]" is a user-defined one.
            let chain =
                line.strip_prefix(':').and_then(|l| l.split_once(' ')).filter(|(_, rest)| rest.starts_with('-'));
            if line.starts_with("-A") {
                lines.insert(format!("{save} {table} {line}"));
            } else if let Some((name, _)) = chain {
                lines.insert(format!("{save} {table} chain {name}"));
            }
        }
    }
    if need::program("nft").is_ok() {
        const OF_IPTABLES: [&str; 5] = ["filter", "nat", "mangle", "raw", "security"];
        for line in netns.command("nft", &["list", "tables"])?.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [_, family, name] = words[..] else { continue };
            if !(["ip", "ip6"].contains(&family) && OF_IPTABLES.contains(&name)) {
                lines.insert(format!("nft {line}"));
            }
        }
    }
    Ok(lines)
}

/// The kernel adds the local route of an IPv6 address some time after the address. An address that is left behind has a line of its
/// own.
fn is_late_route(line: &str) -> bool {
    line.starts_with("+ route -6 ") && line.contains(" type local ") && line.contains(" protocol kernel ")
}

/// Whether a line follows from forwarding, which stays on once a container ran: redirects are not accepted any more, and a
/// router has anycast addresses.
fn follows_forwarding(line: &str) -> bool {
    let sysctl = line[2..].starts_with("sysctl");
    sysctl && (line.contains("forward") || line.contains("/all/accept_redirects")) || line.contains("anycast")
}

/// All of net/ipv4 and net/ipv6 that concerns forwarding or a link.
fn sysctls(netns: &Netns) -> BTreeSet<String> {
    netns.run(|| {
        let mut lines = BTreeSet::new();
        let mut read = |path: &Path| {
            if let Ok(value) = fs::read_to_string(path) {
                lines.insert(format!("{} = {}", path.display(), value.trim()));
            }
        };
        read(Path::new("/proc/sys/net/ipv4/ip_forward"));
        for dir in ["/proc/sys/net/ipv4/conf", "/proc/sys/net/ipv6/conf"] {
            for link in fs::read_dir(dir).into_iter().flatten().flatten() {
                for file in fs::read_dir(link.path()).into_iter().flatten().flatten() {
                    // Depends on the clock or the link, not on netpath.
                    if !["mc_forwarding", "stable_secret"].iter().any(|n| file.file_name() == *n) {
                        read(&file.path());
                    }
                }
            }
        }
        lines
    })
}

/// All below `dir`, and `dir` itself.
fn files(dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    if fs::symlink_metadata(dir).is_ok() {
        found.insert(dir.display().to_string());
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        found.extend(files(&entry.path()));
    }
    found
}

/// Contents of a host's state directories. The agent writes files there at any time, first under a temporary name: such a file
/// counts as left behind only if it stays.
fn whole_files(cookie: &str) -> BTreeSet<String> {
    const HALF: &str = ".new";
    let mut found = BTreeSet::new();
    // After the time limit the last result counts.
    let _ = wait_for("files that are whole", SOON / 2, || {
        found = state_dirs(cookie).iter().flat_map(|dir| files(dir)).collect();
        (!found.iter().any(|f| f.ends_with(HALF))).then_some(())
    });
    found
}

/// The agent loads it at a time of its own, and it ends with the agent.
const OF_AGENT: &str = "np_new_uplink";

/// Maps that hold the cookie, and programs that use them.
fn bpf_objects(cookie: u64) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut ours = Vec::new();
    for map in loaded_maps().flatten().filter(|m| m.name_as_str() == Some(name::CONFIG)) {
        if config_cookie(map.id()) == Some(cookie) {
            ours.push(map.id());
            found.insert(format!("map {}", name::CONFIG));
        }
    }
    if ours.is_empty() {
        return found;
    }
    for program in loaded_programs().flatten() {
        let Some(name) = program.name_as_str().filter(|n| n.starts_with("np_") && *n != OF_AGENT) else { continue };
        let maps = program.map_ids().ok().flatten().unwrap_or_default();
        if maps.iter().any(|id| ours.contains(id)) {
            found.insert(format!("program {name}"));
        }
    }
    found
}

fn config_cookie(map: u32) -> Option<u64> {
    let map = Map::from_map_data(MapData::from_id(map).ok()?).ok()?;
    let config: Array<MapData, Config> = map.try_into().ok()?;
    config.get(&0, 0).ok().map(|c| c.netns_cookie)
}

fn processes(host: &Netns, containers: &[&Container]) -> BTreeSet<String> {
    let here = containers.iter().map(|c| &c.netns).chain([host]);
    // The agent renames itself once it runs.
    let name = |name: &str| name.trim_end_matches("-agent").to_owned();
    here.flat_map(Netns::processes).map(|(pid, called)| format!("{} ({pid})", name(&called))).collect()
}
