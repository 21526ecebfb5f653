//! Runs a test executable and parses its output: passed, failed, skipped with a reason.
//!
//! The suites of `tests/` run on libtest-mimic, and report a test that cannot run as ignored. Unit tests run on libtest: those
//! that need root are marked as ignored and included here. One that cannot run prints `skip <test>: needs …` and returns; libtest
//! reports it as passed, and xtask counts it as skipped.

use crate::steps::{seconds, tail};
use crate::workspace;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Time limit of a suite. After it the suite is stopped, and its output so far is shown.
const LONGEST: Duration = Duration::from_secs(20 * 60);

pub(crate) struct Suite {
    pub name: String,
    pub command: Command,
}

#[derive(Clone, Default, Debug, PartialEq)]
pub(crate) struct Outcome {
    pub passed: usize,
    /// Names of the passed tests, where a suite prints them.
    pub names: Vec<String>,
    pub failed: Vec<String>,
    /// Test and reason.
    pub skipped: Vec<(String, String)>,
    /// Seconds of each slow test.
    pub slow: Vec<(f64, String)>,
}

impl Outcome {
    pub(crate) fn add(&mut self, other: Outcome) {
        self.passed += other.passed;
        self.names.extend(other.names);
        self.failed.extend(other.failed);
        self.skipped.extend(other.skipped);
        self.slow.extend(other.slow);
    }
}

impl Suite {
    /// Runs the suite and prints one line, and the output of failed tests in full.
    ///
    /// # Errors
    /// The executable cannot be started, or its output cannot be stored.
    pub(crate) fn run(mut self) -> Result<Outcome> {
        let log = workspace::logs().join(format!("test-{}.log", self.name));
        fs::create_dir_all(workspace::logs()).context("cannot create the directory of logs")?;
        let out = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let begun = Instant::now();
        self.command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let mut child = self.command.spawn().with_context(|| format!("cannot start suite {}", self.name))?;
        let terminal = std::io::stdout().is_terminal();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if begun.elapsed() > LONGEST {
                child.kill()?;
                child.wait()?;
                break None;
            }
            if terminal {
                print!("\r{:<14} … {} s", self.name, begun.elapsed().as_secs());
                std::io::stdout().flush()?;
            }
            std::thread::sleep(Duration::from_millis(if terminal { 200 } else { 20 }));
        };
        let text = String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
        let mut outcome = read(&text);
        match status {
            None => outcome.failed.push(format!("stopped after {}; next: cargo xtask clean", seconds(LONGEST))),
            // A crash, or a failed executable without libtest's harness.
            Some(s) if !s.success() && outcome.failed.is_empty() => outcome.failed.push(format!("ended with {s}")),
            Some(_) => {}
        }
        let redraw = if terminal { "\r" } else { "" };
        println!("{redraw}{}", summary(&self.name, &outcome, begun.elapsed()));
        if !outcome.failed.is_empty() {
            println!("{}\nthe whole output is in {}", what_failed(&text), log.display());
        }
        for failed in &mut outcome.failed {
            *failed = format!("{} {failed}", self.name);
        }
        let others =
            outcome.skipped.iter_mut().map(|(test, _)| test).chain(outcome.slow.iter_mut().map(|(_, test)| test));
        others.for_each(|test| *test = format!("{} {test}", self.name));
        Ok(outcome)
    }
}

pub(crate) fn summary(name: &str, outcome: &Outcome, took: Duration) -> String {
    let (passed, failed, skipped) = (outcome.passed, outcome.failed.len(), outcome.skipped.len());
    if passed + failed + skipped == 0 {
        return format!("{name:<14} no test");
    }
    format!("{name:<14} {passed:>5} passed {failed:>4} failed {skipped:>4} skipped  {}", seconds(took))
}

