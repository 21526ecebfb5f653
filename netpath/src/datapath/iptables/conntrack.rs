//! Connections that the rules of yesterday have decided: the kernel's table asks no rule again, so what no longer holds
//! is taken out of it. UDP clients would otherwise stick to a container that is gone, or to a host port from the time
//! before it was published (netavark #1045).

use super::netfilter::{message, open};
use super::rules::{Family, Target};
use crate::model::{HostBind, HostView, Proto};
use crate::netlink::Netlink;
use ipnet::IpNet;
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
    /// Who answers.
    answers: IpAddr,
    /// What names it when it is deleted.
    name: Vec<ConntrackAttribute>,
}

/// What the new rules of a family would decide otherwise.
pub struct Stale {
    pub family: Family,
    /// Addresses of containers that are no more.
    pub gone: BTreeSet<IpAddr>,
    /// What is published now.
    pub targets: Vec<Target>,
}

impl Stale {
    fn udp(&self) -> impl Iterator<Item = &Target> {
        self.targets.iter().filter(|t| t.publish.proto == Proto::Udp)
    }

    fn holds(&self, connection: &Connection, host: &HostView, keep: &[(IpAddr, u16)]) -> bool {
        let dead = self.gone.contains(&connection.from) || self.gone.contains(&connection.answers);
        dead || connection.udp
            && !keep.contains(&(connection.to, connection.port))
            && published(self.udp(), host, connection).is_some_and(|to| to != connection.answers)
    }

    /// The questions to the kernel whose answers together have every such connection.
    fn filters(&self) -> Vec<Vec<ConntrackAttribute>> {
        if self.gone.len() > FILTERED {
            return vec![Vec::new()];
        }
        let mut filters: Vec<_> = self.gone.iter().flat_map(|a| [answered_by(*a), begun_by(*a)]).collect();
        filters.extend(self.udp().next().map(|_| only_udp()));
        filters
    }
}

/// Forgets the connections of addresses that are gone, and UDP to published ports that does not go where it is published.
/// Returns how many there were.
///
/// # Errors
/// The table cannot be read. Connections that end by themselves meanwhile are no error.
pub fn forget(stale: &[Stale], host: &HostView, keep: &[(IpAddr, u16)]) -> io::Result<usize> {
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
    let local = connection.to.is_loopback()
        || host.links.iter().flat_map(|l| &l.addresses).map(IpNet::addr).any(|a| a == connection.to);
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
        let (answers, _) = addresses(&reply);
        let (udp, port) = protocol(&orig);
        Some(Self { from: from?, to: to?, port, udp, answers: answers?, name })
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
