//! Busy time of the machine's processors, from /proc/stat: it includes softirqs and the work of other processes, so figures
//! from it are approximate. Process times would miss the softirqs that do the forwarding.

use anyhow::{Context, Result};
use std::fs;

/// Seconds of all processors together since boot, without idle, iowait and steal.
///
/// # Errors
/// /proc/stat cannot be read.
pub fn busy() -> Result<f64> {
    let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    // USER_HZ is 100 on every architecture that netpath is built for.
    busy_ticks(&text).map(|ticks| ticks as f64 / 100.0).context("/proc/stat has no line of all processors")
}

fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|l| l.strip_prefix("cpu "))?;
    // user nice system idle iowait irq softirq
    let ticks: Vec<u64> = line.split_whitespace().filter_map(|t| t.parse().ok()).collect();
    let [user, nice, system, _, _, irq, softirq] = *ticks.first_chunk()?;
    Some(user + nice + system + irq + softirq)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_iowait_and_steal_are_not_busy() {
        assert_eq!(Some(1 + 2 + 4 + 32 + 64), busy_ticks("cpu  1 2 4 8 16 32 64 128 0 0\ncpu0 9 9 9 9 9 9 9\n"));
        assert_eq!(None, busy_ticks("cpu0 1 2 3 4 5 6 7\n"));
    }
}
