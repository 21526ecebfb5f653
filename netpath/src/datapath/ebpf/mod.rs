//! The eBPF rung: programs at uplinks, bridges, `lo` and the cgroup root translate and redirect every packet.
//!
//! All kernel objects are pinned below the namespace's cookie (`pins`), so that no process has to stay. `loader`
//! loads maps and programs, `compile` computes the contents of the maps, `map_sync` writes them, `attach` attaches.
//! Walks: docs/architecture.md.

mod addr;
mod allow;
mod attach;
mod attached;
mod carry;
mod cgroup;
mod clsact;
mod compile;
mod departures;
mod dns;
mod expire;
mod flow_list;
mod flow_mtu;
mod flow_pair;
mod handover;
mod idle;
mod inspect;
mod invalidate;
mod limits;
pub mod loader;
mod map_sync;
mod maps;
mod migrate_flows;
mod monitor;
mod monitor_lock;
mod new_uplink;
mod pins;
mod ports;
mod probe;
mod route_mtu;
mod sctp_netfilter;
mod sockets;
mod subnet_bitmap;
mod sys;
mod take_over;
mod tc_mode;
mod traffic;
mod xdp;
mod xdp_policy;

use super::connection::Connection;
use super::netfilter::sysctls_for_moved_sctp;
use super::{Backend, Context, Datapath, Effort, Expired, Predecessor, Refusal, Report, Sysctl};
use crate::model::error::Result;
use crate::model::{Desired, HostView, LinkKind, Network, Record, Rung};
use crate::state::Store;
use loader::Families;
use netpath_common::layout::name;
use pins::Pins;
use std::collections::BTreeMap;
use tc_mode::TcMode;

pub const BACKEND: Backend = Backend {
    rung: Rung::Ebpf,
    through_netfilter: false,
    is_interim: false,
    lead_dns: Some(dns::open),
    sockets: Some(sockets::reconcile),
    carry: Some(carry::load),
    needs_sources: false,
    needs_route_mtus: true,
    ages_flows: true,
    probes: &probe::ALL,
    usable: probe::usable,
    open: |host| pins::reachable().map(|()| Box::new(Ebpf::of(host)) as Box<dyn Datapath>),
    inspect: |host| Box::new(inspect::Pinned::of(host)),
    gone_hosts: expire::gone_hosts,
    hold: new_uplink::take,
    idle: Some(&idle::IDLE),
};

#[derive(Debug)]
pub struct Ebpf {
    cookie: u64,
    pins: Pins,
}

impl Ebpf {
    fn of(cookie: u64) -> Self {
        Self { cookie, pins: Pins::of(cookie) }
    }

    fn hand_over_flows(&self, to: &mut dyn Datapath) {
        if let Err(e) = self.connections().and_then(|connections| to.adopt(&connections)) {
            tracing::warn!("new connections begin again: {e}");
        }
    }

    /// `from`: the rung that serves until now.
    fn serve(&self, desired: &Desired, context: &Context<'_>, from: Option<&Predecessor<'_>>) -> Result<Report> {
        let (pins, host) = (&self.pins, context.host);
        // Without ready endpoints nothing is attached; a setup in progress puts the programs to use again. Connections that wait
        // for their container would be ended by the host's stack.
        let waits = !context.departures.waiting.is_empty() && loader::is_complete(pins);
        if desired.bridged().next().is_none() && !waits {
            let rules = sctp_netfilter::reconcile(desired, context)?;
            let aside = put_aside(pins, context.store)?;
            return Ok(Report { changed: rules + aside + attach::remove_other_versions(self.cookie)? });
        }
        let others = Pins::of_other_versions(self.cookie);
        let mut tables = compile::compile(desired, host);
        if !pins.exist() {
            idle::take(pins)?;
        }
        let mut changed = loader::ensure(pins, &attach::programs(&tables), Families::of_networks(desired))?;
        if let Some(first) = tables.unserved.first() {
            let (unserved, most) = (tables.unserved.len(), netpath_common::layout::UPLINKS);
            tracing::warn!(unserved, %first, "the host has more than {most} uplinks: published ports do not answer on the newest");
        }
        if tables.left_out > 0 {
            let most = netpath_common::layout::RULE_CHAIN;
            tracing::warn!(left_out = tables.left_out, "more than {most} host addresses are published on one port");
        }
        // The bridge of an endpoint that has just gone still exists, and is no uplink.
        let bridges = map_sync::bridges(pins)?;
        let is_bridge = |i: &u32| host.link(*i).is_some_and(|l| l.kind == LinkKind::Bridge);
        tables.uplinks.retain(|i, _| !(bridges.contains(i) && is_bridge(i)));
        tables.xdp.retain(|i, _| tables.uplinks.contains_key(i));
        // Withdraw stale ports first and publish new ones last, so that no port points at incomplete state.
        let mut ports = ports::Ports::open(pins)?;
        departures::mark_ports(pins, &context.departures)?;
        changed += ports.withdraw(&tables);
        let hooks = attach::wanted(&tables);
        let networks = from.map(|_| std::mem::take(&mut tables.networks));
        // Only after its programs are attached, an uplink counts as one that has them.
        let known = map_sync::uplinks(pins)?;
        let is_first = known.is_empty() || from.is_some() || !others.is_empty();
        let is_new = |index: &u32| !is_first && !known.contains_key(index);
        let (new, there): (BTreeMap<_, _>, _) =
            std::mem::take(&mut tables.uplinks).into_iter().partition(|(index, _)| is_new(index));
        tables.uplinks = there;
        changed += map_sync::sync(pins, &tables, &context.departures)?;
        let mut adopted = adopt(pins, &tables, from);
        if !others.is_empty() {
            // Programs of another layout still run and do not use these maps: the new programs must find complete
            // state.
            changed += ports.publish(&tables)? + migrate(&others, pins)?;
        }
        changed += attach::reconcile(pins, &hooks, TcMode::forced()?)?;
        if !new.is_empty() {
            tables.uplinks.extend(new);
            changed += map_sync::sync_uplinks(pins, &tables)?;
        }
        // An interface has one XDP program; until this one is attached, the classifiers handle everything.
        others.iter().try_for_each(|(_, other)| xdp::detach(other))?;
        changed += xdp::reconcile(pins, &tables.xdp)?;
        changed += ports.publish(&tables)?;
        if let Some(networks) = networks {
            // Those that have begun since.
            adopted += adopt(pins, &tables, from);
            tables.networks = networks;
            changed += map_sync::sync(pins, &tables, &context.departures)?;
            adopted += adopt(pins, &tables, from);
            tracing::info!(adopted, "connections go on");
        }
        changed += sctp_netfilter::reconcile(desired, context)?;
        changed += map_sync::forget_lists(pins, &tables)?;
        changed += replace_other_versions(&others, pins)?;
        Ok(Report { changed })
    }
}

