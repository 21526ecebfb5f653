//! Synchronises the control maps with the tables, with the fewest writes; those of ports are in `ports`.

use super::compile::Tables;
use super::maps::{self, PinnedMap, Shape};
use super::pins::Pins;
use super::{departures, flow_mtu, invalidate, route_mtu, subnet_bitmap, traffic};
use crate::model::Departures;
use crate::model::error::{Context, Result};
use aya::Pod;
use aya::maps::lpm_trie::Key;
use netpath_common::addr::Addr;
use netpath_common::layout::{self, Endpoint, Plain, Uplink};
use std::collections::{BTreeMap, BTreeSet};

/// Elements per call; these maps are small.
const CHUNK: usize = 256;

/// Every control map except ports. Flows of removed or moved endpoints are invalidated, except those that wait for their
/// container; flows of addresses and uplinks that the host no longer has are too. Returns the number of elements written.
pub(super) fn sync(pins: &Pins, tables: &Tables, departed: &Departures) -> Result<usize> {
    let mut changed = 0;
    let endpoints = PinnedMap::open(pins, &maps::ENDPOINT)?;
    let have: BTreeMap<[u8; 16], Endpoint> = endpoints.dump(CHUNK)?.into_iter().map(|(k, v)| (k.0, v)).collect();
    let differs = have.iter().filter(|(k, v)| tables.endpoints.get(*k) != Some(v)).map(|(k, _)| *k);
    let gone = departures::ending(differs, departed);
    // Before, so that the next run sees a crash in between; after, for flows that began meanwhile.
    changed += invalidate::flows_of(pins, &gone)?;
    // Counters that are not in use any more, or not yet.
    let kept = have.iter().filter(|(k, v)| tables.endpoints.get(*k).is_some_and(|w| w.traffic == v.traffic));
    let kept: BTreeSet<u32> = kept.map(|(_, v)| v.traffic).collect();
    let fresh = tables.traffic.iter().filter(|(own, _)| !kept.contains(own)).flat_map(|(_, all)| all.iter().copied());
    changed += traffic::zero(pins, &fresh.collect::<Vec<_>>())?;
    let want = tables.endpoints.iter().map(|(k, v)| (*k, *v)).collect();
    changed += apply(&endpoints, have, &want, |k| Addr(*k))?;
    changed += invalidate::flows_of(pins, &gone)? + departures::return_flows(pins, tables, departed)?;

    let config = BTreeMap::from([(0_u32, tables.config)]);
    changed += table(pins, &maps::CONFIG, &config, |k| *k, |k: u32| k)?;
    // Before and after, as with the endpoints.
    let known = uplinks(pins)?;
    let sizes = flow_mtu::changed(&known, &tables.uplinks);
    let cut: BTreeSet<u32> = known.into_keys().filter(|index| !tables.uplinks.contains_key(index)).collect();
    changed += flow_mtu::flows(pins, &sizes)?;
    changed += invalidate::flows_by(pins, &cut)?;
    changed += sync_uplinks(pins, tables)?;
    changed += flow_mtu::flows(pins, &sizes)?;
    changed += invalidate::flows_by(pins, &cut)?;
    changed += table(pins, &maps::NETWORK, &tables.networks, |k| *k, |k: u32| k)?;
    let moved = sync_locals(pins, tables)?;
    if let Some(mtus) = &tables.route_mtus {
        let known = maps::dump_trie(pins, &maps::ROUTE_MTU)?;
        if known != *mtus {
            // Before and after, as with the endpoints.
            let follow = || route_mtu::follow(pins, &known, mtus, &tables.uplinks);
            changed += follow()? + trie(pins, &maps::ROUTE_MTU, mtus, Keep::Wanted)? + follow()?;
        }
    }
    if moved != 0 {
        changed += moved + invalidate::strays(pins)?;
    }
    // Bits are set before their subnets are added and cleared after they are removed.
    let hints = subnet_hints(pins)?;
    changed += write_subnet_hints(pins, &hints, &subnet_bitmap::joined(&hints, &tables.subnet_hints))?;
    changed += trie(pins, &maps::SUBNET, &tables.subnets, Keep::Wanted)?;
    changed += write_subnet_hints(pins, &subnet_bitmap::joined(&hints, &tables.subnet_hints), &tables.subnet_hints)?;
    changed += trie(pins, &maps::ALLOW, &tables.allow.entries, Keep::All).map_err(|e| {
        e.next(format!("all allow lists together have room for {} networks: merge some of them", layout::ALLOWS))
    })?;
    Ok(changed)
}

/// The control maps of the programs at sockets, except ports. Returns the number of elements written.
pub(super) fn sync_sockets(pins: &Pins, tables: &Tables) -> Result<usize> {
    let config = BTreeMap::from([(0_u32, tables.config)]);
    Ok(table(pins, &maps::CONFIG, &config, |k| *k, |k: u32| k)? + sync_locals(pins, tables)?)
}

