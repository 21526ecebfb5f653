//! The servers that a query is forwarded to, and what is known of their health.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Port of upstream servers.
const PORT: u16 = 53;

/// A list of servers, in the order of their configuration. Copies share it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Upstreams {
    list: Arc<[SocketAddr]>,
    id: u64,
}

impl Upstreams {
    pub(super) fn new(list: Vec<SocketAddr>) -> Self {
        let mut hasher = DefaultHasher::new();
        list.hash(&mut hasher);
        Self { list: list.into(), id: hasher.finish() }
    }

    /// `None`: there is none.
    pub(super) fn of(list: &[IpAddr]) -> Option<Self> {
        let mut sockets: Vec<SocketAddr> = Vec::with_capacity(list.len());
        for address in list {
            let socket = SocketAddr::new(*address, PORT);
            if !sockets.contains(&socket) {
                sockets.push(socket);
            }
        }
        (!sockets.is_empty()).then(|| Self::new(sockets))
    }

    pub(super) fn list(&self) -> &[SocketAddr] {
        &self.list
    }

    /// Tells lists apart: answers of one are not those of another.
    pub(super) fn id(&self) -> u64 {
        self.id
    }
}

/// After so many failures in a row a server is asked after the others.
const FAILURES: u32 = 2;
/// For at least this time, which grows with further failures.
const AVOIDED: Duration = Duration::from_secs(5);
const LONGEST_AVOIDED: Duration = Duration::from_secs(60);
/// How long a server that was never asked may take before another one is asked too.
const UNKNOWN: Duration = Duration::from_millis(150);
const SHORTEST: Duration = Duration::from_millis(30);
const LONGEST: Duration = Duration::from_millis(400);
/// Servers that are remembered.
const REMEMBERED: usize = 256;

#[derive(Clone, Copy, Default)]
struct Record {
    /// Smoothed, as in TCP.
    round_trip: Option<Duration>,
    failures: u32,
    avoid_until: Option<Instant>,
    /// It answers in lower case.
    folds_case: bool,
}

#[derive(Default)]
pub(super) struct Health(RefCell<HashMap<SocketAddr, Record>>);

impl Health {
    /// The servers, those that answer first. Otherwise their order stays: the first may know names that others do not.
    pub(super) fn order(&self, upstreams: &Upstreams, now: Instant) -> Vec<SocketAddr> {
        let records = self.0.borrow();
        let mut servers = upstreams.list().to_vec();
        servers.sort_by_key(|s| records.get(s).and_then(|r| r.avoid_until).filter(|until| *until > now));
        servers
    }

    /// How long to wait for a server before another one is asked too.
    pub(super) fn patience(&self, server: SocketAddr) -> Duration {
        let round_trip = self.0.borrow().get(&server).and_then(|r| r.round_trip);
        round_trip.map_or(UNKNOWN, |t| (t * 3).clamp(SHORTEST, LONGEST))
    }

    pub(super) fn answered(&self, server: SocketAddr, took: Duration) {
        self.change(server, |record| {
            record.round_trip = Some(record.round_trip.map_or(took, |old| (old * 7 + took) / 8));
            (record.failures, record.avoid_until) = (0, None);
        });
    }

    pub(super) fn failed(&self, server: SocketAddr, now: Instant) {
        self.change(server, |record| {
            record.failures = record.failures.saturating_add(1);
            if let Some(more) = record.failures.checked_sub(FAILURES) {
                record.avoid_until = Some(now + (AVOIDED * 2_u32.pow(more.min(4))).min(LONGEST_AVOIDED));
            }
        });
    }

    pub(super) fn folds_case(&self, server: SocketAddr) -> bool {
        self.0.borrow().get(&server).is_some_and(|r| r.folds_case)
    }

    pub(super) fn set_folds_case(&self, server: SocketAddr) {
        self.change(server, |record| record.folds_case = true);
    }

    fn change(&self, server: SocketAddr, change: impl FnOnce(&mut Record)) {
        let mut records = self.0.borrow_mut();
        if records.len() >= REMEMBERED && !records.contains_key(&server) {
            records.clear();
        }
        change(records.entry(server).or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers() -> (Upstreams, SocketAddr, SocketAddr) {
        let upstreams = Upstreams::of(&["192.0.2.1", "192.0.2.2", "192.0.2.1"].map(|a| a.parse().expect("an address")));
        let upstreams = upstreams.expect("servers");
        let (first, second) = (upstreams.list()[0], upstreams.list()[1]);
        (upstreams, first, second)
    }

    #[test]
    fn a_server_that_does_not_answer_is_asked_last_until_it_answers_or_time_has_passed() {
        let (upstreams, first, second) = servers();
        let (health, now) = (Health::default(), Instant::now());
        assert_eq!(vec![first, second], health.order(&upstreams, now));
        health.failed(first, now);
        assert_eq!(vec![first, second], health.order(&upstreams, now), "one loss is no sign");
        health.failed(first, now);
        assert_eq!(vec![second, first], health.order(&upstreams, now));
        assert_eq!(vec![first, second], health.order(&upstreams, now + AVOIDED), "tried again");
        health.failed(second, now);
        health.failed(second, now);
        health.failed(second, now);
        assert_eq!(vec![first, second], health.order(&upstreams, now), "of two bad ones the less bad one");
        health.answered(second, Duration::from_millis(5));
        assert_eq!(vec![second, first], health.order(&upstreams, now));
    }

    #[test]
    fn patience_follows_the_round_trip_within_limits() {
        let (_, first, _) = servers();
        let health = Health::default();
        assert_eq!(UNKNOWN, health.patience(first));
        health.answered(first, Duration::from_micros(100));
        assert_eq!(SHORTEST, health.patience(first));
        (0..50).for_each(|_| health.answered(first, Duration::from_secs(1)));
        assert_eq!(LONGEST, health.patience(first));
    }
}
