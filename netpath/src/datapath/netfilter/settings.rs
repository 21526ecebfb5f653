//! Settings of the host that rules depend on: sysctls, the hairpin mode of bridge ports, and a route for `::1`.
//!
//! Where br_netfilter hands bridged frames to iptables, a published port that leads back to the container that dialled it
//! is bridged, not routed, and a bridge sends nothing out of the port it came from unless that is in hairpin mode.
//!
//! Where it does not, clients of `::1` can be served: the answer's destination becomes `::1` only after the kernel has
//! refused loopback addresses from wires, and a route says that `::1` may come in by the bridge. (With br_netfilter the
//! destination is changed before that check, net/ipv6/ip6_input.c, ip6_rcv_core(), v6.12, and the answer is dropped.)

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

/// The kernel's table of its own addresses (RT_TABLE_LOCAL).
const LOCAL_TABLE: u8 = 255;

/// Whether frames that a bridge of this namespace forwards go through iptables.
pub(super) fn filters_bridged(family: Family) -> bool {
    let file = match family {
        Family::V4 => "/proc/sys/net/bridge/bridge-nf-call-iptables",
        Family::V6 => "/proc/sys/net/bridge/bridge-nf-call-ip6tables",
    };
    std::fs::read_to_string(file).is_ok_and(|v| v.trim() != "0")
}

/// Sets what `desired` needs and the kernel has not; both go with the links. Returns how many things were set.
///
/// # Errors
/// What the kernel answers.
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

/// What forwarding and clients on loopback addresses need for these endpoints.
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
            // Clients that dial 127.0.0.1 are led out of the bridge; what comes in there is guarded by NETPATH_INPUT.
            set(format!("net/ipv4/conf/{bridge}/route_localnet"));
        }
    }
    sysctls
}

fn ensure_hairpin(netlink: &mut Netlink<RouteNetlinkMessage>, port: u32) -> io::Result<bool> {
    let mut link = LinkMessage::default();
    link.header.index = port;
    let answers = match netlink.read(RouteNetlinkMessage::GetLink(link.clone())) {
        // Its container is going: nothing to set any more.
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
