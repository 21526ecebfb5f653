//! Expiry of flows, for rungs whose flows are in tables of their own.

use crate::datapath::{Effort, Expired, Progress, ladder};
use crate::model::error::Result;
use crate::state::{Lock, Store};
use std::time::{Duration, Instant};

/// A command expires some flows when that was last done so long ago.
const EVERY: Duration = Duration::from_secs(60);
/// Time limit of that, without the time to open the maps.
const TIME_LIMIT: Duration = Duration::from_millis(1);

pub(super) fn expire(store: &Store, cookie: u64, effort: Effort<'_>) -> Result<Expired> {
    match store.rung()? {
        Some(rung) if ladder::backend(rung).ages_flows => ladder::open(rung, cookie)?.expire(effort),
        _ => Ok(Expired::default()),
    }
}

/// All flows of this host.
///
/// # Errors
/// What could not be read or written.
pub(super) fn expire_flows(store: &Store, cookie: u64) -> Result<Expired> {
    let expired = expire(store, cookie, Effort::All)?;
    // While a command writes, it is not worth the wait: a later command then expires some flows once more.
    if let Some(lock) = store.try_lock()? {
        store.keep_expiry(&lock, &Progress::default());
    }
    Ok(expired)
}

/// Some flows, if none were expired for a while, as part of a command that has another purpose.
pub(super) fn expire_some(store: &Store, lock: &Lock, cookie: u64) {
    let (when, mut progress) = store.expiry().unwrap_or((std::time::UNIX_EPOCH, Progress::default()));
    if when.elapsed().is_ok_and(|since| since < EVERY) {
        return;
    }
    let effort = Effort::Until { until: Instant::now() + TIME_LIMIT, progress: &mut progress };
    match expire(store, cookie, effort) {
        Ok(expired) => tracing::debug!(flows = expired.flows, "expired some flows"),
        Err(e) => tracing::debug!(error = %e, "cannot expire flows"),
    }
    store.keep_expiry(lock, &progress);
}
