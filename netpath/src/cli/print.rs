//! Prints the results of verbs as tables or JSON.

use super::table::Table;
use crate::datapath::inspect::{Flow, Volume};
use crate::dns::inspect::Told;
use crate::model::error::{Context, Error};
use crate::observe::doctor::Report;
use crate::observe::names::Names;
use crate::observe::ports::PortLine;
use crate::observe::promotion::{Forbidding, Promotion};
use crate::observe::status::Status;
use crate::observe::traffic::NetworkLine;
use crate::ops::gc::Removed;
use crate::ops::install::Change;
use crate::ops::preload::Preload;
use serde::Serialize;
use std::fmt::Write;

/// Rules that forbid promotion, in text.
const FORBIDDING: usize = 5;

pub(super) fn json<T: Serialize>(value: &T) -> Result<String, Error> {
    serde_json::to_string_pretty(value).map(|s| s + "\n").context(|| "cannot print JSON".to_owned())
}

/// `{"version": 1, "<name>": [...]}`
pub(super) fn json_list<T: Serialize>(name: &str, list: &[T]) -> Result<String, Error> {
    json(&serde_json::json!({ "version": 1, name: list }))
}

pub(super) fn gc_json(removed: &Removed) -> Result<String, Error> {
    json(&serde_json::json!({ "version": 1, "removed": removed }))
}

pub(super) fn gc(removed: &Removed) -> String {
    let counts = [
        ("records of containers that are gone", removed.records),
        ("objects of the datapath", removed.datapath),
        ("entries of expired flows", removed.flows),
        ("marks of ports without a flow", removed.marks),
        ("hosts whose namespace is gone", removed.hosts),
        ("programs and maps that stayed loaded", removed.idle),
    ];
    let lines: Vec<String> =
        counts.iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!("removed  {n} {what}\n")).collect();
    if lines.is_empty() { "nothing to remove\n".into() } else { lines.concat() }
}

pub(super) fn preload(result: &Preload) -> String {
    match result {
        Preload::Loaded => "the programs are loaded; netpath gc --all removes them\n".into(),
        Preload::Kept => "the programs are loaded already; they stay until netpath gc --all\n".into(),
        Preload::Nothing(why) => format!("nothing to load: {why}\n"),
    }
}

pub(super) fn installed(changes: &[Change], dry_run: bool) -> String {
    let next = "next: systemctl daemon-reload && systemctl enable --now netavark-dhcp-proxy.socket netpath-agent.path netpath-preload.service\n\
                (for DHCP, names after a crash and a quick first container; podman network reload --all brings running containers over)\n";
    changed(changes, dry_run, "netpath is installed for Podman already\n", next)
}

pub(super) fn uninstalled(changes: &[Change], dry_run: bool) -> String {
    changed(changes, dry_run, "nothing of netpath is installed for Podman\n", "next: systemctl daemon-reload\n")
}

fn changed(changes: &[Change], dry_run: bool, none: &str, next: &str) -> String {
    let would = if dry_run { "would " } else { "" };
    let lines: String = changes.iter().map(|c| format!("{would}{c}\n")).collect();
    match (changes, dry_run) {
        ([], _) => none.to_owned(),
        (_, true) => lines,
        (_, false) => lines + next,
    }
}

