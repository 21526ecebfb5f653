//! Conntrack entries as connections that another datapath translates before or after: the packets keep the same
//! translated addresses and ports.
//!
//! TCP entries that are added are liberal, since conntrack has not seen their windows.

use super::nfnetlink::{message, nested, open};
use super::rules::Family;
use crate::datapath::connection::{Connection, Direction, Entry, Transport};
use crate::netlink::Netlink;
use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, Nla};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoInfo, ProtoInfoTCP, ProtoTuple, Protocol, Status, Tuple,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use netpath_common::tcp::TcpState;
use std::io;
use std::net::IpAddr;

// include/uapi/linux/netfilter/nfnetlink_conntrack.h
const CTA_PROTOINFO: u16 = 4;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const CTA_PROTOINFO_TCP_FLAGS_ORIGINAL: u16 = 4;
const CTA_PROTOINFO_TCP_FLAGS_REPLY: u16 = 5;
const CTA_HELP: u16 = 5;
const CTA_ID: u16 = 12;
const CTA_SEQ_ADJ_ORIG: u16 = 15;
const CTA_SEQ_ADJ_REPLY: u16 = 16;
const CTA_ZONE: u16 = 18;
const CTA_SYNPROXY: u16 = 24;
const CTA_NAT_SRC: u16 = 6;
const CTA_NAT_DST: u16 = 13;
const CTA_NAT_V4_MINIP: u16 = 1;
const CTA_NAT_V4_MAXIP: u16 = 2;
const CTA_NAT_PROTO: u16 = 3;
const CTA_NAT_V6_MINIP: u16 = 4;
const CTA_NAT_V6_MAXIP: u16 = 5;
const CTA_PROTONAT_PORT_MIN: u16 = 1;
const CTA_PROTONAT_PORT_MAX: u16 = 2;

/// `enum tcp_conntrack`, and IP_CT_TCP_FLAG_BE_LIBERAL.
const SYN_SENT: u8 = 1;
const SYN_RECV: u8 = 2;
const ESTABLISHED: u8 = 3;
const TIME_WAIT: u8 = 7;
const CLOSE: u8 = 8;
const SYN_SENT2: u8 = 9;
const LIBERAL: u8 = 0x08;

/// Adds an entry for each connection that has none. Returns how many were added.
///
/// # Errors
/// A kernel without ctnetlink. Connections that the kernel refuses are skipped and break.
pub(super) fn adopt(connections: &[Connection]) -> io::Result<usize> {
    if connections.is_empty() {
        return Ok(0);
    }
    let mut netlink = open()?;
    let (mut added, mut refused) = (0, None);
    for connection in connections {
        let family = Family::of(&connection.original.source);
        let new = ConntrackMessage::New(attributes(connection));
        match netlink.change(message(family, new), NLM_F_CREATE | NLM_F_EXCL) {
            Ok(()) => added += 1,
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
            Err(e) => refused = refused.or(Some((connection, e))),
        }
    }
    if let Some((connection, e)) = refused {
        tracing::warn!(?connection, "connections that cannot be handed to connection tracking break: {e}");
    }
    Ok(added)
}

/// The connections of TCP and UDP in this network namespace, also those of others, without closed ones.
///
/// Those of TCP that are translated become liberal: while another datapath takes over, conntrack sees a part of their packets,
/// and would not translate one that it takes for invalid, which the host would answer with a reset.
///
/// # Errors
/// A kernel without ctnetlink.
pub(super) fn connections() -> io::Result<Vec<Connection>> {
    let mut netlink = open()?;
    let mut connections = Vec::new();
    for Tracked { connection, is_liberal, .. } in all(&mut netlink)? {
        let Connection { transport, original, translated, .. } = connection;
        if transport == Transport::Tcp && original != translated && !is_liberal {
            let attributes = vec![ConntrackAttribute::CtaTupleOrig(tuple(transport, original)), tcp(None)];
            let change = message(Family::of(&original.source), ConntrackMessage::New(attributes));
            if let Err(e) = netlink.change(change, 0) {
                tracing::debug!(?connection, "a connection may break: {e}");
            }
        }
        connections.push(connection);
    }
    Ok(connections)
}

/// The same to be shown, each with the state of a TCP connection: reads only.
///
/// # Errors
/// A kernel without ctnetlink.
pub(super) fn tracked() -> io::Result<Vec<Tracked>> {
    all(&mut open()?)
}

fn all(netlink: &mut Netlink<NetfilterMessage>) -> io::Result<Vec<Tracked>> {
    let all = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
    let answers = netlink.dump(NetfilterMessage::new(all, ConntrackMessage::Get(Vec::new())))?;
    Ok(answers.into_iter().filter_map(|answer| connection(answer.inner)).collect())
}

