//! The nftables rung: the rules of `policy.rs` in one table `inet netpath`, written over netlink in one transaction.
//!
//! `print.rs` turns typed rules into chains, sets and maps (`program.rs`), `table.rs` compares them with the kernel's and
//! commits the difference, `encode.rs` has the messages. The rung runs no program. An accept in one table does not prevent
//! a drop in another: where iptables drops by policy, `accept` adds accepts with the iptables tools.

mod encode;
pub(crate) mod incumbent;
mod print;
mod program;
pub(crate) mod raw;
mod table;
#[cfg(test)]
mod tests;

use super::conntrack::{self, Stale};
use super::iptables::{self, Iptables, PREFIX};
use super::nfnetlink;
use super::rules::{Family, Ruleset};
use super::{adopt, flow_list, policy, settings};
use crate::datapath::connection::Connection;
use crate::datapath::inspect::{Counter, Flow};
use crate::datapath::{Backend, Context, Datapath, Inspect, Refusal, Report, Sysctl};
use crate::model::error::{Context as _, Error, Result};
use crate::model::{Desired, HostView, Record, Rung};
use crate::state::Store;
pub(crate) use encode::TABLE;
use std::io::ErrorKind;
use std::net::IpAddr;
use table::KernelTable;

pub(crate) const BACKEND: Backend = Backend {
    rung: Rung::Nftables,
    through_netfilter: true,
    is_interim: true,
    lead_dns: None,
    sockets: None,
    carry: None,
    needs_sources: true,
    needs_route_mtus: false,
    ages_flows: false,
    probes: &[],
    usable: probe,
    open: |_| Ok(Box::new(Nftables)),
    inspect: |_| Box::new(Nftables),
    gone_hosts: Vec::new,
    hold: |_| super::hold::take(),
    idle: None,
};

#[derive(Debug, Default)]
struct Nftables;

/// Whether the kernel accepts every kind of expression and set that the rung uses. A table with all of them is added and
/// removed in one transaction, so it never applies to packets.
///
/// # Errors
/// The reason why the kernel refuses the table.
fn probe() -> std::result::Result<(), String> {
    let probe = print::program(&print::examples());
    let committed = table::commit(KernelTable::probe(&probe));
    committed.or_else(|e| if e.kind() == ErrorKind::AlreadyExists { Ok(()) } else { Err(e) }).map_err(|e| {
        match e.raw_os_error() {
            Some(libc::EPERM) => "nftables needs CAP_NET_ADMIN in this network namespace".to_owned(),
            Some(libc::ENOENT | libc::EOPNOTSUPP) => {
                format!("this kernel lacks a part of nf_tables that the rules need: {e}")
            }
            _ => format!("nf_tables cannot be used: {e}"),
        }
    })
}

fn compile(desired: &Desired, host: &HostView, there: &KernelTable) -> [Ruleset; 2] {
    [Family::V4, Family::V6].map(|family| {
        let loopback6 = !settings::filters_bridged(family);
        let mut ruleset = policy::compile(desired, family, loopback6, &host.sources);
        if !ruleset.is_empty() {
            // Connections with SNAT addresses of earlier rules may still exist.
            ruleset.sources.extend(addresses(there, "sources", family).filter(|a| host.has_address(*a)));
        }
        ruleset
    })
}

/// The addresses in a set of the table.
fn addresses(there: &KernelTable, set: &str, family: Family) -> impl Iterator<Item = IpAddr> {
    let name = print::name(set, family);
    there.keys(&name).filter_map(|key| match key.len() {
        4 => <[u8; 4]>::try_from(key).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(key).ok().map(IpAddr::from),
    })
}

impl Datapath for Nftables {
    fn rung(&self) -> Rung {
        Rung::Nftables
    }

    fn refusals(&self, _record: &Record) -> Vec<Refusal> {
        Vec::new()
    }

    fn has_sockets_beside(&self) -> bool {
        true
    }

    fn sysctls(&self, desired: &Desired) -> Vec<Sysctl> {
        settings::sysctls(desired)
    }

    fn reconcile(&mut self, desired: &Desired, context: &Context<'_>) -> Result<Report> {
        let host = context.host;
        let what = || "cannot read the table inet netpath".to_owned();
        let there = KernelTable::read().context(what)?;
        let mut changed =
            settings::prepare(desired).context(|| "cannot prepare the bridges for published ports".into())?;
        // A port is published only once its packets are accepted.
        changed += accept(desired, context)?;
        let rulesets = compile(desired, host, &there);
        let changes = there.changes(&print::program(&rulesets));
        let departed = &context.departures;
        if changes.is_empty() && departed.ended.is_empty() {
            return Ok(Report { changed });
        }
        changed += changes.len();
        if !changes.is_empty() {
            table::commit(changes).map_err(|e| {
                Error::new("cannot write the table inet netpath")
                    .because(e)
                    .next("netpath doctor shows what the host lacks")
            })?;
        }
        let stale = [Family::V4, Family::V6].map(|family| {
            let [served, sources] = ["served", "sources"].map(|set| addresses(&there, set, family));
            Stale::new(family, desired, departed, served, sources)
        });
        conntrack::end(&stale, desired, host);
        Ok(Report { changed })
    }

    fn connections(&self) -> Result<Vec<Connection>> {
        adopt::connections().context(|| "cannot read connection tracking".to_owned())
    }

    fn adopt(&mut self, connections: &[Connection]) -> Result<usize> {
        adopt::adopt(connections).context(|| "cannot hand connections to connection tracking".to_owned())
    }
}

impl Inspect for Nftables {
    fn exists(&self) -> bool {
        nfnetlink::table_handle(TABLE).is_ok_and(|handle| handle.is_some())
    }

    fn counters(&self) -> Result<Vec<Counter>> {
        let chains = table::counters().context(|| "cannot read the table inet netpath".to_owned())?;
        let mut counters: Vec<Counter> = Vec::new();
        for (chain, (packets, bytes)) in chains.into_iter().filter(|(_, (packets, _))| *packets > 0) {
            let reason = print::reason(&chain).word();
            match counters.iter_mut().find(|c| c.reason == reason) {
                Some(counter) => {
                    counter.packets += packets;
                    counter.bytes += bytes;
                }
                None => counters.push(Counter { reason, packets, bytes }),
            }
        }
        Ok(counters)
    }

    fn flows(&self, desired: &Desired) -> Result<Option<Vec<Flow>>> {
        flow_list::flows(desired)
    }

    fn generation(&self, _store: &Store) -> Option<u32> {
        nfnetlink::generation().ok()
    }
}

/// Accepts traffic of netpath's bridges at the end of iptables chains that drop by policy, and removes accepts that are no
/// longer needed.
fn accept(desired: &Desired, context: &Context<'_>) -> Result<usize> {
    let is_wanted = nfnetlink::iptables_drops().context(|| "cannot list chains of iptables".to_owned())?
        || [Family::V4, Family::V6].into_iter().any(|family| nfnetlink::has_chains(family, PREFIX))
        || iptables::has_legacy_tables();
    if !is_wanted {
        return Ok(0);
    }
    match Iptables::for_accepts() {
        Ok(mut iptables) => Ok(iptables.reconcile(desired, context)?.changed),
        Err(e) => {
            let next = e.next_step().unwrap_or("install the package iptables").to_owned();
            tracing::warn!(
                next,
                "a chain of iptables drops forwarded packets by policy, and netpath cannot accept for containers: {e}"
            );
            Ok(0)
        }
    }
}
