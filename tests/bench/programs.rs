//! Time per packet of the programs: measured by the packet suite (tests/packet/cost.rs), parsed here.

use crate::plan::Plan;
use crate::progress::Progress;
use anyhow::{Context, Result, ensure};
use report::results::Results;
use std::process::{Command, Stdio};
use std::time::Duration;

const TEST: &str = "cost::time_per_packet";

pub fn planned(plan: &Plan) -> Duration {
    Duration::from_secs(if plan.wants("programs") { 5 } else { 0 })
}

pub fn run(plan: &Plan, progress: &mut Progress, results: &mut Results) {
    if !plan.wants("programs") {
        return;
    }
    progress.now("time per packet of the programs");
    match measure(plan) {
        Ok(programs) => results.programs = programs,
        Err(e) => results.note(format!("programs: {e:#}")),
    }
    progress.advance(planned(plan));
    progress.say("programs: measured");
}

fn measure(plan: &Plan) -> Result<Vec<(String, f64)>> {
    let tests = plan.packet_tests.as_ref().context("--packet-tests is not given: cargo xtask bench does")?;
    let mut command = Command::new(tests);
    command.args(["--exact", TEST, "--nocapture"]).stdin(Stdio::null());
    let out = command.output().with_context(|| format!("cannot start {}", tests.display()))?;
    let text = String::from_utf8_lossy(&out.stdout);
    ensure!(out.status.success(), "{TEST} failed: {text}{}", String::from_utf8_lossy(&out.stderr));
    let found: Vec<_> = text.lines().filter_map(read).collect();
    ensure!(!found.is_empty(), "{TEST} has printed no time: {text}");
    Ok(found)
}

/// `np_uplink_in v4 not ours: 97 ns (median; best 90)`
fn read(line: &str) -> Option<(String, f64)> {
    // With one thread libtest prints the test's name before the first line.
    let line = line.split(" ... ").last()?;
    let (name, rest) = line.split_once(": ")?;
    let ns = rest.split_once(" ns (median")?.0.parse().ok()?;
    Some((name.to_owned(), ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_other_lines_are_not() {
        let line = "test cost::time_per_packet ... np_uplink_in v4 not ours: 97 ns (median; best 90)";
        assert_eq!(Some(("np_uplink_in v4 not ours".to_owned(), 97.0)), read(line));
        assert_eq!(None, read("np_lo_in: 23134 verified instructions"));
        assert_eq!(None, read("test result: ok. 1 passed"));
    }
}
