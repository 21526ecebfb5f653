//! The iptables rung: the same promises as the eBPF rung, kept by netfilter, for hosts that have nothing better.
//!
//! `rules.rs` compiles the desired state, `present.rs` compares it with what iptables-save prints and writes the script,
//! `tool.rs` finds and runs the programs. `bridge.rs` sets what rules alone cannot do, `conntrack.rs` forgets connections that the new rules would decide otherwise.
//! Every host's tables are those of its network namespace, so nothing here needs a name of its own.

mod bridge;
mod conntrack;
mod netfilter;
mod netlink;
mod present;
mod rules;
mod tool;

use super::{Datapath, Refusal, Report, Sysctl};
use crate::model::error::{Context, Result};
use crate::model::{Desired, HostView, IfName, Record, Rung};
use present::Present;
use rules::{Family, Ruleset, compile};
use std::collections::BTreeSet;
use std::net::IpAddr;
use tool::Tool;

pub struct Iptables {
    v4: Vec<Tool>,
    /// Empty on a host without ip6tables: networks with IPv6 are refused.
    v6: Vec<Tool>,
}

impl Iptables {
    /// # Errors
    /// No iptables on this host.
    pub fn new() -> Result<Self> {
        let v4 = tool::find(Family::V4);
        if v4.is_empty() {
            return Err(tool::missing(Family::V4));
        }
        Ok(Self { v4, v6: tool::find(Family::V6) })
    }

    fn tools(&self, family: Family) -> &[Tool] {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// `emptied` takes the tables that hold nothing any more.
    fn reconcile_family(
        &self,
        family: Family,
        desired: &Desired,
        host: &HostView,
        emptied: &mut Vec<(Tool, String)>,
    ) -> Result<usize> {
        let wanted = compile(desired, family, !bridge::filters_bridged(family));
        if wanted.is_empty() && !self.has_traces(family) {
            return Ok(0);
        }
        let (tool, present) = tool::choose(self.tools(family), family)?;
        let served: BTreeSet<IpAddr> = present.tables.values().flat_map(|t| t.addresses.iter().copied()).collect();
        let changed = write(tool, &wanted, &present)?;
        if wanted.is_empty() {
            let empty = present.tables.iter().filter(|(_, t)| is_removable(tool, t));
            emptied.extend(empty.map(|(name, _)| (tool.clone(), name.clone())));
        }
        if changed > 0 {
            let now = rules::addresses(desired, family);
            forget(family, &served.difference(&now).copied().collect(), desired, host);
        }
        Ok(changed)
    }

    /// Whether there may be rules of ours, found out without running anything.
    fn has_traces(&self, family: Family) -> bool {
        self.tools(family).iter().any(|t| match t.backend {
            tool::Backend::Legacy => t.may_be_used(),
            // A kernel that cannot be asked has no nf_tables.
            tool::Backend::Nft => netfilter::has_our_chains(family),
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
        if !can_be_matched(&network.bridge) {
            refusals.push(Refusal {
                feature: format!("use bridge {}", network.bridge),
                why: "iptables takes this name for a pattern".into(),
                next: "give the network another interface name, of letters, digits, dots and dashes".into(),
            });
        }
        if network.has_v6() {
            // Where there are rules of ours already, there can be more.
            let v6 = tool::choose(&self.v6, Family::V6)
                .and_then(|(tool, present)| if present.has_ours() { Ok(()) } else { tool.test() });
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
        let mut sysctls = Vec::new();
        let mut set = |path: String| {
            if !sysctls.iter().any(|s: &Sysctl| s.path == path) {
                sysctls.push(Sysctl { path, value: "1".into() });
            }
        };
        for (record, _) in desired.ready() {
            let network = &record.network;
            if network.internal {
                continue;
            }
            if network.has_v4() {
                set("net/ipv4/ip_forward".into());
            }
            if network.has_v6() {
                set("net/ipv6/conf/all/forwarding".into());
            }
            if rules::serves_loopback(record, Family::V4) {
                // Clients that dial 127.0.0.1 are led out of the bridge; what comes in there is guarded by NETPATH_INPUT.
                set(format!("net/ipv4/conf/{}/route_localnet", network.bridge));
            }
        }
        sysctls
    }

    fn reconcile(&mut self, desired: &Desired, host: &HostView) -> Result<Report> {
        let mut changed =
            bridge::prepare(desired).context(|| "cannot prepare the bridges for published ports".into())?;
        let mut emptied = Vec::new();
        for family in [Family::V4, Family::V6] {
            changed += self.reconcile_family(family, desired, host, &mut emptied)?;
        }
        remove_tables(&emptied)?;
        Ok(Report { changed })
    }
}

/// Returns the number of tables written.
fn write(tool: &Tool, wanted: &Ruleset, present: &Present) -> Result<usize> {
    let script = |table: &rules::Table| {
        let there = present.tables.get(table.name);
        let keep_state = wanted.is_empty() && there.is_some_and(|t| is_removable(tool, t));
        present::script(table, there, keep_state)
    };
    let scripts: Vec<String> = wanted.tables.iter().filter_map(script).collect();
    if !scripts.is_empty() {
        tool.restore(&scripts.concat())?;
    }
    Ok(scripts.len())
}

/// Whether the table is one that iptables made in nf_tables for us, and nobody else uses.
fn is_removable(tool: &Tool, table: &present::PresentTable) -> bool {
    tool.backend == tool::Backend::Nft && table.has_ours() && table.removable()
}

/// iptables never removes what it made in nf_tables. Somebody may have begun to use it meanwhile: then it stays.
fn remove_tables(emptied: &[(Tool, String)]) -> Result<()> {
    let named = |all: &[(Tool, String)]| all.iter().map(|(t, name)| (t.family, name.clone())).collect::<Vec<_>>();
    if emptied.is_empty() || netfilter::remove_tables(&named(emptied)).is_ok() {
        return Ok(());
    }
    for one in emptied {
        if let Err(e) = netfilter::remove_tables(&named(std::slice::from_ref(one))) {
            tracing::debug!("table {} stays: {e}", one.1);
            let (tool, present) = (&one.0, one.0.save()?);
            let nothing = compile(&Desired::default(), tool.family, false);
            let scripts = nothing.tables.iter().filter_map(|t| present::script(t, present.tables.get(t.name), false));
            tool.restore(&scripts.collect::<String>())?;
        }
    }
    Ok(())
}

/// Stale connections age by themselves: not being able to remove them is no reason to fail.
fn forget(family: Family, gone: &BTreeSet<IpAddr>, desired: &Desired, host: &HostView) {
    let dns: Vec<(IpAddr, u16)> = desired
        .ready()
        .filter(|(r, _)| r.network.dns)
        .flat_map(|(r, _)| r.network.gateways().map(|(gateway, _)| (gateway, 53)))
        .collect();
    match conntrack::forget(family, gone, &rules::targets(desired, family), host, &dns) {
        Ok(n) => tracing::debug!("{n} connections forgotten"),
        Err(e) => tracing::warn!("cannot forget connections of removed containers: {e}; they time out by themselves"),
    }
}

/// A name that iptables takes as it is: no wildcard at its end, no sign that its parser knows.
fn can_be_matched(name: &IfName) -> bool {
    let name = name.as_str();
    !name.starts_with(['-', '!']) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.@".contains(&b))
}