/// The entry with this tuple in one of its directions.
///
/// # Errors
/// The kernel's.
pub(crate) fn entry(
    netlink: &mut Netlink<NetfilterMessage>,
    transport: Transport,
    tuple_of: Direction,
) -> io::Result<Option<Entry>> {
    let get = ConntrackMessage::Get(vec![ConntrackAttribute::CtaTupleOrig(tuple(transport, tuple_of))]);
    let answers = match netlink.read(message(Family::of(&tuple_of.source), get)) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        other => other?,
    };
    let Some(NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes))) =
        answers.into_iter().next().map(|answer| answer.inner)
    else {
        return Ok(None);
    };
    let (mut id, mut mark, mut is_plain) = (0, 0, transport == Transport::Udp);
    let mut status = Status::empty();
    for attribute in &attributes {
        match attribute {
            ConntrackAttribute::CtaStatus(of_entry) => status = *of_entry,
            ConntrackAttribute::CtaMark(of_entry) => mark = *of_entry,
            ConntrackAttribute::CtaProtoInfo(info) => {
                let of_tcp = |i: &ProtoInfo| if let ProtoInfo::TCP(tcp) = i { tcp.clone() } else { Vec::new() };
                is_plain |= info.iter().flat_map(of_tcp).any(|field| field == ProtoInfoTCP::State(ESTABLISHED));
            }
            ConntrackAttribute::Other(other) => match Nla::kind(other) {
                CTA_ID => {
                    let mut value = [0; 4];
                    if other.value_len() == value.len() {
                        other.emit_value(&mut value);
                    }
                    id = u32::from_be_bytes(value);
                }
                CTA_HELP | CTA_SEQ_ADJ_ORIG | CTA_SEQ_ADJ_REPLY | CTA_ZONE | CTA_SYNPROXY => return Ok(None),
                _ => {}
            },
            _ => {}
        }
    }
    // UDP is assured only after two seconds.
    let answered = if transport == Transport::Tcp { Status::SeenReply | Status::Assured } else { Status::SeenReply };
    is_plain &= status.contains(answered) && !status.intersects(Status::Dying | Status::Offload | Status::SeqAdjust);
    let found = connection(NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)));
    Ok(found.map(|Tracked { connection, is_liberal, .. }| Entry { connection, id, mark, is_plain, is_liberal }))
}

/// Conntrack accepts what it has not seen of the windows of this connection.
///
/// # Errors
/// The kernel's: the entry is gone.
pub(crate) fn make_liberal(netlink: &mut Netlink<NetfilterMessage>, entry: &Entry) -> io::Result<()> {
    let Connection { transport, original, .. } = entry.connection;
    if transport != Transport::Tcp || entry.is_liberal {
        return Ok(());
    }
    let attributes = vec![ConntrackAttribute::CtaTupleOrig(tuple(transport, original)), tcp(None)];
    netlink.change(message(Family::of(&original.source), ConntrackMessage::New(attributes)), 0)
}

/// An entry of TCP or UDP.
pub(super) struct Tracked {
    pub connection: Connection,
    /// Of TCP: `enum tcp_conntrack`.
    tcp_state: Option<u8>,
    is_liberal: bool,
}

impl Tracked {
    /// As the flow tables of the programs call it.
    pub(super) fn state(&self) -> &'static str {
        match (self.tcp_state, self.connection.replied) {
            (Some(SYN_SENT | SYN_RECV | SYN_SENT2), _) => TcpState::Opening.word(),
            (Some(ESTABLISHED), _) => TcpState::Established.word(),
            (Some(_), _) => TcpState::Closing.word(),
            (None, true) => "replied",
            (None, false) => "unreplied",
        }
    }
}

