//! What goes wrong, and how much there is of it: load, garbage, SIGKILL, many at once, the agent. Each test prints its figure.
//!
//! `NETPATH_SOAK=full` gives the full bars where a plain run is scaled down.

mod agent;
mod error_oracle;
mod full;
mod gc;
mod killed;
mod load;
mod many;
mod mutated;
mod residue;
mod soak;
mod speed;

/// The full bar, or a tenth of it.
fn scaled(full: u64) -> u64 {
    if support::need::is_full() { full } else { full / 10 }
}
