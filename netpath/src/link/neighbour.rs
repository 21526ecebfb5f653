//! Neighbours: which hardware address an IP address has on a link.

use super::rtnl::{Rtnl, failed};
use crate::model::error::Result;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use std::net::IpAddr;

/// Neighbours that are asked for in one request.
const MOST: usize = 256;

impl Rtnl {
    /// Forgets which hardware address a neighbour had: a new container may have the IP address of an old one, which the
    /// host would go on sending to for seconds.
    ///
    /// # Errors
    /// The kernel's; one that it does not know is none.
    pub fn forget_neighbour(&self, index: u32, address: IpAddr) -> Result<()> {
        let message = message(index, address);
        match self.change(RouteNetlinkMessage::DelNeighbour(message), 0) {
            Err(e) if e.is_missing() => Ok(()),
            other => other.map_err(failed(format!("cannot forget neighbour {address}"))),
        }
    }

    /// Has the kernel ask at once for the hardware addresses of a link that it waits for, [`MOST`] at most, instead of when
    /// its time comes (`retrans_time_ms`, a second). The packets that wait go on waiting. Returns for whom.
    ///
    /// `net/core/neighbour.c`: `__neigh_update()` stops the timer and keeps the queue of a neighbour that is made NUD_NONE;
    /// `__neigh_event_send()`, which NTF_USE calls, sends the first question of a neighbour in that state. All of it is one
    /// request, so that no neighbour is left without a timer if this process is killed.
    ///
    /// # Errors
    /// The kernel's first, after it has been asked for all. A neighbour that is gone in the meantime is none.
    pub fn ask_again(&self, index: u32) -> Result<Vec<IpAddr>> {
        let mut question = NeighbourMessage::default();
        // A kernel that does not know this filter lists those of every link.
        question.attributes.push(NeighbourAttribute::IfIndex(index));
        let neighbours = self
            .dump(RouteNetlinkMessage::GetNeighbour(question))
            .map_err(failed(format!("cannot list the neighbours of interface {index}")))?;
        let unanswered: Vec<_> = neighbours.iter().filter_map(|n| unanswered(n, index)).take(MOST).collect();
        if unanswered.is_empty() {
            return Ok(unanswered);
        }
        let both = unanswered.iter().flat_map(|&address| {
            let mut used = message(index, address);
            used.header.flags = NeighbourFlags::Use;
            let (first, second) = (message(index, address), used);
            [(first, NLM_F_REQUEST), (second, NLM_F_REQUEST | NLM_F_ACK)]
        });
        match self.batch(both.map(|(message, flags)| (RouteNetlinkMessage::NewNeighbour(message), flags)).collect()) {
            Err(e) if !e.is_missing() => {
                Err(failed(format!("cannot ask again for neighbours of interface {index}"))(e))
            }
            _ => Ok(unanswered),
        }
    }
}

/// In the state NUD_NONE.
fn message(index: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = index;
    message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message
}

fn unanswered(message: &RouteNetlinkMessage, index: u32) -> Option<IpAddr> {
    let RouteNetlinkMessage::NewNeighbour(n) = message else { return None };
    let is_waited_for = n.header.ifindex == index && n.header.state == NeighbourState::Incomplete;
    // A request without these flags would take them away from a neighbour of other software (`neigh_update_flags()`).
    let is_kept = n.header.flags.contains(NeighbourFlags::ExtLearned)
        || n.attributes.iter().any(|a| matches!(a, NeighbourAttribute::ExtFlags(flags) if !flags.is_empty()));
    if !is_waited_for || is_kept {
        return None;
    }
    n.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })
}
