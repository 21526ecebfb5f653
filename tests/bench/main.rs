//! netpath measured side by side with the wire, plain routing and Netavark: `cargo xtask bench`.
//!
//! Everything runs in namespaces of this process and ends with it. Variants take turns, and compared values are measured in the
//! same round.

#![allow(unused_crate_dependencies, reason = "checked in support/lib.rs, for all targets of the package")]

mod backend;
mod bars;
mod lifecycle;
mod output;
mod plan;
mod ports;
mod private;
mod programs;
mod progress;
mod stage;
mod traffic;
mod variants;

use anyhow::{Context, Result, bail};
use output::Machine;
use plan::Plan;
use progress::{Progress, clock};
use report::results::Results;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;
use support::neighbour::Kind;
use variants::Places;

fn main() -> ExitCode {
    match arguments(std::env::args().skip(1)).and_then(|args| run(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// As passed by `cargo xtask bench`, which documents them.
#[derive(Default)]
struct Args {
    only: Vec<String>,
    variants: Vec<String>,
    rounds: Option<usize>,
    quick: bool,
    out: PathBuf,
    write: Option<PathBuf>,
    packet_tests: Option<PathBuf>,
    places: Places,
}

fn arguments(mut given: impl Iterator<Item = String>) -> Result<Args> {
    let mut args = Args::default();
    while let Some(name) = given.next() {
        if name == "--quick" {
            args.quick = true;
            continue;
        }
        let value = given.next().with_context(|| format!("{name}: no such option, or without a value"))?;
        let list = || value.split(',').map(str::to_owned).collect();
        match name.as_str() {
            "--only" => args.only = list(),
            "--variants" => args.variants = list(),
            "--rounds" => args.rounds = Some(value.parse().context("--rounds: not a number")?),
            "--out" => args.out = value.into(),
            "--write" => args.write = Some(value.into()),
            "--packet-tests" => args.packet_tests = Some(value.into()),
            "--netpath" => args.places.netpath = value.into(),
            "--netavark" => args.places.netavark = value.into(),
            "--old-netavark" => args.places.old_netavark = value.into(),
            "--beside" => {
                let kind = Kind::ALL.into_iter().find(|k| k.name() == value);
                args.places.beside = Some(kind.with_context(|| format!("--beside {value}: there is {}", beside()))?);
            }
            _ => bail!("{name}: no such option; run it by cargo xtask bench"),
        }
    }
    Ok(args)
}

fn beside() -> String {
    Kind::ALL.map(Kind::name).join(", ")
}

fn run(args: &Args) -> Result<()> {
    let mut results = Results::default();
    let mut variants = variants::chosen(&args.variants, args.places.beside.is_some())?;
    if let Some(kind) = args.places.beside {
        kind.need().map_err(|what| anyhow::anyhow!("--beside {} needs {what}", kind.name()))?;
    }
    private::enter()?;
    private::go_first();
    variants.retain(|v| match v.is_possible(&args.places) {
        Ok(()) => true,
        Err(what) => {
            results.note(format!("{}: left out, needs {what}", v.title));
            false
        }
    });
    let plan = Plan {
        variants,
        only: args.only.clone(),
        rounds: args.rounds.unwrap_or(if args.quick { 1 } else { 3 }).max(1),
        quick: args.quick,
        places: args.places.clone(),
        packet_tests: args.packet_tests.clone(),
    };
    plan.check()?;
    let begun = Instant::now();
    let parts = [traffic::planned(&plan), lifecycle::planned(&plan), ports::planned(&plan), programs::planned(&plan)];
    let planned = parts.iter().sum();
    let mut progress = Progress::of(planned);
    progress.say(&format!("{} variants, {} rounds", plan.variants.len(), plan.rounds));
    programs::run(&plan, &mut progress, &mut results);
    traffic::run(&plan, &mut progress, &mut results);
    lifecycle::run(&plan, &mut progress, &mut results);
    ports::run(&plan, &mut progress, &mut results);

    let machine = Machine::this();
    let markdown = output::markdown(&plan, &results, &machine);
    // The charts of the page are of hosts without other software.
    let charts = if args.places.beside.is_none() { output::charts(&plan, &results) } else { Vec::new() };
    fs::create_dir_all(&args.out).with_context(|| format!("cannot create {}", args.out.display()))?;
    let write = |name: &str, text: &str| -> Result<()> {
        let file = args.out.join(name);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
    };
    write("bench.json", &format!("{:#}\n", output::json(&plan, &results, &machine)))?;
    write("bench.md", &markdown)?;
    charts.iter().try_for_each(|(name, svg)| write(name, svg))?;
    println!("\n{markdown}");
    if let Some(page) = &args.write {
        let mark =
            args.places.beside.map_or_else(|| "bench".to_owned(), |kind| format!("bench beside {}", kind.name()));
        report::page::write(page, &mark, &markdown, &charts)?;
        println!("written into {}", page.display());
    }
    println!(
        "measured in {}; bench.json, bench.md and charts are in {}",
        clock(begun.elapsed().as_secs_f64()),
        args.out.display()
    );
    Ok(())
}
