//! An established packet of a flow at one hook: what expressions, matches and targets can read of it.

use super::flow::Tuple;
use super::value::{Answer, Bits};
use std::net::{IpAddr, SocketAddr};

const PAYLOAD: &str = "it reads more of a packet than addresses, ports and the protocol";
const FLAGS: &str = "it reads flags of TCP that differ between packets";
const MAC: &str = "it reads addresses of the link layer";
const TIME: &str = "it depends on the time";
const TRAFFIC: &str = "it depends on how much the connection has carried";
const SIZE: &str = "it depends on the size of a packet";
const CPU: &str = "it depends on the processor";
const CHANCE: &str = "it depends on chance";
const PRIORITY: &str = "it reads the priority of a packet";
const SOCKET: &str = "it reads the socket of a packet";
const OTHER: &str = "it reads a field that netpath does not know";

/// TCP, UDP, DCCP, SCTP, UDP-Lite: the protocols whose ports are in the first four bytes.
const WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];
const TCP: u8 = 6;
/// Where a TCP header has its flags.
const FLAGS_AT: usize = 13;
/// Packets with SYN, FIN or RST, or without ACK, go the kernel's way.
const FIN_SYN_RST_ACK: u8 = 0x17;
const ACK: u8 = 0x10;

/// `None`: not known. A name of an interface is empty where a hook has none.
#[derive(Clone, Debug, Default)]
pub(super) struct Packet<'a> {
    pub v6: bool,
    pub protocol: Option<u8>,
    /// As they are at this hook.
    pub source: Option<SocketAddr>,
    pub destination: Option<SocketAddr>,
    pub iif: Option<&'a str>,
    pub oif: Option<&'a str>,
    /// At an interface below that of the flow, where frames may have tags of VLANs.
    pub below: bool,
    /// NFPROTO_…
    pub nfproto: u8,
    /// Connection tracking has seen it already.
    pub tracked: bool,
    pub reply_direction: Option<bool>,
    pub original: Option<Tuple>,
    pub reply: Option<Tuple>,
    pub mark: Option<u32>,
}

/// What an expression reads.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub(super) enum Source {
    /// `base` is NFT_PAYLOAD_…
    Payload {
        base: u32,
        offset: u32,
    },
    /// NFT_META_…
    Meta(u32),
    /// NFT_CT_…; `direction`: 0 original, 1 reply.
    Ct {
        key: u32,
        direction: Option<u8>,
    },
    /// Of the routes to or from its addresses.
    Routes,
    Varying(&'static str),
}

