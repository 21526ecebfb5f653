//! The iptables rung: the semantics of the eBPF rung on hosts with neither eBPF nor nftables.
//!
//! `print.rs` prints the typed rules, `snapshot.rs` compares them with the output of iptables-save and makes the input of
//! iptables-restore, `tool.rs` finds and runs the programs, `generation_cache.rs` saves listings while no other software
//! commits. Tables belong to a network namespace, so chain names need no host in them.
//!
//! Other rungs use the same tools for the few rules that they cannot replace ([`Iptables::for_moved_sctp`],
//! [`Iptables::for_accepts`]).

mod generation_cache;
pub(crate) mod incumbent;
mod print;
mod snapshot;
#[cfg(test)]
mod tests;
mod tool;

use super::conntrack::{self, Stale};
use super::rules::{Family, Ruleset};
use super::{adopt, flow_list, policy};
use super::{nfnetlink, settings};
use crate::datapath::connection::Connection;
use crate::datapath::inspect::Flow;
use crate::datapath::{Backend, Context, Datapath, Inspect, Refusal, Report, Sysctl};
use crate::model::error::{Context as _, Result};
use crate::model::{Departures, Desired, HostView, IfName, Record, RouteSource, Rung};
use crate::state::Store;
use generation_cache::GenerationCache;
pub(crate) use print::{PREFIX, STATE};
use snapshot::Snapshot;
use std::borrow::Cow;
use tool::Tool;

pub(crate) const BACKEND: Backend = Backend {
    rung: Rung::Iptables,
    through_netfilter: true,
    is_interim: false,
    lead_dns: None,
    sockets: None,
    carry: None,
    needs_sources: true,
    needs_route_mtus: false,
    ages_flows: false,
    probes: &[],
    usable: || Iptables::new().map(drop).map_err(|e| e.to_string()),
    open: |_| Ok(Box::new(Iptables::new()?)),
    inspect: |_| Box::new(Tables),
    gone_hosts: Vec::new,
    hold: |_| super::hold::take(),
    idle: None,
};

pub(crate) struct Iptables {
    scope: Scope,
    v4: Vec<Tool>,
    /// Empty on a host without ip6tables: networks with IPv6 are refused.
    v6: Vec<Tool>,
}

/// The rules that this instance maintains.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    All,
    /// SCTP with another host port than container port.
    MovedSctp,
    /// Accepts at the end of chains that drop by policy.
    Accepts,
}

impl Scope {
    fn compile(self, desired: &Desired, family: Family, loopback6: bool, sources: &[RouteSource]) -> Ruleset {
        match self {
            Scope::All => policy::compile(desired, family, loopback6, sources),
            Scope::MovedSctp => policy::compile_moved_sctp(desired, family, loopback6),
            Scope::Accepts => policy::compile_accepts(desired, family),
        }
    }

    /// The endpoints and ports in this scope.
    fn served(self, desired: &Desired) -> Cow<'_, Desired> {
        match self {
            Scope::All | Scope::Accepts => Cow::Borrowed(desired),
            Scope::MovedSctp => Cow::Owned(policy::moved_sctp(desired)),
        }
    }
}

impl Iptables {
    /// # Errors
    /// No iptables on this host.
    pub(crate) fn new() -> Result<Self> {
        Self::with(Scope::All)
    }

    /// [`moved_sctp`](super::moved_sctp).
    ///
    /// # Errors
    /// As [`Iptables::new`].
    pub(crate) fn for_moved_sctp() -> Result<Self> {
        Self::with(Scope::MovedSctp)
    }

    /// For the accepts that the nftables rung cannot make: [`policy::compile_accepts`].
    ///
    /// # Errors
    /// As [`Iptables::new`].
    pub(crate) fn for_accepts() -> Result<Self> {
        Self::with(Scope::Accepts)
    }

    fn with(scope: Scope) -> Result<Self> {
        let v4 = tool::find(Family::V4);
        if v4.is_empty() {
            return Err(tool::missing(Family::V4));
        }
        Ok(Self { scope, v4, v6: tool::find(Family::V6) })
    }

