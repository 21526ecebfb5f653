//! Figures of setup and teardown: one container, one with a range, and many at once. One variant is up at a time; variants take
//! turns.

use crate::backend::Backend;
use crate::plan::Plan;
use crate::progress::Progress;
use crate::stage::{FIRST_FREE, Host, topology};
use anyhow::{Context, Result};
use report::results::{Figure, Results};
use report::stats::median;
use report::variants::Variant;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};
use support::host::at_once;
use support::netavark::Document;
use support::topology::Container;

/// Containers one after the other in one round.
const REPEATED: u8 = 7;
const CONTAINERS: u8 = 60;
const WIDTH: usize = 8;
/// Time limit of a measurement; the samples taken by then suffice.
const ENOUGH: Duration = Duration::from_secs(2);
const RANGE: u16 = 10_000;
const SETTLED: Duration = Duration::from_secs(1);

type Measure = fn(&'static Variant, &Plan) -> Result<Vec<(Figure, f64)>>;

/// Figures by name, with the planned seconds per round and variant.
const JOBS: [(&str, f64, Measure); 4] =
    [("setup", 3.0, alone), ("lone", 2.0, lone), ("range", 2.0, range), ("many", 5.0, many)];

pub(crate) fn planned(plan: &Plan) -> Duration {
    let seconds: f64 = JOBS.iter().filter(|(name, ..)| plan.wants(name)).map(|(_, seconds, _)| seconds).sum();
    Duration::from_secs_f64(seconds) * (plan.rounds * plan.backends().len()) as u32
}

pub(crate) fn run(plan: &Plan, progress: &mut Progress, results: &mut Results) {
    for (name, seconds, measure) in JOBS.iter().filter(|(name, ..)| plan.wants(name)) {
        for round in 0..plan.rounds {
            for variant in plan.backends() {
                progress.now(&format!("{name}, {}, round {} of {}", variant.title, round + 1, plan.rounds));
                match measure(variant, plan) {
                    Ok(values) => {
                        let add = |(figure, value): (Figure, f64)| results.add(&figure, variant.key, round, value);
                        values.into_iter().for_each(add);
                    }
                    Err(e) => results.note(format!("{}, {name}: {e:#}", variant.title)),
                }
                progress.advance(Duration::from_secs_f64(*seconds));
            }
        }
        progress.say(&format!("{name}: measured"));
    }
}

pub(crate) fn ms(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

/// Setup and teardown: the median of a few containers beside a permanent one.
fn alone(variant: &'static Variant, plan: &Plan) -> Result<Vec<(Figure, f64)>> {
    let host = Host::new(variant, &plan.places)?;
    let (setup, teardown) = repeated(&host, REPEATED, |document| document.publish("", 8080, 80, "tcp"))?;
    Ok(vec![
        (Figure::less("setup", "setup of one container", "ms"), setup),
        (Figure::less("teardown", "teardown of one container", "ms"), teardown),
    ])
}

/// A container that is alone on its host each time, as with `podman run --rm`: the first one finds nothing loaded, and after it
/// programs stay.
fn lone(variant: &'static Variant, plan: &Plan) -> Result<Vec<(Figure, f64)>> {
    let topology = topology()?;
    let mut backend = Backend::new(variant, &plan.places, &topology)?;
    let (mut first, mut setups, mut teardowns) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..REPEATED {
        // The last one leaves nothing.
        backend.keep_loaded(if n + 1 < REPEATED { "600" } else { "0" });
        let container = topology.container("lone")?;
        let document = backend.document(FIRST_FREE + n).publish("", 8080, 80, "tcp");
        let setup = ms(backend.setup(&topology, &container, &document)?);
        let teardown = ms(backend.teardown(&topology, &container, &document)?);
        if n == 0 {
            first.push(setup);
            // What the first one has left to an agent.
            sleep(SETTLED);
        } else if n < REPEATED - 1 {
            setups.push(setup);
            teardowns.push(teardown);
        }
    }
    Ok(vec![
        (
            Figure::less("setup-first", "setup of the first container of a host", "ms"),
            median(&first).context("no sample")?,
        ),
        (
            Figure::less("lone", "setup of a container alone, not for the first time", "ms"),
            median(&setups).context("no sample")?,
        ),
        (Figure::less("lone-teardown", "teardown of these", "ms"), median(&teardowns).context("no sample")?),
    ])
}

/// The same with a range of ports instead of one.
fn range(variant: &'static Variant, plan: &Plan) -> Result<Vec<(Figure, f64)>> {
    let host = Host::new(variant, &plan.places)?;
    let (one, _) = repeated(&host, 3, |document| document.publish("", 20_000, 20_000, "tcp"))?;
    let publish = |document: Document| document.publish_range("", 20_000, 20_000, RANGE, "tcp");
    let (setup, teardown) = repeated(&host, 3, publish)?;
    Ok(vec![
        (Figure::less("range", "setup, a range of 10,000 ports", "ms"), setup),
        (Figure::less("range-teardown", "teardown, a range of 10,000 ports", "ms"), teardown),
        (Figure::less("range-one", "setup, one port, beside these", "ms"), one),
    ])
}

/// Medians of setup and teardown; fewer samples for slow variants.
fn repeated(host: &Host, times: u8, publish: impl Fn(Document) -> Document) -> Result<(f64, f64)> {
    let (mut setups, mut teardowns) = (Vec::new(), Vec::new());
    let begun = Instant::now();
    for n in 0..times {
        if n > 0 && begun.elapsed() > ENOUGH {
            break;
        }
        let container = host.topology.container("web")?;
        let document = publish(host.backend.document(FIRST_FREE + n));
        setups.push(ms(host.backend.setup(&host.topology, &container, &document)?));
        teardowns.push(ms(host.backend.teardown(&host.topology, &container, &document)?));
    }
    Ok((median(&setups).context("no sample")?, median(&teardowns).context("no sample")?))
}

/// A booting host: many at once. A failure is counted, and the others continue.
fn many(variant: &'static Variant, plan: &Plan) -> Result<Vec<(Figure, f64)>> {
    let host = Host::new(variant, &plan.places)?;
    let one = |n: u8| -> Result<(Container, Document)> {
        let document = host.backend.document(FIRST_FREE + n).publish("", 8000 + u16::from(n), 80, "tcp");
        Ok((host.topology.container(&format!("c{n}"))?, document))
    };
    let containers: Vec<_> = (0..CONTAINERS).map(one).collect::<Result<_>>()?;
    let failures = AtomicU32::new(0);
    let all = |call: &(dyn Fn(&Container, &Document) -> Result<Duration> + Sync)| -> Result<f64> {
        let begun = Instant::now();
        at_once(WIDTH, &containers, |(container, document)| {
            failures.fetch_add(call(container, document).is_err().into(), Ordering::Relaxed);
            Ok(())
        })?;
        Ok(ms(begun.elapsed()))
    };
    let up = all(&|container, document| host.backend.setup(&host.topology, container, document))?;
    let down = all(&|container, document| host.backend.teardown(&host.topology, container, document))?;
    Ok(vec![
        (Figure::less("many-up", "60 containers up, 8 at a time", "ms"), up),
        (Figure::less("many-down", "60 containers down, 8 at a time", "ms"), down),
        (Figure::less("many-failed", "failures of these, up and down", "calls"), f64::from(failures.into_inner())),
    ])
}
