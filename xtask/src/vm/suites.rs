//! `cargo xtask vm test`: the test suites on other kernels, in one virtual machine per kernel and suite.

use super::image::{Base, Programs, Suite};
use super::kernel::{self, Kernel, SERIES};
use super::qemu::{self, Acceleration, Guest, Qemu, Ran, remembered};
use super::results::{self, Row};
use super::{apt_sources, page, verified};
use crate::setup::{self, Part};
use crate::steps::{Steps, seconds};
use crate::suite::{Outcome, reasons, summary, what_failed};
use crate::test::{self, Executable};
use crate::toolchain::numbers;
use crate::{build_ebpf, workspace};
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

/// Suites that a guest can run, and how many of their tests run in parallel.
const SUITES: [(&str, usize); 3] = [("packet", 2), ("contract", 2), ("e2e", 2)];

/// Run by `cargo xtask test`, each with its own part of the suites: what can differ from the kernel of the machine. All tests are in
/// `cargo xtask vm test`.
const CORE_KERNELS: [&str; 2] = ["6.1", "7.2"];
/// The choice of the rung, and traffic in and out at the hooks that netpath takes there; rules of netfilter on the last kernel.
const CORE_E2E: [&[&str]; 2] = [
    &["ladder::netpath_takes", "matrix::clsact::external_on_the_second", "matrix::clsact::masquerade"],
    &[
        "ladder::netpath_takes",
        "matrix::tcx::external_on_the_second",
        "matrix::tcx::masquerade",
        "matrix::iptables::masquerade",
    ],
];
/// On each kernel of the core. Of every other module of the packet tests each kernel takes tests of its own, every fourth.
const CORE_PACKET: &str = "cost";
/// Decisions over maps, with random packets or whole tables: slow, and independent of the kernel, whose helpers the other modules
/// reach.
const WITHOUT_KERNEL: [&str; 4] = ["fuzz", "repair", "roundtrip", "states"];
/// Without these modules, a kernel without TCX cannot use the eBPF rung.
const CLSACT: [&str; 3] = ["sch_ingress", "cls_bpf", "act_bpf"];
/// The last kernel of the series without TCX.
const WITHOUT_TCX: &str = "6.1";

/// Time limit of a guest, sufficient for all of e2e under emulation on a busy machine.
const LONGEST: Duration = Duration::from_secs(120 * 60);
/// Time limit of a guest of the core, which takes two or three minutes.
const LONGEST_OF_CORE: Duration = Duration::from_secs(20 * 60);

