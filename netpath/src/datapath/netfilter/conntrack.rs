//! Deletes conntrack entries that contradict the new rules.
//!
//! NAT rules apply only to the first packet of a connection. UDP clients would otherwise keep sending to a removed
//! container, or to a process of the host whose port is published now (netavark #1045).

use super::nfnetlink::{message, open};
use super::policy;
use super::rules::{Family, Target};
use crate::model::{Departures, Desired, HostBind, HostView, Proto};
use crate::netlink::Netlink;
use netlink_packet_core::{DefaultNla, NLA_F_NESTED};
use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

/// include/uapi/linux/netfilter/nfnetlink_conntrack.h
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
/// net/netfilter/nf_internals.h
const FILTER_IP_SRC: u32 = 1 << 0;
const FILTER_IP_DST: u32 = 1 << 1;
const FILTER_PROTO_NUM: u32 = 1 << 3;
/// For more addresses than this, one dump of the whole table replaces one filtered dump for each.
const FILTERED: usize = 4;
/// Up to this number of connections one dump of the whole table is as fast as a filtered one.
const FEW: usize = 1_000;

/// The fields of a connection that decide whether it is stale.
struct Connection {
    from: IpAddr,
    to: IpAddr,
    port: u16,
    udp: bool,
    /// Source of the reply tuple: the server after destination translation.
    reply_source: IpAddr,
    /// Destination of the reply tuple: the client after source translation.
    reply_destination: IpAddr,
    /// Attributes that identify the connection in a deletion.
    id: Vec<ConntrackAttribute>,
}

/// The stale connections of one family.
pub(super) struct Stale {
    pub family: Family,
    /// Addresses of removed containers.
    pub gone: BTreeSet<IpAddr>,
    /// The ports that are published now.
    pub targets: Vec<Target>,
    /// Addresses of the host that SNAT rules for routes have used. The kernel ends connections of MASQUERADE when their
    /// address is removed or their route changes, but not those of SNAT.
    pub sources: BTreeSet<IpAddr>,
    /// Addresses of containers.
    pub containers: BTreeSet<IpAddr>,
}

impl Stale {
    /// `served`: the container addresses of the former rules; `sources`: their SNAT addresses.
    pub(super) fn new(
        family: Family,
        desired: &Desired,
        departed: &Departures,
        served: impl Iterator<Item = IpAddr>,
        sources: impl Iterator<Item = IpAddr>,
    ) -> Self {
        let containers = policy::addresses(desired, family);
        let served = served.filter(|a| !containers.contains(a) && !departed.waiting.contains(a));
        let gone = served.chain(departed.ended.iter().copied().filter(|a| Family::of(a) == family)).collect();
        Self { family, gone, targets: policy::targets(desired, family), sources: sources.collect(), containers }
    }

    fn udp(&self) -> impl Iterator<Item = &Target> {
        self.targets.iter().filter(|t| t.publish.proto == Proto::Udp)
    }

    fn contains(&self, connection: &Connection, host: &HostView, keep: &[(IpAddr, u16)]) -> bool {
        let is_gone = self.gone.contains(&connection.from)
            || self.gone.contains(&connection.reply_source)
            || self.has_stale_source(connection, host);
        is_gone
            || connection.udp
                && !keep.contains(&(connection.to, connection.port))
                && published(self.udp(), host, connection).is_some_and(|to| to != connection.reply_source)
    }

    /// Whether the host no longer has the SNAT address, or the route now uses an interface without that address and has
    /// another preferred source. A route with a new preferred source through the same interface keeps its connections.
    fn has_stale_source(&self, connection: &Connection, host: &HostView) -> bool {
        let source = connection.reply_destination;
        if !self.sources.contains(&source) || !self.containers.contains(&connection.from) {
            return false;
        }
        let route = host.sources.iter().find(|s| s.from.contains(&connection.from) && s.to.contains(&connection.to));
        let is_valid = route.is_none_or(|route| {
            let addresses = route.by.iter().filter_map(|by| host.link_named(by)).flat_map(|l| &l.addresses);
            route.by.is_empty() || route.source == Some(source) || addresses.into_iter().any(|a| a.addr() == source)
        });
        !is_valid || !host.has_address(source)
    }

    /// Filters for dumps that together contain every stale connection.
    fn filters(&self) -> Vec<Vec<ConntrackAttribute>> {
        if self.gone.len() + self.sources.len() > FILTERED {
            return vec![Vec::new()];
        }
        let mut filters: Vec<_> =
            self.gone.iter().flat_map(|a| [with_reply_source(*a), with_original_source(*a)]).collect();
        filters.extend(self.sources.iter().map(|a| with_reply_destination(*a)));
        filters.extend(self.udp().next().map(|_| only_udp()));
        filters
    }
}

