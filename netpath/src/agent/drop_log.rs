//! Logs how many packets were dropped since the last line, by reason.

use crate::observe::Host;
use std::collections::BTreeMap;

#[derive(Default)]
pub(super) struct DropLog(BTreeMap<&'static str, u64>);

impl DropLog {
    /// Earlier drops are not reported.
    pub(super) fn start() -> Self {
        Self(counted().unwrap_or_default())
    }

    /// Reports the drops since the last call.
    pub(super) fn report(&mut self) {
        let Some(now) = counted() else { return };
        let new: Vec<String> = now
            .iter()
            // The counter is smaller: the maps were created anew.
            .map(|(reason, packets)| {
                (reason, packets.checked_sub(*self.0.get(reason).unwrap_or(&0)).unwrap_or(*packets))
            })
            .filter(|(_, more)| *more > 0)
            .map(|(reason, more)| format!("{more} {reason}"))
            .collect();
        if !new.is_empty() {
            tracing::info!("packets dropped: {}", new.join(", "));
        }
        self.0 = now;
    }
}

/// `None` where there are no counters: on another rung, or while the maps are replaced.
fn counted() -> Option<BTreeMap<&'static str, u64>> {
    let datapath = Host::here().ok()?.inspect().ok().filter(|d| d.exists())?;
    let counters = datapath.counters().ok()?;
    Some(counters.into_iter().filter(|c| c.reason.starts_with("drop_")).map(|c| (c.reason, c.packets)).collect())
}
