//! When the next look may begin: at once after a quiet time, seldom while the host flaps.

use std::time::Duration;
use tokio::time::Instant;

/// While the host flaps, looks take at most this fraction of a processor's time: one part in …
const SHARE: u32 = 20;
/// However long a look takes, the next change is followed within a second.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// Looks on credit: at least three. A new uplink is one change as a link, another with its addresses, one more with its routes.
const CREDIT: Duration = LONGEST_PAUSE.saturating_mul(3);

/// Token bucket: each look costs credit, which refills with time.
pub(super) struct RateLimiter {
    debt: Duration,
    since: Instant,
}

impl RateLimiter {
    pub(super) fn new(now: Instant) -> Self {
        Self { debt: Duration::ZERO, since: now }
    }

    /// A look that took `cost` has ended at `now`. Returns when the next one may begin.
    pub(super) fn looked(&mut self, cost: Duration, now: Instant) -> Instant {
        let price = (cost * SHARE).min(LONGEST_PAUSE);
        let paid = now.saturating_duration_since(self.since);
        self.debt = (self.debt.saturating_sub(paid) + price).min(CREDIT + LONGEST_PAUSE);
        self.since = now;
        now + self.debt.saturating_sub(CREDIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: Duration = Duration::from_millis(10);

    /// The pauses after looks of these costs, each `between` after it was allowed.
    fn pauses(costs: impl IntoIterator<Item = Duration>, between: Duration) -> Vec<Duration> {
        let mut now = Instant::now();
        let mut rate_limiter = RateLimiter::new(now);
        let mut pauses = Vec::new();
        for cost in costs {
            now += cost;
            let next = rate_limiter.looked(cost, now);
            pauses.push(next - now);
            now = next + between;
        }
        pauses
    }

    #[test]
    fn the_first_looks_do_not_wait_and_the_next_ones_do() {
        let pauses = pauses([COST; 50], Duration::ZERO);
        assert!(pauses[..3].iter().all(Duration::is_zero), "{pauses:?}");
        assert!(pauses[10..].iter().all(|p| *p + COST == COST * SHARE), "{pauses:?}");
    }

    #[test]
    fn a_look_that_attaches_programs_does_not_make_the_next_wait() {
        for costs in [[200, 60, 60], [2_000, 30, 30], [30, 2_000, 30]] {
            let pauses = pauses(costs.map(Duration::from_millis), Duration::ZERO);
            assert!(pauses.iter().all(Duration::is_zero), "{costs:?}: {pauses:?}");
        }
    }

    #[test]
    fn credit_refills_with_time() {
        let pauses = pauses([COST; 50], COST * SHARE);
        assert!(pauses.iter().all(Duration::is_zero), "{pauses:?}");
    }

    #[test]
    fn a_pause_has_a_limit_and_ends_with_a_quiet_time() {
        let cost = Duration::from_secs(1);
        let mut now = Instant::now();
        let mut rate_limiter = RateLimiter::new(now);
        for _ in 0..100 {
            let next = rate_limiter.looked(cost, now);
            assert!(next - now <= LONGEST_PAUSE, "{:?}", next - now);
            now = next + cost;
        }
        now += LONGEST_PAUSE + cost * SHARE;
        assert_eq!(now, rate_limiter.looked(cost, now));
    }
}
