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
                let error = Error::new(format!("cannot add address {address}"));
                if !v6_off {
                    return Err(error.because(e));
                }
                // The text is netavark's.
                let text = format!("failed to add ipv6 address, is ipv6 enabled in the kernel?: {e}");
                Err(error.because(text).next("enable IPv6 in the kernel, or use networks without it"))
            }
        }
    }

    /// Deletes an address from an interface. A missing one is no error.
    ///
    /// # Errors
    /// The kernel's.
    pub fn delete_address(&self, index: u32, address: IpNet) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.prefix_len = address.prefix_len();
        message.header.family = if address.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.attributes.push(AddressAttribute::Local(address.addr()));
        match self.change(RouteNetlinkMessage::DelAddress(message), 0) {
            Err(e) if !e.is_missing() => Err(Error::new(format!("cannot delete address {address}")).because(e)),
            _ => Ok(()),
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

    /// The link of the first default route, IPv4 before IPv6. `table`: that of a VRF; `None`: the main one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn default_route_link(&self, table: Option<u32>) -> Result<Option<Link>> {
        let table = table.unwrap_or(MAIN);
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let routes =
                self.dump(RouteNetlinkMessage::GetRoute(message)).map_err(failed("cannot list routes".into()))?;
            let default = routes.iter().find_map(|r| match r {
                RouteNetlinkMessage::NewRoute(r)
                    if r.header.destination_prefix_length == 0
                        && table_of(r) == table
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

/// The header has room for tables below 256.
fn table_of(route: &RouteMessage) -> u32 {
    let long = route.attributes.iter().find_map(|a| if let RouteAttribute::Table(t) = a { Some(*t) } else { None });
    long.unwrap_or(route.header.table.into())
}

/// RT_TABLE_MAIN.
const MAIN: u32 = 254;