/// Parses the output of libtest and of libtest-mimic (tests/support/harness.rs). Lines that a test prints may stand between its
/// name and its result.
pub(crate) fn read(text: &str) -> Outcome {
    let mut outcome = Outcome::default();
    // The output of a single test, as captured by libtest, or its error.
    let mut captured = false;
    let mut waiting: Option<&str> = None;
    for line in text.lines() {
        let mut rest = line;
        if !captured && let Some((name, verdict)) = line.strip_prefix("test ").and_then(|l| l.split_once(" ... ")) {
            (waiting, rest) = (Some(name.trim_end()), verdict);
        }
        if let Some((label, why)) = rest.strip_prefix("skip ").and_then(|l| l.split_once(": needs ")) {
            outcome.skipped.push((label.to_owned(), format!("needs {why}")));
        } else if let Some((took, name)) = line.strip_prefix("took ").and_then(|l| l.split_once(" s: ")) {
            outcome.slow.extend(took.parse().ok().map(|took| (took, name.to_owned())));
        } else if line.starts_with("---- ") && line.ends_with(" ----") {
            captured = true;
        } else if line == "successes:" || line == "failures:" || line.starts_with("test result:") {
            captured = false;
        } else if let Some(name) = waiting.filter(|_| !captured) {
            match rest.strip_prefix("ignored") {
                Some(why) => {
                    let mimic = why.strip_prefix(" (").and_then(|w| w.strip_suffix(')'));
                    let why = mimic.or(why.strip_prefix(", ")).unwrap_or("ignored");
                    outcome.skipped.push((name.to_owned(), why.to_owned()));
                }
                None if rest == "ok" => outcome.names.push(name.to_owned()),
                None if rest == "FAILED" => outcome.failed.push(name.to_owned()),
                None => continue,
            }
            waiting = None;
        }
    }
    let is_skipped = |test: &str, label: &str| test == label || test.ends_with(&format!("::{label}"));
    outcome.names.retain(|test| !outcome.skipped.iter().any(|(label, _)| is_skipped(test, label)));
    outcome.passed = outcome.names.len();
    outcome
}

/// Skip reasons, each with the number of tests.
pub(crate) fn reasons<'o>(skipped: impl Iterator<Item = &'o (String, String)>) -> Vec<String> {
    let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (test, why) in skipped {
        by_reason.entry(why).or_default().push(test);
    }
    let line = |(why, tests): (&&str, &Vec<&str>)| {
        let which = if tests.len() <= 3 { tests.join(", ") } else { format!("{}, …", tests[..2].join(", ")) };
        format!("{} × {why}: {which}", tests.len())
    };
    by_reason.iter().map(line).collect()
}

/// The output from libtest's list of failures on, or the end of the output.
pub(crate) fn what_failed(text: &str) -> String {
    match text.find("\nfailures:\n") {
        Some(at) => text[at..].trim().to_owned(),
        None => tail(text, 60),
    }
}

/// The arguments with which a suite prints the format that [`read`] parses.
pub(crate) fn harness(executable: &Path, threads: Option<usize>, filters: &[String]) -> Command {
    let mut command = Command::new(executable);
    command.args(["--show-output", "--color", "never"]).args(filters);
    if let Some(threads) = threads {
        command.arg(format!("--test-threads={threads}"));
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "
running 5 tests
test a::works ... ok
test a::cannot_run ... ok
test b::breaks ... FAILED
test b::later ... ignored, needs a VM

successes:

---- a::cannot_run stdout ----
skip cannot_run: needs tcx: BPF_LINK_CREATE gave EINVAL
test of ours ... ok


successes:
    a::works

failures:

---- b::breaks stdout ----
thread 'b::breaks' panicked at tests/x.rs:1:1:

failures:
    b::breaks

test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn a_test_that_says_it_was_skipped_is_not_a_pass() {
        let outcome = read(OUTPUT);
        assert_eq!((1, vec!["b::breaks".to_owned()]), (outcome.passed, outcome.failed));
        let skipped: Vec<_> = outcome.skipped.iter().map(|(label, why)| (label.as_str(), why.as_str())).collect();
        assert_eq!(vec![("b::later", "needs a VM"), ("cannot_run", "needs tcx: BPF_LINK_CREATE gave EINVAL")], skipped);
    }

    #[test]
    fn the_output_of_a_suite_has_aligned_names_reasons_and_times() {
        let text = "
test a::one   ... ok
test a::two   ... 5 packets
ignored (needs tcx (since 6.6))
test a::three ... FAILED

failures:

---- a::three ----
test x ... ok

failures:
    a::three

test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 32.38s

took 11.6 s: a::one
";
        let outcome = read(text);
        assert_eq!((vec!["a::one".to_owned()], vec!["a::three".to_owned()]), (outcome.names, outcome.failed));
        assert_eq!(vec!["1 × needs tcx (since 6.6): a::two"], reasons(outcome.skipped.iter()));
        assert_eq!(vec![(11.6, "a::one".to_owned())], outcome.slow);
    }

    #[test]
    fn failures_are_shown_from_their_own_output_on() {
        assert!(what_failed(OUTPUT).starts_with("failures:"));
        assert!(what_failed("thread main panicked").contains("panicked"));
    }
}
