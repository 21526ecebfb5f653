//! The MTUs of routes. A flow stores the MTU of its hop, so that flows follow a change too.

use super::maps::{CHUNK, Flows, PinnedMap};
use super::pins::Pins;
use crate::model::error::Result;
use netpath_common::addr::Addr;
use netpath_common::family::{Ipv4, Ipv6};
use netpath_common::layout::{RouteMtu, Uplink, is_outward};
use netpath_common::policy::smaller_mtu;
use std::collections::BTreeMap;

type Mtus = BTreeMap<(u32, [u8; 16]), RouteMtu>;

/// Sets the MTU in the flows of routes whose MTU changes from `before` to `mtus`. Returns their number.
///
/// # Errors
/// The maps cannot be read or written.
pub(super) fn follow(pins: &Pins, before: &Mtus, mtus: &Mtus, uplinks: &BTreeMap<u32, Uplink>) -> Result<usize> {
    Ok(of_family::<Ipv4>(pins, before, mtus, uplinks)? + of_family::<Ipv6>(pins, before, mtus, uplinks)?)
}

fn of_family<F: Flows>(pins: &Pins, before: &Mtus, mtus: &Mtus, uplinks: &BTreeMap<u32, Uplink>) -> Result<usize> {
    let map = PinnedMap::open(pins, &F::FLOWS)?;
    let mut changed = 0;
    for (key, half) in map.dump(CHUNK)? {
        let (to, next) = (F::mapped(F::translated(&half).dst), F::next(&half));
        let Some(uplink) = uplinks.get(&next.ifindex).filter(|_| is_outward(next.forward)) else { continue };
        let new = of(mtus, to);
        if of(before, to) == new {
            continue;
        }
        // The current value, not that of the read batch.
        let Some(mut flow) = map.get(&key)? else { continue };
        F::next_mut(&mut flow).mtu = smaller_mtu(uplink.mtu as u16, new as u16);
        changed += usize::from(map.change(&key, &flow)?);
    }
    Ok(changed)
}

/// The MTU of the most specific prefix with this address; 0: none.
fn of(mtus: &Mtus, address: Addr) -> RouteMtu {
    let bits = u128::from_be_bytes(address.0);
    let contains = |(len, base): &(u32, [u8; 16])| {
        let mask = u128::MAX.checked_shl(128 - len).unwrap_or(0);
        bits & mask == u128::from_be_bytes(*base)
    };
    mtus.iter().filter(|(prefix, _)| contains(prefix)).max_by_key(|((len, _), _)| *len).map_or(0, |(_, mtu)| *mtu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_route_decides() {
        let net = |address: [u8; 4], len: u32| (96 + len, Addr::v4(address).0);
        let mtus =
            Mtus::from([(net([10, 0, 0, 0], 8), 1300), (net([10, 1, 0, 0], 16), 0), (net([10, 1, 1, 1], 32), 1200)]);
        let mtu = |address| of(&mtus, Addr::v4(address));
        assert_eq!([1300, 0, 1200, 0], [[10, 2, 0, 1], [10, 1, 0, 1], [10, 1, 1, 1], [192, 0, 2, 1]].map(mtu));
    }
}
