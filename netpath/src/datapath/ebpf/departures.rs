//! Flows of endpoints that were torn down a moment ago: kept while their container may come back, and led to its new links when
//! it does. In between their packets are redirected to an interface that is gone, so that the host does not answer with a reset.

use super::addr::mapped;
use super::compile::Tables;
use super::expire::{MARKED, MARKS};
use super::maps::{self, CHUNK, Flows, PinnedMap};
use super::pins::Pins;
use crate::model::Departures;
use crate::model::error::Result;
use netpath_common::family::{Ipv4, Ipv6};
use netpath_common::layout::{
    ENDPOINT_XDP, Endpoint, FORWARD_EGRESS, FORWARD_PEER, FORWARD_XDP, Next, SIDE_UPLINK, is_outward,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

type Address = [u8; 16];

/// The addresses whose flows end: those that are `gone` and do not wait, and the ended ones.
pub(super) fn ending(gone: impl Iterator<Item = Address>, departed: &Departures) -> BTreeSet<Address> {
    let stays: BTreeSet<Address> = departed.waiting.iter().chain(&departed.back).map(|a| mapped(*a).0).collect();
    gone.filter(|a| !stays.contains(a)).chain(departed.ended.iter().map(|a| mapped(*a).0)).collect()
}

/// Marks the ports by which flows of endpoints come in that begin to wait: an uplink looks for a flow only at ports that are
/// published or marked, and theirs are published no longer. Marks stay as long as their flows.
///
/// # Errors
/// The maps cannot be read or written.
pub(super) fn mark_ports(pins: &Pins, departed: &Departures) -> Result<()> {
    if departed.waiting.is_empty() {
        return Ok(());
    }
    let served: BTreeSet<Address> =
        PinnedMap::open(pins, &maps::ENDPOINT)?.dump(CHUNK)?.iter().map(|(address, _)| address.0).collect();
    let waiting: BTreeSet<Address> =
        departed.waiting.iter().map(|a| mapped(*a).0).filter(|a| served.contains(a)).collect();
    if waiting.is_empty() {
        return Ok(());
    }
    let mut ports = BTreeSet::new();
    arriving::<Ipv4>(pins, &waiting, &mut ports)?;
    arriving::<Ipv6>(pins, &waiting, &mut ports)?;
    if ports.is_empty() {
        return Ok(());
    }
    let map = PinnedMap::open(pins, &maps::NAT_PORT)?.map(0, 65_536)?;
    for (proto, port) in ports {
        if let Some(at) = MARKS.iter().position(|marked| *marked == proto) {
            map.byte(usize::from(port), at).store(MARKED, Ordering::SeqCst);
        }
    }
    Ok(())
}

fn arriving<F: Flows>(pins: &Pins, to: &BTreeSet<Address>, ports: &mut BTreeSet<(u8, u16)>) -> Result<()> {
    let flows = PinnedMap::open(pins, &F::FLOWS)?.dump(CHUNK)?;
    let theirs = flows
        .iter()
        .filter(|(key, half)| F::side_of(key) == SIDE_UPLINK && to.contains(&F::mapped(F::translated(half).dst).0));
    ports.extend(theirs.map(|(key, _)| (F::protocol_of(key), F::tuple(key).dport.value())));
    Ok(())
}

/// Leads the flows of endpoints that are back to their new links. Returns the number of changed entries.
///
/// # Errors
/// The maps cannot be read or written.
pub(super) fn return_flows(pins: &Pins, tables: &Tables, departed: &Departures) -> Result<usize> {
    let back = departed.back.iter().map(|a| mapped(*a).0);
    let links: Links<'_> = back.filter_map(|address| Some((address, tables.endpoints.get(&address)?))).collect();
    if links.is_empty() {
        return Ok(0);
    }
    let counters: BTreeSet<u32> = tables.traffic.values().flatten().copied().collect();
    Ok(of_family::<Ipv4>(pins, &links, &counters)? + of_family::<Ipv6>(pins, &links, &counters)?)
}

type Links<'a> = BTreeMap<Address, &'a Endpoint>;

fn of_family<F: Flows>(pins: &Pins, links: &Links<'_>, counters: &BTreeSet<u32>) -> Result<usize> {
    let map = PinnedMap::open(pins, &F::FLOWS)?;
    let mut changed = 0;
    for (key, half) in map.dump(CHUNK)? {
        let (from, to) = (F::mapped(F::tuple(&key).src).0, F::mapped(F::translated(&half).dst).0);
        let (sender, receiver) = (links.get(&from), links.get(&to));
        if sender.is_none() && receiver.is_none() {
            continue;
        }
        // The current value, not that of the read batch.
        let Some(mut half) = map.get(&key)? else { continue };
        if let Some(next) = by_new_links(F::next(&half), sender, receiver, counters) {
            *F::next_mut(&mut half) = next;
            changed += usize::from(map.change(&key, &half)?);
        }
    }
    Ok(changed)
}

/// `sender`, `receiver`: the new links of the ends of an entry's packets; `counters`: those in use.
fn by_new_links(
    next: &Next,
    sender: Option<&&Endpoint>,
    receiver: Option<&&Endpoint>,
    counters: &BTreeSet<u32>,
) -> Option<Next> {
    let mut new = *next;
    if let Some(endpoint) = receiver
        && matches!(next.forward, FORWARD_PEER | FORWARD_XDP | FORWARD_EGRESS)
    {
        new.ifindex = endpoint.veth;
        new.match_dmac = endpoint.mac;
        new.next_hop_mac = endpoint.bridge_mac;
        new.mtu = endpoint.mtu;
        if next.forward != FORWARD_EGRESS {
            new.forward = if endpoint.flags & ENDPOINT_XDP == 0 { FORWARD_PEER } else { FORWARD_XDP };
        }
    }
    if let Some(endpoint) = sender
        && is_outward(next.forward)
    {
        new.match_dmac = endpoint.bridge_mac;
    }
    if let Some(endpoint) = sender.or(receiver)
        && next.traffic != 0
        && !counters.contains(&u32::from(next.traffic))
    {
        new.traffic = endpoint.traffic as u16;
    }
    (new != *next).then_some(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use netpath_common::layout::{FORWARD_INGRESS, FORWARD_LINK};

    #[test]
    fn an_entry_is_led_to_the_new_links_of_its_end() {
        let endpoint =
            Endpoint { veth: 9, mac: [9; 6], bridge_mac: [8; 6], mtu: 1400, traffic: 3, ..Endpoint::default() };
        let (links, counters) = (&endpoint, BTreeSet::from([3, 4]));
        let old =
            Next { ifindex: 5, match_dmac: [5; 6], next_hop_mac: [6; 6], mtu: 1500, traffic: 4, ..Next::default() };
        let inward = Next { forward: FORWARD_PEER, ..old };
        let led = Next { ifindex: 9, match_dmac: [9; 6], next_hop_mac: [8; 6], mtu: 1400, ..inward };
        assert_eq!(Some(led), by_new_links(&inward, None, Some(&links), &counters));
        assert_eq!(None, by_new_links(&led, None, Some(&links), &counters), "a second time changes nothing");
        let outward = Next { forward: FORWARD_LINK, ..old };
        assert_eq!(Some(Next { match_dmac: [8; 6], ..outward }), by_new_links(&outward, Some(&links), None, &counters));
        let to_lo = Next { forward: FORWARD_INGRESS, ..old };
        assert_eq!(None, by_new_links(&to_lo, Some(&links), None, &counters));
        let of_other_counter = Next { traffic: 7, ..to_lo };
        assert_eq!(Some(Next { traffic: 3, ..to_lo }), by_new_links(&of_other_counter, Some(&links), None, &counters));
    }
}
