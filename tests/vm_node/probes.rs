//! Probes until the answer is right: the server's name, and the source address that it saw.

use crate::commands::Probe;
use crate::machine::Machine;
use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use std::thread;
use std::time::{Duration, Instant};
use support::traffic::{ANY, ANY4, Dial, Proto};

/// Time limit of one attempt.
const PATIENCE: Duration = Duration::from_millis(400);
const PAUSE: Duration = Duration::from_millis(10);

/// The dial of a probe.
pub(crate) fn dial(probe: &Probe) -> Dial {
    let proto = if probe.udp { Proto::Udp } else { Proto::Tcp };
    let mut dial = Dial::new(proto, probe.to.ip(), probe.to.port()).patience(PATIENCE);
    if let Some(bytes) = probe.bytes {
        dial = dial.bytes(bytes);
    }
    match probe.port {
        Some(port) => dial.from(if probe.to.is_ipv4() { ANY4 } else { ANY }, port),
        None => dial,
    }
}

/// Milliseconds until each was answered as expected.
pub(crate) fn probe(machine: &Machine, probes: &[Probe], within_ms: u64) -> Result<Value> {
    let (begun, within) = (Instant::now(), Duration::from_millis(within_ms));
    let took = thread::scope(|scope| {
        let threads: Vec<_> =
            probes.iter().map(|probe| scope.spawn(move || until(machine, probe, begun, within))).collect();
        let ends =
            threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(anyhow!("a thread that probes panicked"))));
        ends.collect::<Vec<Result<f64>>>()
    });
    let failed: Vec<String> = took.iter().filter_map(|t| t.as_ref().err()).map(|e| format!("{e:#}")).collect();
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(json!(took.into_iter().flatten().collect::<Vec<f64>>()))
}

fn until(machine: &Machine, probe: &Probe, begun: Instant, within: Duration) -> Result<f64> {
    loop {
        let tried = once(machine, probe);
        let elapsed = begun.elapsed();
        match tried {
            Ok(()) if elapsed <= within => return Ok(elapsed.as_secs_f64() * 1e3),
            Ok(()) => return Err(anyhow!("{}: right only after {} ms", dial(probe), elapsed.as_millis())),
            Err(e) if elapsed > within => {
                return Err(e).with_context(|| format!("not right after {} ms", elapsed.as_millis()));
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

fn once(machine: &Machine, probe: &Probe) -> Result<()> {
    let dial = dial(probe);
    let seen = dial.ask(machine.netns(probe.container.as_deref())?)?;
    ensure!(seen.server == probe.server, "{dial}: {} answers, not {}", seen.server, probe.server);
    if let Some(source) = probe.seen {
        ensure!(seen.client.ip() == source, "{dial}: seen as {}, not as {source}", seen.client.ip());
    }
    Ok(())
}

/// # Errors
/// There is still an answer after the time limit.
pub(crate) fn silent(machine: &Machine, probe: &Probe, within_ms: u64) -> Result<()> {
    let (begun, within) = (Instant::now(), Duration::from_millis(within_ms));
    loop {
        match dial(probe).must_fail(machine.netns(probe.container.as_deref())?) {
            Err(answered) if begun.elapsed() > within => return Err(answered),
            Err(_) => thread::sleep(PAUSE),
            Ok(()) => return Ok(()),
        }
    }
}
