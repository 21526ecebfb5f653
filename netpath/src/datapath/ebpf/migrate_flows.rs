//! Copies flows from the maps of another layout, so that connections survive an upgrade.

use super::expire::now;
use super::maps::{self, CHUNK, Flows, PinnedMap, Shape};
use super::pins::Pins;
use crate::model::error::Result;
use netpath_common::family::{Ipv4, Ipv6};
use netpath_common::flow;
use netpath_common::layout::{NatPort, Plain, SIDE_UPLINK};
use std::collections::BTreeSet;

/// Layouts with compatible flows and sockets. 1: the traffic counter was zero. 2: no flow could be redirected by XDP.
/// 3: no flow had its next hop. 4: `last_seen` was in seconds.
const KNOWN: [u32; 4] = [1, 2, 3, 4];
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
    let in_seconds = version <= IN_SECONDS;
    let mut copied = halves::<Ipv4>(from, to, in_seconds, &mut ports)?;
    copied += halves::<Ipv6>(from, to, in_seconds, &mut ports)?;
    mark(to, &ports)?;
    copied += copy(from, to, &maps::SOCK, |_, origin| Some(origin))?;
    if copied > 0 {
        tracing::info!(layout = version, copied, "flows migrated");
    }
    Ok(copied)
}

fn halves<F: Flows>(from: &Pins, to: &Pins, in_seconds: bool, ports: &mut BTreeSet<u32>) -> Result<usize> {
    let now = now()?;
    copy(from, to, &F::FLOWS, |key, mut half| {
        let next = F::next_mut(&mut half);
        if in_seconds {
            next.last_seen = flow::ticks(next.last_seen);
        }
        let lives = !flow::has_expired(F::protocol_of(key), next, now);
        if lives && F::side_of(key) == SIDE_UPLINK {
            ports.insert(u32::from(F::tuple(key).dport.value()));
        }
        lives.then_some(half)
    })
}

/// Marks that a program has set meanwhile stay too: a superfluous mark costs a look-up.
fn mark(to: &Pins, ports: &BTreeSet<u32>) -> Result<()> {
    let ports: Vec<u32> = ports.iter().copied().collect();
    let marks = vec![NatPort { tcp: 1, udp: 1, icmp: 1, icmp6: 1 }; ports.len()];
    PinnedMap::open(to, &maps::NAT_PORT)?.update(&ports, &marks)
}

fn copy<K: Plain, V: Plain>(
    from: &Pins,
    to: &Pins,
    shape: &Shape<K, V>,
    mut kept: impl FnMut(&K, V) -> Option<V>,
) -> Result<usize> {
    let Some(old) = PinnedMap::of_another_layout(from, shape) else { return Ok(0) };
    let new = PinnedMap::open(to, shape)?;
    let mut copied = 0;
    for (key, value) in old.dump(CHUNK)? {
        if let Some(value) = kept(&key, value)
            && new.add(&key, &value)?
        {
            copied += 1;
        }
    }
    Ok(copied)
}
