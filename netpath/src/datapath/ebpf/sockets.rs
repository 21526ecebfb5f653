//! The programs at sockets alone, on a host where netfilter translates: they serve localhost and `::1` at connect(), also
//! for containers without IPv6.
//!
//! They use the same pins as the whole datapath, so that they stay attached in a change-over, with what they know of
//! connected sockets. No container depends on them: without them rules serve clients on the host.

use super::attach::{self, remove, remove_other_versions};
use super::compile::compile;
use super::loader::Families;
use super::pins::Pins;
use super::ports::Ports;
use super::{cgroup, loader, map_sync, probe};
use crate::model::error::Result;
use crate::model::{Desired, HostView};
use netpath_common::layout::name;
use std::collections::BTreeSet;

/// The maps that the programs at sockets use.
pub(super) const MAPS: [&str; 8] =
    [name::CONFIG, name::PORT_TCP, name::PORT_UDP, name::PORT_SCTP, name::RULE, name::LOCAL, name::SOCK, name::COUNT];

/// Makes the programs at sockets serve the published ports of `desired`; without any they are removed. Returns the number of
/// changes, 0 where this host or kernel does not permit them; `None`: they would have to be loaded, which takes 10 ms, and
/// the caller leaves that to another.
///
/// # Errors
/// They cannot be loaded or attached, or the maps cannot be written.
pub(super) fn reconcile(cookie: u64, desired: &Desired, host: &HostView, may_load: bool) -> Result<Option<usize>> {
    let pins = Pins::of(cookie);
    let is_wanted = desired.bridged().any(|(r, _)| !r.publishes.is_empty() && !r.network.internal);
    if !is_wanted {
        return Ok(Some(remove(&pins)? + remove_other_versions(cookie)?));
    }
    if !pins.exist() {
        if !can_be_used() {
            return Ok(Some(0));
        }
        if !may_load {
            return Ok(None);
        }
    }
    let tables = compile(desired, host);
    let mut changed = loader::ensure_with(&pins, &programs(), Families::of_networks(desired), Some(&MAPS))?;
    let mut ports = Ports::open(&pins)?;
    changed += ports.withdraw(&tables);
    changed += map_sync::sync_sockets(&pins, &tables)?;
    changed += ports.publish(&tables)?;
    changed += attach::reconcile_sockets(&pins)?;
    Ok(Some(changed + remove_other_versions(cookie)?))
}

/// Asked before anything is loaded: in a user namespace, where no program can be, this is all that it costs.
fn can_be_used() -> bool {
    let bpf = probe::BPF.require().and_then(|()| probe::BPFFS.require());
    let answer = bpf.and_then(|()| cgroup::root().map(drop).map_err(|e| e.to_string()));
    if let Err(why) = &answer {
        tracing::debug!(why, "no program at sockets");
    }
    answer.is_ok()
}

fn programs() -> BTreeSet<&'static str> {
    attach::SOCKETS.iter().map(|(name, _)| *name).collect()
}

/// Removes everything of the datapath that programs at sockets do not use.
///
/// # Errors
/// The kernel's.
pub(super) fn keep_alone(pins: &Pins) -> Result<usize> {
    if !pins.exist() {
        return Ok(0);
    }
    let mut removed = attach::detach_unpinned(pins)?;
    let programs = programs();
    let maps = BTreeSet::from(MAPS);
    for (dir, kept) in [("link", &programs), ("prog", &programs), ("map", &maps)] {
        for name in pins.names(dir).iter().filter(|name| !kept.contains(name.as_str())) {
            pins.unpin(&pins.root().join(dir).join(name))?;
            removed += 1;
        }
    }
    Ok(removed)
}
