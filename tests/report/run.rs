//! The results of a run as Markdown and JSON, and the files and pages that they are written into.

use crate::page;
use crate::results::{Better, Results};
use crate::table::{optional, render};
use crate::variants::Variant;
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;

pub struct Run<'a> {
    pub variants: Vec<&'static Variant>,
    pub results: &'a Results,
    pub rounds: usize,
    /// Key and title of the variants that the others are compared with, and the name of the ratio.
    pub bases: &'a [(&'static str, &'static str, &'static str)],
    /// Machine and conditions, in Markdown and as fields of the JSON.
    pub head: String,
    pub facts: Value,
}

/// Where a run is written to.
pub struct Files<'a> {
    pub directory: &'a Path,
    /// Name of the files in it.
    pub stem: &'a str,
    /// A page, and the name of its marks.
    pub page: Option<(&'a Path, String)>,
    /// Name of a file beside the page for every sample.
    pub data: Option<&'a str>,
    pub charts: Vec<(&'static str, String)>,
}

pub fn ratio(value: f64) -> String {
    format!("{value:.2}")
}

/// `one round`, `medians of 3 rounds`
pub fn rounds(rounds: usize) -> String {
    if rounds == 1 { "one round".to_owned() } else { format!("medians of {rounds} rounds") }
}

/// Whether a figure is shown as a ratio. Losses are not, as the base may be zero; nor is the worst case, which varies by round.
pub fn is_compared(figure: &str) -> bool {
    !figure.contains("-lost") && !figure.contains("-p99")
}

impl Run<'_> {
    /// A row for each figure; rows without a value are left out.
    fn table(&self, cell: impl Fn(&str, &str) -> String) -> String {
        let head: Vec<String> =
            std::iter::once("").chain(self.variants.iter().map(|v| v.title)).map(str::to_owned).collect();
        let rows = self.results.figures.iter().filter_map(|figure| {
            let cells: Vec<String> = self.variants.iter().map(|v| cell(&figure.key, v.key)).collect();
            let less = if figure.better == Better::Less { ", less is better" } else { "" };
            let is_empty = cells.iter().all(|cell| cell == "–");
            (!is_empty).then(|| [vec![format!("{} ({}{less})", figure.title, figure.unit)], cells].concat())
        });
        render(&head, &rows.collect::<Vec<_>>())
    }

    pub fn ratio(&self, figure: &str, variant: &str, base: &str) -> Option<f64> {
        let is_shown = variant != base && is_compared(figure);
        self.results.ratio((figure, variant), (figure, base)).filter(|_| is_shown)
    }

    /// A section of a page whose title is one level above. `more` follows the tables.
    pub fn markdown(&self, more: &str) -> String {
        let mut text = self.head.clone();
        text += &self.table(|figure, variant| self.results.shown((figure, variant), self.rounds));
        for (base, title, _) in self.bases.iter().filter(|(base, ..)| self.variants.iter().any(|v| v.key == *base)) {
            text += &format!("\nAs multiples of *{title}*, the median of the ratios of each round:\n\n");
            text += &self.table(|figure, variant| optional(self.ratio(figure, variant, base), ratio));
        }
        text += more;
        if !self.results.notes.is_empty() {
            text += "\nNotes of the run:\n\n";
            self.results.notes.iter().for_each(|note| text += &format!("* {}\n", note.replace('\n', " ")));
        }
        text
    }

    /// Every sample.
    pub fn json(&self) -> Value {
        let figures = self.results.figures.iter().map(|figure| {
            let of = |v: &&Variant| {
                let cell = (figure.key.as_str(), v.key);
                let samples = self.results.padded(cell, self.rounds);
                let mut value = json!({"median": self.results.median(cell)?, "samples": samples});
                for (base, _, name) in self.bases {
                    value[*name] = json!(self.results.ratio(cell, (&figure.key, base)));
                }
                Some((v.key.to_owned(), value))
            };
            json!({
                "key": figure.key, "title": figure.title, "unit": figure.unit,
                "less_is_better": figure.better == Better::Less,
                "variants": self.variants.iter().filter_map(of).collect::<Map<_, _>>(),
            })
        });
        let mut all = self.facts.clone();
        all["rounds"] = json!(self.rounds);
        all["figures"] = figures.collect();
        all["notes"] = json!(self.results.notes);
        all
    }

    /// Prints the results, and writes them into the directory and, if given, into the page.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn keep(&self, files: &Files<'_>, more: &str) -> Result<()> {
        let Files { directory, stem, .. } = files;
        let write =
            |file: &Path, text: &str| fs::write(file, text).with_context(|| format!("cannot write {}", file.display()));
        let (markdown, json) = (self.markdown(more), format!("{:#}\n", self.json()));
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        write(&directory.join(format!("{stem}.json")), &json)?;
        write(&directory.join(format!("{stem}.md")), &markdown)?;
        files.charts.iter().try_for_each(|(name, svg)| write(&directory.join(name), svg))?;
        println!("\n{markdown}");
        if let Some((into, mark)) = &files.page {
            let link = files.data.map(|data| format!("\nEvery sample: [{data}]({data}).\n")).unwrap_or_default();
            page::write(into, mark, &(markdown + &link), &files.charts)?;
            files.data.iter().try_for_each(|data| write(&into.with_file_name(data), &json))?;
            println!("written into {}", into.display());
        }
        println!("{stem}.json, {stem}.md and charts are in {}", directory.display());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Figure;
    use crate::variants::{DIRECT, Place, chosen};

    #[test]
    fn ratios_are_shown_beside_values_and_losses_as_values_alone() {
        let mut results = Results::default();
        for (figure, direct, routed) in
            [(Figure::more("udp", "UDP", "kpps"), 200.0, 150.0), (Figure::less("udp-lost", "lost", "%"), 0.0, 1.0)]
        {
            results.add(&figure, DIRECT, 0, direct);
            results.add(&figure, "routed", 0, routed);
        }
        results.note("a\nnote".to_owned());
        let run = Run {
            variants: chosen(Place::Host, &["direct".to_owned(), "routed".to_owned()], |_| true).expect("two"),
            results: &results,
            rounds: 1,
            bases: &[(DIRECT, "direct", "of_direct")],
            head: "head\n\n".to_owned(),
            facts: json!({"kernel": "6.1"}),
        };
        let text = run.markdown("more\n");
        assert!(text.starts_with("head") && text.ends_with("more\n\nNotes of the run:\n\n* a note\n"), "{text}");
        assert_eq!((2, 1), (text.matches("UDP (kpps)").count(), text.matches("lost (%, less is better)").count()));
        assert!(text.contains("0.75"), "{text}");
        let json = run.json();
        assert_eq!(json!(0.75), json["figures"][0]["variants"]["routed"]["of_direct"]);
        assert_eq!((&json!("6.1"), &json!(1)), (&json["kernel"], &json["rounds"]));
    }
}
