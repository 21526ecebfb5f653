//! The results as Markdown, JSON and SVG.

use crate::bars::BARS;
use crate::plan::Plan;
use crate::ports::COUNTS;
use crate::variants::{DIRECT, PEER, Variant};
use report::results::{Better, Results};
use report::svg::Chart;
use report::table::{number, optional, render};
use serde_json::{Value, json};
use std::fs;

/// The machine of the measurement.
pub struct Machine {
    pub processors: usize,
    pub model: String,
    pub kernel: String,
}

impl Machine {
    pub fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let model = info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':')).map(|(_, m)| m.trim());
        Self {
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            model: model.unwrap_or("unknown").to_owned(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

fn ratio(value: f64) -> String {
    format!("{value:.2}")
}

/// Rows of one kind for every variant; empty rows are left out.
fn table(plan: &Plan, results: &Results, cell: impl Fn(&str, &str) -> String) -> String {
    let head: Vec<String> =
        std::iter::once("").chain(plan.variants.iter().map(|v| v.title)).map(str::to_owned).collect();
    let mut rows = Vec::new();
    for figure in &results.figures {
        let cells: Vec<String> = plan.variants.iter().map(|v| cell(&figure.key, v.key)).collect();
        if cells.iter().all(|c| c == "–") {
            continue;
        }
        let less = if figure.better == Better::Less { ", less is better" } else { "" };
        let unit = if figure.unit.is_empty() { String::new() } else { format!(" ({}{less})", figure.unit) };
        rows.push([vec![format!("{}{unit}", figure.title)], cells].concat());
    }
    render(&head, &rows)
}

fn ratios(plan: &Plan, results: &Results, base: &str) -> String {
    table(plan, results, |figure, variant| {
        let value = results.ratio((figure, variant), (figure, base));
        // The worst case varies too much by round for a ratio.
        if variant == base || figure.contains("-p99") { "–".to_owned() } else { optional(value, ratio) }
    })
}

fn bars(plan: &Plan, results: &Results) -> String {
    let judged: Vec<&Variant> = plan.variants.iter().copied().filter(|v| v.is_judged()).collect();
    let head: Vec<String> = ["aim", ""].into_iter().chain(judged.iter().map(|v| v.title)).map(str::to_owned).collect();
    let rows = BARS.iter().map(|bar| {
        let cell = |variant: &&Variant| {
            optional(bar.measured(results, variant), |value| {
                let shown = if bar.is_ratio() { ratio(value) } else { number(value) };
                format!("{shown} {}", if bar.is_met(value) { "met" } else { "not met" })
            })
        };
        let first = vec![bar.what.to_owned(), bar.aim()];
        [first, judged.iter().map(cell).collect()].concat()
    });
    let mut text = render(&head, &rows.collect::<Vec<_>>()) + "\n";
    judged.iter().for_each(|variant| text += &verdict(results, variant));
    text
}

/// The number of goals that a variant meets, and the missed ones.
fn verdict(results: &Results, variant: &Variant) -> String {
    let measured: Vec<_> = BARS.iter().filter_map(|bar| Some((bar, bar.measured(results, variant)?))).collect();
    let missed: Vec<_> = measured.iter().filter(|(bar, value)| !bar.is_met(*value)).map(|(bar, _)| bar.what).collect();
    let (all, met) = (measured.len(), measured.len() - missed.len());
    let rest = if missed.is_empty() { String::new() } else { format!("; not: {}", missed.join("; ")) };
    format!("* {} meets {met} of the {all} that were measured{rest}.\n", variant.title)
}

/// All results, as a section of a page whose title is one level above.
pub fn markdown(plan: &Plan, results: &Results, machine: &Machine) -> String {
    let has = |key: &str| plan.variants.iter().any(|v| v.key == key);
    let rounds = if plan.rounds == 1 { "one round".to_owned() } else { format!("medians of {} rounds", plan.rounds) };
    let mut text = format!(
        "{} processors ({}), Linux {}; {rounds}, {} ms per sample of traffic (iperf3: 1 s), IPv4.\n\n",
        machine.processors,
        machine.model,
        machine.kernel,
        plan.sample().as_millis()
    );
    if let Some(kind) = plan.places.beside {
        text += &format!(
            "Every host with a backend has {} with its default settings, and accepts forwarded packets.\n\n",
            kind.name()
        );
    }
    text += &table(plan, results, |figure, variant| optional(results.median((figure, variant)), number));
    for (base, title) in [(DIRECT, "direct"), (PEER, "netavark 2.1 nft")] {
        if has(base) {
            text += &format!("\nAs multiples of *{title}*, the median of the ratios of each round:\n\n");
            text += &ratios(plan, results, base);
        }
    }
    if !results.programs.is_empty() {
        let rows: Vec<_> = results.programs.iter().map(|(name, ns)| vec![name.clone(), number(*ns)]).collect();
        text += "\nTime per packet by BPF_PROG_TEST_RUN, the 35 to 40 ns of an empty program included:\n\n";
        text += &render(&["program".to_owned(), "ns".to_owned()], &rows);
    }
    // The aims are of hosts without others.
    if plan.places.beside.is_none() && plan.variants.iter().any(|v| v.is_judged()) {
        text += "\nThe aims:\n\n";
        text += &bars(plan, results);
    }
    if !results.notes.is_empty() {
        text += "\nNotes of the run:\n\n";
        results.notes.iter().for_each(|note| text += &format!("* {}\n", note.replace('\n', " ")));
    }
    text
}

pub fn json(plan: &Plan, results: &Results, machine: &Machine) -> Value {
    let figures = results.figures.iter().map(|figure| {
        let of = |v: &&Variant| {
            let cell = (figure.key.as_str(), v.key);
            let value = json!({
                "median": results.median(cell), "samples": results.samples(cell),
                "of_direct": results.ratio(cell, (&figure.key, DIRECT)),
                "of_netavark": results.ratio(cell, (&figure.key, PEER)),
            });
            (v.key.to_owned(), value)
        };
        let variants: serde_json::Map<String, Value> =
            plan.variants.iter().filter(|v| !results.samples((&figure.key, v.key)).is_empty()).map(of).collect();
        json!({
            "key": figure.key, "title": figure.title, "unit": figure.unit,
            "less_is_better": figure.better == Better::Less, "variants": variants,
        })
    });
    let aims = plan.variants.iter().filter(|v| v.is_judged()).flat_map(|v| {
        BARS.iter().filter_map(|bar| {
            let value = bar.measured(results, v)?;
            Some(json!({"what": bar.what, "variant": v.key, "aim": bar.aim(), "measured": value, "met": bar.is_met(value)}))
        })
    });
    let programs: serde_json::Map<String, Value> =
        results.programs.iter().map(|(name, ns)| (name.clone(), json!(ns))).collect();
    json!({
        "machine": {"processors": machine.processors, "model": machine.model, "kernel": machine.kernel},
        "rounds": plan.rounds, "sample_ms": plan.sample().as_millis() as u64,
        "figures": figures.collect::<Vec<_>>(), "programs_ns": programs, "aims": aims.collect::<Vec<_>>(), "notes": results.notes,
    })
}

/// File name and content of each chart that has points.
pub fn charts(plan: &Plan, results: &Results) -> Vec<(&'static str, String)> {
    let chart = |figure: &str, title, y| {
        let points = |variant: &Variant| -> Vec<(f64, f64)> {
            let point =
                |count: &u16| Some((f64::from(*count), results.median((&format!("{figure}.{count}"), variant.key))?));
            COUNTS.iter().filter_map(point).collect()
        };
        let series = plan.variants.iter().map(|v| (v.title, points(v))).filter(|(_, points)| !points.is_empty());
        Chart { title, x: "published ports", y, series: series.collect() }
    };
    let all = [
        ("bench-ports-conn.svg", chart("ports-conn", "Connections per second beside published ports", "conn/s")),
        ("bench-ports-setup.svg", chart("ports-setup", "Setup of a container with so many single ports", "ms")),
    ];
    all.into_iter().filter(|(_, c)| !c.series.is_empty()).map(|(name, c)| (name, c.svg())).collect()
}
