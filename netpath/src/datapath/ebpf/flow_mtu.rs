//! Flows by an uplink whose MTU has changed. A flow stores the MTU, so that programs need no look-up; without the
//! update packets too large for the link would be lost silently.

use super::maps::{CHUNK, Flows, PinnedMap};
use super::pins::Pins;
use crate::model::error::Result;
use netpath_common::family::{Ipv4, Ipv6};
use netpath_common::layout::{Next, Uplink, is_outward};
use std::collections::BTreeMap;

/// Old and new MTU of uplinks, by ifindex.
pub(super) type Sizes = BTreeMap<u32, (u16, u16)>;

/// The remaining uplinks whose MTU changes from `have` to `want`.
pub(super) fn changed(have: &BTreeMap<u32, Uplink>, want: &BTreeMap<u32, Uplink>) -> Sizes {
    let pairs = have.iter().filter_map(|(index, old)| Some((*index, (old.mtu as u16, want.get(index)?.mtu as u16))));
    pairs.filter(|(_, (old, new))| old != new).collect()
}

/// Sets the new MTU in the flows of these uplinks. A concurrent write of a program may be lost: one refresh, a few
/// seconds of the flow's lifetime.
pub(super) fn flows(pins: &Pins, sizes: &Sizes) -> Result<usize> {
    if sizes.is_empty() {
        return Ok(0);
    }
    Ok(of_family::<Ipv4>(pins, sizes)? + of_family::<Ipv6>(pins, sizes)?)
}

fn of_family<F: Flows>(pins: &Pins, sizes: &Sizes) -> Result<usize> {
    let map = PinnedMap::open(pins, &F::FLOWS)?;
    let (mut changed, mut next) = (0, None);
    loop {
        let (halves, after) = map.part(next, CHUNK)?;
        for (key, _) in halves.iter().filter(|(_, f)| new_mtu(F::next(f), sizes).is_some()) {
            // The current value, not that of the read batch.
            let Some(mut flow) = map.get(key)? else { continue };
            let Some(mtu) = new_mtu(F::next(&flow), sizes) else { continue };
            F::next_mut(&mut flow).mtu = mtu;
            changed += usize::from(map.change(key, &flow)?);
        }
        next = after;
        if next.is_none() {
            return Ok(changed);
        }
    }
}

/// A flow with a route narrower than its uplink keeps that MTU, unless the uplink is narrower still.
fn new_mtu(next: &Next, sizes: &Sizes) -> Option<u16> {
    let (old, new) = sizes.get(&next.ifindex).filter(|_| is_outward(next.forward))?;
    (next.mtu == *old || next.mtu > *new).then_some(*new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use netpath_common::layout::{FORWARD_LINK, FORWARD_NEIGH, FORWARD_PEER};

    #[test]
    fn flows_follow_the_mtu_of_their_uplink_and_of_no_other() {
        let uplink = |mtu| Uplink { mtu, ..Uplink::default() };
        let have = BTreeMap::from([(2, uplink(1500)), (3, uplink(1500)), (4, uplink(1500))]);
        let want = BTreeMap::from([(2, uplink(1280)), (3, uplink(1500)), (5, uplink(1280))]);
        let narrower = changed(&have, &want);
        assert_eq!(BTreeMap::from([(2, (1500, 1280))]), narrower);
        let flow = |ifindex, mtu, forward| Next { ifindex, mtu, forward, ..Next::default() };
        assert_eq!(Some(1280), new_mtu(&flow(2, 1500, FORWARD_NEIGH), &narrower));
        assert_eq!(Some(1280), new_mtu(&flow(2, 1400, FORWARD_LINK), &narrower));
        assert_eq!(None, new_mtu(&flow(2, 1000, FORWARD_NEIGH), &narrower));
        assert_eq!(None, new_mtu(&flow(3, 1500, FORWARD_NEIGH), &narrower));
        assert_eq!(None, new_mtu(&flow(2, 1500, FORWARD_PEER), &narrower));
        let wider = changed(&want, &have);
        assert_eq!(Some(1500), new_mtu(&flow(2, 1280, FORWARD_NEIGH), &wider));
        assert_eq!(None, new_mtu(&flow(2, 1000, FORWARD_NEIGH), &wider));
    }
}
