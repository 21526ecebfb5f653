//! Every check and test, most telling failures first: the object, the build, the rules, then the suites from the smallest to
//! the largest. Ends with `N passed, N failed, N skipped`, alone on its line.

use crate::setup::{self, Part};
use crate::steps::{self, seconds, tail};
use crate::suite::{Outcome, Suite, harness, reasons, summary};
use crate::toolchain::numbers;
use crate::{apt, build_ebpf, lint, reproducible, vm, workspace};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these: checks (object, fmt, clippy, lint), unit, packet, contract, dns, e2e, neighbours, fault, engine, vm.
    /// `e2e::hairpin` runs the tests of e2e whose name contains "hairpin"
    #[arg(long, num_args = 1.., value_name = "NAME")]
    only: Vec<String>,
    /// If all pass, write this kernel's row into the table of this page, as `cargo xtask vm test --write` does [without PAGE:
    /// docs/kernels.md]
    #[arg(long, value_name = "PAGE", num_args = 0..=1, default_missing_value = vm::page::PAGE,
          conflicts_with_all = ["only", "quick"])]
    write: Option<PathBuf>,
    /// Skip the second build of the object and the slowest suites (fault, engine, vm)
    #[arg(long)]
    quick: bool,
}

/// Suites of the `tests` package, and how many of their tests may run in parallel: they mostly wait.
const SUITES: [(&str, usize); 7] =
    [("packet", 2), ("contract", 4), ("dns", 4), ("e2e", 6), ("neighbours", 4), ("fault", 2), ("engine", 2)];
/// Packet tests and the core of e2e on other kernels, in virtual machines (`vm/`).
const VM: &str = "vm";
const SLOW: [&str; 3] = ["fault", "engine", VM];
const CHECKS: [&str; 4] = ["object", "fmt", "clippy", "lint"];

impl Args {
    fn wants(&self, name: &str) -> bool {
        let named = self.only.iter().any(|o| o == name || o.starts_with(&format!("{name}::")));
        named || self.only.is_empty() && !(self.quick && (SLOW.contains(&name) || name == "object"))
    }

    fn runs_executables(&self) -> bool {
        self.wants("unit") || self.wants(VM) || SUITES.iter().any(|(name, _)| self.wants(name))
    }

    fn filters(&self, suite: &str) -> Vec<String> {
        self.only.iter().filter_map(|o| o.strip_prefix(&format!("{suite}::"))).map(str::to_owned).collect()
    }

