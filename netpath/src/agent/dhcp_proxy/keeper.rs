//! Keeps the lease of one interface: a thread that sleeps until something is due (RFC 2131 §4.4.5).

use super::interface::{Entered, Interface};
use crate::dhcp::{Answer, Client, Identity, Lease};
use crate::model::Mac;
use crate::model::error::Result;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Between two looks whether the container is still there. A thread's clock stops while the host sleeps, and a lease's does not.
const LOOK: Duration = Duration::from_secs(20);
/// For one exchange that no command waits for.
const EXCHANGE: Duration = Duration::from_secs(10);
/// Between two exchanges without an answer: half of the time that is left, and within these. Of a short lease a twentieth.
const SHORTEST: Duration = Duration::from_secs(60);
const LEAST: Duration = Duration::from_secs(2);
/// Between two attempts to get another address.
const AGAIN: Duration = Duration::from_secs(15);

/// What is on disk of an interface.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Held {
    pub interface: Interface,
    pub who: Identity,
    /// `None`: the address is lost, and another one is asked for.
    pub lease: Option<Lease>,
}

pub(super) struct Keeper {
    held: Mutex<Held>,
    is_stopped: AtomicBool,
    sleeping: Mutex<()>,
    wake: Condvar,
}

/// Why a keeper ended.
#[derive(PartialEq, Eq)]
pub(super) enum Ended {
    Stopped,
    /// The container is gone.
    Gone,
}

impl Keeper {
    pub(super) fn new(held: Held) -> Self {
        Self {
            held: Mutex::new(held),
            is_stopped: AtomicBool::new(false),
            sleeping: Mutex::new(()),
            wake: Condvar::new(),
        }
    }

    pub(super) fn held(&self) -> Held {
        lock(&self.held).clone()
    }

    pub(super) fn stop(&self) {
        let _sleeping = lock(&self.sleeping);
        self.is_stopped.store(true, Ordering::Relaxed);
        self.wake.notify_all();
    }

    fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Relaxed)
    }

    fn sleep(&self, time: Duration) {
        let guard = lock(&self.sleeping);
        if !self.is_stopped() {
            let _ = self.wake.wait_timeout(guard, time);
        }
    }

    /// Keeps the lease until it is stopped or the container is gone. `save` is called after each change.
    pub(super) fn run(&self, save: impl Fn()) -> Ended {
        let mut due = Instant::now();
        loop {
            let held = self.held();
            let quiet = held.lease.as_ref().map_or(Duration::ZERO, |l| l.until(l.times()[0]));
            self.sleep(quiet.max(due.saturating_duration_since(Instant::now())).min(LOOK));
            if self.is_stopped() {
                return Ended::Stopped;
            }
            match held.interface.enter() {
                Ok(None) => return Ended::Gone,
                Ok(Some(_)) if !held.lease.as_ref().is_none_or(|l| l.until(l.times()[0]).is_zero()) => {}
                // The end of a lease does not wait.
                Ok(Some(_))
                    if due > Instant::now() && held.lease.as_ref().is_none_or(|l| !l.until(l.times()[2]).is_zero()) => {
                }
                Ok(Some(at)) => {
                    let (lease, pause) = self.step(&held, &at);
                    due = Instant::now() + pause;
                    if lease != held.lease && !self.is_stopped() {
                        lock(&self.held).lease = lease;
                        save();
                    }
                }
                Err(e) => {
                    tracing::warn!("{e}");
                    due = Instant::now() + AGAIN;
                }
            }
        }
    }

    /// One exchange. Returns the lease after it, and how long the next one may wait.
    fn step(&self, held: &Held, at: &Entered) -> (Option<Lease>, Duration) {
        let name = &held.interface.name;
        let Some(old) = &held.lease else {
            let asked = self.within(held, at, |client, until| client.acquire(until));
            let granted = asked.unwrap_or_else(|e| {
                tracing::warn!("no address for {name}: {e}");
                None
            });
            return match granted {
                Some(new) => {
                    // The first words are netavark's.
                    let (mac, netns) = (Mac::from_kernel(held.who.mac), held.interface.netns.display());
                    tracing::info!("ip or gateway for mac {mac} changed: {name} of {netns} has {} now", new.address());
                    (self.configured(held, at, None, Some(new)), Duration::ZERO)
                }
                None => (None, AGAIN),
            };
        };
        if old.until(old.times()[2]).is_zero() {
            tracing::warn!("the lease of {} has ended: no DHCP server has extended it", old.address());
            return (self.configured(held, at, Some(old), None), Duration::ZERO);
        }
        let any = old.until(old.times()[1]).is_zero();
        // An exchange does not outlast the lease.
        let end = Instant::now() + old.until(old.times()[2]);
        match self.within(held, at, |client, until| client.renew(old, any, until.min(end))) {
            Ok(Answer::Granted(new)) => {
                tracing::debug!("the lease of {} is extended", new.address());
                // A server may grant a second.
                (self.configured(held, at, Some(old), Some(new)), LEAST)
            }
            Ok(Answer::Refused) => {
                tracing::warn!("a DHCP server takes back {}: another address is asked for", old.address());
                (self.configured(held, at, Some(old), None), Duration::ZERO)
            }
            Ok(Answer::Nothing) => (Some(old.clone()), pause(old, any)),
            Err(e) => {
                tracing::warn!("the lease of {} is not extended: {e}", old.address());
                (Some(old.clone()), pause(old, any))
            }
        }
    }

    fn within<T: Send>(
        &self,
        held: &Held,
        at: &Entered,
        exchange: impl FnOnce(&Client<'_>, Instant) -> Result<T> + Send,
    ) -> Result<T> {
        let index = at.index;
        at.inside.run(|| {
            let (interface, who) = (held.interface.name.as_str(), &held.who);
            let client = Client { index, interface, who, stop: &|| self.is_stopped() };
            exchange(&client, Instant::now() + EXCHANGE)
        })
    }

    /// The lease that the interface has after a change from `old` to `new`.
    fn configured(&self, held: &Held, at: &Entered, old: Option<&Lease>, new: Option<Lease>) -> Option<Lease> {
        // The thread that stops this one removes the address: it must stay as it is then.
        if self.is_stopped() {
            return held.lease.clone();
        }
        if let Err(e) = held.interface.configure(at, old, new.as_ref()) {
            tracing::warn!("{} does not have what a DHCP server has granted: {e}", held.interface.name);
        }
        new
    }
}

fn pause(lease: &Lease, any: bool) -> Duration {
    let [_, t2, lifetime] = lease.times();
    let left = lease.until(if any { lifetime } else { t2 });
    let shortest = Duration::from_secs((lifetime / 20).into()).clamp(LEAST, SHORTEST);
    (left / 2).max(shortest).min(left)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
