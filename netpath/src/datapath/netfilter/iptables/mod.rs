//! The iptables rung: the same promises as the eBPF rung, kept by netfilter, for hosts that have nothing better.
//!
//! `print.rs` prints the typed rules, `snapshot.rs` compares them with what iptables-save prints and writes the script,
//! `tool.rs` finds and runs the programs, `generation_cache.rs` saves a listing where no other software has committed
//! anything. Every host's tables are those of its network namespace, so nothing here needs a name of its own.
//!
//! Beside the eBPF rung ([`Iptables::for_moved_sctp`]) the same tools keep the few rules that programs cannot replace.

mod generation_cache;
mod print;
mod snapshot;
#[cfg(test)]
mod tests;
mod tool;

use super::conntrack::{self, Stale};
use super::rules::{Family, Ruleset};
use super::{adopt, policy};
use super::{nfnetlink, settings};
use crate::datapath::connection::Connection;
use crate::datapath::{Backend, Context, Datapath, Inspect, Refusal, Report, Sysctl};
use crate::model::error::{Context as _, Result};
use crate::model::{Desired, HostView, IfName, Record, RouteSource, Rung};
use crate::state::Store;
use generation_cache::GenerationCache;
pub(crate) use print::{PREFIX, STATE};
use snapshot::Snapshot;
use std::borrow::Cow;
use tool::Tool;

pub(crate) const BACKEND: Backend = Backend {
    rung: Rung::Iptables,
    through_netfilter: true,
    needs_sources: true,
    ages_flows: false,
    probes: &[],
    usable: || Iptables::new().map(drop).map_err(|e| e.to_string()),
    open: |_| Ok(Box::new(Iptables::new()?)),
    inspect: |_| Box::new(Tables),
    gone_hosts: Vec::new,
    hold: super::hold::take,
};

pub struct Iptables {
    share: Share,
    v4: Vec<Tool>,
    /// Empty on a host without ip6tables: networks with IPv6 are refused.
    v6: Vec<Tool>,
}

/// What of the desired state these rules are for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Share {
    All,
    /// SCTP on other ports than in the container.
    MovedSctp,
    /// Accepts at the end of chains that drop by policy.
    Accepts,
}

impl Share {
    fn compile(self, desired: &Desired, family: Family, loopback6: bool, sources: &[RouteSource]) -> Ruleset {
        match self {
            Share::All => policy::compile(desired, family, loopback6, sources),
            Share::MovedSctp => policy::compile_moved_sctp(desired, family, loopback6),
            Share::Accepts => policy::compile_accepts(desired, family),
        }
    }

    /// The endpoints that are served, with the ports that are.
    fn served(self, desired: &Desired) -> Cow<'_, Desired> {
        match self {
            Share::All | Share::Accepts => Cow::Borrowed(desired),
            Share::MovedSctp => Cow::Owned(policy::moved_sctp(desired)),
        }
    }
}

impl Iptables {
    /// # Errors
    /// No iptables on this host.
    pub fn new() -> Result<Self> {
        Self::with(Share::All)
    }

    /// The part that the eBPF rung cannot do itself: [`Publish::is_moved_sctp`](crate::model::Publish::is_moved_sctp).
    ///
    /// # Errors
    /// As [`Iptables::new`].
    pub fn for_moved_sctp() -> Result<Self> {
        Self::with(Share::MovedSctp)
    }

    /// The part that another rung of netfilter cannot do: see [`policy::compile_accepts`].
    ///
    /// # Errors
    /// As [`Iptables::new`].
    pub(crate) fn for_accepts() -> Result<Self> {
        Self::with(Share::Accepts)
    }

    fn with(share: Share) -> Result<Self> {
        let v4 = tool::find(Family::V4);
        if v4.is_empty() {
            return Err(tool::missing(Family::V4));
        }
        Ok(Self { share, v4, v6: tool::find(Family::V6) })
    }

    fn tools(&self, family: Family) -> &[Tool] {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// What is to be written in this family; `None`: nothing is wanted and nothing is there. `memory`: what is there, where
    /// that is known without listing it.
    fn plan(
        &self,
        family: Family,
        desired: &Desired,
        host: &HostView,
        memory: Option<Snapshot>,
    ) -> Result<Option<Part<'_>>> {
        let mut wanted = self.share.compile(desired, family, !settings::filters_bridged(family), &host.sources);
        if wanted.is_empty() && !self.has_traces(family) {
            return Ok(None);
        }
        let nft = self.tools(family).iter().find(|t| t.backend == tool::Backend::Nft);
        let (tool, present) = match (nft, memory) {
            (Some(tool), Some(present)) => (tool, present),
            _ => tool::choose(self.tools(family), family)?,
        };
        if !wanted.is_empty() {
            // Connections that earlier rules have given these sources may still be there.
            wanted.sources.extend(present.sources().filter(|a| host.has_address(*a)));
        }
        let wanted = print::tables(&wanted);
        let scripts = scripts(tool, &wanted, &present);
        Ok(Some(Part { tool, family, wanted, present, scripts }))
    }