pub(super) fn names(names: &Names) -> String {
    if names.networks.is_empty() {
        return "no network has names\n".into();
    }
    let list = |addresses: &[std::net::IpAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let mut table = Table::new(&["network", "container", "names", "addresses"]);
    for network in &names.networks {
        let internal = if network.internal { " (internal)" } else { "" };
        table.row([format!("{}{internal}", network.name), "(server)".into(), String::new(), list(&network.listen)]);
        for line in names.names.iter().filter(|l| l.network == network.name) {
            let id: String = line.container.chars().take(12).collect();
            table.row([String::new(), id, line.names.join(" "), list(&line.addresses)]);
        }
    }
    let mut out = table.to_string();
    for server in names.servers.iter().filter_map(|s| s.as_array()).flatten() {
        let count = |name: &str| server["counts"][name].as_u64().unwrap_or(0);
        let _ = writeln!(
            out,
            "\nqueries   {} by UDP, {} by TCP\nanswers   {} addresses, {} pointers, {} without data, {} unknown, {} from the cache\n\
             forwards  {}, {} failed",
            count("udp_queries"),
            count("tcp_queries"),
            count("addresses"),
            count("pointers"),
            count("no_data"),
            count("no_such_name"),
            count("cached"),
            count("forwarded"),
            count("failed"),
        );
    }
    out
}

pub(super) fn told(told: &Told) -> String {
    let by = match told.forwarded_to.as_slice() {
        [] => "netpath".to_owned(),
        servers => servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or "),
    };
    let mut out = format!("{} {} for {}: {}, from {by}\n", told.name, told.kind, told.client, told.code);
    for record in &told.records {
        let _ = writeln!(out, "{} {} {} {}", record.name, record.ttl, record.kind, record.data);
    }
    out
}

pub(super) fn status(status: &Status) -> String {
    let mut out = String::new();
    match status.rung {
        Some(rung) => {
            let containers =
                if status.endpoints == 1 { "1 endpoint" } else { &format!("{} endpoints", status.endpoints) };
            let _ = writeln!(out, "DATAPATH  {rung}, {containers}");
        }
        None => out.push_str("no container uses netpath on this host\n"),
    }
    match &status.agent {
        Some(agent) => {
            let silent = if agent.answers { "" } else { ", does not answer" };
            let _ = writeln!(out, "AGENT     pid {}{silent}", agent.pid);
        }
        None if status.rung.is_some() => {
            out.push_str("AGENT     none: changes of this host are followed by the next command\n");
        }
        None => {}
    }
    for passed in &status.rejected_rungs {
        let _ = writeln!(out, "  not {}: {}", passed.rung, passed.why);
    }
    if !status.hooks.is_empty() {
        let mut table = Table::new(&["program", "at", "side", "by"]);
        for hook in &status.hooks {
            let monitored = if hook.monitored { " (monitored)" } else { "" };
            table.row([
                hook.program.clone(),
                hook.interface.clone().unwrap_or_else(|| "cgroup root".into()),
                hook.side.to_owned(),
                format!("{}{monitored}", hook.by),
            ]);
        }
        let _ = write!(out, "\n{table}");
    }
    for refused in &status.xdp_refused {
        let _ = writeln!(out, "XDP       not at {}: {}", refused.interface, refused.why);
    }
    for network in &status.networks {
        let _ = writeln!(out, "PATH      {} of {}: {}", network.path, network.network, network.why);
    }
    for rule in &status.bypassed {
        let _ = writeln!(out, "BYPASSED  {rule}");
    }
    if !status.networks.is_empty() {
        let _ = write!(out, "\n{}", traffic(&status.networks));
    }
    if !status.counters.is_empty() {
        let mut table = Table::new(&["reason", "packets", "bytes"]);
        for counter in &status.counters {
            table.row([counter.reason.to_owned(), counter.packets.to_string(), counter.bytes.to_string()]);
        }
        let _ = write!(out, "\n{table}");
    }
    if let Some(flows) = &status.flows {
        let memory = flows.memory_bytes.div_ceil(1024);
        let _ = writeln!(out, "\nFLOWS     {} of {} at most, in {memory} KiB", flows.used, flows.limit);
    }
    if let Some(carried) = status.carried_flows {
        let _ = writeln!(out, "\nCARRIED   {carried} flows by programs, past netfilter");
    }
    if !status.maps.is_empty() {
        let mut table = Table::new(&["map", "entries", "of", "memory"]);
        for map in &status.maps {
            let memory = format!("{} KiB", map.memory_bytes.div_ceil(1024));
            table.row([map.name.to_owned(), map.entries.to_string(), map.max_entries.to_string(), memory]);
        }
        let _ = write!(out, "\n{table}");
        let _ = writeln!(out, "all maps hold {} KiB", status.memory_bytes.div_ceil(1024));
    }
    out
}

/// A line for each network, each of its endpoints, and each of their publishes.
fn traffic(networks: &[NetworkLine]) -> Table {
    let mut table = Table::new(&["traffic of", "packets in", "bytes in", "packets out", "bytes out"]);
    let mut row = |what: String, v: &Volume| {
        let numbers = [v.packets_in, v.bytes_in, v.packets_out, v.bytes_out].map(|n| n.to_string());
        table.row(std::iter::once(what).chain(numbers));
    };
    for network in networks {
        row(network.network.clone(), &network.volume);
        for endpoint in &network.endpoints {
            let uncounted = if endpoint.counted { "" } else { " (not counted)" };
            row(format!("  {}{uncounted}", endpoint.container), &endpoint.volume);
            for publish in &endpoint.publishes {
                let ports = range(publish.first_port, publish.ports);
                row(format!("    {} {ports}/{}", publish.host, publish.protocol), &publish.volume);
            }
        }
    }
    table
}

/// `8080`, `8000-8009`
fn range(first: u16, count: u16) -> String {
    match count {
        1 => first.to_string(),
        count => format!("{first}-{}", u32::from(first) + u32::from(count) - 1),
    }
}

pub(super) fn flows(flows: &[Flow]) -> String {
    if flows.is_empty() {
        return "no flows\n".into();
    }
    let mut table =
        Table::new(&["proto", "from", "to", "goes on as", "to", "by", "state", "idle", "expires", "carried by"]);
    for flow in flows {
        table.row([
            flow.protocol.to_owned(),
            flow.source.to_string(),
            flow.destination.to_string(),
            flow.translated_source.to_string(),
            flow.translated_destination.to_string(),
            flow.origin.to_owned(),
            flow.state.to_owned(),
            flow.idle_s.map_or_else(|| "-".into(), |idle| format!("{idle} s")),
            format!("{} s", flow.expires_s),
            flow.why.as_ref().map_or_else(|| flow.carrier.to_owned(), |why| format!("{}: {why}", flow.carrier)),
        ]);
    }
    table.to_string()
}

pub(super) fn ports(ports: &[PortLine]) -> String {
    if ports.is_empty() {
        return "no published ports\n".into();
    }
    let mut table = Table::new(&["host", "port", "container", "network", "leads to", "state"]);
    for port in ports {
        let range = |first: u16| range(first, port.ports);
        let to = port.container_addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        table.row([
            port.host.clone(),
            format!("{}/{}", range(port.first_port), port.protocol),
            port.container.clone(),
            port.network.clone(),
            format!("{to} port {}", range(port.container_port)),
            port.behind.as_ref().map_or_else(|| "answers".into(), |owner| format!("behind {owner}")),
        ]);
    }
    table.to_string()
}

fn promotion(promotion: &Promotion) -> String {
    let mut out = String::new();
    let forbidding = &promotion.forbidding;
    let rules = match (&promotion.forbidding_error, forbidding.len()) {
        (Some(e), _) => format!("the rules of this host cannot be read: {e}"),
        (None, 0) => "no rule forbids it".to_owned(),
        (None, 1) => "1 rule forbids it for flows that can meet it".to_owned(),
        (None, n) => format!("{n} rules forbid it for flows that can meet them"),
    };
    let _ = match &promotion.why_not {
        Some(why) => writeln!(out, "PROMOTION no flow is carried by programs: {why}; {rules}"),
        None => writeln!(out, "PROMOTION programs carry flows that last, {} now; {rules}", promotion.carried),
    };
    for Forbidding { rule, why } in forbidding.iter().take(FORBIDDING) {
        let _ = writeln!(out, "  {rule}: {why}");
    }
    if forbidding.len() > FORBIDDING {
        let _ = writeln!(out, "  and {} more: netpath doctor --json", forbidding.len() - FORBIDDING);
    }
    if promotion.why_not.is_none() && !promotion.passed_by.is_empty() {
        let _ = writeln!(out, "  passed by   {}", promotion.passed_by.join("; "));
    }
    let _ = writeln!(out, "  change      {}", promotion.change);
    out
}

pub(super) fn doctor(report: &Report) -> String {
    let mut out = String::new();
    match report.rung {
        Some(rung) if report.in_use => {
            let _ = writeln!(out, "DATAPATH  {rung}");
        }
        Some(rung) => {
            let _ = writeln!(out, "DATAPATH  {rung}, once a container uses it");
        }
        None => out.push_str("DATAPATH  none can be used\n"),
    }
    for step in &report.ladder {
        let why = step.why_not.as_deref().unwrap_or("can be used");
        let _ = writeln!(out, "  {:<10}  {why}", step.rung.to_string());
    }
    if let Some(t) = &report.translation {
        let _ = writeln!(out, "OWNER     of translation: {}: {}", t.owner, t.why);
        let _ = writeln!(out, "  follows     {}\n  change      {}", t.follows, t.change);
    }
    if let Some(p) = &report.promotion {
        out.push_str(&promotion(p));
    }
    match (&report.foreign_error, report.foreign.len()) {
        (Some(e), _) => drop(writeln!(out, "RULES     foreign rules cannot be listed: {e}")),
        (None, 0) => out.push_str("RULES     no foreign rule filters or translates forwarded packets\n"),
        (None, 1) => out.push_str("RULES     1 foreign chain\n"),
        (None, n) => drop(writeln!(out, "RULES     {n} foreign chains")),
    }
    for rule in &report.foreign {
        let _ = writeln!(out, "  {rule}");
    }
    for note in &report.notes {
        let _ = writeln!(out, "NOTE      {note}");
    }
    if let Some(firewalld) = &report.firewalld {
        let zone = |zone: &Option<String>| zone.clone().unwrap_or_else(|| "none".into());
        let zones: Vec<String> = firewalld.zones.iter().map(|(s, z)| format!("{s} in zone {}", zone(z))).collect();
        let zones = if zones.is_empty() { "runs".into() } else { zones.join(", ") };
        let strict = if firewalld.strict_forward_ports { "yes" } else { "no" };
        let _ = writeln!(out, "FIREWALLD {zones}; StrictForwardPorts={strict}");
    }
    let yes = report.probes.iter().filter(|p| p.answer == "yes").count();
    let _ = writeln!(out, "PROBES    {yes} of {} answered yes", report.probes.len());
    for probe in &report.probes {
        let mut line = format!("  {:<14}  {}", probe.name, probe.answer);
        if let Some(why) = &probe.why {
            let _ = write!(line, ": {why} (since Linux {}); {}", probe.since, probe.without);
        }
        let _ = writeln!(out, "{line}");
    }
    if report.findings.is_empty() {
        out.push_str("CHECKS    no problems\n");
    } else {
        let _ = writeln!(out, "CHECKS    problems: {}", report.findings.len());
        for finding in &report.findings {
            let _ = writeln!(out, "  {}\n      next: {}", finding.what, finding.next);
        }
    }
    out
}
