//! Which links of an endpoint are to be deleted.

use crate::link::view::Link;
use crate::link::{Inside, Rtnl};
use crate::model::error::Result;
use crate::model::{IfName, LinkKind, Record};
use std::collections::BTreeSet;

/// The host's end of a record's veth, if it is still the one that was recorded: indexes come again.
///
/// # Errors
/// The kernel's.
pub fn recorded_veth(rtnl: &Rtnl, record: &Record) -> Result<Option<u32>> {
    let Some(links) = &record.links else { return Ok(None) };
    let found = rtnl.link_at(links.veth_index)?;
    Ok(found.filter(|l| l.kind == LinkKind::Veth && l.name == links.veth_name.as_str()).map(|l| l.index))
}

/// The host's end of the veth that is `interface` inside the container, if it is a port of `bridge`. This is how the work
/// of a setup is found that was killed before it could write down its links. `others` are the veths of other endpoints:
/// an interface that somebody else put into the container may by chance have the same indexes.
///
/// # Errors
/// The kernel's.
pub fn veth_from_inside(
    rtnl: &Rtnl,
    inside: &Inside,
    interface: &IfName,
    bridge: &IfName,
    others: &BTreeSet<u32>,
) -> Result<Option<u32>> {
    let Some(there) = inside.rtnl().link_named(interface)? else { return Ok(None) };
    let (LinkKind::Veth, Some(peer)) = (there.kind, there.peer) else { return Ok(None) };
    let Some(here) = rtnl.link_at(peer)?.filter(|l| is_its_peer(l, &there) && !others.contains(&l.index)) else {
        return Ok(None);
    };
    let bridge = rtnl.link_named(bridge)?.filter(|b| here.master == Some(b.index));
    Ok(bridge.map(|_| here.index))
}

/// Both name each other: an index alone could be that of a link in a third namespace.
fn is_its_peer(host: &Link, inside: &Link) -> bool {
    host.kind == LinkKind::Veth && host.peer == Some(inside.index)
}

/// The indexes of those of `bridges` that are bridges, that no `others` use and that have no port but `going`.
///
/// # Errors
/// The kernel's.
pub fn unused_bridges(
    rtnl: &Rtnl,
    bridges: &BTreeSet<IfName>,
    others: &BTreeSet<IfName>,
    going: &[u32],
) -> Result<Vec<u32>> {
    if bridges.iter().all(|b| others.contains(b)) {
        return Ok(Vec::new());
    }
    let links = rtnl.links()?;
    let mut unused = Vec::new();
    for bridge in bridges.iter().filter(|b| !others.contains(*b)) {
        let Some(link) = links.iter().find(|l| l.name == bridge.as_str() && l.kind == LinkKind::Bridge) else {
            continue;
        };
        let foreign: Vec<&str> = links
            .iter()
            .filter(|l| l.master == Some(link.index) && !going.contains(&l.index))
            .map(|l| l.name.as_str())
            .collect();
        if foreign.is_empty() {
            unused.push(link.index);
        } else {
            tracing::info!(%bridge, ports = ?foreign, "the bridge stays: it has ports that are not netpath's");
        }
    }
    Ok(unused)
}
