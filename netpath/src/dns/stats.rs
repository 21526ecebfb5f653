//! Counters of a server. One thread writes them, any may read them.

use super::answer::Kind;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper limits of the histogram of latencies, in microseconds; one more bucket has the rest.
pub(super) const LATENCIES_US: [u64; 10] = [20, 50, 100, 250, 1_000, 5_000, 20_000, 100_000, 500_000, 2_000_000];

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        #[derive(Default)]
        pub(super) struct Stats {
            $(pub $name: AtomicU64,)*
            latency: [AtomicU64; LATENCIES_US.len() + 1],
            latency_sum_us: AtomicU64,
        }

        /// What a server has counted so far.
        #[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
            /// From the receipt of a query to its answer: one for each of [`LATENCIES_US`], and the rest.
            pub latency: Vec<u64>,
            pub latency_sum_us: u64,
        }

        impl Stats {
            pub(super) fn counts(&self) -> Counts {
                Counts {
                    $($name: self.$name.load(Relaxed),)*
                    latency: self.latency.iter().map(|n| n.load(Relaxed)).collect(),
                    latency_sum_us: self.latency_sum_us.load(Relaxed),
                }
            }
        }
    };
}

counters! {
    /// Messages by UDP.
    udp_queries,
    /// Messages by TCP.
    tcp_queries,
    /// Answers with addresses of containers.
    addresses,
    /// Answers with names of containers.
    pointers,
    /// Names that are known, without data of the type.
    no_data,
    no_such_name,
    /// Another class, or a version that is not known.
    refused,
    /// What is no query.
    malformed,
    /// Answers from the cache.
    cached,
    /// Queries sent to upstream servers.
    forwarded,
    /// Of these: without a good answer.
    failed,
    /// Queries that waited for the answer to the same query of another client.
    joined,
    /// Rejected because too many are forwarded at this moment.
    overload,
    tcp_connections,
}

impl Stats {
    pub(super) fn add(counter: &AtomicU64, number: u64) {
        counter.fetch_add(number, Relaxed);
    }

    pub(super) fn answered(&self, kind: Kind) {
        let counter = match kind {
            Kind::Addresses => &self.addresses,
            Kind::Pointers => &self.pointers,
            Kind::NoData => &self.no_data,
            Kind::NoSuchName => &self.no_such_name,
            Kind::Refused => &self.refused,
        };
        Self::add(counter, 1);
    }

    pub(super) fn took(&self, time: Duration, answers: u64) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Self::add(&self.latency[LATENCIES_US.partition_point(|limit| *limit < micros)], answers);
        Self::add(&self.latency_sum_us, micros.saturating_mul(answers));
    }
}
