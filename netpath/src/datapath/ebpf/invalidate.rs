//! Removes flows and sockets of removed endpoints, since a new container with the same address must not inherit them,
//! and flows with an address or an uplink that the host no longer has.

use super::flow_pair::reverse_of;
use super::maps::{self, CHUNK, Flows, PinnedMap, Shape};
use super::pins::Pins;
use crate::model::error::Result;
use netpath_common::addr::{Addr, V4, V6};
use netpath_common::family::{Family, Ipv4, Ipv6};
use netpath_common::flow::REPLY_HALF;
use netpath_common::layout::{LOCALS, Next, Plain};
use netpath_common::reason::Reason;
use std::collections::BTreeSet;

/// Removes every flow with one of the v4-mapped addresses, before or after translation.
pub(super) fn flows_of(pins: &Pins, addresses: &BTreeSet<[u8; 16]>) -> Result<usize> {
    if addresses.is_empty() {
        return Ok(0);
    }
    let v4 = |a: &V4| addresses.contains(&Addr::v4(*a).0);
    let v6 = |a: &V6| addresses.contains(a);
    let mut removed = 0;
    removed += remove_matching(pins, &Ipv4::FLOWS, |k, f| [k.src, k.dst, f.src, f.dst].iter().any(v4))?;
    removed += remove_matching(pins, &Ipv6::FLOWS, |k, f| [k.src, k.dst, f.src, f.dst].iter().any(v6))?;
    removed += remove_matching(pins, &maps::SOCK, |k, _| addresses.contains(&k.to.0))?;
    Ok(removed)
}

/// Removes both entries of every flow by one of these removed uplinks: a sender that never pauses would keep its flow
/// alive.
pub(super) fn flows_by(pins: &Pins, uplinks: &BTreeSet<u32>) -> Result<usize> {
    if uplinks.is_empty() {
        return Ok(0);
    }
    let leaves_by = |next: &Next| uplinks.contains(&next.ifindex);
    Ok(whole::<Ipv4>(pins, |_, half| leaves_by(&half.next))? + whole::<Ipv6>(pins, |_, half| leaves_by(&half.next))?)
}

/// Removes both entries of every masqueraded flow whose address belongs neither to the host nor to a network's
/// option: the host may have had it briefly between two reads. Reads only the maps, so it is safe at any time.
pub(super) fn strays(pins: &Pins) -> Result<usize> {
    let locals = PinnedMap::open(pins, &maps::LOCAL)?.dump(CHUNK)?;
    // A full map may lack some of the host's addresses.
    if locals.len() >= LOCALS as usize {
        return Ok(0);
    }
    let networks = PinnedMap::open(pins, &maps::NETWORK)?.dump(CHUNK)?;
    let outbound = networks.iter().flat_map(|(_, n)| [Addr::v4(n.outbound4).0, n.outbound6]);
    let own: BTreeSet<[u8; 16]> = locals.iter().map(|(a, _)| a.0).chain(outbound).collect();
    Ok(whole::<Ipv4>(pins, is_stray::<Ipv4>(&own))? + whole::<Ipv6>(pins, is_stray::<Ipv6>(&own))?)
}

fn is_stray<F: Family>(own: &BTreeSet<[u8; 16]>) -> impl Fn(&F::Key, &F::Flow) -> bool {
    |key, half| {
        let (next, seen_as) = (F::next(half), F::tuple(key).dst);
        // A sender with its own address uses no address of the host.
        let masqueraded = next.origin == Reason::FlowMasqueraded as u8
            && next.state & REPLY_HALF != 0
            && !F::same(&seen_as, &F::translated(half).dst);
        masqueraded && !own.contains(&F::mapped(seen_as).0)
    }
}

/// Removes both entries of the flows of which one satisfies `is_so`.
fn whole<F: Flows>(pins: &Pins, is_so: impl Fn(&F::Key, &F::Flow) -> bool) -> Result<usize> {
    let map = PinnedMap::open(pins, &F::FLOWS)?;
    let mut removed = 0;
    for (key, half) in map.dump(CHUNK)? {
        if is_so(&key, &half) {
            if let (other, Some(_)) = reverse_of::<F>(&map, &key, &half)? {
                removed += usize::from(map.delete(&other)?);
            }
            removed += usize::from(map.delete(&key)?);
        }
    }
    Ok(removed)
}

fn remove_matching<K: Plain, V: Plain>(
    pins: &Pins,
    shape: &Shape<K, V>,
    is_theirs: impl Fn(&K, &V) -> bool,
) -> Result<usize> {
    let map = PinnedMap::open(pins, shape)?;
    let mut removed = 0;
    for (key, value) in map.dump(CHUNK)? {
        if is_theirs(&key, &value) && map.delete(&key)? {
            removed += 1;
        }
    }
    Ok(removed)
}
