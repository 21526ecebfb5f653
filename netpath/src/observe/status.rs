//! The rung in use and why, what is attached where, and what the programs have counted.

use super::traffic::{self, NetworkLine};
use super::{Host, interface};
use crate::datapath::ebpf::attach::{self, By};
use crate::datapath::ebpf::maps::{self, CHUNK, Flows, PinnedMap, Shape};
use crate::datapath::ebpf::xdp;
use crate::datapath::filter;
use crate::datapath::ladder::{self, LADDER};
use crate::model::Rung;
use crate::model::error::{Context, Result};
use crate::state::agent::holder;
use aya::maps::MapData;
use netpath_common::family::{Ipv4, Ipv6};
use netpath_common::layout::{Plain, name};
use netpath_common::reason::Reason;
use serde::Serialize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

#[derive(Serialize)]
pub struct Status {
    pub version: u32,
    /// Of the host's network namespace, in hexadecimal: the name of its directory among pins and state.
    pub host: String,
    /// `None` while there is no container.
    pub rung: Option<Rung>,
    /// Why the rungs above it were not taken.
    pub rejected_rungs: Vec<RejectedRung>,
    pub endpoints: usize,
    /// The process that follows changes of the host, if it runs.
    pub agent: Option<AgentState>,
    pub hooks: Vec<Hook>,
    /// Uplinks at which `netpath.xdp` asks for a program that the kernel has refused.
    pub xdp_refused: Vec<XdpRefused>,
    pub counters: Vec<Counter>,
    pub networks: Vec<NetworkLine>,
    /// On the eBPF rung: rules of others that packets of containers bypass, in whole or in part.
    pub bypassed: Vec<String>,
    /// `None` on other rungs.
    pub flows: Option<FlowUse>,
    pub maps: Vec<MapUse>,
    /// Of all maps, those that `maps` leaves out too.
    pub memory_bytes: u64,
}

#[derive(Serialize)]
pub struct AgentState {
    pub pid: u32,
}

#[derive(Serialize)]
pub struct RejectedRung {
    pub rung: Rung,
    pub why: String,
}

#[derive(Serialize)]
pub struct Hook {
    pub program: String,
    /// Absent for the cgroup root.
    pub interface: Option<String>,
    pub side: &'static str,
    pub by: &'static str,
    /// A monitor's program runs in place of the ordinary one.
    pub monitored: bool,
}

#[derive(Serialize)]
pub struct XdpRefused {
    pub interface: String,
    pub why: String,
}

#[derive(Serialize)]
pub struct Counter {
    pub reason: &'static str,
    pub packets: u64,
    pub bytes: u64,
}

/// Of both families together.
#[derive(Serialize)]
pub struct FlowUse {
    /// Those that have expired and are not swept yet too.
    pub used: usize,
    /// Beyond it the flow that was not used for the longest goes.
    pub limit: usize,
    /// The same however many there are.
    pub memory_bytes: u64,
}

#[derive(Serialize)]
pub struct MapUse {
    pub name: &'static str,
    pub entries: usize,
    pub max_entries: u32,
    pub memory_bytes: u64,
}

