//! Settings of the host that rules depend on: sysctls, the hairpin mode of bridge ports, and a route for `::1`.
//!
//! With br_netfilter, a connection of a container to its own published port is translated while bridged, and a bridge
//! sends a frame out of its ingress port only in hairpin mode.
//!
//! Without br_netfilter, clients of `::1` can be served: the destination of replies becomes `::1` only after the kernel's
//! check for loopback addresses on the wire, and a local route accepts `::1` from the bridge. (With br_netfilter the
//! destination changes before that check, net/ipv6/ip6_input.c, ip6_rcv_core(), v6.12, and the kernel drops the reply.)

use super::policy::serves_loopback;
use super::rules::Family;
use crate::datapath::Sysctl;
use crate::model::{Desired, Record};
use crate::netlink::Netlink;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_sys::protocols::NETLINK_ROUTE;
use rtnetlink::packet_route::link::{InfoBridgePort, InfoPortData, InfoPortKind, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use std::collections::BTreeSet;
use std::io;
use std::net::Ipv6Addr;

/// RT_TABLE_LOCAL: the table of the host's own addresses.
const LOCAL_TABLE: u8 = 255;

/// Whether br_netfilter passes bridged frames of this namespace to netfilter.
pub(super) fn filters_bridged(family: Family) -> bool {
    let file = match family {
        Family::V4 => "/proc/sys/net/bridge/bridge-nf-call-iptables",
        Family::V6 => "/proc/sys/net/bridge/bridge-nf-call-ip6tables",
    };
    std::fs::read_to_string(file).is_ok_and(|v| v.trim() != "0")
}

/// Sets missing hairpin modes and routes, which the kernel removes with their links. Returns the number of changes.
///
/// # Errors
/// The kernel's.
pub(super) fn prepare(desired: &Desired) -> io::Result<usize> {
    let bridged = |r: &Record| {
        let v4 = r.network.has_v4() && filters_bridged(Family::V4);
        v4 || (r.network.has_v6() && filters_bridged(Family::V6))
    };
    let hairpins: Vec<u32> = desired
        .bridged()
        .filter(|(r, _)| !r.publishes.is_empty() && !r.network.internal && bridged(r))
        .map(|(_, links)| links.veth_index)
        .collect();
    let loopbacks: BTreeSet<u32> = desired
        .bridged()
        .filter(|(r, _)| serves_loopback(r, Family::V6) && !filters_bridged(Family::V6))
        .map(|(_, links)| links.bridge_index)
        .collect();
    if hairpins.is_empty() && loopbacks.is_empty() {
        return Ok(0);
    }
    let mut netlink = Netlink::open(NETLINK_ROUTE)?;
    let mut changed = 0;
    for port in hairpins {
        changed += usize::from(ensure_hairpin(&mut netlink, port)?);
    }
    for bridge in loopbacks {
        changed += usize::from(ensure_loopback(&mut netlink, bridge)?);
    }
    Ok(changed)
}

/// The sysctls for forwarding and for clients on loopback addresses.
pub(super) fn sysctls(served: &Desired) -> Vec<Sysctl> {
    let mut sysctls = Vec::new();
    let mut set = |path: String| {
        if !sysctls.iter().any(|s: &Sysctl| s.path == path) {
            sysctls.push(Sysctl { path, value: "1".into() });
        }
    };
    for (record, _) in served.bridged() {
        let network = &record.network;
        if network.internal {
            continue;
        }
        if network.has_v4() {
            set("net/ipv4/ip_forward".into());
        }
        if network.has_v6() {
            set("net/ipv6/conf/all/forwarding".into());
        }
        if let Some(bridge) = network.bridge().filter(|_| serves_loopback(record, Family::V4)) {
            // Connections to 127.0.0.1 are routed to the bridge. NETPATH_INPUT drops loopback addresses that arrive there.
            set(format!("net/ipv4/conf/{bridge}/route_localnet"));
        }
    }
    sysctls
}

fn ensure_hairpin(netlink: &mut Netlink<RouteNetlinkMessage>, port: u32) -> io::Result<bool> {
    let mut link = LinkMessage::default();
    link.header.index = port;
    let answers = match netlink.read(RouteNetlinkMessage::GetLink(link.clone())) {
        // The container is being removed.
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => return Ok(false),
        other => other?,
    };
    let on = answers.iter().any(|answer| {
        let RouteNetlinkMessage::NewLink(link) = answer else { return false };
        let infos =
            link.attributes.iter().filter_map(|a| if let LinkAttribute::LinkInfo(i) = a { Some(i) } else { None });
        infos.flatten().any(|info| {
            let LinkInfo::PortData(InfoPortData::BridgePort(port)) = info else { return false };
            port.contains(&InfoBridgePort::HairpinMode(true))
        })
    });
    if on {
        return Ok(false);
    }
    link.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
    ]));
    match netlink.change(RouteNetlinkMessage::NewLink(link), 0) {
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        other => other.map(|()| true),
    }
}

fn ensure_loopback(netlink: &mut Netlink<RouteNetlinkMessage>, bridge: u32) -> io::Result<bool> {
    let mut route = RouteMessage::default();
    route.header = RouteHeader {
        address_family: AddressFamily::Inet6,
        destination_prefix_length: 128,
        table: LOCAL_TABLE,
        protocol: RouteProtocol::Static,
        scope: RouteScope::Universe,
        kind: RouteType::Local,
        ..RouteHeader::default()
    };
    route.attributes =
        vec![RouteAttribute::Destination(RouteAddress::Inet6(Ipv6Addr::LOCALHOST)), RouteAttribute::Oif(bridge)];
    match netlink.change(RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_EXCL) {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        other => other.map(|()| true),
    }
}
