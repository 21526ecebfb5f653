//! The control maps made equal to the tables, with the fewest writes.
//!
//! A rule that a program can reach is never changed: a new one is written where none is reachable, and then the slot
//! of the port is stored, which is the one moment at which a publish begins, changes or ends. What no slot leads to any
//! more stays in the array until its place is needed.

use super::compile::Tables;
use super::pins::Pins;
use super::sys::{self, Mapped};
use super::{near, purge, resize, traffic};
use crate::model::error::{Context, Error, Result};
use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Map, MapData};
use netpath_common::addr::Addr;
use netpath_common::layout::{self, Endpoint, Local, Network, RULES, Rule, Uplink, name};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::OwnedFd;

const PORTS: usize = 65_536;

/// The port arrays and the rules behind them.
pub struct Ports {
    rules: Mapped,
    /// Of each protocol: the array, and what was in it when it was opened.
    slots: [(u8, Mapped, Vec<u64>); 3],
}

impl Ports {
    pub fn open(pins: &Pins) -> Result<Self> {
        let array = |name: &str, elements: u32, size: usize| {
            Mapped::new(open(pins, name)?, elements, size).context(|| format!("cannot map {name} into memory"))
        };
        let slots = |proto: u8, name: &str| -> Result<_> {
            let map = array(name, PORTS as u32, size_of::<u32>())?;
            let now = map.snapshot();
            Ok((proto, map, now))
        };
        Ok(Self {
            rules: array(name::RULE, RULES, size_of::<Rule>())?,
            slots: [
                slots(layout::PROTO_TCP, name::PORT_TCP)?,
                slots(layout::PROTO_UDP, name::PORT_UDP)?,
                slots(layout::PROTO_SCTP, name::PORT_SCTP)?,
            ],
        })
    }

    /// Takes back every port that nothing in `tables` publishes.
    pub fn withdraw(&self, tables: &Tables) -> usize {
        let mut changed = 0;
        for (proto, map, now) in &self.slots {
            let mut stays = vec![false; PORTS];
            for run in tables.slots.iter().filter(|r| r.proto == *proto) {
                stays[usize::from(run.first)..usize::from(run.first) + run.count as usize].fill(true);
            }
            // `now` keeps the old slot: a packet may just have read it, so its rules count as reachable in this run.
            for (port, _) in occupied(now).filter(|(port, _)| !stays[*port]) {
                map.publish(port, 0);
                changed += 1;
            }
        }
        changed
    }

    /// Writes the rules that are missing and leads the ports to them.
    pub fn publish(&mut self, tables: &Tables) -> Result<usize> {
        let (places, mut changed) = match self.place(tables) {
            Ok(done) => done,
            Err(Full) => {
                // Old and new rules together are too many. The ports are closed for an instant, so that the places of
                // the old ones are free.
                tracing::warn!("the rule map is full, all ports are published anew");
                for (_, map, now) in &mut self.slots {
                    occupied(now).for_each(|(port, _)| map.publish(port, 0));
                    now.fill(0);
                }
                self.place(tables).map_err(|Full| {
                    Error::new("cannot publish all ports")
                        .because(format!("the published ports need more than {} rules", RULES - 1))
                        .next("publish ranges instead of single ports")
                })?
            }
        };
        for (proto, map, now) in &mut self.slots {
            for run in tables.slots.iter().filter(|r| r.proto == *proto) {
                let rule = places[run.rule];
                let ports = now.iter_mut().enumerate().skip(usize::from(run.first)).take(run.count as usize);
                for (port, slot) in ports.filter(|(_, slot)| first_half(**slot) != rule) {
                    map.publish(port, rule);
                    *slot = element(rule);
                    changed += 1;
                }
            }
        }
        Ok(changed)
    }

    /// The index of each rule of `tables` in the array, written there if it was in none.
    fn place(&self, tables: &Tables) -> std::result::Result<(Vec<u32>, usize), Full> {
        let mut taken = vec![false; RULES as usize];
        taken[0] = true;
        let mut known: HashMap<[u8; 64], u32> = HashMap::new();
        for (_, _, now) in &self.slots {
            let mut last = 0;
            for (_, slot) in occupied(now) {
                if slot != last {
                    self.walk(slot, &mut taken, &mut known);
                    last = slot;
                }
            }
        }
        let (mut free, mut changed) = (1, 0);
        let mut places: Vec<u32> = Vec::with_capacity(tables.rules.len());
        for rule in &tables.rules {
            let mut rule = *rule;
            if rule.next != 0 {
                rule.next = places[rule.next as usize - 1];
            }
            let content = content(&rule);
            let place = match known.get(&content) {
                Some(place) => *place,
                None => {
                    while *taken.get(free).ok_or(Full)? {
                        free += 1;
                    }
                    taken[free] = true;
                    self.rules.write(free, &rule);
                    changed += 1;
                    known.insert(content, free as u32);
                    free as u32
                }
            };
            places.push(place);
        }
        Ok((places, changed))
    }