#[derive(clap::Args)]
pub(super) struct Args {
    /// 6.1, 6.12, 7.2, all (these three), or a directory with an unpacked kernel package (`/`: this machine's own)
    #[arg(long, default_value = "all", value_name = "KERNEL", num_args = 1..)]
    kernel: Vec<String>,
    /// Only these: packet, contract, e2e, or a part of one, as in `e2e::matrix::tcx`
    #[arg(long, value_name = "NAME", num_args = 1..)]
    only: Vec<String>,
    /// Only the part that `cargo xtask test` runs
    #[arg(long, conflicts_with = "only")]
    core: bool,
    /// Accept the verifier's counts of this run as the new baseline
    #[arg(long)]
    accept: bool,
    /// If all pass, write the rows of these kernels into the table of this page, between `<!-- kernels: begin -->` and `<!--
    /// kernels: end -->` [without PAGE: docs/kernels.md]
    #[arg(long, value_name = "PAGE", num_args = 0..=1, default_missing_value = page::PAGE)]
    write: Option<PathBuf>,
    /// How guests run [default: KVM if one comes up under it, else TCG]
    #[arg(long, value_enum)]
    acceleration: Option<Acceleration>,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let begun = Instant::now();
    let kernels = kernel::expanded(&args.kernel);
    args.check()?;
    setup::ensure(&[Part::Toolchain, Part::Tests])?;
    build_ebpf::build()?;
    let built = test::build()?;
    let plan = Plan {
        parts: if args.core { core(&built)? } else { parts(&args.only, &built)? },
        accept: args.accept,
        acceleration: args.acceleration,
        longest: if args.core { LONGEST_OF_CORE } else { LONGEST },
        is_alone: true,
    };
    let mut total = Outcome::default();
    let rows = plan.run(&kernels, &mut total)?;
    println!("\n{}", results::table(&rows));
    for row in &rows {
        let reasons = reasons(row.outcomes.values().flat_map(|outcome| &outcome.skipped));
        if !reasons.is_empty() {
            println!("\nskipped on {}", row.label);
            reasons.iter().for_each(|r| println!("  {r}"));
        }
    }
    if !total.failed.is_empty() {
        println!("\nFAILED");
        total.failed.iter().for_each(|f| println!("  {f}"));
    } else if let Some(page) = &args.write {
        page::write(page, &rows.iter().map(page::row).collect::<Vec<_>>())?;
    }
    println!("\nin {}", seconds(begun.elapsed()));
    println!("{} passed, {} failed, {} skipped", total.passed, total.failed.len(), total.skipped.len());
    Ok(if total.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Args {
    fn check(&self) -> Result<()> {
        if self.accept && !self.only.is_empty() && !self.only.iter().any(|o| o.split("::").next() == Some("packet")) {
            bail!(
                "--accept: the verifier's counts come with the suite packet, which --only leaves out\n  next: name it too"
            );
        }
        if self.write.is_some() && (self.core || !self.only.is_empty()) {
            bail!("--write: a row of the table is of all suites\n  next: leave out --only and --core");
        }
        Ok(())
    }
}

/// Runs the core on the first and the last kernel, for `cargo xtask test`. The inner `Err` says why this machine cannot.
///
/// # Errors
/// A kernel or QEMU is unavailable.
pub(crate) fn run_core(built: &[Executable], is_alone: bool) -> Result<Result<Outcome, String>> {
    if let Some(missing) = apt_sources::missing() {
        return Ok(Err(format!("needs {missing}")));
    }
    let mut total = Outcome::default();
    let plan = Plan { parts: core(built)?, accept: false, acceleration: None, longest: LONGEST_OF_CORE, is_alone };
    for row in plan.run(&CORE_KERNELS.map(str::to_owned), &mut total)? {
        let (guests, how) = (row.guests, row.acceleration);
        println!(
            "{:<14} {guests} guests of Linux {} under {how}, the longest {}",
            row.label,
            row.release,
            seconds(row.took)
        );
    }
    Ok(Ok(total))
}

/// The part of a kernel's tests that one guest runs.
struct Portion {
    /// Part of its name.
    name: String,
    suites: Vec<Suite>,
    /// Number of the kernel that alone runs it, if not all do.
    kernel: Option<usize>,
}

struct Plan {
    parts: Vec<Portion>,
    accept: bool,
    acceleration: Option<Acceleration>,
    /// Time limit of one guest.
    longest: Duration,
    /// Otherwise the suites of this machine run at the same time, and guests one by one.
    is_alone: bool,
}

/// One guest.
struct Job<'a> {
    kernel: &'a Kernel,
    label: String,
    part: &'a Portion,
    without: Vec<String>,
}

impl Plan {
    /// Returns a row for each kernel; outcomes are added to `total`. As many guests run in parallel as this machine has room
    /// for.
    fn run(&self, kernels: &[String], total: &mut Outcome) -> Result<Vec<Row>> {
        let mut steps = Steps::of(0);
        let qemu = Qemu::get(&mut steps)?;
        let [init, netpath] = ["guest", "netpath"].map(workspace::built);
        let programs = Programs { init, netpath, more: Vec::new() };
        let suites: Vec<&Suite> = self.parts.iter().flat_map(|p| &p.suites).collect();
        let base = Base::gather(&programs, suites.iter().copied())?;
        let kernels = kernels.iter().map(|k| Kernel::get(k, &mut steps)).collect::<Result<Vec<_>>>()?;
        let ladder = self.ladder();
        let mut jobs = VecDeque::new();
        let mut rows: Vec<Row> = Vec::new();
        for (n, kernel) in kernels.iter().enumerate() {
            let without = |label: String, without: &[&str], part| {
                let without = without.iter().map(|w| (*w).to_owned()).collect();
                Job { kernel, label, part, without }
            };
            rows.push(Row::of(kernel.label.clone(), kernel.release.clone()));
            let own = self.parts.iter().filter(|part| part.kernel.is_none_or(|k| k == n % CORE_KERNELS.len()));
            jobs.extend(own.map(|part| without(kernel.label.clone(), &[], part)));
            // The lower rung is taken where the hooks of the eBPF rung are missing: tested once, on a kernel where leaving out
            // modules removes them.
            if kernel.label == WITHOUT_TCX
                && let Some(ladder) = &ladder
            {
                let label = format!("{} without {}", kernel.label, CLSACT[0]);
                rows.push(Row::of(label.clone(), kernel.release.clone()));
                jobs.push_back(without(label, &CLSACT, ladder));
            }
        }
        // Longest jobs first.
        jobs.make_contiguous().sort_by_key(|j| std::cmp::Reverse((j.part.weight(), numbers(&j.kernel.release))));
        let mut finish = |job: &Job<'_>, ran: Result<Ran>| -> Result<()> {
            let row = rows.iter_mut().find(|r| r.label == job.label).context("a guest of no kernel")?;
            self.read(job, ran?, row, total)
        };
        // The first guest determines the acceleration.
        if self.acceleration.is_none()
            && remembered().is_none()
            && let Some(job) = jobs.pop_front()
        {
            finish(&job, self.boot(&job, &qemu, &base))?;
        }
        let room = qemu::room(self.acceleration.or(remembered())).min(jobs.len());
        let width = if self.is_alone { room } else { 1 };
        let jobs = Mutex::new(jobs);
        let (done, ran) = mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..width {
                let done = done.clone();
                scope.spawn(|| {
                    let done = done;
                    while let Some(job) = jobs.lock().ok().and_then(|mut j| j.pop_front()) {
                        let ran = self.boot(&job, &qemu, &base);
                        if done.send((job, ran)).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(done);
            ran.iter().try_for_each(|(job, ran)| finish(&job, ran))
        })?;
        if suites.iter().any(|s| s.name == "packet" && s.is_whole) {
            for row in rows.iter().filter(|r| r.is_of_series() && !r.has_counts) {
                total.failed.push(format!("vm-{} packet: no counts of verified instructions", row.label));
            }
        }
        Ok(rows)
    }

    /// The tests of the ladder alone, if e2e is selected and includes them.
    fn ladder(&self) -> Option<Portion> {
        let e2e = self.parts.iter().flat_map(|p| &p.suites).find(|s| s.name == "e2e")?;
        let filtered: Vec<&String> = e2e.arguments.iter().skip(FIXED).collect();
        let has_ladder = e2e.is_whole || filtered.is_empty() || filtered.iter().any(|f| f.starts_with("ladder"));
        let mut arguments = e2e.arguments[..FIXED].to_vec();
        arguments.push("ladder::".to_owned());
        let suite = Suite { arguments, is_whole: false, ..e2e.clone() };
        has_ladder.then(|| Portion::of("", vec![suite]))
    }

    fn boot(&self, job: &Job<'_>, qemu: &Qemu, base: &Base) -> Result<Ran> {
        let name = job.name();
        let initramfs = workspace::target().join("vm").join(format!("{name}-{}.cpio", std::process::id()));
        base.image(job.kernel, &job.part.suites, &job.without, &initramfs)?;
        let guest = Guest { name, kernel: &job.kernel.image, initramfs: &initramfs, longest: self.longest };
        let ran = guest.run(qemu, self.acceleration);
        std::fs::remove_file(&initramfs).with_context(|| format!("cannot remove {}", initramfs.display()))?;
        ran
    }

    /// Adds the output of a guest to the row of its kernel and to `total`.
    fn read(&self, job: &Job<'_>, ran: Ran, row: &mut Row, total: &mut Outcome) -> Result<()> {
        let name = job.name();
        let report = results::read(&ran.results);
        if !report.release.is_empty() {
            row.release = report.release;
        }
        (row.guests, row.took, row.acceleration) = (row.guests + 1, row.took.max(ran.took), ran.acceleration.name());
        row.doctor = row.doctor.take().or(report.doctor);
        for refused in &report.refused {
            println!("{name}: module {refused}");
        }
        if let Some(why) = report.broken.or(ran.broken) {
            println!("{name}: {why}");
            row.broken += 1;
            total.failed.push(format!("{name}: {}", why.lines().next().unwrap_or_default()));
        }
        for mut section in report.sections {
            if section.name == "packet" {
                let counts = verified::read(&section.text);
                row.has_counts |= !counts.is_empty();
                section.outcome.failed.extend(self.judge(job.kernel, &counts)?);
            }
            if section.name == "e2e" && row.is_of_series() {
                let lacking = section.outcome.skipped.iter().filter(|(test, why)| lacks_a_driver(test, why));
                let lacking: Vec<String> = lacking.map(|(test, why)| format!("{test}: {why}")).collect();
                section.outcome.failed.extend(lacking);
            }
            if section.outcome == Outcome::default() {
                section.outcome.failed.push("ran no test: no name contains what --only asks for".to_owned());
            }
            let suite = format!("{name} {}", section.name);
            println!("{}", summary(&suite, &section.outcome, section.took));
            if !section.outcome.failed.is_empty() {
                println!("{}\nthe whole output is in {}", what_failed(&section.text), ran.log.display());
            }
            total.passed += section.outcome.passed;
            total.failed.extend(section.outcome.failed.iter().map(|f| format!("{suite} {f}")));
            total.skipped.extend(section.outcome.skipped.iter().map(|(t, why)| (format!("{suite} {t}"), why.clone())));
            row.outcomes.entry(section.name).or_default().add(section.outcome);
        }
        Ok(())
    }

    /// Checks the verifier's counts; only the kernel series have committed ones.
    fn judge(&self, kernel: &Kernel, counts: &verified::Counts) -> Result<Vec<String>> {
        if counts.is_empty() || !SERIES.iter().any(|(series, _)| *series == kernel.label) {
            return Ok(Vec::new());
        }
        if self.accept {
            verified::accept(&kernel.label, counts)?;
            return Ok(Vec::new());
        }
        let mut found = verified::compare(&kernel.label, counts)?;
        if !found.is_empty() {
            found.push("next, where that is meant: cargo xtask vm test --only packet --accept".to_owned());
            found.iter().for_each(|f| println!("{f}"));
            found.pop();
        }
        Ok(found)
    }
}

impl Job<'_> {
    fn name(&self) -> String {
        let part = if self.part.name.is_empty() { String::new() } else { format!("-{}", self.part.name) };
        format!("vm-{}{part}", self.label.replace(|c: char| !c.is_ascii_alphanumeric() && c != '.', "-"))
    }
}

/// Debian's kernels have every driver that netpath supports, and the guest has its cards: a driver that `e2e::links` misses
/// there is an error of the image.
fn lacks_a_driver(test: &str, why: &str) -> bool {
    test.starts_with("links::")
        && ["needs what ip ", "needs what tc ", "needs two network cards"].iter().any(|w| why.starts_with(w))
}

impl Suite {
    /// These tests of it.
    fn of_these(&self, tests: Vec<String>) -> Self {
        let arguments = self.arguments.iter().cloned().chain(["--exact".to_owned()]).chain(tests).collect();
        Self { arguments, ..self.clone() }
    }
}

impl Portion {
    fn of(name: &str, suites: Vec<Suite>) -> Self {
        Self { name: name.to_owned(), suites, kernel: None }
    }

