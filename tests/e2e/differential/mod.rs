//! The same random packets and connections through the programs and through netfilter: the observations at both ends must be
//! equal, except for `known_differences.rs`.
//!
//! `NETPATH_SEED=N` repeats a run. Two hosts, one on each rung, have the same addresses; each step is done on both. Steps of a
//! round run at once, so that the time-out of silence is paid once.

mod known_differences;
mod step;
mod world;

use crate::rig::{Path, Rig, Way, rig_on};
use anyhow::{Result, ensure};
use known_differences::KNOWN_DIFFERENCES;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use step::{Outcome, Step};
use support::host::at_once;
use support::need;
use support::netavark::Rung;
use support::rng::Rng;
use support::topology::Topology;
use world::World;

const ROUNDS: u16 = 2;
const STEPS: u16 = 150;

/// The programs must show the same as netfilter on an equal host.
const NETFILTER: Way = Way { rung: Rung::Iptables, path: Path::Auto, tracked: false };

#[test]
fn offload_is_seen_as_netfilter() -> Result<()> {
    alike(Way { rung: Rung::best_hooks(), path: Path::Auto, tracked: false }, NETFILTER)
}

#[test]
fn clsact_is_seen_as_netfilter() -> Result<()> {
    need!(thorough());
    alike(Way { rung: Rung::Clsact, path: Path::Auto, tracked: false }, NETFILTER)
}

/// Control: only the rung differs between the two hosts, so two equal rungs show no difference.
#[test]
fn netfilter_is_seen_as_itself() -> Result<()> {
    need!(thorough());
    alike(NETFILTER, NETFILTER)
}

fn thorough() -> need::Need {
    if need::is_full() { Ok(()) } else { Err("NETPATH_SOAK=full".to_owned()) }
}

fn alike(way: Way, other: Way) -> Result<()> {
    need!(need::rung(way.rung), need::rung(other.rung), way.need(), need::netpath());
    let rng = Rng::new();
    let seeds = if need::is_full() { 20 } else { 1 };
    rig_on(Topology::with_far(), way, |one| {
        let here = World::new(one, way)?;
        rig_on(Topology::with_far(), other, |another| {
            let there = World::new(another, other)?;
            let mut tally = Tally::default();
            let mut n = 0;
            for seed in rng.seed()..rng.seed() + seeds {
                compare(one, [&here, &there], &Rng::of(seed), &mut n, &mut tally)?;
            }
            tally.tell(&format!("{way:?} beside {other:?}, {rng}, {seeds} seeds"));
            tally.is_worth_it(one);
            Ok(there.end())
        })?;
        Ok(here.end())
    })
}

/// Counts of a run.
#[derive(Default)]
struct Tally {
    steps: usize,
    outcomes: BTreeMap<&'static str, usize>,
    decided: usize,
}

impl Tally {
    fn tell(&self, what: &str) {
        let Self { steps, outcomes, decided } = self;
        need::say(&format!("{what}: {steps} steps, {outcomes:?}; {decided} known differences"));
    }

    /// A run without answers, or without refusals, would prove nothing.
    fn is_worth_it(&self, rig: &Rig<'_>) {
        for kind in ["answered", "refused", "silent", "told"] {
            let seen = self.outcomes.get(kind).copied().unwrap_or(0);
            rig.note(seen * 40 > self.steps, || format!("{seen} of {} steps were {kind}", self.steps));
        }
    }
}

/// `n`: number of earlier steps.
fn compare(rig: &Rig<'_>, worlds: [&World<'_>; 2], rng: &Rng, n: &mut u16, tally: &mut Tally) -> Result<()> {
    for round in 0..ROUNDS {
        let mut steps: Vec<Step> = Vec::new();
        if round == 0 {
            steps.extend(KNOWN_DIFFERENCES.iter().map(|d| d.witness));
        }
        steps.extend((0..STEPS).map(|_| Step::roll(rng)));
        // Each step has a separate source port, whatever its seed, so that no step meets state of another.
        for step in &mut steps {
            *n += 1;
            step.n = *n;
        }
        let seen = done(worlds, &steps)?;
        for (at, (step, [programs, netfilter])) in steps.iter().zip(&seen).enumerate() {
            tally.steps += 1;
            *tally.outcomes.entry(programs.kind()).or_default() += 1;
            let tellable = worlds[0].is_ebpf != worlds[1].is_ebpf;
            let mut known = KNOWN_DIFFERENCES.iter().filter(|d| tellable && (d.concerns)(step, worlds[1]));
            let is_witness = round == 0 && at < KNOWN_DIFFERENCES.len() && known.clone().next().is_some();
            let so = match programs == netfilter {
                true => !is_witness,
                false => known.any(|d| (d.holds)(step, programs, netfilter)),
            };
            tally.decided += usize::from(so && programs != netfilter);
            rig.note(so, || format!("{rng} {step:?}\n    programs:  {programs:?}\n    netfilter: {netfilter:?}"));
        }
    }
    Ok(())
}

/// Runs all steps in both worlds at once.
fn done(worlds: [&World<'_>; 2], steps: &[Step]) -> Result<Vec<[Outcome; 2]>> {
    let places: Vec<(usize, usize)> = (0..steps.len()).flat_map(|s| [(s, 0), (s, 1)]).collect();
    let seen = Mutex::new(BTreeMap::new());
    at_once(places.len(), &places, |&(step, world)| {
        let outcome = steps[step].take(worlds[world]);
        seen.lock().unwrap_or_else(PoisonError::into_inner).insert((step, world), outcome);
        Ok(())
    })?;
    let mut seen = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
    let all: BTreeSet<usize> = seen.keys().map(|(s, _)| *s).collect();
    ensure!(all.len() == steps.len(), "a step has no outcome");
    let mut of = |s, w| seen.remove(&(s, w)).unwrap_or(Outcome::Silent);
    Ok((0..steps.len()).map(|s| [of(s, 0), of(s, 1)]).collect())
}
