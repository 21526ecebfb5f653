//! Connections that the rules of yesterday have decided: the kernel's table asks no rule again, so what no longer holds
//! is taken out of it. UDP clients would otherwise stick to a container that is gone, or to a host port from the time
//! before it was published (netavark #1045).

use super::netfilter::{message, open};
use super::rules::{Family, Target};
use crate::model::{HostBind, HostView, Proto};
use ipnet::IpNet;
use netlink_packet_core::{DefaultNla, NLA_F_NESTED};
use netlink_packet_netfilter::NetfilterMessageInner;
use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple};
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

/// Forgets the connections of `gone` addresses, and UDP to published ports that does not go where it is published.
/// Returns how many there were.
///
/// # Errors
/// The table cannot be read. Connections that end by themselves meanwhile are no error.
pub fn forget(
    family: Family,
    gone: &BTreeSet<IpAddr>,
    targets: &[Target],
    host: &HostView,
    keep: &[(IpAddr, u16)],
) -> io::Result<usize> {
    let udp: Vec<&Target> = targets.iter().filter(|t| t.publish.proto == Proto::Udp).collect();
    if gone.is_empty() && udp.is_empty() {
        return Ok(0);
    }
    let mut netlink = open()?;
    let mut filters = Vec::new();
    if gone.len() > FILTERED {
        filters.push(Vec::new());
    } else {
        filters.extend(gone.iter().flat_map(|a| [answered_by(*a), begun_by(*a)]));
        if !udp.is_empty() {
            filters.push(only_udp());
        }
    }
    let mut forgotten = 0;
    for filter in filters {
        let answers = match netlink.dump(message(family, ConntrackMessage::Get(filter.clone()))) {
            // A kernel that knows another form of filter gives everything.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) && !filter.is_empty() => {
                netlink.dump(message(family, ConntrackMessage::Get(Vec::new())))?
            }
            other => other?,
        };
        for connection in answers.into_iter().filter_map(|a| Connection::read(a.inner)) {
            let dead = gone.contains(&connection.from) || gone.contains(&connection.answers);
            let stale = connection.udp
                && !keep.contains(&(connection.to, connection.port))
                && published(&udp, host, &connection).is_some_and(|to| to != connection.answers);
            if dead || stale {
                match netlink.change(message(family, ConntrackMessage::Delete(connection.name)), 0) {
                    Ok(()) => forgotten += 1,
                    Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
                    Err(e) => return Err(e),
                }
            }
        }
    }
    Ok(forgotten)
}

/// Where a new connection with this destination would go.
fn published(udp: &[&Target], host: &HostView, connection: &Connection) -> Option<IpAddr> {
    let local = connection.to.is_loopback()
        || host.links.iter().flat_map(|l| &l.addresses).map(IpNet::addr).any(|a| a == connection.to);
    let target = udp.iter().find(|t| {
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
