//! netpath, on the datapath that it chooses, beside real software that filters and translates on the same host: published ports
//! are served, outbound traffic is masqueraded, names are resolved, and rules that close a port hold.

#![allow(unused_crate_dependencies, reason = "checked in support/lib.rs, for all targets of the package")]

#[macro_use]
extern crate support;

mod docker;
mod firewalld;
mod libvirt;
mod rig;
mod rules;
mod translated;
mod ufw;

fn main() -> std::process::ExitCode {
    support::harness::run()
}