/// `None`: it is closed, or of another protocol.
fn connection(answer: NetfilterMessageInner) -> Option<Tracked> {
    let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = answer else { return None };
    let (mut original, mut reply, mut replied, mut timeout_s) = (None, None, false, 0);
    let (mut tcp_state, mut is_liberal) = (None, false);
    for attribute in &attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(tuple) => original = Some(direction(tuple)?),
            ConntrackAttribute::CtaTupleReply(tuple) => reply = Some(direction(tuple)?.1),
            ConntrackAttribute::CtaStatus(status) => replied = status.contains(Status::SeenReply),
            ConntrackAttribute::CtaTimeout(seconds) => timeout_s = *seconds,
            ConntrackAttribute::CtaProtoInfo(info) => {
                let of_tcp = |i: &ProtoInfo| if let ProtoInfo::TCP(tcp) = i { tcp.clone() } else { Vec::new() };
                for field in info.iter().flat_map(of_tcp) {
                    match field {
                        ProtoInfoTCP::State(TIME_WAIT | CLOSE) => return None,
                        ProtoInfoTCP::State(state) => tcp_state = Some(state),
                        ProtoInfoTCP::OriginalFlags(flags) => is_liberal = flags.flags & LIBERAL != 0,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let (transport, original) = original?;
    let connection = Connection { transport, original, translated: reply?.reversed(), replied, timeout_s };
    Some(Tracked { connection, tcp_state, is_liberal })
}

/// `None`: another protocol.
fn direction(tuple: &[Tuple]) -> Option<(Transport, Direction)> {
    let (mut transport, mut source, mut destination, mut ports) = (None, None, None, [None; 2]);
    for part in tuple {
        match part {
            Tuple::Ip(parts) => parts.iter().for_each(|part| match part {
                IPTuple::SourceAddress(a) => source = Some(*a),
                IPTuple::DestinationAddress(a) => destination = Some(*a),
                _ => {}
            }),
            Tuple::Proto(parts) => parts.iter().for_each(|part| match part {
                ProtoTuple::Protocol(Protocol::Tcp) => transport = Some(Transport::Tcp),
                ProtoTuple::Protocol(Protocol::Udp) => transport = Some(Transport::Udp),
                ProtoTuple::SourcePort(p) => ports[0] = Some(*p),
                ProtoTuple::DestinationPort(p) => ports[1] = Some(*p),
                _ => {}
            }),
            _ => {}
        }
    }
    let [source_port, destination_port] = ports;
    let (source_port, destination_port) = (source_port?, destination_port?);
    Some((transport?, Direction { source: source?, destination: destination?, source_port, destination_port }))
}

fn attributes(connection: &Connection) -> Vec<ConntrackAttribute> {
    let Connection { transport, original, translated, replied, timeout_s } = *connection;
    let mut status = Status::Confirmed;
    if replied {
        status |= Status::SeenReply | Status::Assured;
    }
    let mut attributes = vec![
        ConntrackAttribute::CtaTupleOrig(tuple(transport, original)),
        // The kernel replaces the reply tuple by that of the translations below.
        ConntrackAttribute::CtaTupleReply(tuple(transport, original.reversed())),
        ConntrackAttribute::CtaStatus(status),
        ConntrackAttribute::CtaTimeout(timeout_s.max(1)),
    ];
    let (from, to) = ((original.source, original.source_port), (translated.source, translated.source_port));
    attributes.extend((from != to).then(|| translation(CTA_NAT_SRC, to)));
    let (from, to) =
        ((original.destination, original.destination_port), (translated.destination, translated.destination_port));
    attributes.extend((from != to).then(|| translation(CTA_NAT_DST, to)));
    if transport == Transport::Tcp {
        attributes.push(tcp(Some(if replied { ESTABLISHED } else { SYN_SENT })));
    }
    attributes
}

/// The entry becomes liberal; `None`: and keeps its state.
fn tcp(state: Option<u8>) -> ConntrackAttribute {
    // `struct nf_ct_tcp_flags`: flags and mask.
    let liberal = vec![LIBERAL, LIBERAL];
    let mut tcp: Vec<DefaultNla> =
        state.into_iter().map(|state| DefaultNla::new(CTA_PROTOINFO_TCP_STATE, vec![state])).collect();
    tcp.push(DefaultNla::new(CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, liberal.clone()));
    tcp.push(DefaultNla::new(CTA_PROTOINFO_TCP_FLAGS_REPLY, liberal));
    ConntrackAttribute::Other(nested(CTA_PROTOINFO, &[nested(CTA_PROTOINFO_TCP, &tcp)]))
}

fn tuple(transport: Transport, direction: Direction) -> Vec<Tuple> {
    let protocol = match transport {
        Transport::Tcp => Protocol::Tcp,
        Transport::Udp => Protocol::Udp,
    };
    let Direction { source, destination, source_port, destination_port } = direction;
    vec![
        Tuple::Ip(vec![IPTuple::SourceAddress(source), IPTuple::DestinationAddress(destination)]),
        Tuple::Proto(vec![
            ProtoTuple::Protocol(protocol),
            ProtoTuple::SourcePort(source_port),
            ProtoTuple::DestinationPort(destination_port),
        ]),
    ]
}

fn translation(kind: u16, (address, port): (IpAddr, u16)) -> ConntrackAttribute {
    let (min, max, octets) = match address {
        IpAddr::V4(a) => (CTA_NAT_V4_MINIP, CTA_NAT_V4_MAXIP, a.octets().to_vec()),
        IpAddr::V6(a) => (CTA_NAT_V6_MINIP, CTA_NAT_V6_MAXIP, a.octets().to_vec()),
    };
    let port = port.to_be_bytes().to_vec();
    let ports = [DefaultNla::new(CTA_PROTONAT_PORT_MIN, port.clone()), DefaultNla::new(CTA_PROTONAT_PORT_MAX, port)];
    let parts = [DefaultNla::new(min, octets.clone()), DefaultNla::new(max, octets), nested(CTA_NAT_PROTO, &ports)];
    ConntrackAttribute::Other(nested(kind, &parts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sched::{CloneFlags, unshare};

    fn direction(text: [&str; 2]) -> Direction {
        let [from, to] = text.map(|t| t.parse::<std::net::SocketAddr>().expect("an address"));
        Direction { source: from.ip(), destination: to.ip(), source_port: from.port(), destination_port: to.port() }
    }

    #[test]
    #[ignore = "needs root"]
    fn reading_to_show_leaves_an_entry_as_strict_as_it_is() {
        if !nix::unistd::geteuid().is_root() || unshare(CloneFlags::CLONE_NEWNET).is_err() {
            println!("skip reading_to_show_leaves_an_entry_as_strict_as_it_is: needs root");
            return;
        }
        let original = direction(["192.0.2.9:4000", "192.0.2.2:8080"]);
        let translated = direction(["192.0.2.9:4000", "10.89.7.5:80"]);
        let new = Connection { transport: Transport::Tcp, original, translated, replied: true, timeout_s: 100 };
        let mut attributes = attributes(&new);
        let state = DefaultNla::new(CTA_PROTOINFO_TCP_STATE, vec![ESTABLISHED]);
        let strict = nested(CTA_PROTOINFO, &[nested(CTA_PROTOINFO_TCP, &[state])]);
        assert!(attributes.pop().is_some(), "the last one is of TCP");
        attributes.push(ConntrackAttribute::Other(strict));
        let mut netlink = open().expect("nfnetlink");
        let message = message(Family::V4, ConntrackMessage::New(attributes));
        netlink.change(message, NLM_F_CREATE | NLM_F_EXCL).expect("ctnetlink");
        let is_liberal = || {
            entry(&mut open().expect("nfnetlink"), Transport::Tcp, original).expect("an entry").expect("one").is_liberal
        };
        let shown = tracked().expect("ctnetlink");
        assert_eq!(
            vec![("established", original)],
            shown.iter().map(|t| (t.state(), t.connection.original)).collect::<Vec<_>>()
        );
        assert!(!is_liberal());
        // A change-over makes it liberal.
        assert_eq!(1, connections().expect("ctnetlink").len());
        assert!(is_liberal());
    }

    #[test]
    #[ignore = "needs root"]
    fn adopted_connections_are_tracked_with_their_translation() {
        if !nix::unistd::geteuid().is_root() || unshare(CloneFlags::CLONE_NEWNET).is_err() {
            println!("skip adopted_connections_are_tracked_with_their_translation: needs root");
            return;
        }
        let connection = |transport, original, translated| Connection {
            transport,
            original: direction(original),
            translated: direction(translated),
            replied: true,
            timeout_s: 100,
        };
        let all = [
            connection(Transport::Tcp, ["192.0.2.9:4000", "192.0.2.2:8080"], ["192.0.2.9:4000", "10.89.7.5:80"]),
            connection(Transport::Udp, ["10.89.7.5:123", "192.0.2.9:123"], ["192.0.2.2:1024", "192.0.2.9:123"]),
            connection(Transport::Tcp, ["[fd00::9]:4000", "[fd00::2]:8080"], ["[fd00::9]:4000", "[fd01::5]:80"]),
        ];
        assert_eq!(3, adopt(&all).expect("ctnetlink"));
        assert_eq!(0, adopt(&all).expect("ctnetlink"), "the entries exist");
        let mut read = connections().expect("ctnetlink");
        read.sort_by_key(|c| all.iter().position(|known| known.original == c.original));
        read.iter_mut().for_each(|c| c.timeout_s = 100);
        assert_eq!(all.as_slice(), read);
        let Ok(list) = std::process::Command::new("sh").args(["-c", "conntrack -L; conntrack -L -f ipv6"]).output()
        else {
            return;
        };
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        if list.is_empty() {
            println!("skip the listing: no conntrack");
            return;
        }
        for replies in [
            "src=10.89.7.5 dst=192.0.2.9 sport=80 dport=4000",
            "src=192.0.2.9 dst=192.0.2.2 sport=123 dport=1024",
            "src=fd01::5 dst=fd00::9 sport=80 dport=4000",
        ] {
            assert!(list.contains(replies) && list.contains("ESTABLISHED"), "{replies} is missing in\n{list}");
        }
    }
}
