//! The neighbour table: hardware addresses of IP addresses on a link.

use super::rtnl::{Rtnl, failed};
use crate::model::error::Result;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use std::net::IpAddr;

/// Neighbours that are resolved with one request.
const MAX_NEIGHBOURS: usize = 256;

impl Rtnl {
    /// Deletes a neighbour. A new container may reuse the IP address of an old one, and the host would send to the old
    /// hardware address for seconds.
    ///
    /// # Errors
    /// The kernel's; a missing neighbour is no error.
    pub fn delete_neighbour(&self, index: u32, address: IpAddr) -> Result<()> {
        let message = message(index, address);
        match self.change(RouteNetlinkMessage::DelNeighbour(message), 0) {
            Err(e) if e.is_missing() => Ok(()),
            other => other.map_err(failed(format!("cannot delete neighbour {address}"))),
        }
    }

    /// The hardware address of a neighbour that can be sent to (5.0).
    pub fn neighbour(&self, index: u32, address: IpAddr) -> Option<[u8; 6]> {
        let answers = self.read(RouteNetlinkMessage::GetNeighbour(message(index, address))).ok()?;
        let [RouteNetlinkMessage::NewNeighbour(n)] = answers.as_slice() else { return None };
        hardware_address(n)
    }

    /// Makes the kernel repeat its pending ARP requests and neighbour solicitations on a link now, instead of after
    /// `retrans_time_ms` (1 s). Queued packets stay queued. Returns the neighbours, [`MAX_NEIGHBOURS`] at most.
    ///
    /// `net/core/neighbour.c`: `__neigh_update()` stops the timer of a neighbour that is set to NUD_NONE and keeps its
    /// queue; `__neigh_event_send()`, called for NTF_USE, sends the first request of a neighbour in that state. Both are
    /// in one message, so that no neighbour stays without a timer if this process is killed.
    ///
    /// # Errors
    /// The kernel's first, after all neighbours were tried. A neighbour that disappears meanwhile is no error.
    pub fn resolve_now(&self, index: u32) -> Result<Vec<IpAddr>> {
        let mut request = NeighbourMessage::default();
        // Kernels without this filter list the neighbours of every link.
        request.attributes.push(NeighbourAttribute::IfIndex(index));
        let neighbours = self
            .dump(RouteNetlinkMessage::GetNeighbour(request))
            .map_err(failed(format!("cannot list the neighbours of interface {index}")))?;
        let incomplete: Vec<_> = neighbours.iter().filter_map(|n| incomplete(n, index)).take(MAX_NEIGHBOURS).collect();
        if incomplete.is_empty() {
            return Ok(incomplete);
        }
        let both = incomplete.iter().flat_map(|&address| {
            let mut used = message(index, address);
            used.header.flags = NeighbourFlags::Use;
            [(message(index, address), NLM_F_REQUEST), (used, NLM_F_REQUEST | NLM_F_ACK)]
        });
        match self.batch(both.map(|(message, flags)| (RouteNetlinkMessage::NewNeighbour(message), flags)).collect()) {
            Err(e) if !e.is_missing() => Err(failed(format!("cannot resolve neighbours of interface {index}"))(e)),
            _ => Ok(incomplete),
        }
    }
}

/// `None`: it cannot be sent to.
pub(super) fn hardware_address(neighbour: &NeighbourMessage) -> Option<[u8; 6]> {
    use NeighbourState::{Delay, Permanent, Probe, Reachable, Stale};
    if !matches!(neighbour.header.state, Reachable | Stale | Delay | Probe | Permanent) {
        return None;
    }
    neighbour.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(address) => address.as_slice().try_into().ok(),
        _ => None,
    })
}

/// A neighbour in the state NUD_NONE.
fn message(index: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = index;
    message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message
}

fn incomplete(message: &RouteNetlinkMessage, index: u32) -> Option<IpAddr> {
    let RouteNetlinkMessage::NewNeighbour(n) = message else { return None };
    let is_incomplete = n.header.ifindex == index && n.header.state == NeighbourState::Incomplete;
    // The update would clear these flags of a foreign neighbour (`neigh_update_flags()`).
    let is_foreign = n.header.flags.contains(NeighbourFlags::ExtLearned)
        || n.attributes.iter().any(|a| matches!(a, NeighbourAttribute::ExtFlags(flags) if !flags.is_empty()));
    if !is_incomplete || is_foreign {
        return None;
    }
    n.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })
}
