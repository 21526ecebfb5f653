//! What the server knows: the networks with their containers, and who is asking. Never changed: a change of the files makes another
//! table.
//!
//! The text of a file is kept in lower case, and everything else refers to it, so that a table of thousands of containers is
//! made in milliseconds and is hardly larger than its files.

use super::upstream::Upstreams;
use hashbrown::{DefaultHashBuilder, HashMap, HashTable};
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

/// A part of the text of a file, or of a list.
pub(super) type Span = Range<u32>;

/// The containers of one network: one file.
pub(super) struct Zone {
    pub name: String,
    /// What stands behind a name in `name.network`.
    domain: String,
    /// Nothing is forwarded for it.
    pub internal: bool,
    pub listen: Vec<IpAddr>,
    servers: Vec<IpAddr>,
    pub ttl: u32,
    text: Box<str>,
    entries: Vec<Entry>,
    addresses: Vec<IpAddr>,
    /// An entry for each of its names.
    names: HashTable<(Span, u32)>,
    hasher: DefaultHashBuilder,
}

/// One container on one network.
struct Entry {
    id: Span,
    /// Separated by commas.
    names: Span,
    /// Of [`Zone::addresses`].
    addresses: Span,
    servers: Box<[IpAddr]>,
}

/// The first line of a file.
#[derive(Default)]
pub(super) struct Header {
    pub listen: Vec<IpAddr>,
    pub servers: Vec<IpAddr>,
    pub ttl: u32,
}

/// A further line of a file, in its text.
pub(super) struct Line<'t> {
    pub id: &'t str,
    /// Of the addresses of all lines.
    pub addresses: Span,
    pub names: &'t str,
    pub servers: Vec<IpAddr>,
}

impl Zone {
    /// `addresses`: of all lines.
    pub(super) fn new(
        name: String,
        internal: bool,
        header: Header,
        text: &str,
        lines: Vec<Line<'_>>,
        addresses: Vec<IpAddr>,
    ) -> Self {
        let hasher = DefaultHashBuilder::default();
        let begin = text.as_ptr() as usize;
        // Files have far less than 4 GiB: `files.rs` reads no larger ones.
        let span = |part: &str| {
            let at = (part.as_ptr() as usize - begin) as u32;
            at..at + part.len() as u32
        };
        let mut entries = Vec::with_capacity(lines.len());
        let mut names = HashTable::with_capacity(lines.iter().map(|l| 1 + l.names.matches(',').count()).sum());
        for (at, line) in (0_u32..).zip(lines) {
            let entry = Entry {
                id: span(line.id),
                names: span(line.names),
                addresses: line.addresses,
                servers: line.servers.into(),
            };
            entries.push(entry);
            for name in line.names.split(',').filter(|n| !n.is_empty()) {
                let rehash = |(span, _): &(Span, u32)| hasher.hash_one(part(text, span).as_bytes());
                names.insert_unique(hasher.hash_one(name.as_bytes()), (span(name), at), rehash);
            }
        }
        let Header { listen, servers, ttl } = header;
        let domain = format!(".{}", name.to_ascii_lowercase());
        Self { name, domain, internal, listen, servers, ttl, text: text.into(), entries, addresses, names, hasher }
    }

    /// Adds the addresses of the containers with this name; `false`: there is none.
    fn addresses_of(&self, name: &[u8], found: &mut Vec<IpAddr>) -> bool {
        let mut is_known = false;
        for (span, entry) in self.names.iter_hash(self.hasher.hash_one(name)) {
            if part(&self.text, span).as_bytes() == name {
                found.extend_from_slice(self.addresses(&self.entries[*entry as usize]));
                is_known = true;
            }
        }
        is_known
    }

    fn addresses(&self, entry: &Entry) -> &[IpAddr] {
        &self.addresses[entry.addresses.start as usize..entry.addresses.end as usize]
    }

