//! Sets of `ipset`, which matches of iptables look into. Numbers are those of `include/uapi/linux/netfilter/ipset/ip_set.h`.

use crate::datapath::netfilter::nftables::raw::{self, Attributes, Raw};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::io;

/// NFNL_SUBSYS_IPSET
const IPSET: u16 = 6;
const LIST: u16 = 7;
/// Kernels from 4.19 on.
const PROTOCOL: (u16, u8) = (1, 7);
/// Sets with more elements are not followed: each look at their elements would take too long.
const MOST: u32 = 1_000;

struct Set {
    name: String,
    kind: String,
    elements: u32,
}

/// Sets among those with these indexes that nothing can be said of, each with the reason.
pub(super) fn unusable(indexes: &BTreeSet<u16>) -> io::Result<Vec<(String, String)>> {
    if indexes.is_empty() {
        return Ok(Vec::new());
    }
    let sets = sets()?;
    let reason = |index: &u16| match sets.get(index) {
        None => Some((format!("ipset {index}"), "it cannot be read".to_owned())),
        Some(set) if set.elements > MOST => {
            let why = format!("it has {} elements, too many to see when they change", set.elements);
            Some((format!("ipset {}", set.name), why))
        }
        Some(set) if set.kind.starts_with("list") => {
            Some((format!("ipset {}", set.name), "it has other sets, whose changes are not seen".to_owned()))
        }
        Some(set) if set.kind.contains("mac") => {
            Some((format!("ipset {}", set.name), "it has addresses of the link layer".to_owned()))
        }
        Some(_) => None,
    };
    Ok(indexes.iter().filter_map(reason).collect())
}

/// Adds all sets to a digest: their names and types, of small ones the elements, without counters and times.
pub(super) fn hash(hasher: &mut impl Hasher) -> io::Result<()> {
    for (index, set) in sets()? {
        (index, &set.name, &set.kind).hash(hasher);
        if set.elements > MOST {
            continue;
        }
        // Their order is not that in which they were added.
        let mut elements = BTreeSet::new();
        let name = (2, [set.name.as_bytes(), &[0]].concat());
        match list(vec![name]) {
            Ok(messages) => messages.iter().for_each(|m| add_elements(m, &mut elements)),
            // It is gone since.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            Err(e) => return Err(e),
        }
        elements.hash(hasher);
    }
    Ok(())
}

fn add_elements(message: &Raw, elements: &mut BTreeSet<Vec<(u16, Vec<u8>)>>) {
    /// The time that is left, bytes and packets.
    const CHANGING: [u16; 3] = [6, 24, 25];
    for (_, item) in message.attributes().nested(8).into_iter().flat_map(Attributes::all) {
        let fixed = Attributes(item).all().filter(|(kind, _)| !CHANGING.contains(kind));
        elements.insert(fixed.map(|(kind, value)| (kind, value.to_vec())).collect());
    }
}

fn sets() -> io::Result<BTreeMap<u16, Set>> {
    /// IPSET_FLAG_LIST_HEADER
    const HEADERS: (u16, u32) = (6, 1 << 2);
    let set = |message: &Raw| {
        let attributes = message.attributes();
        let index = attributes.get(11)?.try_into().ok().map(u16::from_be_bytes)?;
        let elements = attributes.nested(7).and_then(|d| d.number(24)).unwrap_or(0);
        let (name, kind) = (attributes.text(2)?.to_owned(), attributes.text(3)?.to_owned());
        Some((index, Set { name, kind, elements }))
    };
    Ok(list(vec![(HEADERS.0, HEADERS.1.to_be_bytes().to_vec())])?.iter().filter_map(set).collect())
}

/// Empty on a kernel without ipset.
fn list(mut attributes: Vec<(u16, Vec<u8>)>) -> io::Result<Vec<Raw>> {
    attributes.insert(0, (PROTOCOL.0, vec![PROTOCOL.1]));
    let request = Raw::request(IPSET, LIST, libc::AF_INET as u8, &attributes);
    match raw::open().and_then(|mut netlink| netlink.dump(request)) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT)) => {
            Ok(Vec::new())
        }
        other => other,
    }
}
