//! `cargo xtask vm`: virtual machines, booted for each run. Either one for each other kernel, with the test suites (`suites`),
//! or three on a wire (`three_vms`), for faults (`wire`) and measurements (`perf`).

pub(crate) mod apt_sources;
mod cpio;
mod image;
mod in_use;
mod kernel;
mod machine;
mod modules;
pub(crate) mod page;
mod perf;
mod qemu;
mod results;
mod suites;
mod three_vms;
mod verified;
mod wire;

use anyhow::Result;
use std::process::ExitCode;

pub(crate) use suites::run_core;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Run the suites packet, contract and e2e on other kernels
    Test(suites::Args),
    /// Test faults of links and hosts (flaps, DHCP, MTU, another uplink, power cuts) between three machines
    Wire(wire::Args),
    /// Measure netpath and Netavark between three machines: two clients and the host between them
    Perf(perf::Args),
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match &args.verb {
        Verb::Test(args) => suites::run(args),
        Verb::Wire(args) => wire::run(args),
        Verb::Perf(args) => perf::run(args),
    }
}
