//! Flows and sockets of endpoints that are gone, since a new container at the same address must not inherit them; and
//! flows that were given an address, or a way out, that the host does not have any more.

use super::control::{dump, open};
use super::pins::Pins;
use super::sweep::{Seen, reverse};
use super::sys;
use crate::model::error::{Context, Result};
use aya::Pod;
use netpath_common::addr::{Addr, V4, V6};
use netpath_common::family::{Family, Ipv4, Ipv6};
use netpath_common::flow::REPLY_HALF;
use netpath_common::layout::{
    Flow4, Flow6, FlowKey4, FlowKey6, LOCALS, Local, Network, Next, SockKey, SockOrigin, name,
};
use netpath_common::reason::Reason;
use std::collections::BTreeSet;

/// Elements asked for at once; the maps have tens of thousands.
const CHUNK: usize = 4_096;

/// Removes every flow that has one of the v4-mapped addresses in it, before or after translation.
pub fn flows_of(pins: &Pins, addresses: &BTreeSet<[u8; 16]>) -> Result<usize> {
    if addresses.is_empty() {
        return Ok(0);
    }
    let v4 = |a: &V4| addresses.contains(&Addr::v4(*a).0);
    let v6 = |a: &V6| addresses.contains(a);
    let mut removed = 0;
    removed += purge(pins, name::FLOW4, |k: &FlowKey4, f: &Flow4| [k.src, k.dst, f.src, f.dst].iter().any(v4))?;
    removed += purge(pins, name::FLOW6, |k: &FlowKey6, f: &Flow6| [k.src, k.dst, f.src, f.dst].iter().any(v6))?;
    removed += purge(pins, name::SOCK, |k: &SockKey, _: &SockOrigin| addresses.contains(&k.to.0))?;
    Ok(removed)
}

/// Removes both halves of every flow that leaves by one of these uplinks, which are gone: a sender that does not fall silent
/// would keep its flow for ever.
pub fn flows_by(pins: &Pins, uplinks: &BTreeSet<u32>) -> Result<usize> {
    if uplinks.is_empty() {
        return Ok(0);
    }
    let leaves_by = |next: &Next| uplinks.contains(&next.ifindex);
    Ok(whole::<Ipv4>(pins, name::FLOW4, |_, half| leaves_by(&half.next))?
        + whole::<Ipv6>(pins, name::FLOW6, |_, half| leaves_by(&half.next))?)
}

/// Removes both halves of every masqueraded flow whose address is not the host's, and no network's by its option: the
/// host may have had it for a moment between two looks. Asked of the maps, so that it can be done at any time.
pub fn strays(pins: &Pins) -> Result<usize> {
    let locals = dump::<Addr, Local>(&open(pins, name::LOCAL)?, name::LOCAL)?;
    // Not all of the host's addresses may be in a full map.
    if locals.len() >= LOCALS as usize {
        return Ok(0);
    }
    let networks = dump::<u32, Network>(&open(pins, name::NETWORK)?, name::NETWORK)?;
    let told = networks.iter().flat_map(|(_, n)| [Addr::v4(n.outbound4).0, n.outbound6]);
    let own: BTreeSet<[u8; 16]> = locals.iter().map(|(a, _)| a.0).chain(told).collect();
    Ok(whole::<Ipv4>(pins, name::FLOW4, is_stray::<Ipv4>(&own))?
        + whole::<Ipv6>(pins, name::FLOW6, is_stray::<Ipv6>(&own))?)
}

fn is_stray<F: Family>(own: &BTreeSet<[u8; 16]>) -> impl Fn(&F::Key, &F::Flow) -> bool {
    |key, half| {
        let (next, seen_as) = (F::next(half), F::tuple(key).dst);
        // A sender that is seen as it is has no address of the host's.
        let masqueraded = next.origin == Reason::FlowMasqueraded as u8
            && next.state & REPLY_HALF != 0
            && !F::same(&seen_as, &F::translated(half).dst);
        masqueraded && !own.contains(&F::mapped(seen_as).0)
    }
}

/// Removes both halves of the flows of which one is so.
fn whole<F: Family>(pins: &Pins, name: &str, is_so: impl Fn(&F::Key, &F::Flow) -> bool) -> Result<usize>
where
    F::Key: Seen,
    F::Flow: Pod,
{
    let map = open(pins, name)?;
    let what = || format!("cannot write {name}");
    let mut removed = 0;
    for (key, half) in sys::dump::<F::Key, F::Flow>(&map, CHUNK).context(|| format!("cannot read {name}"))? {
        if is_so(&key, &half) {
            if let (other, Some(_)) = reverse::<F>(&map, &key, &half).context(what)? {
                removed += usize::from(sys::delete(&map, &other).context(what)?);
            }
            removed += usize::from(sys::delete(&map, &key).context(what)?);
        }
    }
    Ok(removed)
}

fn purge<K: Pod, V: Pod>(pins: &Pins, name: &str, is_theirs: impl Fn(&K, &V) -> bool) -> Result<usize> {
    let map = open(pins, name)?;
    let mut removed = 0;
    for (key, value) in sys::dump::<K, V>(&map, CHUNK).context(|| format!("cannot read {name}"))? {
        if is_theirs(&key, &value) && sys::delete(&map, &key).context(|| format!("cannot write {name}"))? {
            removed += 1;
        }
    }
    Ok(removed)
}