impl Packet<'_> {
    /// `length` bytes as the kernel puts them into a register; `None`: the rule ends here.
    pub(super) fn load(&self, source: &Source, length: usize) -> Option<Bits> {
        let bits = match source {
            Source::Payload { base, offset } => self.payload(*base, *offset as usize, length),
            Source::Meta(key) => self.meta(*key)?,
            Source::Ct { key, direction } => self.ct(*key, *direction),
            Source::Routes => Bits::unknown(length),
            Source::Varying(why) => Bits::varying(length, why),
        };
        Some(bits)
    }

    fn payload(&self, base: u32, offset: usize, length: usize) -> Bits {
        let header = match base {
            0 => self.link_header(),
            1 => self.network_header(),
            2 => self.transport_header(),
            _ => Bits::default(),
        };
        if offset.saturating_add(length) <= header.len() {
            header.slice(offset, length)
        } else {
            Bits::varying(length, PAYLOAD)
        }
    }

    fn link_header(&self) -> Bits {
        let mut header = Bits::varying(12, MAC);
        header.append(&self.ether_type());
        header
    }

    fn ether_type(&self) -> Bits {
        Bits::maybe((!self.below).then_some(if self.v6 { [0x86, 0xdd] } else { [8, 0] }))
    }

    fn network_header(&self) -> Bits {
        let (length, protocol_at, source_at, version) = if self.v6 { (40, 6, 8, 0x60) } else { (20, 9, 12, 0x40) };
        let mut header = Bits::varying(length, PAYLOAD);
        header.store(0, &Bits::with_mask(&[version], &[0xf0]).otherwise_varying(PAYLOAD));
        header.store(protocol_at, &Bits::maybe(self.protocol.map(|p| [p])));
        header.store(source_at, &self.address(self.source));
        header.store(source_at + self.address_length(), &self.address(self.destination));
        header
    }

    fn transport_header(&self) -> Bits {
        let mut header = Bits::varying(20, PAYLOAD);
        if self.protocol.is_none_or(|p| WITH_PORTS.contains(&p)) {
            header.store(0, &port(self.source));
            header.store(2, &port(self.destination));
        }
        if self.protocol.is_none_or(|p| p == TCP) {
            header.store(FLAGS_AT, &self.tcp_flags());
        }
        header
    }

    /// The byte of a TCP header that has SYN, ACK and others.
    pub(super) fn tcp_flags(&self) -> Bits {
        Bits::with_mask(&[ACK], &[FIN_SYN_RST_ACK]).otherwise_varying(FLAGS)
    }

    fn address_length(&self) -> usize {
        if self.v6 { 16 } else { 4 }
    }

    pub(super) fn address(&self, address: Option<SocketAddr>) -> Bits {
        match address.map(|a| a.ip()) {
            Some(IpAddr::V4(ip)) => Bits::known(&ip.octets()),
            Some(IpAddr::V6(ip)) => Bits::known(&ip.octets()),
            None => Bits::unknown(self.address_length()),
        }
    }

    /// `include/uapi/linux/netfilter/nf_tables.h, enum nft_meta_keys`
    fn meta(&self, key: u32) -> Option<Bits> {
        Some(match key {
            0 => Bits::varying(4, SIZE),
            1 => self.ether_type(),
            2 => Bits::varying(4, PRIORITY),
            6 => interface(self.iif),
            7 => interface(self.oif),
            8 | 9 => Bits::unknown(2),
            // No socket sent or receives a packet that is forwarded.
            10 | 11 => return None,
            15 => Bits::known(&[self.nfproto]),
            16 => Bits::maybe(self.protocol.map(|p| [p])),
            19 | 25 => Bits::unknown(1),
            20 => Bits::varying(4, CPU),
            23 => Bits::varying(4, SOCKET),
            24 => Bits::varying(4, CHANCE),
            // Names of bridges, kinds of interfaces.
            17 | 18 | 26 | 27 | 34 => Bits::unknown(16),
            30 => Bits::varying(8, TIME),
            31 | 32 => Bits::varying(4, TIME),
            4 => index(self.iif),
            5 => index(self.oif),
            // Marks, groups, and VLANs of bridge ports.
            3 | 13 | 14 | 21 | 22 | 28 | 29 | 33 => Bits::unknown(4),
            _ => Bits::varying(16, OTHER),
        })
    }

    /// `include/uapi/linux/netfilter/nf_tables.h, enum nft_ct_keys`
    fn ct(&self, key: u32, direction: Option<u8>) -> Bits {
        let tuple = match direction {
            Some(0) => self.original,
            Some(1) => self.reply,
            _ => None,
        };
        let end = |source: bool| tuple.map(|t| if source { t.source } else { t.destination });
        match key {
            _ if !self.tracked && !(13..=16).contains(&key) && key != 5 => Bits::unknown(16),
            0 => Bits::known(&STATE_ESTABLISHED.to_ne_bytes()),
            1 => Bits::maybe(self.reply_direction.map(|is| [u8::from(is)])),
            2 => self.status(),
            3 => Bits::maybe(self.mark.map(u32::to_ne_bytes)),
            5 => Bits::varying(4, TIME),
            14..=16 => Bits::varying(8, TRAFFIC),
            7 => Bits::known(&[self.nfproto_of_packet()]),
            8 | 19 | 21 => self.address(end(true)),
            9 | 20 | 22 => self.address(end(false)),
            10 => Bits::maybe(self.protocol.map(|p| [p])),
            11 => port(end(true)),
            12 => port(end(false)),
            // Security mark, helper, labels, zone, event mask, id.
            4 | 6 | 13 | 17 | 18 | 23 => Bits::unknown(16),
            _ => Bits::varying(16, OTHER),
        }
    }

    fn nfproto_of_packet(&self) -> u8 {
        (if self.v6 { libc::NFPROTO_IPV6 } else { libc::NFPROTO_IPV4 }) as u8
    }

    /// `include/uapi/linux/netfilter/nf_conntrack_common.h, enum ip_conntrack_status`
    pub(super) fn status(&self) -> Bits {
        const SEEN_REPLY: u32 = 1 << 1;
        const CONFIRMED: u32 = 1 << 3;
        const SRC_NAT: u32 = 1 << 4;
        const DST_NAT: u32 = 1 << 5;
        const DYING: u32 = 1 << 9;
        const TEMPLATE: u32 = 1 << 11;
        let (mut value, mut known) = (SEEN_REPLY | CONFIRMED, SEEN_REPLY | CONFIRMED | DYING | TEMPLATE);
        if !self.tracked {
            return Bits::unknown(4);
        }
        if let (Some(original), Some(reply)) = (self.original, self.reply) {
            known |= SRC_NAT | DST_NAT;
            value |= if original.source == reply.destination { 0 } else { SRC_NAT };
            value |= if original.destination == reply.source { 0 } else { DST_NAT };
        }
        Bits::with_mask(&value.to_ne_bytes(), &known.to_ne_bytes())
    }

    /// Whether the state is one of the mask, as `ct state` and iptables count them.
    pub(super) fn has_state(&self, mask: u32) -> Answer {
        if self.tracked { Answer::of(mask & STATE_ESTABLISHED != 0) } else { Answer::Maybe }
    }
}

/// `NF_CT_STATE_BIT(IP_CT_ESTABLISHED)`
pub(super) const STATE_ESTABLISHED: u32 = 1 << 1;

pub(super) fn port(address: Option<SocketAddr>) -> Bits {
    Bits::maybe(address.map(|a| a.port().to_be_bytes()))
}

fn index(name: Option<&str>) -> Bits {
    Bits::maybe(name.and_then(|name| nix::net::if_::if_nametoindex(name).ok()).map(u32::to_ne_bytes))
}

/// IFNAMSIZ bytes.
pub(super) fn interface(name: Option<&str>) -> Bits {
    Bits::maybe(name.map(|name| {
        let mut bytes = [0; 16];
        for (to, from) in bytes.iter_mut().take(15).zip(name.bytes()) {
            *to = from;
        }
        bytes
    }))
}
