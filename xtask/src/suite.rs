//! Runs a test executable (libtest) and parses its output: passed, failed, skipped with a reason.
//!
//! A test that cannot run prints `skip <test>: needs …` and returns. libtest reports it as passed; xtask counts it as skipped.

use crate::steps::{seconds, tail};
use crate::workspace;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Time limit of a suite. After it the suite is stopped, and its output so far is shown.
const LONGEST: Duration = Duration::from_secs(20 * 60);

pub struct Suite {
    pub name: String,
    pub command: Command,
}

#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub passed: usize,
    /// Names of the passed tests, where a suite prints them.
    pub names: Vec<String>,
    pub failed: Vec<String>,
    /// Test and reason.
    pub skipped: Vec<(String, String)>,
}

impl Outcome {
    pub fn add(&mut self, other: Outcome) {
        self.passed += other.passed;
        self.names.extend(other.names);
        self.failed.extend(other.failed);
        self.skipped.extend(other.skipped);
    }
}

impl Suite {
    /// Runs the suite and prints one line, and the output of failed tests in full.
    ///
    /// # Errors
    /// The executable cannot be started, or its output cannot be stored.
    pub fn run(mut self) -> Result<Outcome> {
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
        for (test, _) in &mut outcome.skipped {
            *test = format!("{} {test}", self.name);
        }
        Ok(outcome)
    }
}

pub fn summary(name: &str, outcome: &Outcome, took: Duration) -> String {
    let (passed, failed, skipped) = (outcome.passed, outcome.failed.len(), outcome.skipped.len());
    if passed + failed + skipped == 0 {
        return format!("{name:<14} no test");
    }
    format!("{name:<14} {passed:>5} passed {failed:>4} failed {skipped:>4} skipped  {}", seconds(took))
}

/// Parses libtest's output. A skip line is either captured (after the results, with `--show-output`) or written past the
/// capture, then at any place: also between a test's name and its result.
pub fn read(text: &str) -> Outcome {
    let mut outcome = Outcome::default();
    let mut passed: Vec<&str> = Vec::new();
    let mut captured = false;
    let mut waiting: Option<&str> = None;
    for line in text.lines() {
        let mut rest = line;
        if !captured && let Some((name, verdict)) = line.strip_prefix("test ").and_then(|l| l.split_once(" ... ")) {
            (waiting, rest) = (Some(name), verdict);
        }
        if let Some((label, why)) = rest.strip_prefix("skip ").and_then(|l| l.split_once(": ")) {
            if why.starts_with("needs ") {
                outcome.skipped.push((label.to_owned(), why.to_owned()));
            }
        } else if line.starts_with("---- ") && line.ends_with(" stdout ----") {
            captured = true;
        } else if line == "successes:" || line == "failures:" || line.starts_with("test result:") {
            captured = false;
        } else if let Some(name) = waiting.filter(|_| !captured) {
            let ignored = rest.strip_prefix("ignored");
            match rest {
                "ok" => passed.push(name),
                "FAILED" => outcome.failed.push(name.to_owned()),
                _ if ignored.is_some() => {
                    let why = ignored.and_then(|r| r.strip_prefix(", ")).unwrap_or("ignored");
                    outcome.skipped.push((name.to_owned(), why.to_owned()));
                }
                _ => continue,
            }
            waiting = None;
        }
    }
    // A skip of the whole test, or of one row of its table: only the first removes the pass.
    let whole = |test: &str, label: &str| {
        test == label || test.ends_with(&format!("::{label}")) || label.ends_with(&format!("::{test}"))
    };
    passed.retain(|test| !outcome.skipped.iter().any(|(label, _)| whole(test, label)));
    outcome.passed = passed.len();
    outcome.names = passed.into_iter().map(str::to_owned).collect();
    outcome
}

/// The output from libtest's list of failures on, or the end of the output.
pub fn what_failed(text: &str) -> String {
    match text.find("\nfailures:\n") {
        Some(at) => text[at..].trim().to_owned(),
        None => tail(text, 60),
    }
}

/// The arguments with which libtest prints the format that [`read`] parses.
pub fn harness(executable: &PathBuf, threads: Option<usize>, filters: &[String]) -> Command {
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
test b::table ... ok
test b::later ... ignored, needs a VM

successes:

---- a::cannot_run stdout ----
skip cannot_run: needs tcx: BPF_LINK_CREATE gave EINVAL
test of ours ... ok

---- b::table stdout ----
skip table/iptables/v6: needs ip6tables: not found


successes:
    a::works

failures:

---- b::breaks stdout ----
thread 'b::breaks' panicked at tests/x.rs:1:1:

failures:
    b::breaks

test result: FAILED. 3 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn a_skipped_test_is_not_a_pass_but_a_table_with_a_skipped_row_is() {
        let outcome = read(OUTPUT);
        assert_eq!(2, outcome.passed, "{outcome:?}");
        assert_eq!(vec!["b::breaks".to_owned()], outcome.failed);
        let labels: Vec<_> = outcome.skipped.iter().map(|(l, _)| l.as_str()).collect();
        assert_eq!(vec!["b::later", "cannot_run", "table/iptables/v6"], labels);
        assert_eq!("needs a VM", outcome.skipped[0].1);
    }

    #[test]
    fn a_skip_line_between_a_name_and_its_result_belongs_to_the_test_it_names() {
        let text =
            "test a::one ... skip b::two: needs tcx: no\nok\ntest b::two ... ok\n1.5 GB/s\ntest c::three ... ok\n";
        let outcome = read(text);
        assert_eq!((2, 1), (outcome.passed, outcome.skipped.len()), "{outcome:?}");
        let text = "test two ... skip suite::two: needs root\nok\ntest three ... a figure\nFAILED\n";
        let outcome = read(text);
        assert_eq!((0, 1, 1), (outcome.passed, outcome.failed.len(), outcome.skipped.len()), "{outcome:?}");
    }

    #[test]
    fn failures_are_shown_from_their_own_output_on() {
        assert!(what_failed(OUTPUT).starts_with("failures:"));
        assert!(what_failed("thread main panicked").contains("panicked"));
    }
}
