//! Figures of traffic. All variants are up at the same time and take turns, sample by sample, so that a slow period of the
//! machine affects all.

use crate::plan::Plan;
use crate::progress::Progress;
use crate::stage::{Path, Stage, Way};
use anyhow::Result;
use report::results::{Figure, Results};
use report::table::number;
use std::time::Duration;
use support::generator::{bulk, cpu, tcp, udp};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Bulk { streams: u8, back: bool },
    Udp,
    Connections,
    TcpLatency,
    UdpLatency,
}

/// One row of the table, or a few.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    kind: Kind,
    way: Way,
}

impl Job {
    fn family(self) -> &'static str {
        match self.kind {
            Kind::Bulk { back: false, .. } => "tcp",
            Kind::Bulk { back: true, .. } => "tcp-back",
            Kind::Udp => "udp",
            Kind::Connections => "conn",
            Kind::TcpLatency => "tcp-rr",
            Kind::UdpLatency => "udp-rr",
        }
    }

    fn sample_time(self, plan: &Plan) -> Duration {
        match self.kind {
            // iperf3 takes whole seconds.
            Kind::Bulk { .. } => Duration::from_millis(1_100),
            _ => plan.sample() + Duration::from_millis(150),
        }
    }
}

/// Every requested row of traffic.
pub(crate) fn jobs(plan: &Plan) -> Vec<Job> {
    let mut jobs = Vec::new();
    for way in [Way::Published, Way::Masqueraded, Way::Local, Way::Address, Way::Hairpin] {
        let bulk = |streams, back| Kind::Bulk { streams, back };
        let mut kinds = vec![bulk(1, false), bulk(4, false), bulk(1, true), bulk(4, true)];
        if way == Way::Address {
            // The reference for localhost: noise shows in one direction.
            kinds.truncate(2);
        }
        kinds.extend([Kind::Udp, Kind::Connections, Kind::TcpLatency, Kind::UdpLatency]);
        let wanted = kinds.into_iter().map(|kind| Job { kind, way });
        jobs.extend(wanted.filter(|job| plan.wants(&format!("{}.{}", job.family(), way.name()))));
    }
    jobs
}

/// The planned duration.
pub(crate) fn planned(plan: &Plan) -> Duration {
    let one_round = |job: &Job| {
        let variants = plan.variants.iter().filter(|v| job.way.goes_through(v.kind)).count();
        job.sample_time(plan) * variants as u32
    };
    jobs(plan).iter().map(one_round).sum::<Duration>() * plan.rounds as u32
}

/// Runs all measurements.
pub(crate) fn run(plan: &Plan, progress: &mut Progress, results: &mut Results) {
    let jobs = jobs(plan);
    if jobs.is_empty() {
        return;
    }
    progress.now("making a client, a host and a container for every variant");
    let mut stages = Vec::new();
    for variant in &plan.variants {
        match Stage::new(variant, &plan.places) {
            Ok(stage) => stages.push(stage),
            Err(e) => results.note(format!("{}: no traffic measured: {e:#}", variant.title)),
        }
    }
    for (n, job) in jobs.iter().enumerate() {
        let before = results.figures.len();
        for round in 0..plan.rounds {
            // A sample begins with what the one before has left to the kernel, so each variant follows each other one.
            for stage in stages.iter().cycle().skip(round).take(stages.len()) {
                let Some(path) = stage.path(job.way) else { continue };
                let title = stage.variant.title;
                let what = format!("{} {}", job.family(), job.way.name());
                progress.now(&format!(
                    "{}/{} {what}, {title}, round {} of {}",
                    n + 1,
                    jobs.len(),
                    round + 1,
                    plan.rounds
                ));
                match measure(*job, &path, plan) {
                    Ok(sample) => {
                        for (figure, value) in sample.values {
                            results.add(&figure, stage.variant.key, round, value);
                        }
                        sample.note.into_iter().for_each(|note| results.note(format!("{title}, {what}: {note}")));
                    }
                    Err(e) => results.note(format!("{title}, {what}: {e:#}")),
                }
                progress.advance(job.sample_time(plan));
            }
        }
        for figure in &results.figures[before..] {
            let cells = stages.iter().filter_map(|s| Some((s, results.median((&figure.key, s.variant.key))?)));
            let cells: Vec<_> = cells.map(|(s, median)| format!("{} {}", s.variant.key, number(median))).collect();
            progress.say(&format!("{} ({}): {}", figure.title, figure.unit, cells.join(", ")));
        }
    }
}

#[derive(Default)]
struct Sample {
    values: Vec<(Figure, f64)>,
    note: Option<String>,
}

fn measure(job: Job, path: &Path<'_>, plan: &Plan) -> Result<Sample> {
    let (way, time, family) = (job.way.name(), plan.sample(), job.family());
    let mut sample = Sample::default();
    let mut put = |figure, value| sample.values.push((figure, value));
    match job.kind {
        Kind::Bulk { streams, back } => {
            let before = cpu::busy()?;
            let done = bulk::transfer(path.from, path.bulk(), streams, back, 1)?;
            let used = cpu::busy()? - before;
            let direction = if back { ", the server sends" } else { "" };
            let many = if streams == 1 { "1 stream".to_owned() } else { format!("{streams} streams") };
            let key = format!("{family}{streams}.{way}");
            put(Figure::more(key, format!("{way}: TCP {many}{direction}"), "Gb/s"), done.gbit_per_second);
            if streams == 4 && !back {
                let figure =
                    Figure::less(format!("cpu-tcp.{way}"), format!("{way}: processor time, TCP {many}"), "ms/GB");
                put(figure, 1e3 * used / (done.bytes / 1e9));
            }
        }
        Kind::Udp => {
            let done = udp::blast(path.from, path.sink(), path.counter, time)?;
            put(Figure::more(format!("udp.{way}"), format!("{way}: UDP 64 B"), "kpps"), done.received / 1e3);
            let lost = 100.0 * (1.0 - done.received / done.sent.max(1.0));
            if lost > 5.0 {
                sample.note = Some(format!("{lost:.0} % of the datagrams were not received"));
            }
        }
        Kind::Connections => {
            let before = cpu::busy()?;
            let done = tcp::connections(path.from, path.once(), time)?;
            let used = cpu::busy()? - before;
            put(
                Figure::more(format!("conn.{way}"), format!("{way}: connect, request, close"), "conn/s"),
                done.per_second,
            );
            let figure =
                Figure::less(format!("cpu-conn.{way}"), format!("{way}: processor time, connections"), "ms/10,000");
            put(figure, 1e3 * used / (done.connections as f64 / 1e4));
            if done.failed + done.slow > 0 {
                let error = done.error.unwrap_or_else(|| "a segment was probably sent again".to_owned());
                let (failed, slow, all) = (done.failed, done.slow, done.connections);
                sample.note = Some(format!("{failed} of {all} connections failed, {slow} took a second: {error}"));
            }
        }
        Kind::TcpLatency | Kind::UdpLatency => {
            let (name, done) = if job.kind == Kind::TcpLatency {
                ("TCP", tcp::round_trips(path.from, path.echo(), time)?)
            } else {
                ("UDP", udp::round_trips(path.from, path.echo(), time)?)
            };
            put(
                Figure::less(format!("{family}.{way}"), format!("{way}: {name} request and answer"), "µs"),
                done.median_us,
            );
            put(Figure::less(format!("{family}-p99.{way}"), format!("{way}: the same, p99"), "µs"), done.p99_us);
        }
    }
    Ok(sample)
}
