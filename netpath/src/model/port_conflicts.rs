//! Conflicts between published ports.
//!
//! A port on one host address and the same port on all addresses do not conflict: the more specific one takes precedence.
//! One container may publish the same port on two networks; the older record is served.

use super::{HostBind, Proto, Record};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The addresses that a port is published on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Place {
    EveryV4,
    EveryV6,
    One(IpAddr),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::EveryV4 => f.write_str("every IPv4 address of the host"),
            Place::EveryV6 => f.write_str("every IPv6 address of the host"),
            Place::One(address) => address.fmt(f),
        }
    }
}

/// A port that two containers want.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortConflict<'a> {
    pub owner: &'a Record,
    pub place: Place,
    pub proto: Proto,
    pub port: u16,
}

/// The places of a bind, in the families of the record's addresses.
fn places(record: &Record, bind: HostBind) -> impl Iterator<Item = Place> {
    let bind = match bind {
        HostBind::Address(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => HostBind::AnyV4,
        HostBind::Address(IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => HostBind::AnyV6,
        other => other,
    };
    let place = |every| if let HostBind::Address(a) = bind { Place::One(a) } else { every };
    let v4 = (bind.serves_v4() && record.endpoint.first_v4().is_some()).then(|| place(Place::EveryV4));
    let v6 = (bind.serves_v6() && record.endpoint.first_v6().is_some()).then(|| place(Place::EveryV6));
    v4.into_iter().chain(v6)
}

/// For each of `others` its first port that one of `coming` publishes too. Other networks of the same container are ignored.
pub fn conflicts<'a>(coming: &[Record], others: impl Iterator<Item = &'a Record>) -> Vec<PortConflict<'a>> {
    let wanted = Wanted::of(coming);
    let others = others.filter(|o| coming.iter().all(|c| c.container.id != o.container.id));
    others.filter_map(|owner| wanted.first_of(owner)).collect()
}

/// Start or end of a range of ports.
struct Boundary {
    place: Place,
    /// Of a record in `coming`.
    comes: bool,
    /// Change in the number of publishes: 1 or −1.
    change: i32,
}

/// The first port of `coming` that would be published, together with `existing`, in more than `limit` places.
pub fn exceeds_limit(coming: &[Record], existing: &[Record], limit: usize) -> Option<(Proto, u16)> {
    let each = |r: &Record| r.publishes.iter().flat_map(|p| places(r, p.bind)).collect::<HashSet<_>>();
    // The usual case.
    if coming.iter().chain(existing).flat_map(each).collect::<HashSet<_>>().len() <= limit {
        return None;
    }
    let mut boundaries: BTreeMap<(Proto, u32), Vec<Boundary>> = BTreeMap::new();
    for (records, comes) in [(existing, false), (coming, true)] {
        for record in records {
            for publish in &record.publishes {
                let first = u32::from(publish.host_port());
                for place in places(record, publish.bind) {
                    let mut boundary = |port, change| {
                        boundaries.entry((publish.proto, port)).or_default().push(Boundary { place, comes, change });
                    };
                    boundary(first, 1);
                    boundary(first + u32::from(publish.count()), -1);
                }
            }
        }
    }
    let mut open: HashMap<(Proto, Place), i32> = HashMap::new();
    let mut coming = 0;
    for ((proto, port), changes) in boundaries {
        for Boundary { place, comes, change } in changes {
            let publishes = open.entry((proto, place)).or_default();
            *publishes += change;
            if *publishes == 0 {
                open.remove(&(proto, place));
            }
            coming += if comes { change } else { 0 };
        }
        if coming > 0 && open.keys().filter(|(of, _)| *of == proto).count() > limit {
            return u16::try_from(port).ok().map(|port| (proto, port));
        }
    }
    None
}

/// Ranges by protocol and place, sorted by first port.
struct Wanted(HashMap<(Proto, Place), Vec<Range>>);

struct Range {
    first: u32,
    end: u32,
    /// The largest `end` of all ranges up to this one.
    reach: u32,
}

impl Wanted {
    fn of(records: &[Record]) -> Self {
        let mut all: HashMap<_, Vec<Range>> = HashMap::new();
        for record in records {
            for publish in &record.publishes {
                let first = u32::from(publish.host_port());
                let end = first + u32::from(publish.count());
                for place in places(record, publish.bind) {
                    all.entry((publish.proto, place)).or_default().push(Range { first, end, reach: end });
                }
            }
        }
        for ranges in all.values_mut() {
            ranges.sort_unstable_by_key(|r| r.first);
            let mut reach = 0;
            for range in ranges {
                reach = reach.max(range.end);
                range.reach = reach;
            }
        }
        Self(all)
    }

    fn first_of<'a>(&self, owner: &'a Record) -> Option<PortConflict<'a>> {
        owner.publishes.iter().find_map(|publish| {
            let first = u32::from(publish.host_port());
            let end = first + u32::from(publish.count());
            places(owner, publish.bind).find_map(|place| {
                let ranges = self.0.get(&(publish.proto, place))?;
                let before_end = &ranges[..ranges.partition_point(|r| r.first < end)];
                before_end.last().filter(|r| r.reach > first)?;
                let overlapping = before_end.iter().find(|r| r.end > first)?;
                let port = u16::try_from(overlapping.first.max(first)).ok()?;
                Some(PortConflict { owner, place, proto: publish.proto, port })
            })
        })
    }
}

#[cfg(test)]
#[path = "port_conflicts_tests.rs"]
mod tests;