    fn names<'z>(&'z self, entry: &Entry) -> impl Iterator<Item = &'z str> + use<'z> {
        part(&self.text, &entry.names).split(',').filter(|n| !n.is_empty())
    }

    /// Id, names and addresses of each container.
    pub(super) fn containers(&self) -> impl Iterator<Item = (&str, Vec<&str>, &[IpAddr])> {
        self.entries.iter().map(|e| (part(&self.text, &e.id), self.names(e).collect(), self.addresses(e)))
    }
}

fn part<'t>(text: &'t str, span: &Span) -> &'t str {
    text.get(span.start as usize..span.end as usize).unwrap_or_default()
}

/// The networks that a client is on, and the servers that it is to use.
struct Group {
    /// Of [`Table::zones`].
    zones: Box<[u32]>,
    upstreams: Option<Upstreams>,
}

/// A container, while a table is made.
struct Member<'z> {
    /// The first of its zones, and the others.
    zone: u32,
    more: Vec<u32>,
    servers: &'z [IpAddr],
}

#[derive(Default)]
pub(super) struct Table {
    pub zones: Vec<Arc<Zone>>,
    groups: Vec<Group>,
    /// The group of each container.
    group_of: Vec<u32>,
    /// The container of each address.
    clients: HashMap<IpAddr, u32>,
    /// Of addresses that several containers have, on different networks: the others.
    ambiguous: HashMap<IpAddr, Vec<u32>>,
    /// For clients that are no containers: the group of each address that is listened on.
    listeners: HashMap<IpAddr, u32>,
}

/// What one client sees.
#[derive(Clone, Copy)]
pub(super) struct View<'t> {
    table: &'t Table,
    group: &'t Group,
}

impl Table {
    pub(super) fn new(zones: Vec<Arc<Zone>>) -> Self {
        let mut table = Self { zones, ..Self::default() };
        let zones = std::mem::take(&mut table.zones);
        // Zones of a container, by its id: few are on several networks.
        let total = zones.iter().map(|z| z.entries.len()).sum();
        let mut by_id: HashMap<&str, u32> = HashMap::with_capacity(total);
        let mut members: Vec<Member<'_>> = Vec::with_capacity(total);
        table.clients.reserve(zones.iter().map(|z| z.addresses.len()).sum());
        for (at, zone) in (0_u32..).zip(&zones) {
            for entry in &zone.entries {
                let number = *by_id.entry(part(&zone.text, &entry.id)).or_insert_with(|| {
                    members.push(Member { zone: at, more: Vec::new(), servers: &[] });
                    members.len() as u32 - 1
                });
                let member = &mut members[number as usize];
                if member.more.last().unwrap_or(&member.zone) != &at {
                    member.more.push(at);
                }
                // Internal networks have no servers.
                if member.servers.is_empty() && !zone.internal {
                    member.servers = &entry.servers;
                }
                for address in zone.addresses(entry) {
                    match table.clients.entry(*address) {
                        hashbrown::hash_map::Entry::Occupied(other) if *other.get() != number => {
                            table.ambiguous.entry(*address).or_default().push(number);
                        }
                        hashbrown::hash_map::Entry::Occupied(_) => {}
                        hashbrown::hash_map::Entry::Vacant(free) => drop(free.insert(number)),
                    }
                }
            }
        }
        drop(by_id);
        let group = |of: &[u32], servers: &[IpAddr]| {
            let of_networks =
                || of.iter().map(|z| &zones[*z as usize]).filter(|z| !z.internal).flat_map(|z| &z.servers);
            let list: Vec<IpAddr> =
                if servers.is_empty() { of_networks().copied().collect() } else { servers.to_vec() };
            Group { zones: of.into(), upstreams: Upstreams::of(&list) }
        };
        // Most containers are on one network, and have its servers: they share a group.
        let mut common: Vec<Option<u32>> = vec![None; zones.len()];
        table.group_of.reserve(members.len());
        for Member { zone, more, servers } in &members {
            let is_common = more.is_empty() && servers.is_empty();
            let known = common[*zone as usize].filter(|_| is_common);
            let number = known.unwrap_or_else(|| {
                let of: Vec<u32> = std::iter::once(*zone).chain(more.iter().copied()).collect();
                table.groups.push(group(&of, servers));
                table.groups.len() as u32 - 1
            });
            if is_common {
                common[*zone as usize] = Some(number);
            }
            table.group_of.push(number);
        }
        let mut by_listener: HashMap<IpAddr, Vec<u32>> = HashMap::new();
        for (at, zone) in (0_u32..).zip(&zones) {
            for address in &zone.listen {
                by_listener.entry(*address).or_default().push(at);
            }
        }
        for (address, of) in by_listener {
            table.listeners.insert(address, table.groups.len() as u32);
            table.groups.push(group(&of, &[]));
        }
        table.zones = zones;
        table
    }

