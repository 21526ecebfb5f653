//! Faults and volume: load, malformed input, SIGKILL, concurrency, the agent. Each test prints its figure.
//!
//! `NETPATH_SOAK=full` sets the full bars; a plain run scales them down.

#![allow(unused_crate_dependencies, reason = "checked in support/lib.rs, for all targets of the package")]

#[macro_use]
extern crate support;

mod agent;
mod agent_socket;
mod error_oracle;
mod full;
mod gc;
mod idle;
mod killed;
mod load;
mod many;
mod mutated;
mod records;
mod residue;
mod soak;

fn main() -> std::process::ExitCode {
    support::harness::run()
}

/// The full bar, or a tenth of it.
fn scaled(full: u64) -> u64 {
    if support::need::is_full() { full } else { full / 10 }
}
