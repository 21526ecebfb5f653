//! Garbage collection: expired flows, records of dead containers, pins of dead namespaces.

use super::expire::expire;
use super::session::Session;
use crate::datapath::Effort;
use crate::datapath::ladder::{self, LADDER};
use crate::link::netns;
use crate::model::Rung;
use crate::model::error::Result;
use crate::plan;
use crate::state::Store;
use serde::Serialize;

/// The number of objects removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Removed {
    /// Of containers whose interface or namespace is gone.
    pub records: usize,
    /// Kernel objects that were missing, wrong or no longer wanted: links, rules, map elements, pins.
    pub datapath: usize,
    /// Entries of flows that had expired, two per flow.
    pub flows: usize,
    /// Marks of masqueraded ports whose flows are gone.
    pub marks: usize,
    /// Hosts whose network namespace is gone.
    pub hosts: usize,
    /// Programs and maps that stayed loaded without a container.
    pub idle: usize,
}

/// Removes all leftovers; with `all` also what stays loaded without a container. A second call finds nothing.
///
/// # Errors
/// What could not be read or removed.
pub fn gc(all: bool) -> Result<Removed> {
    super::signal::ignore();
    let cookie = netns::cookie()?;
    let mut session = Session::without_container(cookie)?;
    let mut removed = Removed::default();
    let leftovers = LADDER.into_iter().any(|b| (b.inspect)(cookie).exists())
        || session.site.store.dir().exists()
        || (all && ladder::idle(cookie).is_some());
    if leftovers {
        session.lock = Some(session.site.store.lock(&super::signal::seen)?);
        let repaired = if session.site.store.is_empty()? && session.leaves_the_end_to_the_agent() && !all {
            Ok(())
        } else if session.site.store.is_empty()? {
            // The command that removed the last record was killed before it removed the rest.
            session.empty().map(|changed| removed.datapath = changed)
        } else {
            session.reconcile().map(|s| (removed.records, removed.datapath) = (s.forgotten, s.changed))
        };
        let unloaded = if all { session.lock().and_then(|lock| ladder::unload(lock, cookie)) } else { Ok(0) };
        session.release_lock()?;
        repaired?;
        removed.idle = unloaded?;
        let expired = expire(&session.site.store, cookie, Effort::All)?;
        (removed.flows, removed.marks) = (expired.flows, expired.marks);
    }
    let mut failures = Vec::new();
    for backend in LADDER {
        for gone in (backend.gone_hosts)().into_iter().filter(|gone| *gone != cookie) {
            match forget(backend.rung, gone) {
                Ok(()) => removed.hosts += 1,
                Err(e) => failures.push(e),
            }
        }
    }
    for idle in LADDER.into_iter().filter_map(|b| b.idle) {
        match (idle.unload_expired)() {
            Ok(count) => removed.idle += count,
            Err(e) => failures.push(e),
        }
    }
    super::agent::ensure(&session.site.store);
    plan::all_of("cannot remove what a host has left whose namespace is gone", failures).map(|()| removed)
}

/// Everything of a host namespace that is gone. No process can be in it any more.
fn forget(rung: Rung, cookie: u64) -> Result<()> {
    tracing::info!(host = format!("{cookie:x}"), "its namespace is gone; its programs, maps and records are removed");
    let store = Store::of(cookie);
    if store.dir().exists() {
        let lock = store.lock(&super::signal::seen)?;
        // First, since it refuses records of a later version, which then keep their programs too.
        store.forget_all(&lock)?;
        store.close(lock)?;
    }
    ladder::open(rung, cookie)?.forget_host().map(drop)
}
