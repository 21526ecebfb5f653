//! What we left in nf_tables, so that it need not be listed again.
//!
//! The kernel counts the commits of a namespace. Where it has counted none but ours since, every table is still as we left
//! it: listing them (a process for each family) would tell nothing new. One commit of anybody else's, and they are listed.

use super::snapshot::Snapshot;
use crate::datapath::netfilter::nfnetlink;
use crate::datapath::netfilter::rules::Family;
use crate::state::{Lock, Store};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The tables of each family as of one generation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct GenerationCache {
    generation: u32,
    seen: BTreeMap<Family, Snapshot>,
}

impl GenerationCache {
    /// What is remembered of this host, if nothing was committed since. `now`: the generation.
    pub(super) fn recall(store: &Store, now: u32) -> Option<Self> {
        store.generation_cache::<Self>().filter(|m| m.generation == now)
    }

    /// With our chains, which are asked for: counting begins anew with a kernel module that was taken away and came again.
    pub(super) fn of(&mut self, family: Family) -> Option<Snapshot> {
        self.seen.remove(&family).filter(|p| p.has_ours() && nfnetlink::has_our_chains(family))
    }

    /// Writes down what is there after `commits` of ours since generation `before`; where other software has committed
    /// something in between, nothing is known.
    pub(super) fn keep(
        store: &Store,
        lock: &Lock,
        before: Option<u32>,
        commits: usize,
        seen: BTreeMap<Family, Snapshot>,
    ) {
        let now = nfnetlink::generation().ok();
        let expected = before.and_then(|b| b.checked_add(u32::try_from(commits).ok()?));
        let memory = expected.filter(|e| now == Some(*e)).map(|generation| Self { generation, seen });
        let memory = memory.filter(|m| !m.seen.is_empty());
        tracing::debug!(?before, commits, ?now, kept = memory.is_some(), "generations of nf_tables");
        if let Err(e) = store.keep_generation_cache(lock, memory.as_ref()) {
            tracing::debug!("what is in nf_tables is not remembered: {e}");
        }
    }
}