    fn tools(&self, family: Family) -> &[Tool] {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// Plans the changes of one family; `None`: no rule is wanted and none exists. `cached`: the cached tables.
    fn plan(
        &self,
        family: Family,
        desired: &Desired,
        host: &HostView,
        cached: Option<Snapshot>,
    ) -> Result<Option<FamilyPlan<'_>>> {
        let mut wanted = self.scope.compile(desired, family, !settings::filters_bridged(family), &host.sources);
        if wanted.is_empty() && !self.may_have_rules(family) {
            return Ok(None);
        }
        let nft = self.tools(family).iter().find(|t| t.backend == tool::Backend::Nft);
        let (tool, present) = match (nft, cached) {
            (Some(tool), Some(present)) => (tool, present),
            _ => tool::choose(self.tools(family), family)?,
        };
        if !wanted.is_empty() {
            // Connections with SNAT addresses of earlier rules may still exist.
            wanted.sources.extend(present.sources().filter(|a| host.has_address(*a)));
        }
        let wanted = print::tables(&wanted);
        let scripts = scripts(tool, &wanted, &present);
        Ok(Some(FamilyPlan { tool, family, wanted, present, scripts }))
    }

    /// Whether both families can be changed in parallel. The legacy programs share a lock and poll it once a second.
    fn can_run_in_parallel(&self) -> bool {
        let mut tools = [&self.v4, &self.v6].into_iter().flatten();
        tools.all(|t| t.backend == tool::Backend::Nft || !t.may_be_used())
            && [&self.v4, &self.v6].into_iter().filter_map(|t| t.first()).all(|t| t.backend == tool::Backend::Nft)
    }

    /// The connections that contradict the changed rules, and those of containers that have not come back.
    fn stale(&self, plans: &[FamilyPlan<'_>], desired: &Desired, departed: &Departures) -> Vec<Stale> {
        let of = |family| {
            let changed = plans.iter().find(|p| p.family == family && !p.scripts.is_empty()).map(|p| &p.present);
            if changed.is_none() && (departed.ended.is_empty() || self.scope == Scope::Accepts) {
                return None;
            }
            let served = changed.into_iter().flat_map(|p| p.tables.values()).flat_map(|t| &t.addresses).copied();
            Some(Stale::new(family, desired, departed, served, changed.into_iter().flat_map(Snapshot::sources)))
        };
        [Family::V4, Family::V6].into_iter().filter_map(of).collect()
    }

    /// Whether netpath may have rules in this family, determined without running a program.
    fn may_have_rules(&self, family: Family) -> bool {
        self.tools(family).iter().any(|t| match t.backend {
            tool::Backend::Legacy => t.may_be_used(),
            tool::Backend::Nft => nfnetlink::has_chains(family, PREFIX),
        })
    }
}

impl Datapath for Iptables {
    fn rung(&self) -> Rung {
        Rung::Iptables
    }

    fn refusals(&self, record: &Record) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        let network = &record.network;
        if let Some(bridge) = network.bridge().filter(|b| !can_be_matched(b)) {
            refusals.push(Refusal {
                feature: format!("use bridge {bridge}"),
                why: "iptables reads this name as a pattern".into(),
                next: "give the network an interface name of letters, digits, dots and dashes".into(),
            });
        }
        if network.has_v6() {
            // The kernel supports the rules if netpath has some already.
            let of_nft = self.v6.iter().any(|t| t.backend == tool::Backend::Nft);
            let v6 = if of_nft && nfnetlink::has_chains(Family::V6, PREFIX) {
                Ok(())
            } else {
                tool::choose(&self.v6, Family::V6)
                    .and_then(|(tool, present)| if present.has_own_rules() { Ok(()) } else { tool.test() })
            };
            if let Err(e) = v6 {
                refusals.push(Refusal {
                    feature: "serve IPv6".into(),
                    why: e.to_string(),
                    next: e
                        .next_step()
                        .unwrap_or("load ip6_tables and ip6table_nat, or create the network without IPv6")
                        .into(),
                });
            }
        }
        refusals
    }