    /// All rules that a program reaches from `index`. The end is certain: a rule is visited once.
    fn walk(&self, mut index: u32, taken: &mut [bool], known: &mut HashMap<[u8; 64], u32>) {
        while let Some(seen) = taken.get_mut(index as usize)
            && !*seen
        {
            *seen = true;
            let rule: Rule = self.rules.read(index as usize);
            known.insert(content(&rule), index);
            index = rule.next;
        }
    }
}

/// There is no free place for a rule.
struct Full;

fn content(rule: &Rule) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes.copy_from_slice(sys::bytes_of(rule));
    bytes
}

/// The ports that have a rule, with its index. Most of the array is empty and is passed over in blocks.
fn occupied(now: &[u64]) -> impl Iterator<Item = (usize, u32)> + '_ {
    const BLOCK: usize = 512;
    const EMPTY: [u64; BLOCK] = [0; BLOCK];
    now.chunks(BLOCK).enumerate().filter(|(_, block)| *block != EMPTY.as_slice()).flat_map(|(i, block)| {
        let ports = block.iter().enumerate().map(move |(port, e)| (i * BLOCK + port, first_half(*e)));
        ports.filter(|(_, slot)| *slot != 0)
    })
}

/// The 4-byte value of an array element, which takes 8.
fn first_half(element: u64) -> u32 {
    let [a, b, c, d, ..] = element.to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

fn element(value: u32) -> u64 {
    let [a, b, c, d] = value.to_ne_bytes();
    u64::from_ne_bytes([a, b, c, d, 0, 0, 0, 0])
}

/// Everything but the ports. Flows of endpoints that go or move are purged, and those of addresses and uplinks that the host
/// has no more. Returns the number of elements written.
pub fn sync(pins: &Pins, tables: &Tables) -> Result<usize> {
    let mut changed = 0;
    let endpoints = open(pins, name::ENDPOINT)?;
    let have: BTreeMap<[u8; 16], Endpoint> =
        dump::<Addr, _>(&endpoints, name::ENDPOINT)?.into_iter().map(|(k, v)| (k.0, v)).collect();
    let gone: BTreeSet<[u8; 16]> =
        have.iter().filter(|(k, v)| tables.endpoints.get(*k) != Some(v)).map(|(k, _)| *k).collect();
    // Before, so that a crash in between is seen by the next run; after, for flows that were just being made.
    changed += purge::flows_of(pins, &gone)?;
    // Nobody counts there any more, or not yet.
    let kept = have.iter().filter(|(k, v)| tables.endpoints.get(*k).is_some_and(|w| w.traffic == v.traffic));
    let kept: BTreeSet<u32> = kept.map(|(_, v)| v.traffic).collect();
    let fresh = tables.traffic.iter().filter(|(own, _)| !kept.contains(own)).flat_map(|(_, all)| all.iter().copied());
    changed += traffic::zero(pins, &fresh.collect::<Vec<_>>())?;
    let want = tables.endpoints.iter().map(|(k, v)| (*k, *v)).collect();
    changed += apply(&endpoints, name::ENDPOINT, have, &want, |k| Addr(*k))?;
    changed += purge::flows_of(pins, &gone)?;

    let config = BTreeMap::from([(0_u32, tables.config)]);
    changed += table(pins, name::CONFIG, &config, |k| *k, |k: u32| k)?;
    // Before and after, as with the endpoints.
    let known = uplinks(pins)?;
    let sizes = resize::changed(&known, &tables.uplinks);
    let cut: BTreeSet<u32> = known.into_keys().filter(|index| !tables.uplinks.contains_key(index)).collect();
    changed += resize::flows(pins, &sizes)?;
    changed += purge::flows_by(pins, &cut)?;
    changed += table(pins, name::UPLINK, &tables.uplinks, |k| *k, |k: u32| k)?;
    changed += resize::flows(pins, &sizes)?;
    changed += purge::flows_by(pins, &cut)?;
    changed += table(pins, name::NETWORK, &tables.networks, |k| *k, |k: u32| k)?;
    // A full map is no harm: on a miss the programs ask the kernel's FIB.
    let locals = tables.locals.iter().take(layout::LOCALS as usize).map(|a| (*a, 1 as Local)).collect();
    let moved = table(pins, name::LOCAL, &locals, |k| Addr(*k), |k: Addr| k.0)?;
    if moved != 0 {
        changed += moved + purge::strays(pins)?;
    }
    // Their bits stand for as long as the subnets do.
    let near: Vec<u64> = array(pins, name::NEAR)?;
    changed += write_near(pins, &near, &near::joined(&near, &tables.near))?;
    changed += trie(pins, name::SUBNET, &tables.subnets, Keep::Wanted)?;
    changed += write_near(pins, &near::joined(&near, &tables.near), &tables.near)?;
    changed += trie(pins, name::ALLOW, &tables.allow.entries, Keep::All).map_err(|e| {
        e.next(format!("all allow lists together have room for {} networks: join some of them", layout::ALLOWS))
    })?;
    Ok(changed)
}

/// Removes the allow lists that no rule names any more, which is after the last port has been led to another rule.
pub fn forget_lists(pins: &Pins, tables: &Tables) -> Result<usize> {
    trie(pins, name::ALLOW, &tables.allow.entries, Keep::Wanted)
}

/// The bridges that the maps know.
pub fn bridges(pins: &Pins) -> Result<BTreeSet<u32>> {
    Ok(dump::<u32, Network>(&open(pins, name::NETWORK)?, name::NETWORK)?.into_iter().map(|(k, _)| k).collect())
}

/// The uplinks that the maps know.
pub fn uplinks(pins: &Pins) -> Result<BTreeMap<u32, Uplink>> {
    Ok(dump::<u32, Uplink>(&open(pins, name::UPLINK)?, name::UPLINK)?.into_iter().collect())
}

/// What stays in a trie of that which nobody wants.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    All,
    Wanted,
}

