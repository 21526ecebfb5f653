//! The ladder with the reason for each step, every probe with its answer, and faults.

use super::promotion::{self, Promotion};
use super::{Host, installed, status};
use crate::datapath::filter::{self, Foreign};
use crate::datapath::inspect::Finding;
use crate::datapath::ladder::{self, LADDER};
use crate::datapath::probe::{self, Answer};
use crate::datapath::{IdleState, firewalld};
use crate::link::sysctl;
use crate::model::error::Result;
use crate::model::{Desired, Rung};
use crate::state::Store;
use crate::state::installed::Root;
use serde::Serialize;
use std::path::Path;
use std::time::SystemTime;

#[derive(Serialize)]
pub struct Report {
    pub version: u32,
    /// In use, or the rung that the first container will get.
    pub rung: Option<Rung>,
    pub in_use: bool,
    pub ladder: Vec<Step>,
    pub probes: Vec<Probed>,
    /// `None`: no rung can be used.
    pub translation: Option<Translation>,
    /// Of flows to programs; `None`: netfilter does not translate.
    pub promotion: Option<Promotion>,
    /// Chains of others that forwarded packets meet, one sentence each.
    pub foreign: Vec<String>,
    /// Why they cannot be listed.
    pub foreign_error: Option<String>,
    /// For an administrator to know, without a remedy.
    pub notes: Vec<String>,
    /// `None`: it does not run.
    pub firewalld: Option<firewalld::Report>,
    /// Empty = no fault.
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

/// The owner of translation on this host.
#[derive(Serialize)]
pub struct Translation {
    /// `programs`, `netfilter` or `none`.
    pub owner: &'static str,
    /// The first rule of others that decides it, or why there is none that does.
    pub why: String,
    /// For packets of containers.
    pub follows: &'static str,
    /// What makes another one the owner.
    pub change: &'static str,
}

/// # Errors
/// The state cannot be read.
pub fn examine(host: &Host) -> Result<Report> {
    let tried = host.store.rejected_rungs()?;
    let used = host.store.rung()?;
    let foreign = Foreign::default();
    let instead = FirstThroughNetfilter::find();
    let ladder: Vec<Step> = LADDER
        .into_iter()
        .map(|backend| {
            let rung = backend.rung;
            let tried = tried.iter().find(|(r, _)| *r == rung).map(|(_, why)| why.clone());
            let bypasses = || {
                let is_behind = !backend.through_netfilter && used.is_none() && instead.why_not.is_none();
                is_behind.then(|| foreign.bypassed()).flatten().map(|rule| filter::rejection(rung, &rule))
            };
            let why_not = tried.or_else(|| (backend.usable)().err()).or_else(bypasses);
            Step { rung, usable: why_not.is_none(), why_not }
        })
        .collect();
    let rung = used.or_else(|| ladder.iter().find(|s| s.usable).map(|s| s.rung));
    let (chains, foreign_error) = match foreign.chains() {
        Ok(chains) => (chains.as_slice(), None),
        Err(e) => (&[][..], Some(e.to_string())),
    };
    let mut findings = findings(host, used)?;
    findings.extend(rules_of_others(used, &foreign, instead));
    let desired = host.store.desired()?;
    let firewalld = firewalld_report(&desired, used, &mut findings);
    let through_netfilter = rung.filter(|rung| *rung != Rung::None && !bypasses(*rung));
    Ok(Report {
        version: 1,
        rung,
        translation: rung.map(|rung| translation(rung, &foreign, used.is_some(), &host.store)),
        promotion: through_netfilter.map(|_| promotion::examine(host, &desired, used.is_some())),
        foreign: chains.iter().map(ToString::to_string).collect(),
        foreign_error,
        notes: notes(host)?,
        in_use: used.is_some(),
        ladder,
        probes: LADDER.iter().flat_map(|b| b.probes).map(ask).collect(),
        firewalld,
        findings,
    })
}

fn bypasses(rung: Rung) -> bool {
    !ladder::backend(rung).through_netfilter
}

/// The rung that is taken where rules of others would be bypassed by a better one: the first that can be used.
struct FirstThroughNetfilter {
    rung: Option<Rung>,
    /// Of the first of them, if none can be used.
    why_not: Option<String>,
}

impl FirstThroughNetfilter {
    fn find() -> Self {
        let mut why_not = None;
        for rung in ladder::through_netfilter() {
            match ladder::usable(rung) {
                Ok(()) => return Self { rung: Some(rung), why_not: None },
                Err(e) => drop(why_not.get_or_insert(e)),
            }
        }
        Self { rung: None, why_not }
    }
}

fn translation(rung: Rung, foreign: &Foreign, in_use: bool, store: &Store) -> Translation {
    let given_way = store.has_given_way();
    let rule = foreign.bypassed();
    let of_programs = "netpath's programs translate; netfilter is not in the path of containers";
    let of_netfilter =
        "the kernel's connection tracking translates; every rule of this host meets packets of containers";
    let (owner, why, follows, change) = match (rung, bypasses(rung), rule) {
        (Rung::None, ..) => (
            "none",
            "no datapath can be used".to_owned(),
            "nothing is published or masqueraded",
            "netpath doctor shows what each datapath needs",
        ),
        (_, true, None) => (
            "programs",
            "no rule of others filters or translates forwarded packets".to_owned(),
            of_programs,
            "the first such rule makes netfilter the owner, with the connections that exist",
        ),
        (_, true, Some(rule)) => (
            "programs",
            format!("it was asked for, or no rung of netfilter can be used, although {rule}"),
            "packets of containers bypass that rule",
            "unset NETPATH_DATAPATH and netpath.path=offload, and stop all containers",
        ),
        (_, false, Some(rule)) => (
            "netfilter",
            rule,
            of_netfilter,
            match (in_use, given_way) {
                (false, _) | (_, true) => {
                    "without such rules the programs become the owner, with the connections that exist; \
                     NETPATH_DATAPATH=ebpf makes them the owner all the same"
                }
                _ => "stop all containers: the next first container takes the best datapath again",
            },
        ),
        (_, false, None) if given_way => (
            "netfilter",
            if store.is_interim() { status::LOADING } else { "the last rule of others has just gone" }.to_owned(),
            of_netfilter,
            "the agent, or the next command, makes the programs the owner, with the connections that exist",
        ),
        (_, false, None) => (
            "netfilter",
            if in_use {
                "it was the owner when the first container started, or was asked for"
            } else {
                "no better datapath can be used"
            }
            .to_owned(),
            of_netfilter,
            "stop all containers: the next first container takes the best datapath again",
        ),
    };
    Translation { owner, why, follows, change }
}

fn firewalld_report(records: &Desired, rung: Option<Rung>, findings: &mut Vec<Finding>) -> Option<firewalld::Report> {
    let report = firewalld::report(records).unwrap_or_else(|e| {
        findings.push(Finding { what: e.to_string(), next: "look at systemctl status firewalld".into() });
        None
    })?;
    if rung == Some(Rung::None) {
        return Some(report);
    }
    for (subnet, zone) in report.misplaced() {
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

/// Rules of others that packets of containers bypass, and rules that drop them.
fn rules_of_others(used: Option<Rung>, foreign: &Foreign, instead: FirstThroughNetfilter) -> Vec<Finding> {
    let mut findings = Vec::new();
    let is_bypassing = used.is_some_and(bypasses);
    if let Some(rule) = is_bypassing.then(|| foreign.bypassed()).flatten() {
        let next = match (instead.rung, instead.why_not) {
            (Some(rung), _) => format!("stop all containers of this host; the next one that starts takes {rung}"),
            (None, Some(why)) => format!("{why}; then stop all containers of this host"),
            (None, None) => "stop all containers of this host".to_owned(),
        };
        let what = format!("packets of containers bypass rules of this host, in whole or in part: {rule}");
        findings.push(Finding { what, next });
    }
    let chains = foreign.chains().as_deref().unwrap_or_default();
    // The next first container accepts at the end of chains of iptables.
    let closed = chains.iter().filter(|c| c.closes_forwarding()).filter(|c| used.is_some() || !c.is_of_iptables());
    findings.extend(
        closed
            .map(|chain| Finding { what: format!("{chain}, and netpath cannot accept for it"), next: chain.remedy() }),
    );
    findings
}

fn notes(host: &Host) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    for path in host.store.sysctls()?.keys().filter(|p| sysctl::FORWARDING.contains(&p.as_str())) {
        notes.push(format!("netpath switched on {}, and leaves it on", path.replace('/', ".")));
    }
    let in_use = host.store.rung()?.filter(|rung| *rung != Rung::None && !bypasses(*rung));
    let is_published = host.store.desired()?.records.iter().any(|r| !r.publishes.is_empty());
    if let Some(rung) = in_use.filter(|_| is_published) {
        let is_served = host.hooks()?.iter().any(|hook| hook.by == "cgroup");
        notes.push(if is_served {
            "programs at sockets serve clients on this host at connect(), also localhost and ::1".to_owned()
        } else {
            format!(
                "no programs at sockets serve clients on this host: on {rung}, ::1 reaches published ports of containers with \
                 IPv6 only, and none while bridge-nf-call-ip6tables is 1; 127.0.0.1 reaches all of them"
            )
        });
    }
    notes.extend(match ladder::idle(host.cookie) {
        Some(IdleState::Preloaded) => {
            Some("programs are loaded for the next container; netpath gc --all removes them".to_owned())
        }
        Some(IdleState::Until(when)) => {
            let left = when.duration_since(SystemTime::now()).unwrap_or_default().as_secs();
            Some(format!("programs stay loaded {left} s more for the next container; netpath gc --all removes them"))
        }
        None => None,
    });
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

fn findings(host: &Host, used: Option<Rung>) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let desired = host.store.desired()?;
    for record in desired.records.iter().filter(|r| !r.netns.exists()) {
        findings.push(Finding {
            what: format!(
                "{} is kept on network {}, but its namespace is gone",
                record.container.label(),
                record.network.name
            ),
            next: "let the engine tear it down, or start another container on this network".into(),
        });
    }
    if let Some(agent) = status::agent(host).filter(|agent| !agent.answers) {
        findings.push(Finding {
            what: format!("the agent (pid {}) does not answer", agent.pid),
            next: format!("kill -9 {}: the next command starts another one", agent.pid),
        });
    }
    let served = if used.is_some() { desired } else { Desired::default() };
    findings.extend(host.inspect()?.findings(&served, &host.view()?)?);
    findings.extend(installed::findings(&Root::new(Path::new("/")))?);
    Ok(findings)
}
