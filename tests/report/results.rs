//! Samples: one per figure, variant and round.

use crate::stats::{median, paired_ratio};
use crate::table::{number, optional};
use std::collections::BTreeMap;

/// One row of the tables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Figure {
    /// `conn.published`
    pub key: String,
    pub title: String,
    pub unit: &'static str,
    pub better: Better,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Better {
    More,
    Less,
}

impl Figure {
    pub fn more(key: impl Into<String>, title: impl Into<String>, unit: &'static str) -> Self {
        Self { key: key.into(), title: title.into(), unit, better: Better::More }
    }

    pub fn less(key: impl Into<String>, title: impl Into<String>, unit: &'static str) -> Self {
        Self { key: key.into(), title: title.into(), unit, better: Better::Less }
    }
}

/// A figure and a variant.
pub type Cell<'a> = (&'a str, &'a str);

#[derive(Default, Debug)]
pub struct Results {
    /// In the order of their first measurement.
    pub figures: Vec<Figure>,
    samples: BTreeMap<(String, String), Vec<Option<f64>>>,
    /// Nanoseconds per packet of a program, by name, path and family.
    pub programs: Vec<(String, f64)>,
    /// Failures and omissions, once each.
    pub notes: Vec<String>,
}

impl Results {
    pub fn add(&mut self, figure: &Figure, variant: &str, round: usize, value: f64) {
        if !self.figures.iter().any(|f| f.key == figure.key) {
            self.figures.push(figure.clone());
        }
        let samples = self.samples.entry((figure.key.clone(), variant.to_owned())).or_default();
        // A failed round is a gap: rounds of different variants are compared by number.
        samples.resize(samples.len().max(round + 1), None);
        samples[round] = Some(value);
    }

    pub fn note(&mut self, text: String) {
        if !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }

    pub fn samples(&self, (figure, variant): Cell<'_>) -> &[Option<f64>] {
        self.samples.get(&(figure.to_owned(), variant.to_owned())).map(Vec::as_slice).unwrap_or_default()
    }

    /// With a gap for each missing one of `rounds`.
    pub fn padded(&self, cell: Cell<'_>, rounds: usize) -> Vec<Option<f64>> {
        let mut samples = self.samples(cell).to_vec();
        samples.resize(samples.len().max(rounds), None);
        samples
    }

    /// The median, with the number of samples if rounds are missing.
    pub fn shown(&self, cell: Cell<'_>, rounds: usize) -> String {
        let count = self.samples(cell).iter().flatten().count();
        let of = if count < rounds && count > 0 { format!(" ({count} of {rounds})") } else { String::new() };
        optional(self.median(cell), number) + &of
    }

    pub fn median(&self, cell: Cell<'_>) -> Option<f64> {
        median(&self.samples(cell).iter().flatten().copied().collect::<Vec<_>>())
    }

    pub fn ratio(&self, cell: Cell<'_>, base: Cell<'_>) -> Option<f64> {
        paired_ratio(self.samples(cell), self.samples(base))
    }

    pub fn program(&self, name: &str) -> Option<f64> {
        self.programs.iter().find(|(n, _)| n == name).map(|(_, ns)| *ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_that_failed_leaves_a_hole() {
        let mut results = Results::default();
        let figure = Figure::more("conn.published", "", "1/s");
        results.add(&figure, "a", 0, 1.0);
        results.add(&figure, "a", 2, 3.0);
        assert_eq!([Some(1.0), None, Some(3.0)], results.samples(("conn.published", "a")));
        assert_eq!(Some(2.0), results.median(("conn.published", "a")));
        assert_eq!(None, results.median(("conn.published", "b")));
        assert_eq!(1, results.figures.len());
        let shown = |variant, rounds| results.shown(("conn.published", variant), rounds);
        assert_eq!(
            (number(2.0) + " (2 of 3)", number(2.0), optional(None, number)),
            (shown("a", 3), shown("a", 2), shown("b", 3))
        );
        assert_eq!(vec![Some(1.0), None, Some(3.0), None], results.padded(("conn.published", "a"), 4));
    }
}