fn trie<const N: usize, V: Pod + PartialEq>(
    pins: &Pins,
    name: &str,
    want: &BTreeMap<(u32, [u8; N]), V>,
    keep: Keep,
) -> Result<usize> {
    let what = || format!("cannot open {name}");
    let map = MapData::from_pin(pins.map(name)).and_then(Map::from_map_data).context(what)?;
    let mut map: LpmTrie<_, [u8; N], V> = LpmTrie::try_from(map).context(what)?;
    let mut have = BTreeMap::new();
    for entry in map.iter() {
        let (key, value) = entry.context(|| format!("cannot read {name}"))?;
        have.insert((key.prefix_len(), key.data()), value);
    }
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

fn array<V: Pod>(pins: &Pins, name: &str) -> Result<Vec<V>> {
    let mut all =
        sys::dump::<u32, V>(open(pins, name)?, layout::NEAR as usize).context(|| format!("cannot read {name}"))?;
    all.sort_unstable_by_key(|(index, _)| *index);
    Ok(all.into_iter().map(|(_, value)| value).collect())
}

/// Makes the words that were `have` those of `want`.
fn write_near(pins: &Pins, have: &[u64], want: &[u64]) -> Result<usize> {
    let new = want.iter().enumerate().filter(|(i, word)| have.get(*i) != Some(word));
    let (keys, words): (Vec<u32>, Vec<u64>) = new.map(|(i, word)| (i as u32, *word)).unzip();
    if !keys.is_empty() {
        sys::update(open(pins, name::NEAR)?, &keys, &words).context(|| format!("cannot write {}", name::NEAR))?;
    }
    Ok(keys.len())
}

/// Makes one map equal to `want`.
fn table<K: Ord + Copy, M: Pod, V: Pod + PartialEq>(
    pins: &Pins,
    name: &str,
    want: &BTreeMap<K, V>,
    to_map: impl Fn(&K) -> M,
    from_map: impl Fn(M) -> K,
) -> Result<usize> {
    let map = open(pins, name)?;
    let have = dump::<M, V>(&map, name)?.into_iter().map(|(k, v)| (from_map(k), v)).collect();
    apply(&map, name, have, want, to_map)
}

fn apply<K: Ord + Copy, M: Pod, V: Pod + PartialEq>(
    map: &OwnedFd,
    name: &str,
    have: BTreeMap<K, V>,
    want: &BTreeMap<K, V>,
    to_map: impl Fn(&K) -> M,
) -> Result<usize> {
    let what = || format!("cannot write {name}");
    let new: Vec<(&K, &V)> = want.iter().filter(|(k, v)| have.get(k) != Some(v)).collect();
    let gone: Vec<&K> = have.keys().filter(|k| !want.contains_key(k)).collect();
    for key in &gone {
        sys::delete(map, &to_map(key)).context(what)?;
    }
    let keys: Vec<M> = new.iter().map(|(k, _)| to_map(k)).collect();
    let values: Vec<V> = new.iter().map(|(_, v)| **v).collect();
    sys::update(map, &keys, &values).context(what)?;
    Ok(new.len() + gone.len())
}

pub fn open(pins: &Pins, name: &str) -> Result<OwnedFd> {
    let what = || format!("cannot open map {name}");
    sys::open_pin(&pins.map(name)).context(what)?.ok_or_else(|| Error::new(what()).because("its pin is gone"))
}

pub fn dump<K: Pod, V: Pod>(map: &OwnedFd, name: &str) -> Result<Vec<(K, V)>> {
    sys::dump(map, 256).context(|| format!("cannot read {name}"))
}
