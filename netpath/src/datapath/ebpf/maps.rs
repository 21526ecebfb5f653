//! The pinned maps. A [`PinnedMap`] has the shape of its types: it is compared when the map is opened, and all maps
//! are opened here.

mod calls;
pub(super) mod clear;
mod mapped;

pub(super) use mapped::Mapped;

use super::pins::Pins;
use crate::model::error::{Context, Error, Result};
use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Map, MapData, MapInfo, MapType, PerCpuArray};
use calls::{Batch, Element};
use netpath_common::addr::Addr;
use netpath_common::family::{Family, Ipv4, Ipv6};
use netpath_common::layout::{
    self, Config, Count, Endpoint, Local, NatPort, Network, Plain, PortSlot, RouteMtu, Rule, SockKey, SockOrigin,
    Subnet, Traffic, Uplink, name,
};
use netpath_common::reason;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};

/// Elements per call; the larger maps have tens of thousands.
pub(super) const CHUNK: usize = 4_096;

/// Marks a per-CPU value: one per processor, read together and not as a single `V`.
pub(super) struct PerCpu<V>(V);

/// Expected type and sizes of a map.
pub(super) struct Shape<K, V> {
    name: &'static str,
    kind: MapType,
    entries: u32,
    types: PhantomData<fn(K) -> V>,
}

impl<K, V> Shape<K, V> {
    const fn new(kind: MapType, name: &'static str, entries: u32) -> Self {
        Self { name, kind, entries, types: PhantomData }
    }

    pub(super) const fn name(&self) -> &'static str {
        self.name
    }
}

const PORTS: u32 = 65_536;

pub(super) const CONFIG: Shape<u32, Config> = Shape::new(MapType::Array, name::CONFIG, 1);
pub(super) const PORT_TCP: Shape<u32, PortSlot> = Shape::new(MapType::Array, name::PORT_TCP, PORTS);
pub(super) const PORT_UDP: Shape<u32, PortSlot> = Shape::new(MapType::Array, name::PORT_UDP, PORTS);
pub(super) const PORT_SCTP: Shape<u32, PortSlot> = Shape::new(MapType::Array, name::PORT_SCTP, PORTS);
pub(super) const RULE: Shape<u32, Rule> = Shape::new(MapType::Array, name::RULE, layout::RULES);
pub(super) const ENDPOINT: Shape<Addr, Endpoint> = Shape::new(MapType::Hash, name::ENDPOINT, layout::ENDPOINTS);
pub(super) const NETWORK: Shape<u32, Network> = Shape::new(MapType::Hash, name::NETWORK, layout::NETWORKS);
pub(super) const SUBNET: Shape<Key<[u8; 16]>, Subnet> = Shape::new(MapType::LpmTrie, name::SUBNET, layout::SUBNETS);
pub(super) const UPLINK: Shape<u32, Uplink> = Shape::new(MapType::Hash, name::UPLINK, layout::UPLINKS);
pub(super) const LOCAL: Shape<Addr, Local> = Shape::new(MapType::Hash, name::LOCAL, layout::LOCALS);
pub(super) const ROUTE_MTU: Shape<Key<[u8; 16]>, RouteMtu> =
    Shape::new(MapType::LpmTrie, name::ROUTE_MTU, layout::ROUTE_MTUS);
/// Keys are the bytes of a `layout::AllowKey`.
pub(super) const ALLOW: Shape<Key<[u8; 20]>, u32> = Shape::new(MapType::LpmTrie, name::ALLOW, layout::ALLOWS);
pub(super) const SUBNET_HINTS: Shape<u32, u64> =
    Shape::new(MapType::Array, name::SUBNET_HINTS, layout::SUBNET_HINT_WORDS);
pub(super) const NAT_PORT: Shape<u32, NatPort> = Shape::new(MapType::Array, name::NAT_PORT, PORTS);
pub(super) const SOCK: Shape<SockKey, SockOrigin> = Shape::new(MapType::LruHash, name::SOCK, layout::SOCKS);
pub(super) const TRAFFIC: Shape<u32, PerCpu<Traffic>> =
    Shape::new(MapType::PerCpuArray, name::TRAFFIC, layout::TRAFFICS);
pub(super) const COUNT: Shape<u32, PerCpu<Count>> = Shape::new(MapType::PerCpuArray, name::COUNT, reason::SLOTS);

