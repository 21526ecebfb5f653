//! Neighbours: which hardware address an IP address has on a link.

use super::rtnl::{Answer, Rtnl, failed};
use crate::model::error::Result;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use std::net::IpAddr;

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

    /// Has the kernel ask at once for all hardware addresses of a link that it waits for, instead of when its time comes
    /// (`retrans_time_ms`, a second). The packets that wait go on waiting. Returns for how many.
    ///
    /// # Errors
    /// The kernel's. A neighbour that has answered or is gone in the meantime is none.
    pub fn ask_again(&self, index: u32) -> Result<usize> {
        let mut question = NeighbourMessage::default();
        // A kernel that does not know this filter lists those of every link.
        question.attributes.push(NeighbourAttribute::IfIndex(index));
        let neighbours = self
            .dump(RouteNetlinkMessage::GetNeighbour(question))
            .map_err(failed(format!("cannot list the neighbours of interface {index}")))?;
        let mut asked = 0;
        for address in neighbours.iter().filter_map(|n| unanswered(n, index)) {
            match self.begin_anew(index, address) {
                Ok(()) => asked += 1,
                Err(e) if e.is_missing() => {}
                Err(e) => return Err(failed(format!("cannot ask again for neighbour {address}"))(e)),
            }
        }
        Ok(asked)
    }

    /// `net/core/neighbour.c`: `__neigh_update()` stops the timer and keeps the queue of a neighbour that is made NUD_NONE;
    /// `__neigh_event_send()`, which NTF_USE calls, sends the first question of a neighbour in that state.
    fn begin_anew(&self, index: u32, address: IpAddr) -> Answer<()> {
        self.change(RouteNetlinkMessage::NewNeighbour(message(index, address)), 0)?;
        let mut used = message(index, address);
        used.header.flags = NeighbourFlags::Use;
        self.change(RouteNetlinkMessage::NewNeighbour(used), 0)
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
    if n.header.ifindex != index || n.header.state != NeighbourState::Incomplete {
        return None;
    }
    n.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })
}
