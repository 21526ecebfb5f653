//! `cargo xtask vm test`: the test suites on other kernels, in a virtual machine that is booted for each.

use super::image::{Base, Programs, Suite};
use super::kernel::{Kernel, SERIES};
use super::qemu::{Acceleration, Guest, Qemu};
use super::results::{self, Row};
use super::{apt_sources, verified};
use crate::setup::{self, Part};
use crate::steps::{Steps, seconds};
use crate::suite::{Outcome, summary, what_failed};
use crate::test::{executable, run_cargo};
use crate::{build_ebpf, workspace};
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// The suites that a guest can run, and how many of their tests side by side.
const SUITES: [(&str, usize); 3] = [("packet", 2), ("contract", 2), ("e2e", 2)];
/// Judges nothing and runs each program millions of times, which emulation makes long.
const NOT_IN_A_GUEST: [&str; 1] = ["time_per_packet"];

/// What `cargo xtask test` runs: on the first and the last kernel every program loaded and the main ways through them, then
/// traffic on each rung. Under emulation a test that loads programs takes ten seconds, so these are few.
const CORE_KERNELS: [&str; 2] = ["6.1", "7.2"];
const CORE_PACKET: [&str; 4] = [
    "every_program_is_accepted_by_the_verifier",
    "uplink::a_published_port_leads_into_the_container_and_the_answer_back",
    "bridge::what_leaves_has_the_address_of_the_way_out_and_the_answer_comes_back",
    "lo::a_bound_client_reaches_the_container_through_lo_and_back",
];
const CORE_E2E: [&str; 4] = [
    "ladder::",
    "matrix::tcx::external_on_the_second",
    "matrix::clsact::masquerade",
    "matrix::iptables::external_on_the_second",
];
/// Left out of a guest, these take all of the eBPF rung away from a kernel without TCX.
const CLSACT: [&str; 3] = ["sch_ingress", "cls_bpf", "act_bpf"];
/// The last kernel of the series without TCX.
const WITHOUT_TCX: &str = "6.1";

/// No guest that still does something takes as long, not even with all of e2e under emulation on a busy machine.
const LONGEST: Duration = Duration::from_secs(120 * 60);

