//! Copies flows from the maps of another layout, so that connections survive an upgrade.

use super::expire::now;
use super::maps::{self, CHUNK, Flows, PinnedMap};
use super::pins::Pins;
use crate::model::error::Result;
use netpath_common::family::{Ipv4, Ipv6};
use netpath_common::flow;
use netpath_common::layout::{NatPort, SIDE_EGRESS, SIDE_UPLINK};
use netpath_common::reason::Reason;
use std::collections::BTreeSet;

/// Layouts with compatible flows and sockets. 1: the traffic counter was zero. 2: no flow could be redirected by XDP.
/// 3: no flow had its next hop. 4: `last_seen` was in seconds. 5: an uplink could translate on both sides.
const KNOWN: [u32; 5] = [1, 2, 3, 4, 5];
/// The last layout with `last_seen` in seconds.
const IN_SECONDS: u32 = 4;

/// Copies elements that `to` does not have. Returns their number.
///
/// # Errors
/// A map cannot be read or written.
pub(super) fn flows(version: u32, from: &Pins, to: &Pins) -> Result<usize> {
    if !KNOWN.contains(&version) {
        tracing::warn!(layout = version, "flows of this layout cannot be migrated and are lost");
        return Ok(0);
    }
    let mut ports = BTreeSet::new();
    let mut copied = halves::<Ipv4>(version, from, to, &mut ports)?;
    copied += halves::<Ipv6>(version, from, to, &mut ports)?;
    mark(to, &ports)?;
    copied += sockets(from, to)?;
    if copied > 0 {
        tracing::info!(layout = version, copied, "flows migrated");
    }
    Ok(copied)
}

/// Both halves of all flows of a known layout, as those of this one.
///
/// # Errors
/// The map cannot be read.
pub(super) fn dump<F: Flows>(version: u32, from: &Pins) -> Result<Vec<(F::Key, F::Flow)>> {
    let old = KNOWN.contains(&version).then(|| PinnedMap::of_another_layout(from, &F::FLOWS)).flatten();
    let Some(old) = old else { return Ok(Vec::new()) };
    let mut all = old.dump(CHUNK)?;
    if version <= IN_SECONDS {
        for next in all.iter_mut().map(|(_, half)| F::next_mut(half)) {
            next.last_seen = flow::ticks(next.last_seen);
        }
    }
    Ok(all)
}

fn halves<F: Flows>(version: u32, from: &Pins, to: &Pins, ports: &mut BTreeSet<u32>) -> Result<usize> {
    let (now, new) = (now()?, PinnedMap::open(to, &F::FLOWS)?);
    let mut copied = 0;
    for (key, half) in dump::<F>(version, from)? {
        let next = F::next(&half);
        // At an uplink's egress only flows of the host itself are translated; containers begin theirs again.
        let is_at_egress = F::side_of(&key) == SIDE_EGRESS || next.reverse_side == SIDE_EGRESS;
        let is_gone = is_at_egress && next.origin != Reason::FlowHost as u8;
        if is_gone || flow::has_expired(F::protocol_of(&key), next, now) {
            continue;
        }
        if F::side_of(&key) == SIDE_UPLINK {
            ports.insert(u32::from(F::tuple(&key).dport.value()));
        }
        copied += usize::from(new.add(&key, &half)?);
    }
    Ok(copied)
}

/// Marks that a program has set meanwhile stay too: a superfluous mark costs a look-up.
fn mark(to: &Pins, ports: &BTreeSet<u32>) -> Result<()> {
    let ports: Vec<u32> = ports.iter().copied().collect();
    let marks = vec![NatPort { tcp: 1, udp: 1, icmp: 1, icmp6: 1 }; ports.len()];
    PinnedMap::open(to, &maps::NAT_PORT)?.update(&ports, &marks)
}

fn sockets(from: &Pins, to: &Pins) -> Result<usize> {
    let Some(old) = PinnedMap::of_another_layout(from, &maps::SOCK) else { return Ok(0) };
    let new = PinnedMap::open(to, &maps::SOCK)?;
    let all = old.dump(CHUNK)?;
    all.iter().try_fold(0, |copied, (socket, origin)| Ok(copied + usize::from(new.add(socket, origin)?)))
}