/// The elements of a trie, by prefix length and data.
///
/// # Errors
/// The map cannot be read.
pub(super) fn dump_trie<const N: usize, V: Pod>(
    pins: &Pins,
    shape: &Shape<Key<[u8; N]>, V>,
) -> Result<BTreeMap<(u32, [u8; N]), V>> {
    let map = PinnedMap::open(pins, shape)?.into_trie()?;
    let entries = map.iter().map(|entry| {
        let (key, value) = entry.context(|| format!("cannot read {}", shape.name()))?;
        Ok(((key.prefix_len(), key.data()), value))
    });
    entries.collect()
}

/// A family's flow table.
pub(super) trait Flows: Family {
    const FLOWS: Shape<Self::Key, Self::Flow>;
    /// A flow up to layout 6, and the table.
    type Earlier: Plain;
    const EARLIER: Shape<Self::Key, Self::Earlier>;
}

impl Flows for Ipv4 {
    const FLOWS: Shape<Self::Key, Self::Flow> = Shape::new(MapType::LruHash, name::FLOW4, layout::FLOWS4);
    type Earlier = [u8; 40];
    const EARLIER: Shape<Self::Key, Self::Earlier> = Shape::new(MapType::LruHash, name::FLOW4, layout::FLOWS4);
}

impl Flows for Ipv6 {
    const FLOWS: Shape<Self::Key, Self::Flow> = Shape::new(MapType::LruHash, name::FLOW6, layout::FLOWS6);
    type Earlier = [u8; 64];
    const EARLIER: Shape<Self::Key, Self::Earlier> = Shape::new(MapType::LruHash, name::FLOW6, layout::FLOWS6);
}

/// Type and sizes of a map as the kernel reports them, or as expected.
#[derive(PartialEq)]
struct Form {
    kind: Option<MapType>,
    key: u32,
    value: u32,
    entries: u32,
}

impl Form {
    fn of<K, V>(shape: &Shape<K, V>) -> Self {
        let (key, value) = (size_of::<K>() as u32, size_of::<V>() as u32);
        Self { kind: Some(shape.kind), key, value, entries: shape.entries }
    }

    fn found(info: &MapInfo) -> Self {
        let (key, value) = (info.key_size(), info.value_size());
        Self { kind: info.map_type().ok(), key, value, entries: info.max_entries() }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Some(kind) => write!(f, "{kind:?}")?,
            None => write!(f, "a map of unknown type")?,
        }
        write!(f, " with keys of {} bytes, values of {} bytes, {} entries", self.key, self.value, self.entries)
    }
}

/// A pinned map whose key and value have the sizes of `K` and `V`.
pub(super) struct PinnedMap<K, V> {
    data: MapData,
    name: &'static str,
    types: PhantomData<fn(K) -> V>,
}

impl<K, V> PinnedMap<K, V> {
    /// # Errors
    /// The pin is missing, or the map under its name has another shape.
    pub(super) fn open(pins: &Pins, shape: &Shape<K, V>) -> Result<Self> {
        let what = || format!("cannot open map {}", shape.name);
        let data = MapData::from_pin(pins.map(shape.name)).context(what)?;
        let (found, expected) = (Form::found(&data.info().context(what)?), Form::of(shape));
        if found != expected {
            let next = format!(
                "rmdir {}/object-*: the next start or stop of a container recreates all maps, flows are lost",
                pins.root().display()
            );
            return Err(Error::new(what()).because(format!("expected {expected}; found {found}")).next(next));
        }
        Ok(Self { data, name: shape.name, types: PhantomData })
    }

    /// The same for the pins of another layout, with any number of entries; `None`: no map of these types.
    pub(super) fn of_another_layout(pins: &Pins, shape: &Shape<K, V>) -> Option<Self> {
        let data = MapData::from_pin(pins.map(shape.name)).ok()?;
        let found = Form::found(&data.info().ok()?);
        let fits = found == Form { entries: found.entries, ..Form::of(shape) };
        fits.then_some(Self { data, name: shape.name, types: PhantomData })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.data.fd().as_fd()
    }

    fn reading(&self) -> String {
        format!("cannot read {}", self.name)
    }

    fn writing(&self) -> String {
        format!("cannot write {}", self.name)
    }
}

/// A part of a map, and the position of the next one; `None` = the last.
pub(super) type Part<K, V> = (Vec<(K, V)>, Option<u32>);