#[derive(clap::Args)]
pub struct Args {
    /// 6.1, 6.12, 7.2, all, or a directory with an unpacked kernel package (`/`: this machine's own)
    #[arg(long, default_value = "all", value_name = "KERNEL", num_args = 1..)]
    kernel: Vec<String>,
    /// Only these: packet, contract, e2e, or a part of one, as in `e2e::matrix::tcx`
    #[arg(long, value_name = "NAME", num_args = 1..)]
    only: Vec<String>,
    /// Only what `cargo xtask test` runs of it
    #[arg(long, conflicts_with = "only")]
    core: bool,
    /// Take the verifier's counts of this run for the new measure
    #[arg(long)]
    accept: bool,
    /// How guests run [default: KVM if one comes up under it, else TCG]
    #[arg(long, value_enum)]
    acceleration: Option<Acceleration>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let begun = Instant::now();
    let all: Vec<String> = SERIES.iter().map(|(series, _)| (*series).to_owned()).collect();
    let kernels = if args.kernel == ["all"] { &all } else { &args.kernel };
    setup::ensure(&[Part::Toolchain, Part::Tests])?;
    build_ebpf::build()?;
    let plan = Plan {
        suites: if args.core { core()? } else { suites(&args.only)? },
        accept: args.accept,
        acceleration: args.acceleration,
    };
    let mut total = Outcome::default();
    let rows = plan.run(kernels, &mut total)?;
    println!("\n{}", results::table(&rows));
    for row in &rows {
        let reasons = results::reasons(row);
        if !reasons.is_empty() {
            println!("\nskipped on {}", row.label);
            reasons.iter().for_each(|r| println!("  {r}"));
        }
    }
    if !total.failed.is_empty() {
        println!("\nFAILED");
        total.failed.iter().for_each(|f| println!("  {f}"));
    }
    println!("\nin {}", seconds(begun.elapsed()));
    println!("{} passed, {} failed, {} skipped", total.passed, total.failed.len(), total.skipped.len());
    Ok(if total.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The core on the first and the last kernel, for `cargo xtask test`. `Err` inside: why this machine cannot.
///
/// # Errors
/// A kernel or QEMU cannot be had, or something cannot be built.
pub fn run_core(total: &mut Outcome) -> Result<Result<(), String>> {
    if let Some(missing) = apt_sources::missing() {
        return Ok(Err(format!("needs {missing}")));
    }
    let plan = Plan { suites: core()?, accept: false, acceleration: None };
    plan.run(&CORE_KERNELS.map(str::to_owned), total)?;
    Ok(Ok(()))
}

struct Plan {
    suites: Vec<Suite>,
    accept: bool,
    acceleration: Option<Acceleration>,
}

impl Plan {
    /// A row for each kernel; what happened is added to `total`.
    fn run(&self, kernels: &[String], total: &mut Outcome) -> Result<Vec<Row>> {
        let mut steps = Steps::of(0);
        let qemu = Qemu::get(&mut steps)?;
        let programs = programs()?;
        let base = Base::gather(&programs, &self.suites)?;
        let mut rows = Vec::new();
        for name in kernels {
            let kernel = Kernel::get(name, &mut steps)?;
            rows.push(self.on(&kernel, &qemu, &base, &[], total)?);
            // The rung below is taken where the hooks of this one are missing: shown once, where leaving out modules does it.
            if name == WITHOUT_TCX
                && let Some(ladder) = self.ladder()
            {
                let plan = Plan { suites: vec![ladder], ..*self };
                rows.push(plan.on(&kernel, &qemu, &base, &CLSACT.map(str::to_owned), total)?);
            }
        }
        Ok(rows)
    }

    /// The tests of the ladder alone, if e2e is to run at all and includes them.
    fn ladder(&self) -> Option<Suite> {
        let e2e = self.suites.iter().find(|s| s.name == "e2e")?;
        let filtered: Vec<&String> = e2e.arguments.iter().skip(FIXED).collect();
        let has_ladder = filtered.is_empty() || filtered.iter().any(|f| f.starts_with("ladder"));
        let mut arguments = e2e.arguments[..FIXED].to_vec();
        arguments.push("ladder::".to_owned());
        has_ladder.then(|| Suite {
            name: e2e.name.clone(),
            executable: e2e.executable.clone(),
            arguments,
            conducted: false,
        })
    }

    fn on(&self, kernel: &Kernel, qemu: &Qemu, base: &Base, without: &[String], total: &mut Outcome) -> Result<Row> {
        let label = match without {
            [] => kernel.label.clone(),
            [first, ..] => format!("{} without {first}", kernel.label),
        };
        let name = format!("vm-{}", label.replace(|c: char| !c.is_ascii_alphanumeric() && c != '.', "-"));
        let initramfs = workspace::target().join("vm").join(format!("{name}.cpio"));
        base.image(kernel, &self.suites, without, &initramfs)?;
        let guest = Guest { name: name.clone(), kernel: &kernel.image, initramfs: &initramfs, longest: LONGEST };
        let ran = guest.run(qemu, self.acceleration);
        std::fs::remove_file(&initramfs).with_context(|| format!("cannot remove {}", initramfs.display()))?;
        let ran = ran?;
        let report = results::read(&ran.results);
        let mut row = Row {
            label,
            release: if report.release.is_empty() { kernel.release.clone() } else { report.release },
            acceleration: ran.acceleration.name(),
            took: ran.took,
            outcomes: Default::default(),
        };
        for refused in &report.refused {
            println!("{name}: module {refused}");
        }
        if let Some(why) = report.broken.or(ran.broken) {
            println!("{name}: {why}");
            total.failed.push(format!("{name}: {}", why.lines().next().unwrap_or_default()));
        }
        for mut section in report.sections {
            if section.name == "packet" {
                section.outcome.failed.extend(self.judge(kernel, &section.text)?);
            }
            let suite = format!("{name} {}", section.name);
            println!("{}", summary(&suite, &section.outcome, section.took));
            if !section.outcome.failed.is_empty() {
                println!("{}\nthe whole output is in {}", what_failed(&section.text), ran.log.display());
            }
            total.passed += section.outcome.passed;
            total.failed.extend(section.outcome.failed.iter().map(|f| format!("{suite} {f}")));
            total.skipped.extend(section.outcome.skipped.iter().map(|(t, why)| (format!("{suite} {t}"), why.clone())));
            row.outcomes.insert(section.name, section.outcome);
        }
        Ok(row)
    }

    /// What is wrong with the verifier's counts, which only the series have in the committed page.
    fn judge(&self, kernel: &Kernel, text: &str) -> Result<Vec<String>> {
        let counts = verified::read(text);
        if counts.is_empty() || !SERIES.iter().any(|(series, _)| *series == kernel.label) {
            return Ok(Vec::new());
        }
        if self.accept {
            verified::accept(&kernel.label, &counts)?;
            return Ok(Vec::new());
        }
        let mut found = verified::compare(&kernel.label, &counts)?;
        if !found.is_empty() {
            found.push("next, where that is meant: cargo xtask vm test --only packet --accept".to_owned());
            found.iter().for_each(|f| println!("{f}"));
            found.pop();
        }
        Ok(found)
    }
}

fn programs() -> Result<Programs> {
    let built = |name: &str| workspace::target().join("debug").join(name);
    run_cargo(workspace::cargo().args([
        "build",
        "--quiet",
        "--package",
        "netpath",
        "--package",
        "netpath-tests",
        "--bins",
    ]))?;
    Ok(Programs { init: built("guest"), netpath: built("netpath"), more: Vec::new() })
}

/// Arguments of libtest that every suite gets, before its filters.
const FIXED: usize = 6;

fn suites(only: &[String]) -> Result<Vec<Suite>> {
    let names = || SUITES.iter().map(|(name, _)| *name);
    let of = |o: &String| o.split("::").next().unwrap_or_default().to_owned();
    if let Some(other) = only.iter().find(|o| !names().any(|n| n == of(o))) {
        bail!("--only {other}: there is {}", names().collect::<Vec<_>>().join(", "));
    }
    let mut all = Vec::new();
    for (name, threads) in SUITES.into_iter().filter(|(n, _)| only.is_empty() || only.iter().any(|o| of(o) == *n)) {
        let filters = only.iter().filter_map(|o| o.strip_prefix(&format!("{name}::"))).map(str::to_owned);
        all.push(suite(name, threads, filters)?);
    }
    Ok(all)
}

fn core() -> Result<Vec<Suite>> {
    let filters = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>().into_iter();
    Ok(vec![suite("packet", 2, filters(&CORE_PACKET))?, suite("e2e", 2, filters(&CORE_E2E))?])
}

fn suite(name: &str, threads: usize, filters: impl Iterator<Item = String>) -> Result<Suite> {
    let fixed = ["--show-output", "--color", "never", "--skip", NOT_IN_A_GUEST[0]].map(str::to_owned);
    let arguments = fixed.into_iter().chain([format!("--test-threads={threads}")]).chain(filters).collect();
    Ok(Suite { name: name.to_owned(), executable: test_executable(name)?, arguments, conducted: false })
}

fn test_executable(name: &str) -> Result<PathBuf> {
    let mut build = workspace::cargo();
    build.args([
        "test",
        "--quiet",
        "--package",
        "netpath-tests",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]);
    let out = run_cargo(build.args(["--test", name]))?;
    let found = out.lines().filter_map(executable).find(|e| e.target == name);
    found.map(|e| e.path).with_context(|| format!("cargo names no executable of the suite {name}"))
}
