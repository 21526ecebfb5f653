//! The parts of the report that only the bench has: machine, programs, goals, charts by number of ports.

use crate::bars::BARS;
use crate::plan::Plan;
use crate::ports::COUNTS;
use report::results::Results;
use report::run::{self, ratio};
use report::svg::Chart;
use report::table::{number, optional, render};
use report::variants::Variant;
use serde_json::{Map, Value, json};
use std::fs;

/// The machine of the measurement.
pub(crate) struct Machine {
    pub processors: usize,
    pub model: String,
    pub kernel: String,
}

impl Machine {
    pub(crate) fn this() -> Self {
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

/// Machine and conditions.
pub(crate) fn head(plan: &Plan, machine: &Machine) -> String {
    let mut text = format!(
        "{} processors ({}), Linux {}; {}, {} ms per sample of traffic (iperf3: 1 s), IPv4.\n\n",
        machine.processors,
        machine.model,
        machine.kernel,
        run::rounds(plan.rounds),
        plan.sample().as_millis()
    );
    if let Some(kind) = plan.places.beside {
        text += &format!(
            "Every host with a backend has {} with its default settings, and accepts forwarded packets.\n\n",
            kind.name()
        );
    }
    text
}

/// What follows the tables: the programs and the goals.
pub(crate) fn more(plan: &Plan, results: &Results) -> String {
    let mut text = String::new();
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
    text
}

/// The same, and the machine, as fields of the JSON.
pub(crate) fn facts(plan: &Plan, results: &Results, machine: &Machine) -> Value {
    let aims = plan.variants.iter().filter(|v| v.is_judged()).flat_map(|v| {
        BARS.iter().filter_map(|bar| {
            let value = bar.measured(results, v)?;
            Some(json!({"what": bar.what, "variant": v.key, "aim": bar.aim(), "measured": value, "met": bar.is_met(value)}))
        })
    });
    let programs: Map<String, Value> = results.programs.iter().map(|(name, ns)| (name.clone(), json!(ns))).collect();
    json!({
        "machine": {"processors": machine.processors, "model": machine.model, "kernel": machine.kernel},
        "sample_ms": plan.sample().as_millis() as u64, "programs_ns": programs, "aims": aims.collect::<Vec<_>>(),
    })
}

/// File name and content of each chart that has points.
pub(crate) fn charts(plan: &Plan, results: &Results) -> Vec<(&'static str, String)> {
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
