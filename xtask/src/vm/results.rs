//! Parses the output of a guest (tests/guest/main.rs) into outcomes of suites; and the table over all kernels.

use super::kernel::SERIES;
use super::qemu::READY;
use crate::steps::seconds;
use crate::suite::{self, Outcome};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// One suite in one guest.
pub(super) struct Section {
    pub name: String,
    pub outcome: Outcome,
    pub text: String,
    pub took: Duration,
}

/// One guest.
#[derive(Default)]
pub(super) struct Report {
    /// `uname -r`; empty: the guest did not boot.
    pub release: String,
    /// Modules that the kernel rejected, with its message.
    pub refused: Vec<String>,
    /// Why init gave up.
    pub broken: Option<String>,
    /// The output of `netpath doctor --json` there.
    pub doctor: Option<Value>,
    pub sections: Vec<Section>,
}

pub(super) fn read(text: &str) -> Report {
    let mut report = Report::default();
    let mut open: Option<(String, Vec<&str>)> = None;
    for line in text.lines() {
        if let Some(release) = line.strip_prefix(READY) {
            report.release = release.to_owned();
        } else if let Some(module) = line.strip_prefix("::module ") {
            report.refused.push(module.to_owned());
        } else if let Some(doctor) = line.strip_prefix("::doctor ") {
            report.doctor = serde_json::from_str(doctor).ok();
        } else if let Some(why) = line.strip_prefix("::broken ") {
            report.broken = Some(why.to_owned());
        } else if let Some(name) = line.strip_prefix("::begin ") {
            open = Some((name.to_owned(), Vec::new()));
        } else if let Some(end) = line.strip_prefix("::end ") {
            let Some((name, lines)) = open.take() else { continue };
            let mut words = end.rsplit(' ');
            let took = words.next().and_then(|ms| ms.parse().ok()).unwrap_or(0);
            let code = words.next().unwrap_or_default();
            report.sections.push(section(name, &lines, took, (code != "0").then(|| format!("ended with {code}"))));
        } else if let Some((_, lines)) = &mut open {
            lines.push(line);
        }
    }
    // The guest was stopped, or crashed, within a suite.
    if let Some((name, lines)) = open {
        report.sections.push(section(name, &lines, 0, Some("did not come to its end".to_owned())));
    }
    report
}

fn section(name: String, lines: &[&str], ms: u64, wrong: Option<String>) -> Section {
    let text = lines.join("\n");
    let mut outcome = suite::read(&text);
    // A crash, for example; libtest names failed tests by itself.
    if let Some(wrong) = wrong.filter(|_| outcome.failed.is_empty()) {
        outcome.failed.push(wrong);
    }
    Section { name, outcome, text, took: Duration::from_millis(ms) }
}

/// A row of the table: a kernel.
pub(crate) struct Row {
    pub label: String,
    pub release: String,
    pub acceleration: &'static str,
    pub guests: usize,
    /// Number of guests that did not finish.
    pub broken: usize,
    /// Duration of the longest guest.
    pub took: Duration,
    /// See [`Report::doctor`].
    pub doctor: Option<Value>,
    /// Whether the verifier's counts were printed.
    pub has_counts: bool,
    /// By suite.
    pub outcomes: BTreeMap<String, Outcome>,
}

impl Row {
    /// A row before any of its guests has booted.
    pub(crate) fn of(label: String, release: String) -> Self {
        Self {
            label,
            release,
            acceleration: "–",
            guests: 0,
            broken: 0,
            took: Duration::ZERO,
            doctor: None,
            has_counts: false,
            outcomes: BTreeMap::new(),
        }
    }

    pub(crate) fn is_of_series(&self) -> bool {
        SERIES.iter().any(|(series, _)| *series == self.label)
    }
}

/// kernel × suite → passed/failed/skipped.
pub(super) fn table(rows: &[Row]) -> String {
    let mut suites: Vec<&String> = rows.iter().flat_map(|r| r.outcomes.keys()).collect();
    suites.sort();
    suites.dedup();
    let mut text = format!("{:<22} {:<22}", "kernel", "release");
    for suite in &suites {
        text += &format!(" {suite:>14}");
    }
    text += &format!(" {:>10}\n", "time");
    for row in rows {
        text += &format!("{:<22} {:<22}", row.label, row.release);
        for suite in &suites {
            let cell = row
                .outcomes
                .get(*suite)
                .map_or("–".to_owned(), |o| format!("{}/{}/{}", o.passed, o.failed.len(), o.skipped.len()));
            text += &format!(" {cell:>14}");
        }
        text += &format!(" {:>10}", format!("{} {}", row.acceleration, seconds(row.took)));
        if row.broken > 0 {
            text += &format!(" ({} of {} guests did not come to their end)", row.broken, row.guests);
        }
        text.push('\n');
    }
    text + "(passed/failed/skipped)"
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "::module foo cannot be loaded: Unknown symbol
::ready 6.1.0-50-amd64
::begin packet
running 2 tests
test a ... ok
np_lo_in: 40 verified instructions
test b ... ignored (needs tcx: no)
test result: ok.
::end packet 0 1500
::begin e2e
test c ... ok
thread panicked";

    #[test]
    fn guest_output_is_parsed_by_suite() {
        let report = read(TEXT);
        assert_eq!(("6.1.0-50-amd64", 1), (report.release.as_str(), report.refused.len()));
        let [packet, e2e] = report.sections.as_slice() else { panic!("two suites") };
        assert_eq!((1, 0, 1), (packet.outcome.passed, packet.outcome.failed.len(), packet.outcome.skipped.len()));
        assert_eq!(Duration::from_millis(1500), packet.took);
        assert_eq!(vec!["did not come to its end".to_owned()], e2e.outcome.failed);
        let outcomes = report.sections.into_iter().map(|s| (s.name, s.outcome)).collect();
        let row = Row { outcomes, ..Row::of("6.1".into(), report.release) };
        let whole = table(std::slice::from_ref(&row));
        assert!(whole.contains("1/0/1") && whole.contains("1/1/0") && !whole.contains("their end"), "{whole}");
        let broken = table(&[Row { guests: 2, broken: 1, ..row }]);
        assert!(broken.contains("(1 of 2 guests did not come to their end)"), "{broken}");
    }

    #[test]
    fn a_suite_that_crashed_has_failed() {
        let report = read("::begin packet\ntest a ... ok\n::end packet SIGSEGV 3\n");
        assert_eq!(vec!["ended with SIGSEGV".to_owned()], report.sections[0].outcome.failed);
    }
}