/// Adds and removes uplinks; the flows of removed ones are left.
pub(super) fn sync_uplinks(pins: &Pins, tables: &Tables) -> Result<usize> {
    table(pins, &maps::UPLINK, &tables.uplinks, |k| *k, |k: u32| k)
}

fn sync_locals(pins: &Pins, tables: &Tables) -> Result<usize> {
    // A full map is safe: on a miss the programs query the kernel's FIB.
    let locals = tables.locals.iter().take(layout::LOCALS as usize).map(|(a, owner)| (*a, *owner)).collect();
    table(pins, &maps::LOCAL, &locals, |k| Addr(*k), |k: Addr| k.0)
}

/// Removes unused allow lists, after the last port has been switched to another rule.
pub(super) fn forget_lists(pins: &Pins, tables: &Tables) -> Result<usize> {
    trie(pins, &maps::ALLOW, &tables.allow.entries, Keep::Wanted)
}

/// The bridges in the maps.
pub(super) fn bridges(pins: &Pins) -> Result<BTreeSet<u32>> {
    Ok(PinnedMap::open(pins, &maps::NETWORK)?.dump(CHUNK)?.into_iter().map(|(k, _)| k).collect())
}

/// The uplinks in the maps.
pub(super) fn uplinks(pins: &Pins) -> Result<BTreeMap<u32, Uplink>> {
    Ok(PinnedMap::open(pins, &maps::UPLINK)?.dump(CHUNK)?.into_iter().collect())
}

/// Which unwanted elements of a trie are kept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    All,
    Wanted,
}

fn trie<const N: usize, V: Pod + PartialEq>(
    pins: &Pins,
    shape: &Shape<Key<[u8; N]>, V>,
    want: &BTreeMap<(u32, [u8; N]), V>,
    keep: Keep,
) -> Result<usize> {
    let have = maps::dump_trie(pins, shape)?;
    let (name, mut map) = (shape.name(), PinnedMap::open(pins, shape)?.into_trie()?);
    let what = || format!("cannot write {name}");
    let mut changed = 0;
    for ((len, base), value) in want.iter().filter(|(k, v)| have.get(*k) != Some(v)) {
        map.insert(&Key::new(*len, *base), value, 0).context(what)?;
        changed += 1;
    }
    for (len, base) in have.keys().filter(|k| keep == Keep::Wanted && !want.contains_key(*k)) {
        map.remove(&Key::new(*len, *base)).context(what)?;
        changed += 1;
    }
    Ok(changed)
}

fn subnet_hints(pins: &Pins) -> Result<Vec<u64>> {
    let mut all = PinnedMap::open(pins, &maps::SUBNET_HINTS)?.dump(layout::SUBNET_HINT_WORDS as usize)?;
    all.sort_unstable_by_key(|(index, _)| *index);
    Ok(all.into_iter().map(|(_, value)| value).collect())
}

/// Changes the words from `have` to `want`.
fn write_subnet_hints(pins: &Pins, have: &[u64], want: &[u64]) -> Result<usize> {
    let new = want.iter().enumerate().filter(|(i, word)| have.get(*i) != Some(word));
    let (keys, words): (Vec<u32>, Vec<u64>) = new.map(|(i, word)| (i as u32, *word)).unzip();
    if !keys.is_empty() {
        PinnedMap::open(pins, &maps::SUBNET_HINTS)?.update(&keys, &words)?;
    }
    Ok(keys.len())
}

/// Makes one map equal to `want`.
fn table<K: Ord + Copy, M: Plain, V: Plain + PartialEq>(
    pins: &Pins,
    shape: &Shape<M, V>,
    want: &BTreeMap<K, V>,
    to_map: impl Fn(&K) -> M,
    from_map: impl Fn(M) -> K,
) -> Result<usize> {
    let map = PinnedMap::open(pins, shape)?;
    let have = map.dump(CHUNK)?.into_iter().map(|(k, v)| (from_map(k), v)).collect();
    apply(&map, have, want, to_map)
}

fn apply<K: Ord + Copy, M: Plain, V: Plain + PartialEq>(
    map: &PinnedMap<M, V>,
    have: BTreeMap<K, V>,
    want: &BTreeMap<K, V>,
    to_map: impl Fn(&K) -> M,
) -> Result<usize> {
    let new: Vec<(&K, &V)> = want.iter().filter(|(k, v)| have.get(k) != Some(v)).collect();
    let gone: Vec<&K> = have.keys().filter(|k| !want.contains_key(k)).collect();
    for key in &gone {
        map.delete(&to_map(key))?;
    }
    let keys: Vec<M> = new.iter().map(|(k, _)| to_map(k)).collect();
    let values: Vec<V> = new.iter().map(|(_, v)| **v).collect();
    map.update(&keys, &values)?;
    Ok(new.len() + gone.len())
}
