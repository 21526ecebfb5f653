//! The commands of a developer or a user of the sources: `cargo xtask <verb>`.
//!
//! Has few dependencies: it is the first crate that a bare machine compiles.

mod apt;
mod bench;
mod build_ebpf;
mod clean;
mod demo;
mod lint;
mod need;
mod neighbours;
mod reproducible;
mod rustc;
mod setup;
mod steps;
mod suite;
mod test;
mod toolchain;
mod v4_object;
mod vm;
mod workspace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about, max_term_width = 110)]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install compilers, bpf-linker and the programs that the tests use
    Setup,
    /// Build the eBPF object that the netpath binary embeds
    BuildEbpf,
    /// Build everything and run every check and test; ends with "N passed, N failed, N skipped"
    Test(test::Args),
    /// Check the import rules between the rooms, and report files that are too long
    Lint,
    /// Show netpath at work: a container, a published port, a page fetched through it
    Demo(demo::Args),
    /// Measure netpath side by side with the wire, plain routing and Netavark
    Bench(bench::Args),
    /// Run the tests on other kernels, in virtual machines
    Vm(vm::Args),
    /// Remove leftovers of killed tests and demos from this machine
    Clean,
}

fn main() -> ExitCode {
    if std::env::var_os(rustc::ENVIRONMENT).is_some() {
        return finish(rustc::become_rustc(std::env::args().skip(1).collect()));
    }
    finish(match Args::parse().verb {
        Verb::Setup => setup::run(),
        Verb::BuildEbpf => build_ebpf::run(),
        Verb::Test(args) => test::run(&args),
        Verb::Lint => lint::run(),
        Verb::Demo(args) => demo::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Vm(args) => vm::run(&args),
        Verb::Clean => clean::run(),
    })
}

fn finish(done: anyhow::Result<ExitCode>) -> ExitCode {
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
