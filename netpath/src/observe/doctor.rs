//! The ladder with the reason for each step, every probe with its answer, and what is not as it should be.

use super::Host;
use crate::datapath::ebpf::{TcMode, attach, compile, xdp};
use crate::datapath::filter::{self, At, Chain};
use crate::datapath::firewalld;
use crate::datapath::ladder::{self, LADDER};
use crate::datapath::probe::{self, Answer};
use crate::link::sysctl;
use crate::model::error::Result;
use crate::model::{Desired, Rung};
use netpath_common::layout::program;
use serde::Serialize;
use std::io;

#[derive(Serialize)]
pub struct Report {
    pub version: u32,
    /// In use, or the one that the first container will get.
    pub rung: Option<Rung>,
    pub in_use: bool,
    pub ladder: Vec<Step>,
    pub probes: Vec<Probed>,
    /// The way of networks that do not choose one, on the eBPF rung.
    pub path: Option<PathReport>,
    /// Chains of others that forwarded packets meet, each in a sentence.
    pub foreign: Vec<String>,
    /// Why they cannot be listed.
    pub foreign_error: Option<String>,
    /// What an administrator should know, and need not change.
    pub notes: Vec<String>,
    /// Where it runs.
    pub firewalld: Option<firewalld::Report>,
    /// Empty = all is well.
    pub findings: Vec<Finding>,
}

#[derive(Serialize)]
pub struct Step {
    pub rung: Rung,
    pub usable: bool,
    pub why_not: Option<String>,
}

#[derive(Serialize)]
pub struct Probed {
    pub name: &'static str,
    /// `yes`, `no` or `unknown`.
    pub answer: &'static str,
    pub why: Option<String>,
    pub since: String,
    pub without: &'static str,
}

#[derive(Serialize)]
pub struct PathReport {
    /// `offload` or `edge`.
    pub path: &'static str,
    pub why: String,
}

#[derive(Serialize)]
pub struct Finding {
    pub what: String,
    pub next: String,
}

/// # Errors
/// The state cannot be read.
pub fn examine(host: &Host) -> Result<Report> {
    let tried = host.store.rejected_rungs()?;
    let used = host.store.rung()?;
    let foreign = filter::foreign();
    let iptables = ladder::usable(Rung::Iptables);
    let ladder: Vec<Step> = LADDER
        .iter()
        .map(|rung| {
            let tried = tried.iter().find(|(r, _)| r == rung).map(|(_, why)| why.clone());
            let bypasses = || {
                let none_in_use = *rung == Rung::Ebpf && used.is_none() && iptables.is_ok();
                none_in_use.then(|| filter::bypassed(&foreign)).flatten().map(|rule| filter::passes_over(&rule))
            };
            let why_not = tried.or_else(|| ladder::usable(*rung).err()).or_else(bypasses);
            Step { rung: *rung, usable: why_not.is_none(), why_not }
        })
        .collect();
    let rung = used.or_else(|| ladder.iter().find(|s| s.usable).map(|s| s.rung));
    let (chains, foreign_error) = match &foreign {
        Ok(chains) => (chains.as_slice(), None),
        Err(e) => (&[][..], Some(e.to_string())),
    };
    let mut findings = findings(host)?;
    findings.extend(rules_of_others(used, filter::bypassed(&foreign), chains, iptables.err()));
    let firewalld = look_at_firewalld(&host.store.desired()?, used, &mut findings);
    Ok(Report {
        version: 1,
        rung,
        path: (rung == Some(Rung::Ebpf)).then(|| way_through(&foreign)),
        foreign: chains.iter().map(ToString::to_string).collect(),
        foreign_error,
        notes: notes(host, rung)?,
        in_use: used.is_some(),
        ladder,
        probes: probe::ALL.iter().map(ask).collect(),
        firewalld,
        findings,
    })
}

fn way_through(foreign: &io::Result<Vec<Chain>>) -> PathReport {
    let (path, why) = match foreign {
        Err(e) => ("edge", format!("because what filters forwarded packets cannot be told: {e}")),
        Ok(chains) => match chains.iter().find(|c| c.filters_forwarding()) {
            Some(chain) => ("edge", format!("because {chain}")),
            None => ("offload", "since nothing on this host filters forwarded packets".to_owned()),
        },
    };
    PathReport { path, why }
}

fn look_at_firewalld(records: &Desired, rung: Option<Rung>, findings: &mut Vec<Finding>) -> Option<firewalld::Report> {
    let report = firewalld::report(records).unwrap_or_else(|e| {
        findings.push(Finding { what: e.to_string(), next: "look at systemctl status firewalld".into() });
        None
    })?;
    if rung == Some(Rung::None) {
        return Some(report);
    }
    for (subnet, zone) in report.astray() {
        findings.push(match zone {
            Some(zone) => Finding {
                what: format!("firewalld treats container subnet {subnet} by zone {zone}, in which others have put it"),
                next: format!(
                    "firewall-cmd --zone={zone} --remove-source={subnet}, if its rules are not meant for containers"
                ),
            },
            None => Finding {
                what: format!(
                    "container subnet {subnet} is in no zone of firewalld, which rejects what its containers send"
                ),
                next: "start any container: every command puts it into zone trusted".into(),
            },
        });
    }
    if report.strict_forward_ports {
        findings.push(Finding {
            what: "firewalld accepts no published ports (StrictForwardPorts=yes): containers with such do not start"
                .into(),
            next: "forward ports by firewall-cmd, or set StrictForwardPorts=no in /etc/firewalld/firewalld.conf".into(),
        });
    }
    Some(report)
}