impl Datapath for Ebpf {
    fn rung(&self) -> Rung {
        Rung::Ebpf
    }

    fn refusals(&self, record: &Record) -> Vec<Refusal> {
        sctp_netfilter::refusals(record)
    }

    fn limits(&self, there: &[Record], coming: &[Record]) -> Option<Refusal> {
        limits::exceeded(there, coming)
    }

    /// Replies to clients bound to a loopback address come back through `lo` from a container's address.
    fn sysctls(&self, desired: &Desired) -> Vec<Sysctl> {
        let on_lo = ["route_localnet", "accept_local"]
            .map(|name| Sysctl { path: format!("net/ipv4/conf/lo/{name}"), value: "1".into() });
        on_lo.into_iter().chain(sysctls_for_moved_sctp(desired)).collect()
    }

    /// A veth takes redirected XDP frames only with GRO.
    fn needs_gro(&self, network: &Network, host: &dyn Fn() -> Result<HostView>) -> Result<bool> {
        xdp_policy::is_on_somewhere(network, host)
    }

    fn reconcile(&mut self, desired: &Desired, context: &Context<'_>) -> Result<Report> {
        self.serve(desired, context, None)
    }

    fn take_over(&mut self, desired: &Desired, context: &Context<'_>, from: &Predecessor<'_>) -> Result<Report> {
        self.serve(desired, context, Some(from))
    }

    fn hand_over(&mut self, to: &mut dyn Datapath, context: &Context<'_>) -> Result<Report> {
        // Flows begin until the programs are detached.
        self.hand_over_flows(to);
        let detached = attach::detach(&self.pins)?;
        self.hand_over_flows(to);
        if !to.has_sockets_beside() {
            return self.reconcile(&Desired::default(), context);
        }
        let rules = sctp_netfilter::reconcile(&Desired::default(), context)?;
        let removed = sockets::keep_alone(&self.pins)? + attach::remove_other_versions(self.cookie)?;
        Ok(Report { changed: rules + detached + removed })
    }

    fn connections(&self) -> Result<Vec<Connection>> {
        let mut all = if self.pins.map(name::FLOW4).exists() { handover::connections(&self.pins)? } else { Vec::new() };
        for (version, other) in Pins::of_other_versions(self.cookie) {
            all.extend(handover::connections_of_another_layout(version, &other)?);
        }
        Ok(all)
    }

    fn expire(&mut self, effort: Effort<'_>) -> Result<Expired> {
        if self.pins.exist() { expire::maps(&self.pins, effort) } else { Ok(Expired::default()) }
    }

    fn forget_host(&mut self) -> Result<usize> {
        self.pins.remove()
    }
}

/// Connections that cannot be taken over begin again.
fn adopt(pins: &Pins, tables: &compile::Tables, from: Option<&Predecessor<'_>>) -> usize {
    let Some(from) = from else { return 0 };
    take_over::adopt(pins, tables, from).unwrap_or_else(|e| {
        tracing::warn!("connections begin again: {e}");
        0
    })
}

/// Keeps programs and maps for the next first container, if the user wants that.
fn put_aside(pins: &Pins, store: &Store) -> Result<usize> {
    if pins.exist() {
        Ok(attach::detach_unpinned(pins)? + pins.remove_links()? + idle::keep(pins, store)?)
    } else {
        Ok(0)
    }
}

fn migrate(others: &[(u32, Pins)], pins: &Pins) -> Result<usize> {
    others.iter().try_fold(0, |sum, (version, other)| Ok(sum + migrate_flows::flows(*version, other, pins)?))
}

/// Removes the trees of other layouts after this one's programs are attached. Until then the other programs ran first
/// and began flows: these are copied before and once more after their removal.
fn replace_other_versions(others: &[(u32, Pins)], pins: &Pins) -> Result<usize> {
    let mut changed = migrate(others, pins)?;
    for (_, other) in others {
        changed += attach::hand_over(other, pins)? + other.remove_links()?;
    }
    changed += migrate(others, pins)?;
    others.iter().try_fold(changed, |sum, (_, other)| Ok(sum + attach::remove(other)?))
}

#[cfg(test)]
#[path = "flow_tests.rs"]
mod flow_tests;

#[cfg(test)]
#[path = "live_tests.rs"]
mod live_tests;

#[cfg(test)]
#[path = "options_tests.rs"]
mod options_tests;