    fn check(&self) -> Result<()> {
        let known: Vec<&str> = CHECKS.into_iter().chain(["unit"]).chain(SUITES.map(|(n, _)| n)).chain([VM]).collect();
        if let Some(part) = self.only.iter().find(|o| o.starts_with("vm::")) {
            bail!("--only {part}: {VM} is taken as a whole\n  next: cargo xtask vm test --only …");
        }
        match self.only.iter().find(|o| !known.contains(&o.split("::").next().unwrap_or_default())) {
            Some(other) => bail!("--only {other}: there is {}", known.join(", ")),
            None => Ok(()),
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    args.check()?;
    let begun = Instant::now();
    let mut total = Outcome::default();
    let mut outcomes = BTreeMap::new();
    if let Err(error) = all(args, &mut outcomes, &mut total) {
        eprintln!("error: {error:#}");
        total.failed.push(format!("{error:#}").lines().next().unwrap_or_default().to_owned());
    }
    report(&total);
    if let Some(page) = args.write.as_ref().filter(|_| total.failed.is_empty()) {
        write(page, &outcomes)?;
    }
    println!("\nin {}", seconds(begun.elapsed()));
    println!("{} passed, {} failed, {} skipped", total.passed, total.failed.len(), total.skipped.len());
    Ok(if total.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Writes the row of the kernel that this machine runs.
fn write(page: &Path, outcomes: &BTreeMap<String, Outcome>) -> Result<()> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's release")?;
    let (major, minor) = numbers(&release);
    let out = Command::new(workspace::target().join("debug/netpath")).args(["doctor", "--json"]).output();
    let doctor = serde_json::from_slice(&out.context("cannot start netpath doctor")?.stdout).ok();
    let empty = Outcome::default();
    let of = |suite: &str| outcomes.get(suite).unwrap_or(&empty);
    // The suffix after the numbers names the builder.
    let release = release.split('-').next().unwrap_or_default().trim();
    let row = vm::page::value(release, "`cargo xtask test`", of, doctor.as_ref());
    vm::page::write(page, &[(format!("{major}.{minor}"), row)])
}

fn all(args: &Args, outcomes: &mut BTreeMap<String, Outcome>, total: &mut Outcome) -> Result<()> {
    setup::ensure(&[Part::Toolchain, Part::Tests, Part::Engine])?;
    if args.wants("neighbours") {
        setup::ensure(&[Part::Neighbours])?;
    }
    let begun = Instant::now();
    build_ebpf::build()?;
    println!("{:<14} {}", "eBPF object", seconds(begun.elapsed()));
    let mut executables = Vec::new();
    if args.runs_executables() {
        let begun = Instant::now();
        executables = build()?;
        println!("{:<14} {}", "netpath, tests", seconds(begun.elapsed()));
    }
    let is_alone = !args.only.is_empty() && args.only.iter().all(|only| only == VM);
    std::thread::scope(|scope| -> Result<()> {
        let guests = args.wants(VM).then(|| scope.spawn(|| vm::run_core(&executables, is_alone)));
        for name in CHECKS.iter().filter(|n| args.wants(n)) {
            let begun = Instant::now();
            let outcome = check(name)?;
            println!("{}", summary(name, &outcome, begun.elapsed()));
            total.add(outcome);
        }
        for (name, command) in suites(args, &executables) {
            let outcome = Suite { name: name.clone(), command }.run()?;
            outcomes.insert(name, outcome.clone());
            total.add(outcome);
        }
        let Some(guests) = guests else { return Ok(()) };
        match guests.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))? {
            Ok(outcome) => total.add(outcome),
            Err(why) => {
                println!("{VM:<14} skipped: {why}");
                total.skipped.push((VM.to_owned(), why));
            }
        }
        Ok(())
    })?;
    if !apt::is_root() {
        println!("not root: what needs namespaces or bpf() was skipped");
    }
    Ok(())
}

/// Runs one check, reported as a test of that name.
fn check(name: &str) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let failed = match name {
        "object" => reproducible::difference()?.map(|d| format!("two builds of the object differ: {d}")),
        "lint" => Some(lint::findings()?.join("\n")).filter(|f| !f.is_empty()),
        _ => match rust_check(name)? {
            Ok(None) if name == "clippy" => build_ebpf::clippy()?.unwrap_or_else(|why| {
                outcome.skipped.push(("clippy of netpath-ebpf".to_owned(), why));
                None
            }),
            Ok(failed) => failed,
            Err(why) => {
                outcome.skipped.push((name.to_owned(), why));
                return Ok(outcome);
            }
        },
    };
    match failed {
        Some(text) => {
            println!("{text}");
            outcome.failed.push(name.to_owned());
        }
        None => outcome.passed = 1,
    }
    Ok(outcome)
}

/// `cargo fmt` or `cargo clippy`; the inner `Err` says why it cannot run here.
fn rust_check(name: &str) -> Result<Result<Option<String>, String>> {
    let tool = if name == "fmt" { "rustfmt" } else { "clippy-driver" };
    if !Command::new(tool).arg("--version").output().is_ok_and(|o| o.status.success()) {
        return Ok(Err(format!(
            "needs {tool}: rustup component add {}",
            if name == "fmt" { "rustfmt" } else { "clippy" }
        )));
    }
    let runs: &[&[&str]] = if name == "fmt" {
        &[&["fmt", "--all", "--check"], &["fmt", "--manifest-path", "netpath-ebpf/Cargo.toml", "--check"]]
    } else {
        &[&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]]
    };
    for args in runs {
        let mut command = workspace::cargo();
        let out =
            command.args(*args).stdin(Stdio::null()).output().with_context(|| format!("cannot start cargo {name}"))?;
        if !out.status.success() {
            let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
            return Ok(Ok(Some(format!("{}:\n{}", steps::line(&command), tail(&text, 80)))));
        }
    }
    Ok(Ok(None))
}

pub(crate) struct Executable {
    package: String,
    target: String,
    path: PathBuf,
}

/// The executable of a suite of the `tests` package.
pub(crate) fn suite<'b>(built: &'b [Executable], name: &str) -> Option<&'b Path> {
    built.iter().find(|e| e.package == "tests" && e.target == name).map(|e| e.path.as_path())
}

/// Builds the netpath binary and every test executable of the workspace.
pub(crate) fn build() -> Result<Vec<Executable>> {
    let mut build = workspace::cargo();
    run_cargo(build.args(["build", "--quiet", "--package", "netpath", "--package", "netpath-tests", "--bins"]))?;
    let mut tests = workspace::cargo();
    tests.args(["test", "--quiet", "--workspace", "--no-run", "--message-format=json-render-diagnostics"]);
    let out = run_cargo(&mut tests)?;
    Ok(out.lines().filter_map(executable).collect())
}

