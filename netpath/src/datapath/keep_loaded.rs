//! How long programs stay loaded after the last container (`NETPATH_KEEP_LOADED`).

use crate::model::error::Result;
use crate::state::{Lock, Store};

/// Seconds; 0: nothing stays, and connections of a container end with its teardown.
pub const SWITCH: &str = "NETPATH_KEEP_LOADED";
const KEEP: u64 = if cfg!(test) { 0 } else { 600 };

fn wish() -> Option<u64> {
    let text = std::env::var(SWITCH).ok()?;
    let seconds = text.parse().ok();
    if seconds.is_none() {
        tracing::warn!("{SWITCH}={text} is no number of seconds: {KEEP} is used");
    }
    seconds
}

/// Remembers what a setup asks for until the last teardown, which Podman starts without the environment of `podman run`.
///
/// # Errors
/// It cannot be written.
pub fn remember(store: &Store, lock: &Lock) -> Result<()> {
    wish().map_or(Ok(()), |seconds| store.keep_seconds_loaded(lock, seconds))
}

pub fn seconds(store: &Store) -> u64 {
    wish().or_else(|| store.seconds_loaded()).unwrap_or(KEEP)
}