    /// Whether the families can be worked on side by side. The legacy programs wait for each other, some of them a second.
    fn is_abreast(&self) -> bool {
        let mut tools = [&self.v4, &self.v6].into_iter().flatten();
        tools.all(|t| t.backend == tool::Backend::Nft || !t.may_be_used())
            && [&self.v4, &self.v6].into_iter().filter_map(|t| t.first()).all(|t| t.backend == tool::Backend::Nft)
    }

    /// Whether there may be rules of ours, found out without running anything.
    fn has_traces(&self, family: Family) -> bool {
        self.tools(family).iter().any(|t| match t.backend {
            tool::Backend::Legacy => t.may_be_used(),
            // A kernel that cannot be asked has no nf_tables.
            tool::Backend::Nft => nfnetlink::has_our_chains(family),
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
                why: "iptables takes this name for a pattern".into(),
                next: "give the network another interface name, of letters, digits, dots and dashes".into(),
            });
        }
        if network.has_v6() {
            // Where there are rules of ours already, there can be more.
            let of_nft = self.v6.iter().any(|t| t.backend == tool::Backend::Nft);
            let v6 = if of_nft && nfnetlink::has_our_chains(Family::V6) {
                Ok(())
            } else {
                tool::choose(&self.v6, Family::V6)
                    .and_then(|(tool, present)| if present.has_ours() { Ok(()) } else { tool.test() })
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
        settings::sysctls(&self.share.served(desired))
    }

    fn reconcile(&mut self, desired: &Desired, context: &Context<'_>) -> Result<Report> {
        let Context { host, store, .. } = context;
        let served = self.share.served(desired);
        let mut changed =
            settings::prepare(&served).context(|| "cannot prepare the bridges for published ports".into())?;
        let before = nfnetlink::generation().ok();
        let mut memory = before.and_then(|now| GenerationCache::recall(store, now));
        let mut known = |family| memory.as_mut().and_then(|m| m.of(family));
        let [known4, known6] = [known(Family::V4), known(Family::V6)];
        let abreast = self.is_abreast();
        let parts = both(
            abreast,
            || self.plan(Family::V4, desired, host, known4),
            || self.plan(Family::V6, desired, host, known6),
        );
        let [part4, part6] = [parts.0?, parts.1?];
        let write = |part: &Option<Part<'_>>| part.as_ref().map_or(Ok(()), Part::write);
        let written = both(abreast, || write(&part4), || write(&part6));
        written.0.and(written.1)?;

        let parts: Vec<Part<'_>> = [part4, part6].into_iter().flatten().collect();
        let commits: usize = parts.iter().map(|p| p.scripts.len()).sum();
        changed += commits;
        let emptied: Vec<(Tool, String)> = parts.iter().flat_map(Part::emptied).collect();
        remove_tables(&emptied)?;
        conntrack::end(&stale(&parts, &served), &served, host);
        if !served.records.is_empty() {
            let of_nft = parts
                .into_iter()
                .filter(|p| p.tool.backend == tool::Backend::Nft && p.wanted.iter().any(|t| !t.chains.is_empty()));
            let before = before.filter(|_| emptied.is_empty());
            GenerationCache::keep(store, context.lock, before, commits, of_nft.map(Part::after).collect());
        }
        Ok(Report { changed })
    }

    fn adopt(&mut self, connections: &[Connection]) -> Result<usize> {
        adopt::adopt(connections).context(|| "cannot hand connections to connection tracking".to_owned())
    }
}

/// The tables of this network namespace, for readers. Their flows are in the kernel's connection tracking.
struct Tables;

impl Inspect for Tables {
    fn exists(&self) -> bool {
        [Family::V4, Family::V6].into_iter().any(nfnetlink::has_our_chains)
    }

    fn generation(&self, _store: &Store) -> Option<u32> {
        nfnetlink::generation().ok()
    }

