//! Builds the demo (`tests/demo/`) and runs it.

use crate::setup::{self, Part};
use crate::{build_ebpf, steps, workspace};
use anyhow::{Context, Result, bail};
use std::process::ExitCode;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Let a real engine run the container
    #[arg(long, value_parser = ["podman"])]
    engine: Option<String>,
    /// Leave everything in place until Enter is pressed, for inspection
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut parts = vec![Part::Toolchain, Part::Tests];
    if args.engine.is_some() {
        parts.push(Part::Engine);
    }
    setup::ensure(&parts)?;
    build_ebpf::build()?;
    let mut build = workspace::cargo();
    build.args(["build", "--quiet", "--package", "netpath", "--package", "netpath-tests", "--bins"]);
    if !build.status().context("cannot start cargo")?.success() {
        bail!("{} failed", steps::line(&build));
    }
    let bin = workspace::target().join("debug");
    let mut demo = std::process::Command::new(bin.join("demo"));
    demo.env("NETPATH_BIN", bin.join("netpath"));
    if let Some(engine) = &args.engine {
        demo.args(["--engine", engine]);
    }
    if args.keep {
        demo.arg("--keep");
    }
    let status = demo.status().context("cannot start the demo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
