//! Connections that the rules of yesterday have decided: the kernel's table asks no rule again, so what no longer holds
//! is taken out of it. UDP clients would otherwise stick to a container that is gone, or to a host port from the time
//! before it was published (netavark #1045).

use super::nfnetlink::{message, open};
use super::policy;
use super::rules::{Family, Target};
use crate::model::{Desired, HostBind, HostView, Proto};
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
/// More addresses than this are looked for in one reading of the whole table.
const FILTERED: usize = 4;
/// As many connections are read as quickly as one.
const FEW: usize = 1_000;

/// One connection, as far as it matters here.
struct Connection {
    from: IpAddr,
    to: IpAddr,
    port: u16,
    udp: bool,
    /// Who answers, and to whom.
    answers: IpAddr,
    source: IpAddr,
    /// What names it when it is deleted.
    name: Vec<ConntrackAttribute>,
}

/// What the new rules of a family would decide otherwise.
pub(super) struct Stale {
    pub family: Family,
    /// Addresses of containers that are no more.
    pub gone: BTreeSet<IpAddr>,
    /// What is published now.
    pub targets: Vec<Target>,
    /// Addresses of the host that rules have given to connections as sources, by what routes said. MASQUERADE ends a
    /// connection when its address goes or its route leads elsewhere, such a rule does not.
    pub sources: BTreeSet<IpAddr>,
    /// Addresses of containers.
    pub containers: BTreeSet<IpAddr>,
}

impl Stale {
    /// For rules that served the addresses `served` before, and gave connections these `sources`.
    pub(super) fn new(
        family: Family,
        desired: &Desired,
        served: impl Iterator<Item = IpAddr>,
        sources: impl Iterator<Item = IpAddr>,
    ) -> Self {
        let containers = policy::addresses(desired, family);
        let gone = served.filter(|a| !containers.contains(a)).collect();
        Self { family, gone, targets: policy::targets(desired, family), sources: sources.collect(), containers }
    }

    fn udp(&self) -> impl Iterator<Item = &Target> {
        self.targets.iter().filter(|t| t.publish.proto == Proto::Udp)
    }

    fn holds(&self, connection: &Connection, host: &HostView, keep: &[(IpAddr, u16)]) -> bool {
        let dead = self.gone.contains(&connection.from)
            || self.gone.contains(&connection.answers)
            || self.leaves_otherwise(connection, host);
        dead || connection.udp
            && !keep.contains(&(connection.to, connection.port))
            && published(self.udp(), host, connection).is_some_and(|to| to != connection.answers)
    }

    /// The host has lost the source, or the route out of an interface that neither has nor is given it. A route that is
    /// given another source and still leads out of the source's interface leaves connections as they are.
    fn leaves_otherwise(&self, connection: &Connection, host: &HostView) -> bool {
        let source = connection.source;
        if !self.sources.contains(&source) || !self.containers.contains(&connection.from) {
            return false;
        }
        let way = host.sources.iter().find(|s| s.from.contains(&connection.from) && s.to.contains(&connection.to));
        let stays = way.is_none_or(|way| {
            let of_way = way.by.iter().filter_map(|by| host.link_named(by)).flat_map(|l| &l.addresses);
            way.by.is_empty() || way.source == Some(source) || of_way.into_iter().any(|a| a.addr() == source)
        });
        !stays || !host.has_address(source)
    }

    /// The questions to the kernel whose answers together have every such connection.
    fn filters(&self) -> Vec<Vec<ConntrackAttribute>> {
        if self.gone.len() + self.sources.len() > FILTERED {
            return vec![Vec::new()];
        }
        let mut filters: Vec<_> = self.gone.iter().flat_map(|a| [answered_by(*a), begun_by(*a)]).collect();
        filters.extend(self.sources.iter().map(|a| answered_to(*a)));
        filters.extend(self.udp().next().map(|_| only_udp()));
        filters
    }
}

/// Ends stale connections. They age by themselves: not being able to remove them is no reason to fail.
pub(super) fn end(stale: &[Stale], desired: &Desired, host: &HostView) {
    let dns: Vec<(IpAddr, u16)> = desired
        .bridged()
        .filter(|(r, _)| r.network.dns)
        .flat_map(|(r, _)| r.network.gateways().map(|(gateway, _)| (gateway, 53)))
        .collect();
    match forget(stale, host, &dns) {
        Ok(n) => tracing::debug!("{n} connections ended"),
        Err(e) => tracing::warn!("cannot end connections of removed containers: {e}; they time out by themselves"),
    }
}

/// Forgets the connections of addresses that are gone, those with a source that is not theirs any more, and UDP to published ports that does not go where it is published.
/// Returns how many there were.
///
/// # Errors
/// The table cannot be read. Connections that end by themselves meanwhile are no error.
fn forget(stale: &[Stale], host: &HostView, keep: &[(IpAddr, u16)]) -> io::Result<usize> {
    let filters: Vec<(Family, Vec<_>)> =
        stale.iter().flat_map(|s| s.filters().into_iter().map(|f| (s.family, f))).collect();
    let count = count();
    if filters.is_empty() || count == Some(0) {
        return Ok(0);
    }
    let mut netlink = open()?;
    if count.is_some_and(|n| n <= FEW) {
        // Any reading walks the kernel's whole hash table (10 ms of it here): one for all, rather than one for each filter.
        let all = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
        let all = netlink.dump(NetfilterMessage::new(all, ConntrackMessage::Get(Vec::new())))?;
        return forget_of(&mut netlink, all, stale, host, keep);
    }
    let mut forgotten = 0;
    for (family, filter) in filters {
        let answers = match netlink.dump(message(family, ConntrackMessage::Get(filter.clone()))) {
            // A kernel that knows another form of filter gives everything.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) && !filter.is_empty() => {
                netlink.dump(message(family, ConntrackMessage::Get(Vec::new())))?
            }
            other => other?,
        };
        forgotten += forget_of(&mut netlink, answers, stale, host, keep)?;
    }
    Ok(forgotten)
}