/// # Errors
/// State, pins or maps cannot be read.
pub fn status(host: &Host) -> Result<Status> {
    let endpoints = host.store.all()?.len();
    let rung = host.store.rung()?;
    let above = LADDER.iter().take_while(|r| rung.is_some_and(|used| **r != used));
    let tried = host.store.rejected_rungs()?;
    let why_not = |rung| tried.iter().find(|(r, _)| *r == rung).map(|(_, why)| why.clone());
    let rejected_rungs = above
        .filter_map(|r| why_not(*r).or_else(|| ladder::usable(*r).err()).map(|why| RejectedRung { rung: *r, why }));
    let rejected_rungs = rejected_rungs.collect();
    let mut status = Status {
        version: 1,
        host: format!("{:x}", host.cookie),
        rung,
        rejected_rungs,
        endpoints,
        agent: holder(host.store.dir()).map(|h| AgentState { pid: h.process.pid }),
        hooks: Vec::new(),
        xdp_refused: Vec::new(),
        counters: Vec::new(),
        networks: Vec::new(),
        bypassed: Vec::new(),
        flows: None,
        maps: Vec::new(),
        memory_bytes: 0,
    };
    if host.pins.exist() {
        let view = host.view()?;
        for hook in attach::attached(&host.pins)? {
            status.hooks.push(Hook {
                interface: hook.ifindex.map(|i| interface(&view, i)),
                side: match (hook.ifindex, hook.egress) {
                    (None, _) => "sockets",
                    (_, false) => "ingress",
                    (_, true) => "egress",
                },
                by: match hook.by {
                    By::Tcx => "tcx",
                    By::Clsact => "clsact",
                    By::Cgroup => "cgroup",
                    By::Xdp => "xdp",
                },
                monitored: !hook.pinned,
                program: hook.program,
            });
        }
        let refused = xdp::refused(&host.pins).into_iter();
        let refused = refused.map(|r| XdpRefused { interface: interface(&view, r.ifindex), why: r.why() });
        status.xdp_refused = refused.collect();
        status.counters = counters(host)?;
        let foreign = filter::foreign().context(|| "cannot tell which rules of others this host has".to_owned())?;
        status.bypassed = foreign.iter().map(ToString::to_string).collect();
        status.networks = traffic::networks(host, &foreign)?;
        status.memory_bytes = all_memory(host)?;
        status.maps = vec![
            used(host, &Ipv4::FLOWS)?,
            used(host, &Ipv6::FLOWS)?,
            used(host, &maps::SOCK)?,
            used(host, &maps::ENDPOINT)?,
        ];
        status.flows = Some(of_flows(&status.maps));
    }
    Ok(status)
}

/// All reasons that were counted at least once, over all processors.
///
/// # Errors
/// The map cannot be read.
pub fn counters(host: &Host) -> Result<Vec<Counter>> {
    let what = || format!("cannot read {}", name::COUNT);
    let map = PinnedMap::open(&host.pins, &maps::COUNT)?.into_values()?;
    let mut counters = Vec::new();
    for reason in Reason::ALL {
        let each = map.get(&(*reason as u32), 0).context(what)?;
        let (packets, bytes) = each.iter().fold((0, 0), |(p, b), c| (p + c.packets, b + c.bytes));
        if packets > 0 {
            counters.push(Counter { reason: reason.word(), packets, bytes });
        }
    }
    Ok(counters)
}

fn used<K: Plain, V: Plain>(host: &Host, shape: &Shape<K, V>) -> Result<MapUse> {
    let (map, name) = (PinnedMap::open(&host.pins, shape)?, shape.name());
    let entries = map.dump(CHUNK)?.len();
    let (max_entries, memory_bytes) = memory(map.fd()).context(|| format!("cannot read the size of {name}"))?;
    Ok(MapUse { name, entries, max_entries: max_entries as u32, memory_bytes })
}

/// A flow is two entries.
fn of_flows(maps: &[MapUse]) -> FlowUse {
    let tables = || maps.iter().filter(|m| [name::FLOW4, name::FLOW6].contains(&m.name));
    FlowUse {
        used: tables().map(|m| m.entries.div_ceil(2)).sum(),
        limit: tables().map(|m| m.max_entries as usize / 2).sum(),
        memory_bytes: tables().map(|m| m.memory_bytes).sum(),
    }
}

/// Bytes that the pinned maps hold in the kernel.
fn all_memory(host: &Host) -> Result<u64> {
    host.pins.names("map").iter().try_fold(0, |sum, name| {
        let map = MapData::from_pin(host.pins.map(name)).context(|| format!("cannot open map {name}"))?;
        let (_, bytes) = memory(map.fd().as_fd()).context(|| format!("cannot read the size of {name}"))?;
        Ok(sum + bytes)
    })
}

/// What the kernel says about the descriptor of a map (`kernel/bpf/syscall.c, bpf_map_show_fdinfo()`).
fn memory(map: BorrowedFd<'_>) -> std::io::Result<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    let field = |name: &str| {
        text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok()).unwrap_or(0)
    };
    Ok((field("max_entries"), field("memlock")))
}