    fn sysctls(&self, desired: &Desired) -> Vec<Sysctl> {
        settings::sysctls(&self.scope.served(desired))
    }

    fn reconcile(&mut self, desired: &Desired, context: &Context<'_>) -> Result<Report> {
        let Context { host, store, .. } = context;
        let served = self.scope.served(desired);
        let mut changed =
            settings::prepare(&served).context(|| "cannot prepare the bridges for published ports".into())?;
        let before = nfnetlink::generation().ok();
        let mut cache = before.and_then(|now| GenerationCache::load(store, now));
        let mut cached = |family| cache.as_mut().and_then(|c| c.take(family));
        let [cached4, cached6] = [cached(Family::V4), cached(Family::V6)];
        let parallel = self.can_run_in_parallel();
        let plans = run_both(
            parallel,
            || self.plan(Family::V4, desired, host, cached4),
            || self.plan(Family::V6, desired, host, cached6),
        );
        let [plan4, plan6] = [plans.0?, plans.1?];
        let write = |plan: &Option<FamilyPlan<'_>>| plan.as_ref().map_or(Ok(()), FamilyPlan::write);
        let written = run_both(parallel, || write(&plan4), || write(&plan6));
        written.0.and(written.1)?;

        let plans: Vec<FamilyPlan<'_>> = [plan4, plan6].into_iter().flatten().collect();
        let commits: usize = plans.iter().map(|p| p.scripts.len()).sum();
        changed += commits;
        let emptied: Vec<(Tool, String)> = plans.iter().flat_map(FamilyPlan::emptied).collect();
        remove_tables(&emptied)?;
        conntrack::end(&self.stale(&plans, &served, &context.departures), &served, host);
        if !served.records.is_empty() {
            let of_nft = plans
                .into_iter()
                .filter(|p| p.tool.backend == tool::Backend::Nft && p.wanted.iter().any(|t| !t.chains.is_empty()));
            let before = before.filter(|_| emptied.is_empty());
            GenerationCache::save(store, context.lock, before, commits, of_nft.map(FamilyPlan::after).collect());
        }
        Ok(Report { changed })
    }

    fn connections(&self) -> Result<Vec<Connection>> {
        adopt::connections().context(|| "cannot read connection tracking".to_owned())
    }

    fn adopt(&mut self, connections: &[Connection]) -> Result<usize> {
        adopt::adopt(connections).context(|| "cannot hand connections to connection tracking".to_owned())
    }
}

/// Inspects the tables of this network namespace.
struct Tables;

impl Inspect for Tables {
    fn exists(&self) -> bool {
        [Family::V4, Family::V6].into_iter().any(|family| nfnetlink::has_chains(family, PREFIX))
    }

    fn flows(&self, desired: &Desired) -> Result<Option<Vec<Flow>>> {
        flow_list::flows(desired)
    }

    fn generation(&self, _store: &Store) -> Option<u32> {
        nfnetlink::generation().ok()
    }
}

/// The tables of legacy iptables, with the name of the tool of their family. Families without a table are skipped.
///
/// # Errors
/// The tables cannot be listed: for example iptables is not installed.
pub(crate) fn legacy_tables() -> Result<Vec<(&'static str, Snapshot)>> {
    let mut all = Vec::new();
    for family in [Family::V4, Family::V6] {
        if !tool::has_legacy_tables(family) {
            continue;
        }
        let tools = tool::find(family);
        let legacy = tools.iter().find(|t| t.backend == tool::Backend::Legacy);
        let legacy = legacy.ok_or_else(|| tool::missing(family).because("legacy iptables has tables on this host"))?;
        all.push((tool::name(family), legacy.save()?));
    }
    Ok(all)
}

/// Whether the kernel has tables of legacy iptables in this namespace.
pub(crate) fn has_legacy_tables() -> bool {
    [Family::V4, Family::V6].into_iter().any(tool::has_legacy_tables)
}

