//! The pinned programs and maps of one host, for readers. Nothing is made, mounted or repaired to answer a question.

use super::attach::wanted;
use super::attached::{Attached, By, attached};
use super::compile::compile;
use super::maps::{self, CHUNK, Flows, PinnedMap, Shape};
use super::pins::Pins;
use super::tc_mode::TcMode;
use super::traffic::Counters;
use super::{flow_list, monitor, sctp_netfilter, xdp};
use crate::datapath::inspect::{
    Counter, EndpointTraffic, Finding, Flow, FlowUse, Hook, Inspect, Level, MapUse, Monitor, RefusedHook, Sink, Usage,
};
use crate::model::error::{Context, Result};
use crate::model::{Desired, HostView};
use crate::state::Store;
use aya::maps::MapData;
use netpath_common::family::{Ipv4, Ipv6};
use netpath_common::layout::{Plain, name, program};
use netpath_common::reason::Reason;
use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

pub(super) struct Pinned(Pins);

impl Pinned {
    pub(super) fn of(host: u64) -> Self {
        Self(Pins::of(host))
    }
}

impl Inspect for Pinned {
    fn exists(&self) -> bool {
        self.0.exist()
    }

    fn hooks(&self) -> Result<Vec<Hook>> {
        let hook = |hook: Attached| Hook {
            ifindex: hook.ifindex,
            egress: hook.egress,
            by: match hook.by {
                By::Tcx => "tcx",
                By::Clsact => "clsact",
                By::Cgroup => "cgroup",
                By::Xdp => "xdp",
            },
            replaced: !hook.pinned,
            program: hook.program,
        };
        Ok(attached(&self.0)?.into_iter().map(hook).collect())
    }

    fn refused_hooks(&self) -> Vec<RefusedHook> {
        xdp::refused(&self.0).iter().map(|r| RefusedHook { ifindex: r.ifindex, why: r.why() }).collect()
    }

    fn counters(&self) -> Result<Vec<Counter>> {
        if !self.exists() {
            return Ok(Vec::new());
        }
        let what = || format!("cannot read {}", name::COUNT);
        let map = PinnedMap::open(&self.0, &maps::COUNT)?.into_values()?;
        let mut counters = Vec::new();
        for reason in Reason::ALL {
            // One value per processor.
            let each = map.get(&(*reason as u32), 0).context(what)?;
            let (packets, bytes) = each.iter().fold((0, 0), |(p, b), c| (p + c.packets, b + c.bytes));
            if packets > 0 {
                counters.push(Counter { reason: reason.word(), packets, bytes });
            }
        }
        Ok(counters)
    }

    fn flows(&self, _desired: &Desired) -> Result<Option<Vec<Flow>>> {
        if self.exists() { flow_list::flows(&self.0).map(Some) } else { Ok(Some(Vec::new())) }
    }

    fn traffic(&self, desired: &Desired) -> Result<Vec<Option<EndpointTraffic>>> {
        if !self.exists() {
            return Ok(Vec::new());
        }
        let served: HashSet<u32> =
            PinnedMap::open(&self.0, &maps::NETWORK)?.dump(256)?.into_iter().map(|(bridge, _)| bridge).collect();
        let counters = Counters::open(&self.0)?;
        let mut all = Vec::new();
        for record in &desired.records {
            if !record.bridged().is_some_and(|links| served.contains(&links.bridge_index)) {
                all.push(None);
                continue;
            }
            let mut traffic = EndpointTraffic {
                counted: record.traffic.own != 0,
                own: counters.read(record.traffic.own)?,
                publishes: Vec::new(),
            };
            for at in 0..record.publishes.len() {
                let id = record.traffic.publishes.get(at).copied().unwrap_or(0);
                traffic.publishes.push(counters.read(id)?);
            }
            all.push(Some(traffic));
        }
        Ok(all)
    }

    fn usage(&self) -> Result<Usage> {
        if !self.exists() {
            return Ok(Usage::default());
        }
        let pins = &self.0;
        let maps = vec![
            used(pins, &Ipv4::FLOWS)?,
            used(pins, &Ipv6::FLOWS)?,
            used(pins, &maps::SOCK)?,
            used(pins, &maps::ENDPOINT)?,
        ];
        Ok(Usage { flows: Some(of_flows(&maps)), maps, memory_bytes: all_memory(pins)? })
    }

    /// Of the few rules that netfilter keeps for this rung.
    fn generation(&self, store: &Store) -> Option<u32> {
        sctp_netfilter::generation(store)
    }

    fn findings(&self, desired: &Desired, host: &HostView) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        if desired.records.is_empty() && self.exists() {
            findings.push(Finding {
                what: format!("programs and maps are pinned in {} without a container", self.0.root().display()),
                next: "start and stop any container".into(),
            });
        }
        if desired.bridged().next().is_some() {
            findings.extend(self.missing(desired, host)?);
        }
        if let Err(e) = TcMode::forced() {
            findings.push(Finding { what: e.to_string(), next: "unset NETPATH_TC".into() });
        }
        Ok(findings)
    }

    fn monitor(&self, level: Level, sink: Sink) -> Result<Option<Box<dyn Monitor>>> {
        if self.exists() { monitor::start(&self.0, level, sink).map(Some) } else { Ok(None) }
    }
}

impl Pinned {
    /// Interfaces that are not served, and programs that are not attached.
    fn missing(&self, desired: &Desired, host: &HostView) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        let there = attached(&self.0)?;
        let tables = compile(desired, host);
        if let Some(first) = tables.unserved.first() {
            let count = tables.unserved.len();
            findings.push(Finding {
                what: format!("published ports do not answer on {count} interfaces, of which {first} is one"),
                next: "remove addresses from interfaces that need none, or set NETPATH_DATAPATH=iptables".into(),
            });
        }
        let tc = wanted(&tables).into_iter().map(|h| (h.program, h.ifindex));
        let early = tables.xdp.keys().map(|ifindex| (program::XDP_IN, *ifindex));
        let refused = xdp::refused(&self.0);
        for (name, ifindex) in tc.chain(early) {
            if there.iter().any(|a| a.program == name && a.ifindex == Some(ifindex)) {
                continue;
            }
            let missing = format!("{name} is not attached to {}", host.interface(ifindex));
            let why = refused.iter().find(|r| name == program::XDP_IN && r.ifindex == ifindex);
            findings.push(match why {
                Some(refused) => Finding { what: format!("{missing}: {}", refused.why()), next: refused.next() },
                // Marked filters are not read again (`attach.rs`).
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
        Ok(findings)
    }
}

fn used<K: Plain, V: Plain>(pins: &Pins, shape: &Shape<K, V>) -> Result<MapUse> {
    let (map, name) = (PinnedMap::open(pins, shape)?, shape.name());
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
fn all_memory(pins: &Pins) -> Result<u64> {
    pins.names("map").iter().try_fold(0, |sum, name| {
        let map = MapData::from_pin(pins.map(name)).context(|| format!("cannot open map {name}"))?;
        let (_, bytes) = memory(map.fd().as_fd()).context(|| format!("cannot read the size of {name}"))?;
        Ok(sum + bytes)
    })
}

/// Number of entries and bytes from the descriptor of a map (`kernel/bpf/syscall.c, bpf_map_show_fdinfo()`).
fn memory(map: BorrowedFd<'_>) -> std::io::Result<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    let field = |name: &str| {
        text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok()).unwrap_or(0)
    };
    Ok((field("max_entries"), field("memlock")))
}
