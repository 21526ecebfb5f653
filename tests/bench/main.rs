//! netpath measured side by side with the wire, plain routing and Netavark: `cargo xtask bench`.
//!
//! Everything runs in namespaces of this process and ends with it. Variants take turns, and compared values are measured in the
//! same round.

#![allow(unused_crate_dependencies, reason = "checked in support/lib.rs, for all targets of the package")]

mod backend;
mod bars;
mod dns;
mod lifecycle;
mod output;
mod plan;
mod ports;
mod private;
mod programs;
mod progress;
mod stage;
mod traffic;

use anyhow::{Context, Result, anyhow};
use backend::Places;
use output::Machine;
use plan::Plan;
use progress::{Progress, clock};
use report::results::Results;
use report::run::{Files, Run};
use report::variants::{CHOSEN, DIRECT, PEER, Place, chosen};
use serde::Deserialize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;
use support::neighbour::Kind;

fn main() -> ExitCode {
    support::harness::keep_nothing_loaded();
    match arguments().and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The options of `cargo xtask bench`, which documents and checks them, and the paths of the programs.
#[derive(Deserialize)]
struct Args {
    only: Vec<String>,
    variants: Vec<String>,
    rounds: usize,
    quick: bool,
    beside: Option<String>,
    write: Option<PathBuf>,
    out: PathBuf,
    places: Places,
}

fn arguments() -> Result<Args> {
    let given = std::env::args().nth(1).context("no options; next: cargo xtask bench")?;
    let mut args: Args = serde_json::from_str(&given).context("options; next: cargo xtask bench")?;
    if let Some(name) = &args.beside {
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name);
        let known = Kind::ALL.map(Kind::name).join(", ");
        let kind = kind.with_context(|| format!("--beside {name}: there is {known}"))?;
        kind.need().map_err(|what| anyhow!("--beside {name} needs {what}"))?;
        args.places.beside = Some(kind);
    }
    Ok(args)
}

fn run(args: Args) -> Result<()> {
    let mut results = Results::default();
    let beside = args.places.beside;
    let mut variants = chosen(Place::Host, &args.variants, |v| match beside {
        Some(_) => [DIRECT, PEER, CHOSEN].contains(&v.key),
        None => v.key != CHOSEN,
    })?;
    private::enter()?;
    private::go_first();
    variants.retain(|v| match args.places.have(v) {
        Ok(()) => true,
        Err(what) => {
            results.note(format!("{}: left out, needs {what}", v.title));
            false
        }
    });
    let Args { only, rounds, quick, places, .. } = args;
    let plan = Plan { variants, only, rounds: rounds.max(1), quick, places };
    let begun = Instant::now();
    let parts = [
        traffic::planned(&plan),
        lifecycle::planned(&plan),
        ports::planned(&plan),
        dns::planned(&plan),
        programs::planned(&plan),
    ];
    let planned = parts.iter().sum();
    let mut progress = Progress::of(planned);
    progress.say(&format!("{} variants, {} rounds", plan.variants.len(), plan.rounds));
    programs::run(&plan, &mut progress, &mut results);
    traffic::run(&plan, &mut progress, &mut results);
    lifecycle::run(&plan, &mut progress, &mut results);
    ports::run(&plan, &mut progress, &mut results);
    dns::run(&plan, &mut progress, &mut results);

    let machine = Machine::this();
    let run = Run {
        variants: plan.variants.clone(),
        results: &results,
        rounds: plan.rounds,
        bases: &[(DIRECT, "direct", "of_direct"), (PEER, "netavark 2.1 nft", "of_netavark")],
        head: output::head(&plan, &machine),
        facts: output::facts(&plan, &results, &machine),
    };
    let mark = beside.map_or_else(|| "bench".to_owned(), |kind| format!("bench beside {}", kind.name()));
    let files = Files {
        directory: &args.out,
        stem: "bench",
        page: args.write.as_deref().map(|page| (page, mark)),
        data: None,
        // The charts of the page are of hosts without other software.
        charts: if beside.is_none() { output::charts(&plan, &results) } else { Vec::new() },
    };
    run.keep(&files, &output::more(&plan, &results))?;
    println!("measured in {}", clock(begun.elapsed().as_secs_f64()));
    Ok(())
}