    fn notes(&self) -> Vec<String> {
        vec![
            "on iptables, ::1 of this host reaches published ports of containers with IPv6 only, and none while \
             bridge-nf-call-ip6tables is 1; 127.0.0.1 reaches all of them"
                .to_owned(),
        ]
    }
}

/// The tables of legacy iptables, with the name of the tool of their family; none of a family that has no table. An
/// iptables that is not installed is an error where the kernel has tables that it alone can list.
///
/// # Errors
/// They cannot be listed.
pub(crate) fn legacy_tables() -> Result<Vec<(&'static str, Snapshot)>> {
    let mut all = Vec::new();
    for (family, name) in [(Family::V4, "iptables"), (Family::V6, "ip6tables")] {
        if !tool::has_legacy_tables(family) {
            continue;
        }
        let tools = tool::find(family);
        let legacy = tools.iter().find(|t| t.backend == tool::Backend::Legacy);
        let legacy = legacy.ok_or_else(|| tool::missing(family).because("legacy iptables has tables on this host"))?;
        all.push((name, legacy.save()?));
    }
    Ok(all)
}

/// Whether the kernel has tables of legacy iptables in this namespace.
pub(crate) fn has_legacy_tables() -> bool {
    [Family::V4, Family::V6].into_iter().any(tool::has_legacy_tables)
}

/// The settings that [`Iptables::for_moved_sctp`] needs, which can be told without its tools.
pub fn sysctls_for_moved_sctp(desired: &Desired) -> Vec<Sysctl> {
    settings::sysctls(&Share::MovedSctp.served(desired))
}

/// One family's tables, as they are and as they should be.
struct Part<'a> {
    tool: &'a Tool,
    family: Family,
    wanted: [print::Table; 3],
    present: Snapshot,
    /// One for each table that is to be changed, and so one commit each.
    scripts: Vec<String>,
}

impl Part<'_> {
    fn write(&self) -> Result<()> {
        if self.scripts.is_empty() { Ok(()) } else { self.tool.restore(&self.scripts.concat()) }
    }

    /// Tables that hold nothing any more.
    fn emptied(&self) -> Vec<(Tool, String)> {
        let holds = |name: &String| {
            let wanted = self.wanted.iter().filter(|t| t.name == name);
            wanted.zip(self.present.tables.get(name)).any(|(t, there)| !snapshot::fitted(t, there).chains.is_empty())
        };
        let tables = self.present.tables.iter().filter(|(name, t)| !holds(name) && is_removable(self.tool, t));
        tables.map(|(name, _)| (self.tool.clone(), name.clone())).collect()
    }

    /// Once it is written.
    fn after(mut self) -> (Family, Snapshot) {
        self.scripts.iter().for_each(|s| self.present.apply(s));
        (self.family, self.present)
    }
}

/// Does two things, at the same time if that is allowed. What a thread does, it does in the namespace of its maker.
fn both<T: Send>(abreast: bool, one: impl FnOnce() -> T, other: impl FnOnce() -> T + Send) -> (T, T) {
    if !abreast {
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
        let there = present.tables.get(table.name);
        // Who made it is known until the table is removed.
        let keep_state = there.is_some_and(|t| is_removable(tool, t));
        snapshot::script(table, there, keep_state)
    };
    wanted.iter().filter_map(script).collect()
}

/// Whether the table is one that iptables made in nf_tables for netpath, and no other software uses.
fn is_removable(tool: &Tool, table: &snapshot::SnapshotTable) -> bool {
    tool.backend == tool::Backend::Nft && table.has_ours() && table.removable()
}

/// iptables never removes what it made in nf_tables. Other software may have begun to use it meanwhile: then it stays.
fn remove_tables(emptied: &[(Tool, String)]) -> Result<()> {
    let named = |all: &[(Tool, String)]| all.iter().map(|(t, name)| (t.family, name.clone())).collect::<Vec<_>>();
    if emptied.is_empty() || nfnetlink::remove_tables(&named(emptied)).is_ok() {
        return Ok(());
    }
    for one in emptied {
        if let Err(e) = nfnetlink::remove_tables(&named(std::slice::from_ref(one))) {
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

/// The connections that the changed rules would decide otherwise.
fn stale(parts: &[Part<'_>], desired: &Desired) -> Vec<Stale> {
    let changed = parts.iter().filter(|p| !p.scripts.is_empty());
    changed
        .map(|p| {
            let served = p.present.tables.values().flat_map(|t| &t.addresses).copied();
            Stale::new(p.family, desired, served, p.present.sources())
        })
        .collect()
}

/// A name that iptables takes as it is: no wildcard at its end, no sign that its parser knows.
fn can_be_matched(name: &IfName) -> bool {
    let name = name.as_str();
    !name.starts_with(['-', '!']) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.@".contains(&b))
}
