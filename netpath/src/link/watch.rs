//! Sockets that receive the kernel's notifications of changes.

use super::neighbour::hardware_address;
use crate::netlink::listen;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute};
use rtnetlink::packet_route::route::RouteAttribute;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

/// Links and addresses (`include/uapi/linux/rtnetlink.h, enum rtnetlink_groups`).
const LINKS: [u32; 3] = [1, 5, 9];
/// Routes and routing rules of both families, and nexthop objects.
const ROUTES: [u32; 5] = [7, 8, 11, 19, 32];

/// A non-blocking socket that becomes readable when links or addresses of the calling thread's namespace change.
///
/// # Errors
/// The kernel's.
pub fn watch() -> io::Result<OwnedFd> {
    watch_groups(&LINKS)
}

/// Whether a message of [`watch_routes`] concerns the MTU of a route. The programs look up everything else about a route for each
/// flow, and the routes of a router may change a thousand times a second.
pub fn concerns_mtu(message: &[u8]) -> bool {
    let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message) else { return true };
    match message.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route)) => {
            route.attributes.iter().any(|a| matches!(a, RouteAttribute::Metrics(_)))
        }
        _ => false,
    }
}

/// The same for routes and routing rules, from which the netfilter rungs derive rules.
///
/// # Errors
/// The kernel's.
pub fn watch_routes() -> io::Result<OwnedFd> {
    watch_groups(&ROUTES)
}

/// The same for everything that decides the way of forwarded packets: links, addresses, routes, routing rules, settings such as
/// forwarding, and traffic control.
///
/// # Errors
/// The kernel's.
pub fn watch_ways() -> io::Result<OwnedFd> {
    /// RTNLGRP_TC, RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV6_NETCONF
    const OTHERS: [u32; 3] = [4, 24, 25];
    watch_groups(&[&LINKS[..], &ROUTES, &OTHERS].concat())
}

/// The same for neighbours.
///
/// # Errors
/// The kernel's.
pub fn watch_neighbours() -> io::Result<OwnedFd> {
    /// RTNLGRP_NEIGH
    const NEIGHBOURS: u32 = 3;
    watch_groups(&[NEIGHBOURS])
}

/// The interface, the address and the hardware address of a neighbour by one message of [`watch_neighbours`]; `None` in place of
/// the last: it cannot be sent to.
pub fn neighbour(message: &[u8]) -> Option<(u32, IpAddr, Option<[u8; 6]>)> {
    let (neighbour, is_there) = match NetlinkMessage::<RouteNetlinkMessage>::deserialize(message).ok()?.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(n)) => (n, true),
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelNeighbour(n)) => (n, false),
        _ => return None,
    };
    let address = neighbour.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })?;
    Some((neighbour.header.ifindex, address, is_there.then(|| hardware_address(&neighbour)).flatten()))
}

fn watch_groups(groups: &[u32]) -> io::Result<OwnedFd> {
    listen(NETLINK_ROUTE, groups)
}
