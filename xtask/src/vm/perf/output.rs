//! The results as Markdown, JSON and SVG.

use super::{PEER, Results, SAMPLE, ThreeVms, Value, Variant};
use crate::vm::qemu::Acceleration;
use anyhow::{Context, Result};
use report::page;
use report::ratios::Ratios;
use report::results::Better;
use report::table::{optional, render};
use serde_json::{Map, json};
use std::fs;
use std::path::Path;

pub struct Run<'a> {
    /// Its version and commit.
    pub netpath: String,
    pub variants: &'a [&'static Variant],
    pub results: &'a Results,
    pub rounds: usize,
    pub vms: &'a ThreeVms<'a>,
}

const CHART: &str = "vm-perf.svg";
/// File beside a page.
const DATA: &str = "vm-perf.json";
pub const LOST: &str = "udp-lost";

impl Run<'_> {
    /// Prints the results, and writes them into `directory` and, if given, into a page.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn keep(&self, directory: &Path, into: Option<&Path>) -> Result<()> {
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let write =
            |file: &Path, text: &str| fs::write(file, text).with_context(|| format!("cannot write {}", file.display()));
        let (markdown, chart, data) = (self.markdown(), self.chart(), format!("{:#}\n", self.json()));
        for (name, text) in [("perf.json", &data), ("perf.md", &markdown), (CHART, &chart)] {
            write(&directory.join(name), text)?;
        }
        println!("\n{markdown}");
        if let Some(into) = into {
            let markdown = format!("{markdown}\nEvery sample: [{DATA}]({DATA}).\n");
            page::write(into, "vm perf", &markdown, &[(CHART, chart)])?;
            write(&into.with_file_name(DATA), &data)?;
            println!("written into {}", into.display());
        }
        println!("perf.json, perf.md and {CHART} are in {}", directory.display());
        Ok(())
    }

    fn is_emulated(&self) -> bool {
        self.vms.acceleration == Acceleration::Tcg
    }

    fn machine(&self) -> String {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let rounds =
            if self.rounds == 1 { "one round".to_owned() } else { format!("medians of {} rounds", self.rounds) };
        let caution = if self.is_emulated() {
            " **Emulated (TCG): speed depends on the number of instructions, so only the ratios are meaningful.**"
        } else {
            ""
        };
        format!(
            "{}, Linux {} in three guests under {} on {processors} processors, virtio-net without offloads; {rounds}, {} s per \
             sample, IPv4.{caution}\n\n",
            self.netpath,
            self.vms.host.release,
            self.vms.acceleration.name(),
            SAMPLE.as_secs()
        )
    }

    fn table(&self, is_shown: impl Fn(&str) -> bool, cell: impl Fn(&str, &str) -> String) -> String {
        let head: Vec<String> =
            ["", ""].into_iter().chain(self.variants.iter().map(|v| v.title)).map(str::to_owned).collect();
        let rows = self.results.figures.iter().filter(|f| is_shown(&f.key)).map(|figure| {
            let less = if figure.better == Better::Less { ", less is better" } else { "" };
            let first = vec![figure.title.clone(), format!("{}{less}", figure.unit)];
            [first, self.variants.iter().map(|v| cell(&figure.key, v.key)).collect()].concat()
        });
        render(&head, &rows.collect::<Vec<_>>())
    }

    fn ratio(&self, figure: &str, variant: &str) -> Option<f64> {
        self.results.ratio((figure, variant), (figure, PEER)).filter(|_| variant != PEER && is_compared(figure))
    }

    fn markdown(&self) -> String {
        let mut text = self.machine();
        text += &self.table(|_| true, |figure, variant| self.results.shown((figure, variant), self.rounds));
        if self.has_peer() {
            text += "\nAs multiples of *netavark 2.1*, the median of the ratios of each round:\n\n";
            text += &self
                .table(is_compared, |figure, variant| optional(self.ratio(figure, variant), |r| format!("{r:.2}")));
        }
        if !self.results.notes.is_empty() {
            text += "\nNotes of the run:\n\n";
            self.results.notes.iter().for_each(|note| text += &format!("* {}\n", note.replace('\n', " ")));
        }
        text
    }

    fn has_peer(&self) -> bool {
        self.variants.iter().any(|v| v.key == PEER)
    }

    /// Improvement as a factor: where less is better, the inverse of the ratio.
    fn chart(&self) -> String {
        let judged: Vec<_> = self.variants.iter().filter(|v| v.key != PEER).collect();
        let rows = self.results.figures.iter().filter(|f| is_compared(&f.key)).map(|figure| {
            let good = |v: &&&Variant| {
                let ratio = self.ratio(&figure.key, v.key)?;
                Some(if figure.better == Better::Less { 1.0 / ratio } else { ratio })
            };
            (figure.title.as_str(), judged.iter().map(good).collect())
        });
        let title = format!(
            "Times as good as netavark 2.1, between virtual machines{}",
            if self.is_emulated() { " (emulated)" } else { "" }
        );
        Ratios {
            title: &title,
            base: "netavark 2.1",
            variants: judged.iter().map(|v| v.title).collect(),
            rows: rows.collect(),
        }
        .svg()
    }

    fn json(&self) -> Value {
        let figures = self.results.figures.iter().map(|figure| {
            let of = |v: &&Variant| {
                let cell = (figure.key.as_str(), v.key);
                let value = json!({
                    "median": self.results.median(cell), "samples": self.results.padded(cell, self.rounds),
                    "of_netavark": self.results.ratio(cell, (&figure.key, PEER)),
                });
                (v.key.to_owned(), value)
            };
            let variants: Map<String, Value> = self.variants.iter().map(of).collect();
            json!({
                "key": figure.key, "title": figure.title, "unit": figure.unit,
                "less_is_better": figure.better == Better::Less, "variants": variants,
            })
        });
        json!({
            "netpath": self.netpath, "kernel": self.vms.host.release, "acceleration": self.vms.acceleration.name(),
            "instruction_bound": self.is_emulated(), "rounds": self.rounds, "sample_ms": SAMPLE.as_millis() as u64,
            "figures": figures.collect::<Vec<_>>(), "notes": self.results.notes,
        })
    }
}

/// Whether a figure is shown as a ratio. Losses are not, as the base may be zero; nor is the worst case, which varies by round.
fn is_compared(figure: &str) -> bool {
    figure != LOST && !figure.ends_with("-p99")
}