/// The present and the wanted tables of one family.
struct FamilyPlan<'a> {
    tool: &'a Tool,
    family: Family,
    wanted: [print::Table; 3],
    present: Snapshot,
    /// One for each table that changes; each is one commit.
    scripts: Vec<String>,
}

impl FamilyPlan<'_> {
    fn write(&self) -> Result<()> {
        if self.scripts.is_empty() {
            return Ok(());
        }
        let script = self.scripts.concat();
        let Err(refused) = self.tool.restore(&script) else { return Ok(()) };
        // Most kernels have the match; without it the rest of the rules is worth more.
        let without = print::without_routed(&script);
        if without == script || self.tool.restore(&without).is_err() {
            return Err(refused);
        }
        tracing::warn!(
            next = "load ipt_rpfilter and ip6t_rpfilter",
            "addresses behind containers are dropped, because the kernel lacks a match of iptables: {refused}"
        );
        Ok(())
    }

    /// Tables that became empty and can be removed.
    fn emptied(&self) -> Vec<(Tool, String)> {
        let is_used = |name: &String| {
            let wanted = self.wanted.iter().filter(|t| t.name == name);
            let is_used = |(t, present)| !snapshot::without_needless_accepts(t, present).chains.is_empty();
            wanted.zip(self.present.tables.get(name)).any(is_used)
        };
        let tables = self.present.tables.iter().filter(|(name, t)| !is_used(name) && is_removable(self.tool, t));
        tables.map(|(name, _)| (self.tool.clone(), name.clone())).collect()
    }

    /// The tables after the scripts.
    fn after(mut self) -> (Family, Snapshot) {
        self.scripts.iter().for_each(|s| self.present.apply(s));
        (self.family, self.present)
    }
}

/// Runs two closures, in parallel if possible. A new thread inherits the network namespace of its creator.
fn run_both<T: Send>(parallel: bool, one: impl FnOnce() -> T, other: impl FnOnce() -> T + Send) -> (T, T) {
    if !parallel {
        let one = one();
        return (one, other());
    }
    std::thread::scope(|scope| {
        let other = scope.spawn(other);
        let one = one();
        (one, other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn scripts(tool: &Tool, wanted: &[print::Table], present: &Snapshot) -> Vec<String> {
    let script = |table: &print::Table| {
        let present = present.tables.get(table.name);
        // NETPATH_STATE records the creator of the table until the table itself is removed.
        let keep_state = present.is_some_and(|t| is_removable(tool, t));
        snapshot::script(table, present, keep_state)
    };
    wanted.iter().filter_map(script).collect()
}

/// Whether iptables created the table in nf_tables for netpath and no other software uses it.
fn is_removable(tool: &Tool, table: &snapshot::SnapshotTable) -> bool {
    tool.backend == tool::Backend::Nft && table.has_own_rules() && table.removable()
}

/// Removes tables that iptables has created in nf_tables, which it never removes itself. A table that other software has
/// started to use only loses netpath's chains.
fn remove_tables(emptied: &[(Tool, String)]) -> Result<()> {
    let named = |all: &[(Tool, String)]| all.iter().map(|(t, name)| (t.family, name.clone())).collect::<Vec<_>>();
    if emptied.is_empty() || nfnetlink::remove_tables(&named(emptied), STATE).is_ok() {
        return Ok(());
    }
    for one in emptied {
        if let Err(e) = nfnetlink::remove_tables(&named(std::slice::from_ref(one)), STATE) {
            tracing::debug!("table {} stays: {e}", one.1);
            let (tool, present) = (&one.0, one.0.save()?);
            let nothing = policy::compile(&Desired::default(), tool.family, false, &[]);
            let scripts = print::tables(&nothing);
            let scripts = scripts.iter().filter_map(|t| snapshot::script(t, present.tables.get(t.name), false));
            tool.restore(&scripts.collect::<String>())?;
        }
    }
    Ok(())
}

/// Whether iptables matches the name literally: no wildcard at the end, no special character of its parser.
fn can_be_matched(name: &IfName) -> bool {
    let name = name.as_str();
    !name.starts_with(['-', '!']) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.@".contains(&b))
}
