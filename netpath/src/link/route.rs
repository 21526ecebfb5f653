//! Addresses and routes.

use super::query::Link;
use super::rtnl::{Rtnl, failed};
use crate::model::error::{Error, Result};
use crate::model::network::{Route, RouteKind};
use ipnet::IpNet;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

impl Rtnl {
    /// Adds an address to an interface; `false`: the interface has the address. IPv6 addresses skip duplicate address
    /// detection, since the engine has allocated them.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add_address(&self, index: u32, address: IpNet) -> Result<bool> {
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.prefix_len = address.prefix_len();
        match address {
            IpNet::V4(net) => {
                message.header.family = AddressFamily::Inet;
                message.attributes.push(AddressAttribute::Local(net.addr().into()));
                message.attributes.push(AddressAttribute::Address(net.addr().into()));
                if net.prefix_len() < 31 {
                    message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
                }
            }
            IpNet::V6(net) => {
                message.header.family = AddressFamily::Inet6;
                message.header.flags = AddressHeaderFlags::Nodad;
                message.attributes.push(AddressAttribute::Local(net.addr().into()));
                message.attributes.push(AddressAttribute::Address(net.addr().into()));
                message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
        }
        match self.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL) {
            Ok(()) => Ok(true),
            Err(e) if e.exists() => Ok(false),
            Err(e) => {
                let v6_off = e.errno() == Some(libc::EACCES) && address.addr().is_ipv6();
                let error = Error::new(format!("cannot add address {address}")).because(e);
                Err(if v6_off { error.next("enable IPv6 in the kernel, or use networks without it") } else { error })
            }
        }
    }

    /// Adds a static route; `false`: an identical route exists. Two networks of a container may both add a default route
    /// with the same metric, and both stay.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add_route(&self, route: &Route) -> Result<bool> {
        match self.change(RouteNetlinkMessage::NewRoute(message_of(route)), NLM_F_CREATE) {
            Ok(()) => Ok(true),
            Err(e) if e.exists() => Ok(false),
            Err(e) => Err(Error::new(format!("cannot add route {route}")).because(e)),
        }
    }

    /// Deletes a route. A missing one is no error.
    ///
    /// # Errors
    /// The kernel's.
    pub fn delete_route(&self, route: &Route) -> Result<()> {
        match self.change(RouteNetlinkMessage::DelRoute(message_of(route)), 0) {
            Err(e) if !e.is_missing() => Err(Error::new(format!("cannot delete route {route}")).because(e)),
            _ => Ok(()),
        }
    }

    /// The link of the first default route, IPv4 before IPv6.
    ///
    /// # Errors
    /// The kernel's.
    pub fn default_route_link(&self) -> Result<Option<Link>> {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            message.header.table = MAIN;
            let routes =
                self.dump(RouteNetlinkMessage::GetRoute(message)).map_err(failed("cannot list routes".into()))?;
            let default = routes.iter().find_map(|r| match r {
                RouteNetlinkMessage::NewRoute(r)
                    if r.header.destination_prefix_length == 0
                        && r.header.table == MAIN
                        && r.header.kind == RouteType::Unicast =>
                {
                    r.attributes.iter().find_map(|a| if let RouteAttribute::Oif(i) = a { Some(*i) } else { None })
                }
                _ => None,
            });
            if let Some(index) = default {
                return self.link_at(index);
            }
        }
        Ok(None)
    }
}

fn message_of(route: &Route) -> RouteMessage {
    let kind = match route.kind {
        RouteKind::Unicast => RouteType::Unicast,
        RouteKind::Blackhole => RouteType::BlackHole,
        RouteKind::Unreachable => RouteType::Unreachable,
        RouteKind::Prohibit => RouteType::Prohibit,
    };
    let destination = route.destination;
    match (destination, route.gateway) {
        (IpNet::V4(net), gateway) => {
            let mut m = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(net.network(), net.prefix_len());
            if let Some(IpAddr::V4(gateway)) = gateway {
                m = m.gateway(gateway);
            }
            m.kind(kind).priority(route.metric).protocol(RouteProtocol::Static).scope(RouteScope::Universe).build()
        }
        (IpNet::V6(net), gateway) => {
            let mut m = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(net.network(), net.prefix_len());
            if let Some(IpAddr::V6(gateway)) = gateway {
                m = m.gateway(gateway);
            }
            m.kind(kind).priority(route.metric).protocol(RouteProtocol::Static).scope(RouteScope::Universe).build()
        }
    }
}

/// RT_TABLE_MAIN.
const MAIN: u8 = 254;