/// Deletes stale connections. They also time out, so a failure is only logged.
pub(super) fn end(stale: &[Stale], desired: &Desired, host: &HostView) {
    let dns: Vec<(IpAddr, u16)> = desired
        .bridged()
        .filter(|(r, _)| r.network.dns)
        .flat_map(|(r, _)| r.network.gateways().map(|(gateway, _)| (gateway, 53)))
        .collect();
    match delete(stale, host, &dns) {
        Ok(n) => tracing::debug!("{n} connections deleted"),
        Err(e) => tracing::warn!("cannot delete connections of removed containers: {e}; they end with their time-out"),
    }
}

/// Deletes connections of removed containers, connections with a stale source, and UDP connections to published ports
/// that lead elsewhere. Returns their number. `keep`: DNS addresses of networks, which published ports do not intercept.
///
/// # Errors
/// The table cannot be read. Connections that end meanwhile are no error.
fn delete(stale: &[Stale], host: &HostView, keep: &[(IpAddr, u16)]) -> io::Result<usize> {
    let filters: Vec<(Family, Vec<_>)> =
        stale.iter().flat_map(|s| s.filters().into_iter().map(|f| (s.family, f))).collect();
    let count = count();
    if filters.is_empty() || count == Some(0) {
        return Ok(0);
    }
    let mut netlink = open()?;
    if count.is_some_and(|n| n <= FEW) {
        // Every dump walks the whole hash table (measured: 10 ms), so one dump is faster than one for each filter.
        let all = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
        let all = netlink.dump(NetfilterMessage::new(all, ConntrackMessage::Get(Vec::new())))?;
        return delete_listed(&mut netlink, all, stale, host, keep);
    }
    let mut deleted = 0;
    for (family, filter) in filters {
        let answers = match netlink.dump(message(family, ConntrackMessage::Get(filter.clone()))) {
            // Kernels with another form of filter get an unfiltered request.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) && !filter.is_empty() => {
                netlink.dump(message(family, ConntrackMessage::Get(Vec::new())))?
            }
            other => other?,
        };
        deleted += delete_listed(&mut netlink, answers, stale, host, keep)?;
    }
    Ok(deleted)
}

