//! Conflicts between published ports.
//!
//! One address of the host and all of them are two places: the port of one is asked first, so both can have an owner.
//! The same port from two networks of one container has two owners, of which the older is served.

use super::{HostBind, Proto, Record};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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

/// Where `record` publishes with this bind: in the families that it has an address of.
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

/// The first port of each of `others` that one of `coming` wants too; those of the same container are left out.
pub fn conflicts<'a>(coming: &[Record], others: impl Iterator<Item = &'a Record>) -> Vec<PortConflict<'a>> {
    let wanted = Wanted::of(coming);
    let strangers = others.filter(|o| coming.iter().all(|c| c.container.id != o.container.id));
    strangers.filter_map(|owner| wanted.first_of(owner)).collect()
}

/// A range of ports begins or ends.
struct Edge {
    place: Place,
    /// Of a record that is coming.
    comes: bool,
    /// 1 or −1
    by: i32,
}

/// The first port that one of `coming` publishes and that would be published, with `there`, in more than `most` places.
pub fn exceeds_limit(coming: &[Record], there: &[Record], most: usize) -> Option<(Proto, u16)> {
    let each = |r: &Record| r.publishes.iter().flat_map(|p| places(r, p.bind)).collect::<HashSet<_>>();
    // As good as always.
    if coming.iter().chain(there).flat_map(each).collect::<HashSet<_>>().len() <= most {
        return None;
    }
    let mut edges: BTreeMap<(Proto, u32), Vec<Edge>> = BTreeMap::new();
    for (records, comes) in [(there, false), (coming, true)] {
        for record in records {
            for publish in &record.publishes {
                let first = u32::from(publish.host_port());
                for place in places(record, publish.bind) {
                    let mut edge = |port, by| {
                        edges.entry((publish.proto, port)).or_default().push(Edge { place, comes, by });
                    };
                    edge(first, 1);
                    edge(first + u32::from(publish.count()), -1);
                }
            }
        }
    }
    let mut open: HashMap<(Proto, Place), i32> = HashMap::new();
    let mut coming = 0;
    for ((proto, port), changes) in edges {
        for Edge { place, comes, by } in changes {
            let publishes = open.entry((proto, place)).or_default();
            *publishes += by;
            if *publishes == 0 {
                open.remove(&(proto, place));
            }
            coming += if comes { by } else { 0 };
        }
        if coming > 0 && open.keys().filter(|(of, _)| *of == proto).count() > most {
            return u16::try_from(port).ok().map(|port| (proto, port));
        }
    }
    None
}

/// Ranges by place, in the order of their first ports.
struct Wanted(HashMap<(Proto, Place), Vec<Range>>);

struct Range {
    first: u32,
    end: u32,
    /// The furthest end of all ranges up to this one.
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
                let met = before_end.iter().find(|r| r.end > first)?;
                let port = u16::try_from(met.first.max(first)).ok()?;
                Some(PortConflict { owner, place, proto: publish.proto, port })
            })
        })
    }
}

#[cfg(test)]
#[path = "port_conflicts_tests.rs"]
mod tests;
