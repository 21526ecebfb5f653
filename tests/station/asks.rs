//! Asking until the answer is right: who answered, and the source address that was seen there.

use crate::machine::Machine;
use crate::orders::Ask;
use anyhow::{Context, Result, anyhow, ensure};
use kit::traffic::{ANY, ANY4, Dial, Proto};
use serde_json::{Value, json};
use std::thread;
use std::time::{Duration, Instant};

/// Of one attempt.
const PATIENCE: Duration = Duration::from_millis(400);
const PAUSE: Duration = Duration::from_millis(10);

/// As the kit dials.
pub fn dial(ask: &Ask) -> Dial {
    let proto = if ask.udp { Proto::Udp } else { Proto::Tcp };
    let mut dial = Dial::new(proto, ask.to.ip(), ask.to.port()).patience(PATIENCE);
    if let Some(bytes) = ask.bytes {
        dial = dial.bytes(bytes);
    }
    match ask.port {
        Some(port) => dial.from(if ask.to.is_ipv4() { ANY4 } else { ANY }, port),
        None => dial,
    }
}

/// Milliseconds until each was answered as it should be.
pub fn ask(machine: &Machine, asks: &[Ask], within_ms: u64) -> Result<Value> {
    let (begun, within) = (Instant::now(), Duration::from_millis(within_ms));
    let took = thread::scope(|scope| {
        let threads: Vec<_> = asks.iter().map(|ask| scope.spawn(move || until(machine, ask, begun, within))).collect();
        let ends =
            threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(anyhow!("a thread that asks panicked"))));
        ends.collect::<Vec<Result<f64>>>()
    });
    let failed: Vec<String> = took.iter().filter_map(|t| t.as_ref().err()).map(|e| format!("{e:#}")).collect();
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(json!(took.into_iter().flatten().collect::<Vec<f64>>()))
}

fn until(machine: &Machine, ask: &Ask, begun: Instant, within: Duration) -> Result<f64> {
    loop {
        let tried = once(machine, ask);
        let elapsed = begun.elapsed();
        match tried {
            Ok(()) if elapsed <= within => return Ok(elapsed.as_secs_f64() * 1e3),
            Ok(()) => return Err(anyhow!("{}: right only after {} ms", dial(ask), elapsed.as_millis())),
            Err(e) if elapsed > within => {
                return Err(e).with_context(|| format!("not right after {} ms", elapsed.as_millis()));
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

fn once(machine: &Machine, ask: &Ask) -> Result<()> {
    let dial = dial(ask);
    let seen = dial.ask(machine.netns(ask.container.as_deref())?)?;
    ensure!(seen.server == ask.server, "{dial}: {} answers, not {}", seen.server, ask.server);
    if let Some(source) = ask.seen {
        ensure!(seen.client.ip() == source, "{dial}: seen as {}, not as {source}", seen.client.ip());
    }
    Ok(())
}

/// # Errors
/// Somebody still answers when the time is up.
pub fn silent(machine: &Machine, ask: &Ask, within_ms: u64) -> Result<()> {
    let (begun, within) = (Instant::now(), Duration::from_millis(within_ms));
    loop {
        match dial(ask).must_fail(machine.netns(ask.container.as_deref())?) {
            Err(answered) if begun.elapsed() > within => return Err(answered),
            Err(_) => thread::sleep(PAUSE),
            Ok(()) => return Ok(()),
        }
    }
}