/// The test executable that a line of cargo's messages reports, if any.
fn executable(message: &str) -> Option<Executable> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    let path = message.get("executable")?.as_str()?.into();
    if !message["profile"]["test"].as_bool()? {
        return None;
    }
    let manifest = PathBuf::from(message["manifest_path"].as_str()?);
    let package = manifest.parent()?.file_name()?.to_string_lossy().into_owned();
    let target = message["target"]["name"].as_str()?.to_owned();
    Some(Executable { package, target, path })
}

/// Runs cargo; returns its standard output.
///
/// # Errors
/// cargo fails.
pub(crate) fn run_cargo(command: &mut Command) -> Result<String> {
    let out = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    if !out.status.success() {
        bail!("{} failed ({})", steps::line(command), out.status);
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// The suites to run, in order. A suite without an executable in this checkout is left out.
fn suites(args: &Args, executables: &[Executable]) -> Vec<(String, Command)> {
    let mut all = Vec::new();
    let is_suite = |e: &Executable| e.package == "tests" && SUITES.iter().any(|(n, _)| *n == e.target);
    if args.wants("unit") {
        for unit in executables.iter().filter(|e| !is_suite(e)) {
            let is_named_so = unit.target.replace('_', "-") == unit.package;
            let name = if is_named_so { unit.package.clone() } else { format!("{}-{}", unit.package, unit.target) };
            let mut command = harness(&unit.path, None, &args.filters("unit"));
            // Those that need root are marked as ignored, for plain `cargo test`.
            command.arg("--include-ignored");
            all.push((name, command));
        }
    }
    for (name, threads) in SUITES.into_iter().filter(|(n, _)| args.wants(n)) {
        match suite(executables, name) {
            Some(found) => all.push((name.to_owned(), harness(found, Some(threads), &args.filters(name)))),
            None => println!("{name:<14} is not in this checkout"),
        }
    }
    for (_, command) in &mut all {
        command.current_dir(workspace::root()).env("NETPATH_BIN", workspace::target().join("debug/netpath"));
        // A failed test names its place; frames of libtest add nothing.
        command.env("RUST_BACKTRACE", "0");
    }
    all
}

/// Number of slow tests that are listed.
const SLOWEST: usize = 10;

fn report(total: &Outcome) {
    let mut slow: Vec<_> = total.slow.iter().collect();
    slow.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    if !slow.is_empty() {
        println!("\nSLOWEST");
        slow.iter().take(SLOWEST).for_each(|(took, test)| println!("  {took:5.1} s  {test}"));
    }
    if !total.skipped.is_empty() {
        println!("\nSKIPPED");
        reasons(total.skipped.iter()).iter().for_each(|reason| println!("  {reason}"));
    }
    if !total.failed.is_empty() {
        println!("\nFAILED");
        for failed in &total.failed {
            println!("  {failed}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(only: &[&str], quick: bool) -> Args {
        Args { only: only.iter().map(|&o| o.to_owned()).collect(), write: None, quick }
    }

    #[test]
    fn a_name_may_carry_a_filter() {
        let a = args(&["e2e::hairpin", "lint"], false);
        assert!(a.wants("e2e") && a.wants("lint") && !a.wants("packet") && !a.wants("fmt"));
        assert_eq!(vec!["hairpin".to_owned()], a.filters("e2e"));
        assert!(a.check().is_ok());
        assert!(args(&["e3e"], false).check().is_err() && args(&["vm::packet"], false).check().is_err());
    }

    #[test]
    fn quick_leaves_out_what_takes_longest() {
        assert!(!args(&[], true).wants("engine") && args(&[], true).wants("e2e"));
        assert!(args(&["engine"], true).wants("engine"));
    }

    #[test]
    fn test_executables_are_read_from_cargos_messages() {
        let line = r#"{"reason":"compiler-artifact","manifest_path":"/w/tests/Cargo.toml","target":{"name":"e2e"},"profile":{"test":true},"executable":"/w/target/debug/deps/e2e-1"}"#;
        let found = executable(line).expect("a test executable");
        assert_eq!(("tests", "e2e"), (found.package.as_str(), found.target.as_str()));
        assert!(executable(r#"{"reason":"build-finished","success":true}"#).is_none());
        assert!(executable(&line.replace("true", "false")).is_none());
    }
}
