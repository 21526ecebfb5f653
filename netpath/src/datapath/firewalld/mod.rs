//! firewalld: the subnets of networks are sources of its zone `trusted`, as with Netavark, so that its own rules accept
//! what containers send. Runtime configuration only, by D-Bus. A host without foreign rules has no firewalld, so the bus is
//! not asked, which would cost milliseconds.

mod bus;
mod report;
#[cfg(test)]
mod tests;

pub use report::{Report, report};

use crate::datapath::filter::Foreign;
use crate::datapath::netfilter::nfnetlink;
use crate::model::error::{Error, Result};
use crate::model::{Desired, Record};
use crate::state::store::Trusted;
use crate::state::{Lock, Store};
use bus::Firewalld;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::time::Instant;

/// firewalld accepts all packets of its sources, to the host and through it.
const ZONE: &str = "trusted";

/// The subnets that belong into the zone: as with Netavark, those of internal networks do not.
pub fn subnets(desired: &Desired) -> BTreeSet<IpNet> {
    let outside = desired.bridged().map(|(r, _)| &r.network).filter(|n| !n.internal);
    outside.flat_map(|n| n.subnets.iter().map(|s| s.net.trunc())).collect()
}

/// The handle of firewalld's table. It changes with each reload, which also drops the sources that netpath has added.
/// `None`: there is no such table, or no nf_tables.
pub fn generation() -> Option<u64> {
    nfnetlink::table_handle("firewalld").ok().flatten()
}

/// Calls `each` after every reload of firewalld, as long as the system bus lasts.
///
/// # Errors
/// The bus cannot be reached, or has ended.
pub fn follow_reloads(mut each: impl FnMut()) -> Result<()> {
    let mut reloads = bus::Reloads::watch()?;
    loop {
        reloads.next()?;
        each();
    }
}

/// The firewalld of one command: found when it is first needed, and not called again after a time-out.
#[derive(Default)]
pub struct Firewall(State);

#[derive(Default)]
enum State {
    #[default]
    NotAsked,
    /// There is no bus, or the bus refuses this process: firewalld may run all the same.
    Unknown,
    Absent,
    Running(Firewalld),
    /// It did not answer in time; the warning was logged.
    Hung,
}

impl Firewall {
    /// Refuses published ports if firewalld is set to accept only its own.
    ///
    /// # Errors
    /// The refusal. Without an answer it counts as not set, as in versions before 2.3.
    pub fn preflight(&mut self, foreign: &Foreign, coming: &[Record]) -> Result<()> {
        let Some(record) = coming.iter().find(|r| !r.publishes.is_empty() && !r.network.internal) else {
            return Ok(());
        };
        let State::Running(firewalld) = self.found(foreign) else { return Ok(()) };
        match firewalld.is_strict() {
            Ok(false) => Ok(()),
            // Netavark's phrase, which users of Podman know.
            Ok(true) => Err(Error::new(format!(
                "cannot publish ports of {} on network {}",
                record.container.label(),
                record.network.name
            ))
            .because("Port forwarding not possible as firewalld StrictForwardPorts enabled")
            .next(
                "start it without published ports and forward them by firewall-cmd, or set StrictForwardPorts=no in \
                 /etc/firewalld/firewalld.conf and reload firewalld",
            )),
            Err(e) => {
                self.failed(&e);
                Ok(())
            }
        }
    }

    /// Waits until firewalld answers, which it does not while it reloads; called before the lock is taken. False: it does
    /// not answer.
    pub fn wait(&mut self, foreign: &Foreign) -> bool {
        if let State::Running(firewalld) = self.found(foreign)
            && let Err(e) = firewalld.ping()
        {
            self.failed(&e);
        }
        !matches!(self.0, State::Hung)
    }

    /// Makes `wanted` netpath's sources of the zone. Returns the number of changes. Faults are logged and are no errors:
    /// the datapath works, only firewalld's own rules may drop packets.
    pub fn hold(&mut self, store: &Store, lock: &Lock, foreign: &Foreign, wanted: &BTreeSet<IpNet>) -> usize {
        let kept = store.trusted();
        if wanted.is_empty() && kept == Trusted::default() {
            return 0;
        }
        if kept != Trusted::default() {
            self.ask();
        }
        let held = match self.found(foreign) {
            State::Running(firewalld) => hold(firewalld, store, lock, kept, wanted),
            // Its runtime configuration ended with it.
            State::Absent if kept != Trusted::default() => store.keep_trusted(lock, &Trusted::default()).map(|()| 0),
            _ => Ok(0),
        };
        held.unwrap_or_else(|e| {
            self.failed(&e);
            0
        })
    }

