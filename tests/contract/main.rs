//! Podman's contract: command line, documents, answers, and the resulting state of the kernel.

#![allow(unused_crate_dependencies, reason = "checked in support/lib.rs, for all targets of the package")]

#[macro_use]
extern crate support;

mod bridge;
mod command_line;
mod create;
mod example;
mod install;
mod ipvlan;
mod liberal;
mod macvlan;
mod options;
mod own;
mod owners;
mod parity;
mod plugin;
mod refused;
mod repeated;

fn main() -> std::process::ExitCode {
    support::harness::run()
}