    /// Relative duration.
    fn weight(&self) -> usize {
        self.suites.iter().map(|s| if s.name == "e2e" { 2 } else { 1 }).sum()
    }
}

/// Number of libtest arguments that every suite gets, before its filters.
const FIXED: usize = 3;

/// The whole of all suites, one guest for each, two for e2e; or only the named ones, in one guest.
fn parts(only: &[String], built: &[Executable]) -> Result<Vec<Portion>> {
    let names = || SUITES.iter().map(|(name, _)| *name);
    let of = |o: &String| o.split("::").next().unwrap_or_default().to_owned();
    if let Some(other) = only.iter().find(|o| !names().any(|n| n == of(o))) {
        bail!("--only {other}: there is {}", names().collect::<Vec<_>>().join(", "));
    }
    if only.is_empty() {
        // A guest under emulation has one processor.
        let [first, second] = halves(&suite("e2e", Vec::new(), built)?)?;
        let whole = |name: &str| -> Result<Portion> { Ok(Portion::of(name, vec![suite(name, Vec::new(), built)?])) };
        return Ok(vec![
            whole("packet")?,
            whole("contract")?,
            Portion::of("e2e-1", vec![first]),
            Portion::of("e2e-2", vec![second]),
        ]);
    }
    let mut suites = Vec::new();
    for name in names().filter(|n| only.iter().any(|o| of(o) == *n)) {
        let filters = only.iter().filter_map(|o| o.strip_prefix(&format!("{name}::"))).map(str::to_owned);
        suites.push(suite(name, filters.collect(), built)?);
    }
    Ok(vec![Portion::of("", suites)])
}

fn core(built: &[Executable]) -> Result<Vec<Portion>> {
    let packet = suite("packet", Vec::new(), built)?;
    let mut modules: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for test in tests(&packet)? {
        let module = test.split("::").next().unwrap_or_default().to_owned();
        modules.entry(module).or_default().push(test);
    }
    modules.retain(|module, _| !WITHOUT_KERNEL.contains(&module.as_str()));
    let of = |(n, e2e): (usize, &&[&str])| -> Result<Portion> {
        let is_taken = |module: &str, place: usize| module == CORE_PACKET || place % 4 == n;
        let mine = modules.iter().flat_map(|(module, tests)| {
            tests.iter().enumerate().filter(|(place, _)| is_taken(module, *place)).map(|(_, test)| test.clone())
        });
        let packet = packet.of_these(mine.collect());
        let e2e = suite("e2e", e2e.iter().map(|&test| test.to_owned()).collect(), built)?;
        Ok(Portion { kernel: Some(n), ..Portion::of("", vec![packet, e2e]) })
    };
    CORE_E2E.iter().enumerate().map(of).collect()
}

fn suite(name: &str, filters: Vec<String>, built: &[Executable]) -> Result<Suite> {
    let executable = test::suite(built, name).with_context(|| format!("the suite {name} is not in this checkout"))?;
    let (_, threads) = SUITES.into_iter().find(|(n, _)| *n == name).context("a suite without a name")?;
    let fixed = ["--color", "never"].map(str::to_owned);
    let is_whole = filters.is_empty();
    let arguments = fixed.into_iter().chain([format!("--test-threads={threads}")]).chain(filters).collect();
    Ok(Suite { name: name.to_owned(), executable: executable.to_owned(), arguments, is_whole, conducted: false })
}

/// Splits a suite by tests.
fn halves(suite: &Suite) -> Result<[Suite; 2]> {
    let tests = tests(suite)?;
    let half = |half| suite.of_these(tests.iter().skip(half).step_by(2).cloned().collect());
    Ok([half(0), half(1)])
}

fn tests(suite: &Suite) -> Result<Vec<String>> {
    let mut list = Command::new(&suite.executable);
    list.args(["--list", "--format=terse"]).stdin(Stdio::null());
    let out = list.output().with_context(|| format!("cannot list the tests of {}", suite.name))?;
    let text = String::from_utf8_lossy(&out.stdout);
    ensure!(out.status.success(), "cannot list the tests of {}: {}", suite.name, String::from_utf8_lossy(&out.stderr));
    Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_test_is_skipped_for_want_of_a_rung_but_not_of_a_driver() {
        let vlan = "needs what ip link add link v0 name v0.5 type vlan id 5 makes: RTNETLINK answers: Not supported";
        for why in [vlan, "needs two network cards that tests may take: cargo xtask vm test gives them"] {
            assert!(lacks_a_driver("links::tcx::a_vlan", why), "{why}");
            assert!(!lacks_a_driver("direct::tcx::other", why), "{why}");
        }
        assert!(!lacks_a_driver("links::tcx::a_vlan", "needs tcx: BPF_LINK_CREATE does not know the hook"));
        assert!(!lacks_a_driver("links::iptables::a_member_of_a_vrf", "needs a route from the VRF to the bridge"));
    }
}
