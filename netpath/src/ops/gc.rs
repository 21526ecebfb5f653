//! Garbage collection: expired flows, records of dead containers, pins of dead namespaces.

use super::without_container;
use crate::datapath::ebpf::expire;
use crate::datapath::ebpf::pins::Pins;
use crate::datapath::{Effort, Progress, Swept, ladder};
use crate::link::netns;
use crate::model::error::Result;
use crate::model::{Desired, Rung};
use crate::state::Store;
use serde::Serialize;
use std::time::{Duration, Instant};

/// A command sweeps a little when no sweep has run for so long.
const EVERY: Duration = Duration::from_secs(60);
/// And for no longer than this, with what it takes to open the maps on top.
const LITTLE: Duration = Duration::from_millis(1);

/// What was removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Removed {
    /// Of containers whose interface or namespace is gone.
    pub records: usize,
    /// Objects of the datapath that were missing, wrong or no longer wanted: links, rules, map elements, pins.
    pub datapath: usize,
    /// Halves of flows that had expired.
    pub flows: usize,
    /// Ports marked as masqueraded from by flows that are gone.
    pub marks: usize,
    /// Hosts whose network namespace is gone.
    pub hosts: usize,
}

/// Removes everything that is of no use to anybody. A second call finds nothing.
///
/// # Errors
/// What could not be read or removed.
pub fn gc() -> Result<Removed> {
    super::signal::ignore();
    let cookie = netns::cookie()?;
    let mut live = without_container(cookie)?;
    let mut removed = Removed::default();
    let leftovers = Pins::of(cookie).exist() || live.site.store.dir().exists();
    if leftovers {
        live.lock = Some(live.site.store.lock(&super::signal::seen)?);
        let put_right = if live.site.store.is_empty()? {
            // The command that removed the last record was killed before it had removed the rest.
            let view = live.site.rtnl.host_view(cookie)?;
            let emptied = ladder::open(live.site.store.rung()?.unwrap_or(Rung::Ebpf))
                .and_then(|mut d| d.reconcile(&Desired::default(), &view));
            emptied.map(|r| removed.datapath = r.changed)
        } else {
            live.serve().map(|s| (removed.records, removed.datapath) = (s.forgotten, s.changed))
        };
        live.let_go()?;
        put_right?;
        let swept = sweep(&live.site.store, cookie, Effort::Whole)?;
        (removed.flows, removed.marks) = (swept.flows, swept.marks);
    }
    for gone in expire::gone_hosts().into_iter().filter(|gone| *gone != cookie) {
        forget(gone)?;
        removed.hosts += 1;
    }
    super::agent::ensure(&live.site.store);
    Ok(removed)
}

fn sweep(store: &Store, cookie: u64, effort: Effort<'_>) -> Result<Swept> {
    match store.rung()? {
        Some(Rung::Ebpf) => ladder::open(Rung::Ebpf)?.sweep(cookie, effort),
        _ => Ok(Swept::default()),
    }
}

/// All flows of this host.
///
/// # Errors
/// As [`gc`].
pub fn sweep_flows(store: &Store, cookie: u64) -> Result<Swept> {
    let swept = sweep(store, cookie, Effort::Whole)?;
    store.keep_swept(&Progress::default());
    Ok(swept)
}

/// Some flows, if that has not been done for a while, for a command that has other things to do. It holds the lock.
pub(super) fn sweep_some(store: &Store, cookie: u64) {
    let (when, mut progress) = store.swept().unwrap_or((std::time::UNIX_EPOCH, Progress::default()));
    if when.elapsed().is_ok_and(|since| since < EVERY) {
        return;
    }
    let effort = Effort::Some { until: Instant::now() + LITTLE, progress: &mut progress };
    match sweep(store, cookie, effort) {
        Ok(swept) => tracing::debug!(flows = swept.flows, "swept a little"),
        Err(e) => tracing::debug!(error = %e, "cannot sweep"),
    }
    store.keep_swept(&progress);
}

/// Everything of a host namespace that is gone. No process can be in it any more.
fn forget(cookie: u64) -> Result<()> {
    tracing::info!(host = format!("{cookie:x}"), "its namespace is gone, its programs, maps and records go too");
    expire::forget_host(cookie)?;
    let store = Store::of(cookie);
    if !store.dir().exists() {
        return Ok(());
    }
    let lock = store.lock(&super::signal::seen)?;
    for kept in store.all()? {
        store.forget(&lock, &kept.key())?;
    }
    store.close(lock)
}