    fn found(&mut self, foreign: &Foreign) -> &State {
        if matches!(self.0, State::NotAsked) && foreign.chains().as_ref().is_ok_and(Vec::is_empty) {
            self.0 = State::Unknown;
        }
        self.ask();
        &self.0
    }

    fn ask(&mut self) {
        if matches!(self.0, State::NotAsked) {
            self.0 = if bus::exists() { ask() } else { State::Unknown };
        }
    }

    fn failed(&mut self, e: &Error) {
        match &self.0 {
            State::Running(firewalld) if firewalld.has_ended() => {
                tracing::debug!("firewalld has ended: {e}");
                self.0 = State::Absent;
                return;
            }
            State::Running(firewalld) if firewalld.is_hung() => self.0 = State::Hung,
            _ => {}
        }
        tracing::warn!("{e}");
    }
}

fn ask() -> State {
    let begun = Instant::now();
    let found = Firewalld::here();
    let (runs, took_us) = (found.as_ref().ok().map(Option::is_some), begun.elapsed().as_micros());
    tracing::debug!(?runs, took_us, "firewalld looked for");
    match found {
        Ok(Some(firewalld)) => State::Running(firewalld),
        Ok(None) => State::Absent,
        Err(e) if begun.elapsed() >= bus::PATIENCE => {
            tracing::warn!("{e}");
            State::Hung
        }
        // A stale socket, or a rootless engine, which the bus refuses.
        Err(e) => {
            tracing::debug!("{e}");
            State::Unknown
        }
    }
}

/// Additions are recorded on disk before firewalld is called, so that a later command removes them after a kill in
/// between.
fn hold(firewalld: &Firewalld, store: &Store, lock: &Lock, before: Trusted, wanted: &BTreeSet<IpNet>) -> Result<usize> {
    let mut now = before.clone();
    now.elsewhere.retain(|subnet, _| wanted.contains(subnet));
    let (mut missing, mut surplus) = (Vec::new(), Vec::new());
    for subnet in wanted.union(&before.added) {
        let zone = firewalld.zone_of(*subnet)?;
        match (zone.as_deref(), wanted.contains(subnet)) {
            (None, true) => {
                now.added.insert(*subnet);
                now.elsewhere.remove(subnet);
                missing.push(*subnet);
            }
            (Some(ZONE), true) => {
                now.elsewhere.remove(subnet);
                if !now.added.contains(subnet) {
                    tracing::debug!(%subnet, zone = ZONE, "the subnet is in the zone without netpath, and stays there");
                }
            }
            (Some(ZONE), false) => surplus.push(*subnet),
            (None, false) => drop(now.added.remove(subnet)),
            (Some(other), is_wanted) => {
                now.added.remove(subnet);
                let is_known = now.elsewhere.get(subnet).is_some_and(|zone| zone == other);
                if is_wanted && !is_known {
                    tracing::warn!(
                        "firewalld has container subnet {subnet} in zone {other}: it is left there, and the rules of that \
                         zone hold for its containers"
                    );
                    now.elsewhere.insert(*subnet, other.to_owned());
                }
            }
        }
    }
    if now != before {
        store.keep_trusted(lock, &now)?;
    }
    // A refused subnet does not stop the others.
    let mut failures = Vec::new();
    for subnet in &missing {
        failures.extend(firewalld.add(*subnet).err());
    }
    let mut gone = 0;
    for subnet in &surplus {
        match firewalld.remove(*subnet) {
            Ok(()) => gone += usize::from(now.added.remove(subnet)),
            Err(e) => failures.push(e),
        }
    }
    if gone > 0 {
        store.keep_trusted(lock, &now)?;
    }
    let changed = missing.len() + surplus.len() - failures.len();
    match failures.into_iter().next() {
        Some(e) => Err(e),
        None => Ok(changed),
    }
}