    /// `listener`: the address that was asked. `None`: no network has it any more.
    pub(super) fn view(&self, client: IpAddr, listener: IpAddr) -> Option<View<'_>> {
        let at_listener = self.listeners.get(&listener);
        let zones_here = || at_listener.map_or(&[][..], |g| &self.groups[*g as usize].zones);
        let of_client = self.clients.get(&client).map(|first| {
            let group = |container: &u32| &self.group_of[*container as usize];
            let is_here = |c: &&u32| self.groups[*group(c) as usize].zones.iter().any(|z| zones_here().contains(z));
            let others = if self.ambiguous.is_empty() { None } else { self.ambiguous.get(&client) };
            group(others.and_then(|others| others.iter().chain([first]).find(is_here)).unwrap_or(first))
        });
        let group = &self.groups[*of_client.or(at_listener)? as usize];
        Some(View { table: self, group })
    }

    /// The addresses to listen on.
    pub(super) fn listen(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.listeners.keys().copied()
    }

    pub(super) fn listens_on(&self, address: &IpAddr) -> bool {
        self.listeners.contains_key(address)
    }
}

impl<'t> View<'t> {
    pub(super) fn zones(&self) -> impl Iterator<Item = &'t Zone> + use<'t> {
        let table = self.table;
        self.group.zones.iter().map(move |z| &*table.zones[*z as usize])
    }

    /// Adds the addresses behind this name on all networks of the client; returns the TTL of the answer.
    pub(super) fn find(&self, name: &[u8], found: &mut Vec<IpAddr>) -> Option<u32> {
        let on_all = self.zones().filter_map(|zone| zone.addresses_of(name, found).then_some(zone.ttl)).min();
        on_all.or_else(|| {
            // `name.network`
            let on = self.zones().filter_map(|zone| {
                let name = name.strip_suffix(zone.domain.as_bytes())?;
                zone.addresses_of(name, found).then_some(zone.ttl)
            });
            on.min()
        })
    }

    /// The addresses of the host on the client's networks: its gateways. Those of networks with a way out come first.
    pub(super) fn host(&self, found: &mut Vec<IpAddr>) -> Option<u32> {
        for internal in [false, true] {
            if let Some(zone) = self.zones().find(|z| z.internal == internal) {
                found.extend_from_slice(&zone.listen);
                return Some(zone.ttl);
            }
        }
        None
    }

    /// The names of the container with this address, and the TTL of the answer.
    pub(super) fn names_of(&self, address: IpAddr) -> Option<(Vec<&'t str>, u32)> {
        self.zones().find_map(|zone| {
            let entry = zone.entries.iter().find(|e| zone.addresses(e).contains(&address))?;
            Some((zone.names(entry).collect(), zone.ttl))
        })
    }

    pub(super) fn may_forward(&self) -> bool {
        self.zones().any(|z| !z.internal)
    }

    /// The servers of the client's container or networks; `None`: those of the host.
    pub(super) fn upstreams(&self) -> Option<&'t Upstreams> {
        self.group.upstreams.as_ref()
    }
}
