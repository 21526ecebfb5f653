//! Caches the tables in nf_tables after netpath's last commit, to save the processes that list them.
//!
//! The kernel counts the commits to nf_tables in a namespace, its generation. The cache is valid while the generation is
//! that of netpath's last commit; after a foreign commit the tables are listed again.

use super::print::PREFIX;
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
    /// The stored cache, if it is of generation `now`.
    pub(super) fn load(store: &Store, now: u32) -> Option<Self> {
        store.generation_cache::<Self>().filter(|cache| cache.generation == now)
    }

    /// Takes the tables of a family, if the kernel still has netpath's chains: generations restart when the kernel module is
    /// reloaded.
    pub(super) fn take(&mut self, family: Family) -> Option<Snapshot> {
        self.seen.remove(&family).filter(|p| p.has_own_rules() && nfnetlink::has_chains(family, PREFIX))
    }

    /// Stores the tables after `commits` of netpath since generation `before`; removes the cache if other software has
    /// committed meanwhile.
    pub(super) fn save(
        store: &Store,
        lock: &Lock,
        before: Option<u32>,
        commits: usize,
        seen: BTreeMap<Family, Snapshot>,
    ) {
        let now = nfnetlink::generation().ok();
        let expected = before.and_then(|b| b.checked_add(u32::try_from(commits).ok()?));
        let cache = expected.filter(|e| now == Some(*e)).map(|generation| Self { generation, seen });
        let cache = cache.filter(|c| !c.seen.is_empty());
        tracing::debug!(?before, commits, ?now, cached = cache.is_some(), "generations of nf_tables");
        if let Err(e) = store.keep_generation_cache(lock, cache.as_ref()) {
            tracing::debug!("the tables in nf_tables are not cached: {e}");
        }
    }
}