fn forget_of(
    netlink: &mut Netlink<NetfilterMessage>,
    answers: Vec<NetfilterMessage>,
    stale: &[Stale],
    host: &HostView,
    keep: &[(IpAddr, u16)],
) -> io::Result<usize> {
    let mut forgotten = 0;
    for connection in answers.into_iter().filter_map(|a| Connection::read(a.inner)) {
        let family = Family::of(&connection.from);
        if !stale.iter().any(|s| s.family == family && s.holds(&connection, host, keep)) {
            continue;
        }
        match netlink.change(message(family, ConntrackMessage::Delete(connection.name)), 0) {
            Ok(()) => forgotten += 1,
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(forgotten)
}

/// How many connections this namespace has; `None` where the kernel does not say.
fn count() -> Option<usize> {
    std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").ok()?.trim().parse().ok()
}

/// Where a new connection with this destination would go.
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
        let mut name = Vec::new();
        for attribute in attributes {
            match &attribute {
                ConntrackAttribute::CtaTupleOrig(t) => orig = Some(t.clone()),
                ConntrackAttribute::CtaTupleReply(t) => reply = Some(t.clone()),
                ConntrackAttribute::Other(o) if matches!(netlink_packet_core::Nla::kind(o), CTA_ID | CTA_ZONE) => {}
                _ => continue,
            }
            if !matches!(attribute, ConntrackAttribute::CtaTupleReply(_)) {
                name.push(attribute);
            }
        }
        let (orig, reply) = (orig?, reply?);
        let (from, to) = addresses(&orig);
        let (answers, source) = addresses(&reply);
        let (udp, port) = protocol(&orig);
        Some(Self { from: from?, to: to?, port, udp, answers: answers?, source: source?, name })
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

fn begun_by(address: IpAddr) -> Vec<ConntrackAttribute> {
    let tuple = vec![Tuple::Ip(vec![IPTuple::SourceAddress(address)])];
    vec![ConntrackAttribute::CtaTupleOrig(tuple), filter(FILTER_IP_SRC, 0)]
}

fn answered_by(address: IpAddr) -> Vec<ConntrackAttribute> {
    let tuple = vec![Tuple::Ip(vec![IPTuple::SourceAddress(address)])];
    vec![ConntrackAttribute::CtaTupleReply(tuple), filter(0, FILTER_IP_SRC)]
}

fn answered_to(address: IpAddr) -> Vec<ConntrackAttribute> {
    let tuple = vec![Tuple::Ip(vec![IPTuple::DestinationAddress(address)])];
    vec![ConntrackAttribute::CtaTupleReply(tuple), filter(0, FILTER_IP_DST)]
}

fn only_udp() -> Vec<ConntrackAttribute> {
    let tuple = vec![Tuple::Proto(vec![ProtoTuple::Protocol(Protocol::Udp)])];
    vec![ConntrackAttribute::CtaTupleOrig(tuple), filter(FILTER_PROTO_NUM, 0)]
}

/// Says which parts of the tuples count (5.8; an older kernel gives everything, and what comes is looked at anyway).
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

    /// Whether a connection of a container that left as `source` is forgotten, where the route leads out of `by`.
    fn is_forgotten(source: &str, by: &str, route: Option<&str>) -> bool {
        let links =
            vec![link(1, "lo", "192.0.2.99/32"), link(2, "eth0", "192.0.2.10/24"), link(3, "eth1", "198.51.100.1/24")];
        let way = RouteSource {
            from: "10.89.7.0/24".parse().expect("a subnet"),
            to: "0.0.0.0/0".parse().expect("a prefix"),
            by: vec![by.parse().expect("an interface name")],
            source: route.map(ip),
        };
        let host = HostView { links, sources: vec![way], ..HostView::default() };
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
            answers: ip("203.0.113.5"),
            source: ip(source),
            name: Vec::new(),
        };
        assert!(!stale.holds(&connection("10.0.0.5"), &host, &[]), "of another's container");
        stale.holds(&connection("10.89.7.5"), &host, &[])
    }

    #[test]
    fn a_connection_with_the_source_of_a_route_ends_with_that_address_or_the_way_out() {
        assert!(!is_forgotten("192.0.2.10", "eth0", Some("192.0.2.10")));
        assert!(!is_forgotten("192.0.2.10", "eth0", None), "the way out is the same");
        assert!(is_forgotten("192.0.2.10", "eth1", None), "the other uplink has another address");
        assert!(!is_forgotten("192.0.2.99", "eth1", Some("192.0.2.99")), "an address of no uplink");
        assert!(is_forgotten("192.0.2.77", "eth0", Some("192.0.2.77")), "the host has it no more");
        assert!(!is_forgotten("192.0.2.9", "eth1", None), "a source that no rule of ours has given");
    }
}