impl<K: Plain, V: Plain> PinnedMap<K, V> {
    /// Up to `chunk` elements of a hash map or an array (5.6) from the position of an earlier part. Elements added or
    /// removed meanwhile may be missed or read twice; all others are read.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn part(&self, from: Option<u32>, chunk: usize) -> Result<Part<K, V>> {
        let mut chunk = chunk;
        loop {
            let (mut keys, mut values) = (vec![K::new_zeroed(); chunk], vec![V::new_zeroed(); chunk]);
            match self.look_up_batch(from, &mut keys, &mut values).context(|| self.reading())? {
                // One bucket holds more than the buffer.
                Batch { count: 0, is_cut: true, .. } => chunk *= 2,
                Batch { count, next, .. } => {
                    return Ok((keys.into_iter().zip(values).take(count).collect(), next));
                }
            }
        }
    }

    /// Every element, with the guarantees of [`Self::part`].
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn dump(&self, chunk: usize) -> Result<Vec<(K, V)>> {
        let (mut all, mut next) = self.part(None, chunk)?;
        while next.is_some() {
            let (more, after) = self.part(next, chunk)?;
            all.extend(more);
            next = after;
        }
        Ok(all)
    }

    /// The value of a key. Does not count as use in an LRU_HASH (`kernel/bpf/hashtab.c,
    /// htab_lru_map_lookup_elem_sys()`).
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn get(&self, key: &K) -> Result<Option<V>> {
        let mut value = V::new_zeroed();
        let found = self.element(Element::LookUp, key, Some(&mut value)).context(|| self.reading())?;
        Ok(found.then_some(value))
    }

    /// Removes a key and gives its last value (5.14), so that no concurrent write is lost unseen. On older kernels it
    /// is the value shortly before.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn take(&self, key: &K) -> Result<Option<V>> {
        let mut value = V::new_zeroed();
        match self.element(Element::Take, key, Some(&mut value)) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | calls::ENOTSUPP)) => {
                let last = self.get(key)?;
                Ok(if self.delete(key)? { last } else { None })
            }
            other => Ok(other.context(|| self.writing())?.then_some(value)),
        }
    }

    /// Adds a new key; false if it exists.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn add(&self, key: &K, value: &V) -> Result<bool> {
        self.element(Element::Add, key, Some(&mut { *value })).context(|| self.writing())
    }

    /// Replaces the value of an existing key; false if there is none.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn change(&self, key: &K, value: &V) -> Result<bool> {
        self.element(Element::Change, key, Some(&mut { *value })).context(|| self.writing())
    }

    /// Removes a key; false if there is none.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn delete(&self, key: &K) -> Result<bool> {
        self.element(Element::Delete, key, None).context(|| self.writing())
    }

    /// Writes all elements with one call (HASH and ARRAY 5.6).
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn update(&self, keys: &[K], values: &[V]) -> Result<()> {
        assert_eq!(keys.len(), values.len());
        let mut done = 0;
        while done < keys.len() {
            done += self.update_batch(&keys[done..], &values[done..]).context(|| self.writing())?;
        }
        Ok(())
    }
}

impl<V: Plain> PinnedMap<u32, V> {
    /// Maps `elements` of an array from `first` on into memory, in whole pages except for the last.
    ///
    /// # Errors
    /// The array is not mmapable, or is smaller.
    pub(super) fn map(&self, first: u32, elements: u32) -> Result<Mapped<V>> {
        Mapped::new(self.fd(), first, elements).context(|| format!("cannot map {} into memory", self.name))
    }
}

impl<V: Pod> PinnedMap<u32, PerCpu<V>> {
    /// Writes zeroes to these elements, on every processor (5.13).
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn zero(&self, indexes: &[u32]) -> Result<()> {
        self.zero_batches(indexes).context(|| self.writing())
    }

    /// For reading, with a value per processor.
    ///
    /// # Errors
    /// None known: the types have been compared.
    pub(super) fn into_values(self) -> Result<PerCpuArray<MapData, V>> {
        let what = self.reading();
        Map::from_map_data(self.data).and_then(PerCpuArray::try_from).context(|| what)
    }
}

impl<const N: usize, V: Pod> PinnedMap<Key<[u8; N]>, V> {
    /// # Errors
    /// None known: the types have been compared.
    pub(super) fn into_trie(self) -> Result<LpmTrie<MapData, [u8; N], V>> {
        let what = self.reading();
        Map::from_map_data(self.data).and_then(LpmTrie::try_from).context(|| what)
    }
}