fn delete_listed(
    netlink: &mut Netlink<NetfilterMessage>,
    answers: Vec<NetfilterMessage>,
    stale: &[Stale],
    host: &HostView,
    keep: &[(IpAddr, u16)],
) -> io::Result<usize> {
    let mut deleted = 0;
    for connection in answers.into_iter().filter_map(|a| Connection::read(a.inner)) {
        let family = Family::of(&connection.from);
        if !stale.iter().any(|s| s.family == family && s.contains(&connection, host, keep)) {
            continue;
        }
        match netlink.change(message(family, ConntrackMessage::Delete(connection.id)), 0) {
            Ok(()) => deleted += 1,
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(deleted)
}

/// The number of connections in this namespace; `None` if unknown.
fn count() -> Option<usize> {
    std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").ok()?.trim().parse().ok()
}

/// The target of a new connection to the same destination.
fn published<'a>(
    mut udp: impl Iterator<Item = &'a Target>,
    host: &HostView,
    connection: &Connection,
) -> Option<IpAddr> {
    let local = connection.to.is_loopback() || host.has_address(connection.to);
    let target = udp.find(|t| {
        let bound = match t.publish.bind {
            HostBind::Address(a) => a == connection.to,
            _ => local,
        };
        let first = t.publish.host_port();
        bound && (first..=first + (t.publish.count() - 1)).contains(&connection.port)
    })?;
    Some(target.to)
}

impl Connection {
    fn read(answer: NetfilterMessageInner) -> Option<Self> {
        let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = answer else { return None };
        let (mut orig, mut reply) = (None, None);
        let mut id = Vec::new();
        for attribute in attributes {
            match &attribute {
                ConntrackAttribute::CtaTupleOrig(t) => orig = Some(t.clone()),
                ConntrackAttribute::CtaTupleReply(t) => reply = Some(t.clone()),
                ConntrackAttribute::Other(o) if matches!(netlink_packet_core::Nla::kind(o), CTA_ID | CTA_ZONE) => {}
                _ => continue,
            }
            if !matches!(attribute, ConntrackAttribute::CtaTupleReply(_)) {
                id.push(attribute);
            }
        }
        let (orig, reply) = (orig?, reply?);
        let (from, to) = addresses(&orig);
        let (reply_source, reply_destination) = addresses(&reply);
        let (udp, port) = protocol(&orig);
        Some(Self {
            from: from?,
            to: to?,
            port,
            udp,
            reply_source: reply_source?,
            reply_destination: reply_destination?,
            id,
        })
    }
}

fn addresses(tuple: &[Tuple]) -> (Option<IpAddr>, Option<IpAddr>) {
    let (mut from, mut to) = (None, None);
    for part in tuple {
        let Tuple::Ip(parts) = part else { continue };
        for part in parts {
            match part {
                IPTuple::SourceAddress(a) => from = Some(*a),
                IPTuple::DestinationAddress(a) => to = Some(*a),
                _ => {}
            }
        }
    }
    (from, to)
}

/// Whether it is UDP, and the destination port.
fn protocol(tuple: &[Tuple]) -> (bool, u16) {
    let (mut udp, mut port) = (false, 0);
    for part in tuple {
        let Tuple::Proto(parts) = part else { continue };
        for part in parts {
            match part {
                ProtoTuple::Protocol(p) => udp = *p == Protocol::Udp,
                ProtoTuple::DestinationPort(p) => port = *p,
                _ => {}
            }
        }
    }
    (udp, port)
}

fn with_original_source(address: IpAddr) -> Vec<ConntrackAttribute> {
    let tuple = vec![Tuple::Ip(vec![IPTuple::SourceAddress(address)])];
    vec![ConntrackAttribute::CtaTupleOrig(tuple), filter(FILTER_IP_SRC, 0)]
}

fn with_reply_source(address: IpAddr) -> Vec<ConntrackAttribute> {
    let tuple = vec![Tuple::Ip(vec![IPTuple::SourceAddress(address)])];
    vec![ConntrackAttribute::CtaTupleReply(tuple), filter(0, FILTER_IP_SRC)]
}

fn with_reply_destination(address: IpAddr) -> Vec<ConntrackAttribute> {
    let tuple = vec![Tuple::Ip(vec![IPTuple::DestinationAddress(address)])];
    vec![ConntrackAttribute::CtaTupleReply(tuple), filter(0, FILTER_IP_DST)]
}

fn only_udp() -> Vec<ConntrackAttribute> {
    let tuple = vec![Tuple::Proto(vec![ProtoTuple::Protocol(Protocol::Udp)])];
    vec![ConntrackAttribute::CtaTupleOrig(tuple), filter(FILTER_PROTO_NUM, 0)]
}

/// The parts of the tuples that a dump compares (5.8). Older kernels list everything; every listed connection is checked
/// again in any case.
fn filter(orig: u32, reply: u32) -> ConntrackAttribute {
    let mut value = Vec::new();
    for (kind, flags) in [(CTA_FILTER_ORIG_FLAGS, orig), (CTA_FILTER_REPLY_FLAGS, reply)] {
        value.extend_from_slice(&8u16.to_ne_bytes());
        value.extend_from_slice(&kind.to_ne_bytes());
        value.extend_from_slice(&flags.to_ne_bytes());
    }
    ConntrackAttribute::Other(DefaultNla::new(CTA_FILTER | NLA_F_NESTED, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{HostLink, LinkKind, RouteSource};

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn link(index: u32, name: &str, address: &str) -> HostLink {
        HostLink {
            index,
            name: name.parse().expect("an interface name"),
            kind: LinkKind::Other,
            master: None,
            mtu: 1500,
            mac: None,
            driver: None,
            up: true,
            addresses: vec![address.parse().expect("an address with its prefix")],
        }
    }

    /// Whether a connection of a container with the SNAT address `source` is stale, with a route through `by` that has
    /// the preferred source `route`.
    fn is_stale(source: &str, by: &str, route: Option<&str>) -> bool {
        let links =
            vec![link(1, "lo", "192.0.2.99/32"), link(2, "eth0", "192.0.2.10/24"), link(3, "eth1", "198.51.100.1/24")];
        let route = RouteSource {
            from: "10.89.7.0/24".parse().expect("a subnet"),
            to: "0.0.0.0/0".parse().expect("a prefix"),
            by: vec![by.parse().expect("an interface name")],
            source: route.map(ip),
        };
        let host = HostView { links, sources: vec![route], ..HostView::default() };
        let stale = Stale {
            family: Family::V4,
            gone: BTreeSet::new(),
            targets: Vec::new(),
            sources: [ip("192.0.2.10"), ip("192.0.2.99"), ip("192.0.2.77")].into(),
            containers: [ip("10.89.7.5")].into(),
        };
        let connection = |from: &str| Connection {
            from: ip(from),
            to: ip("203.0.113.5"),
            port: 80,
            udp: false,
            reply_source: ip("203.0.113.5"),
            reply_destination: ip(source),
            id: Vec::new(),
        };
        assert!(!stale.contains(&connection("10.0.0.5"), &host, &[]), "not a container of netpath");
        stale.contains(&connection("10.89.7.5"), &host, &[])
    }

    #[test]
    fn a_connection_with_the_source_of_a_route_is_stale_without_the_address_or_its_interface() {
        assert!(!is_stale("192.0.2.10", "eth0", Some("192.0.2.10")));
        assert!(!is_stale("192.0.2.10", "eth0", None), "the interface is the same");
        assert!(is_stale("192.0.2.10", "eth1", None), "the other uplink has another address");
        assert!(!is_stale("192.0.2.99", "eth1", Some("192.0.2.99")), "an address of no uplink");
        assert!(is_stale("192.0.2.77", "eth0", Some("192.0.2.77")), "the host no longer has the address");
        assert!(!is_stale("192.0.2.9", "eth1", None), "not the source of a rule");
    }
}
