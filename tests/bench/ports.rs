//! Figures by the number of published ports: one container publishes that many single ports, then another publishes the dialled
//! port, so that a list would be walked to its end. One variant is up at a time.

use crate::lifecycle::ms;
use crate::plan::Plan;
use crate::progress::Progress;
use crate::stage::{FIRST_FREE, Host};
use anyhow::Result;
use report::results::{Figure, Results};
use report::variants::Variant;
use std::time::{Duration, Instant};

pub(crate) const COUNTS: [u16; 4] = [1, 100, 2_000, 60_000];
/// The first of the many; the dialled port is below.
const FROM: u16 = 3_000;
const DIALLED: u16 = 2_080;

pub(crate) fn planned(plan: &Plan) -> Duration {
    if !plan.wants("ports") {
        return Duration::ZERO;
    }
    let rounds: f64 = COUNTS.iter().map(|count| rounds(plan, *count) as f64 * seconds(plan, *count)).sum();
    Duration::from_secs_f64(rounds * plan.backends().len() as f64)
}

fn seconds(plan: &Plan, count: u16) -> f64 {
    plan.sample().as_secs_f64() + 0.8 + f64::from(count) / 8_000.0
}

/// 60,000 ports take some variants so long that one round has to do.
fn rounds(plan: &Plan, count: u16) -> usize {
    if count > 10_000 { plan.rounds.min(2) } else { plan.rounds }
}

/// Time limit of one variant's setup.
fn patience(plan: &Plan) -> f64 {
    if plan.quick { 5e3 } else { 45e3 }
}

pub(crate) fn run(plan: &Plan, progress: &mut Progress, results: &mut Results) {
    if !plan.wants("ports") {
        return;
    }
    // For each variant: milliseconds of the slowest call at the last number of ports, and that number.
    let mut seen: Vec<(&'static Variant, f64, u16)> = plan.backends().into_iter().map(|v| (v, 0.0, 1)).collect();
    for count in COUNTS {
        seen.retain(|(variant, took, before)| {
            let expected = took * f64::from(count) / f64::from(*before);
            let skipped = expected > patience(plan);
            if skipped {
                let seconds = expected / 1e3;
                results.note(format!(
                    "{}: {count} ports left out, a call would take {seconds:.0} s or more",
                    variant.title
                ));
            }
            !skipped
        });
        for round in 0..rounds(plan, count) {
            for (variant, slowest, before) in &mut seen {
                progress.now(&format!("{count} ports, {}, round {}", variant.title, round + 1));
                match measure(variant, plan, count) {
                    Ok(sample) => {
                        // The part that does not grow with the ports does not predict more of them.
                        let grows = (sample.setup.max(sample.next).max(sample.teardown) - 150.0).max(0.0);
                        (*slowest, *before) = (grows, count);
                        let mut add = |key: &str,
                                       figure: fn(String, String, &'static str) -> Figure,
                                       title: &str,
                                       unit,
                                       value| {
                            let figure =
                                figure(format!("{key}.{count}"), format!("{count} ports published: {title}"), unit);
                            results.add(&figure, variant.key, round, value);
                        };
                        add("ports-conn", Figure::more, "connect, request, close", "conn/s", sample.per_second);
                        add("ports-setup", Figure::less, "setup of these", "ms", sample.setup);
                        add("ports-next", Figure::less, "setup of the next container", "ms", sample.next);
                        add("ports-teardown", Figure::less, "teardown of these", "ms", sample.teardown);
                    }
                    Err(e) => results.note(format!("{}, {count} ports: {e:#}", variant.title)),
                }
                progress.advance(Duration::from_secs_f64(seconds(plan, count)));
            }
        }
        progress.say(&format!("{count} ports: measured"));
    }
}

struct Sample {
    setup: f64,
    next: f64,
    per_second: f64,
    teardown: f64,
}

fn measure(variant: &'static Variant, plan: &Plan, count: u16) -> Result<Sample> {
    let host = Host::new(variant, &plan.places)?;
    let (backend, topology) = (&host.backend, &host.topology);
    let many = topology.container("many")?;
    let publish_all = (0..count).fold(backend.document(FIRST_FREE), |d, n| d.publish("", FROM + n, FROM + n, "tcp"));
    let setup = ms(backend.setup(topology, &many, &publish_all)?);
    let web = topology.container("web")?;
    let publish = backend.document(FIRST_FREE + 1).publish("", DIALLED, 80, "tcp");
    let next = ms(backend.setup(topology, &web, &publish)?);
    let rate = host.connections(&web, DIALLED, plan.sample())?;
    backend.teardown(topology, &web, &publish)?;
    let begun = Instant::now();
    backend.teardown(topology, &many, &publish_all)?;
    Ok(Sample { setup, next, per_second: rate.per_second, teardown: ms(begun.elapsed()) })
}