/// What rules of others lose, and what they take from containers.
fn rules_of_others(
    used: Option<Rung>,
    bypassed: Option<String>,
    chains: &[Chain],
    no_iptables: Option<String>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let (Some(Rung::Ebpf), Some(rule)) = (used, bypassed) {
        let next = match no_iptables {
            Some(why) => format!("{why}; then stop all containers of this host"),
            None => "stop all containers of this host; the next one that starts takes iptables".to_owned(),
        };
        let what = format!("packets of containers bypass rules of this host, in whole or in part: {rule}");
        findings.push(Finding { what, next });
    }
    // An accept in one table does not keep another from dropping.
    let closed = |c: &&Chain| c.drops && c.at == At::Forward && !c.accepted;
    for chain in chains.iter().filter(closed).filter(|c| used.is_some() || !c.is_of_iptables()) {
        let (table, name) = (chain.table.trim_start_matches("table "), &chain.name);
        let published = if used == Some(Rung::Ebpf) { "" } else { " ct status dnat" };
        let next = if chain.is_of_iptables() {
            "let it accept what goes to and comes from the bridges of containers: iptables -A FORWARD -i BRIDGE -j ACCEPT, \
             and the same with -o; or stop all containers, and the next one that starts accepts it"
                .to_owned()
        } else {
            format!(
                "let it accept what containers need, for each bridge: nft add rule {table} {name} iifname BRIDGE accept; \
                 nft add rule {table} {name} oifname BRIDGE ct state established,related accept; \
                 nft add rule {table} {name} oifname BRIDGE{published} accept"
            )
        };
        findings.push(Finding { what: format!("{chain}, and netpath cannot accept for it"), next });
    }
    findings
}

fn notes(host: &Host, rung: Option<Rung>) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    for path in host.store.sysctls()?.keys().filter(|p| sysctl::FORWARDING.contains(&p.as_str())) {
        notes.push(format!("netpath switched on {}, and leaves it on", path.replace('/', ".")));
    }
    if rung == Some(Rung::Iptables) {
        notes.push(
            "on iptables, ::1 of this host reaches published ports of containers with IPv6 only, and none while \
             bridge-nf-call-ip6tables is 1; 127.0.0.1 reaches all of them"
                .to_owned(),
        );
    }
    Ok(notes)
}

fn ask(probe: &probe::Probe) -> Probed {
    let (answer, why) = match (probe.run)() {
        Answer::Yes => ("yes", None),
        Answer::No(why) => ("no", Some(why)),
        Answer::Unknown(e) => ("unknown", Some(e.to_string())),
    };
    Probed { name: probe.name, answer, why, since: probe.since.to_string(), without: probe.without }
}

fn findings(host: &Host) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let records = host.store.desired()?;
    for record in records.records.iter().filter(|r| !r.netns.exists()) {
        findings.push(Finding {
            what: format!(
                "{} is kept on network {}, but its namespace is gone",
                record.container.label(),
                record.network.name
            ),
            next: "let the engine tear it down, or start another container on this network".into(),
        });
    }
    if records.records.is_empty() && host.pins.exist() {
        findings.push(Finding {
            what: format!("programs and maps are pinned in {} without a container", host.pins.root().display()),
            next: "start and stop any container".into(),
        });
    }
    if host.store.rung()? == Some(Rung::Ebpf) && records.bridged().next().is_some() {
        let attached = attach::attached(&host.pins)?;
        let view = host.view()?;
        let tables = compile::compile(&records, &view, false);
        if let Some(first) = tables.unserved.first() {
            findings.push(Finding {
                what: format!(
                    "published ports do not answer on {} interfaces, of which {first} is one",
                    tables.unserved.len()
                ),
                next: "remove addresses from interfaces that need none, or set NETPATH_DATAPATH=iptables".into(),
            });
        }
        let tc = attach::wanted(&tables).into_iter().map(|h| (h.program, h.ifindex));
        let early = tables.xdp.keys().map(|ifindex| (program::XDP_IN, *ifindex));
        let refused = xdp::refused(&host.pins);
        for (name, ifindex) in tc.chain(early) {
            if attached.iter().any(|a| a.program == name && a.ifindex == Some(ifindex)) {
                continue;
            }
            let missing = format!("{name} is not attached to {}", super::interface(&view, ifindex));
            let why = refused.iter().find(|r| name == program::XDP_IN && r.ifindex == ifindex);
            findings.push(match why {
                Some(refused) => Finding { what: format!("{missing}: {}", refused.why()), next: refused.next() },
                // Once attached it is not looked at again (`hooks.rs`).
                None if name == program::VETH_IN => Finding {
                    what: missing,
                    next: "restart its container; until then its packets take the bridge's program".into(),
                },
                None => Finding {
                    what: missing,
                    next: "start any container: every command attaches what is missing".into(),
                },
            });
        }
    }
    if let Err(e) = TcMode::forced() {
        findings.push(Finding { what: e.to_string(), next: "unset NETPATH_TC".into() });
    }
    Ok(findings)
}
