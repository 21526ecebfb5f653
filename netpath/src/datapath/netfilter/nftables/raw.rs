//! Netfilter messages whose answers are parsed attribute by attribute.
//!
//! netlink-packet-netfilter formats an error text for each item of a list, even without an error: 1,000 elements take
//! seconds.

use crate::netlink::Netlink;
use netlink_packet_core::{
    DecodeError, NLA_HEADER_SIZE, NetlinkDeserializable, NetlinkHeader, NetlinkPayload, NetlinkSerializable, NlaBuffer,
    NlasIterator,
};
use netlink_packet_netfilter::NetfilterMessage;
use netlink_sys::protocols::NETLINK_NETFILTER;
use std::io;

/// NFNL_SUBSYS_NFTABLES
const NFTABLES: u16 = 10;

/// `struct nfgenmsg`
const HEADER: usize = 4;

/// A message without its netlink header.
#[derive(Clone, Debug)]
pub(crate) struct Raw {
    kind: u16,
    bytes: Vec<u8>,
}

impl From<NetfilterMessage> for Raw {
    fn from(message: NetfilterMessage) -> Self {
        let mut bytes = vec![0; NetlinkSerializable::buffer_len(&message)];
        NetlinkSerializable::serialize(&message, &mut bytes);
        Self { kind: NetlinkSerializable::message_type(&message), bytes }
    }
}

impl NetlinkSerializable for Raw {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.bytes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.bytes);
    }
}

impl NetlinkDeserializable for Raw {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self { kind: header.message_type, bytes: payload.to_vec() })
    }
}

impl From<Raw> for NetlinkPayload<Raw> {
    fn from(message: Raw) -> Self {
        NetlinkPayload::InnerMessage(message)
    }
}

impl Raw {
    /// A request to nf_tables. `kind`: NFT_MSG_…; `family`: NFPROTO_…, 0 = all.
    pub(crate) fn nf_tables(kind: u16, family: u8, texts: &[(u16, &str)]) -> Self {
        let attributes: Vec<_> = texts.iter().map(|(kind, text)| (*kind, [text.as_bytes(), &[0]].concat())).collect();
        Self::request(NFTABLES, kind, family, &attributes)
    }

    /// `subsystem`: NFNL_SUBSYS_…
    pub(crate) fn request(subsystem: u16, kind: u16, family: u8, attributes: &[(u16, Vec<u8>)]) -> Self {
        let mut bytes = vec![family, 0, 0, 0];
        for (attribute, value) in attributes {
            bytes.extend(((NLA_HEADER_SIZE + value.len()) as u16).to_ne_bytes());
            bytes.extend(attribute.to_ne_bytes());
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        Self { kind: subsystem << 8 | kind, bytes }
    }

    /// A message of another protocol than that of netfilter.
    pub(crate) fn plain(kind: u16, bytes: Vec<u8>) -> Self {
        Self { kind, bytes }
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// NFPROTO_…
    pub(crate) fn family(&self) -> u8 {
        self.bytes.first().copied().unwrap_or(0)
    }

    pub(crate) fn attributes(&self) -> Attributes<'_> {
        Attributes(self.bytes.get(HEADER..).unwrap_or_default())
    }
}

/// A list of attributes.
#[derive(Clone, Copy)]
pub(crate) struct Attributes<'a>(pub &'a [u8]);

impl<'a> Attributes<'a> {
    pub(crate) fn all(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let items = NlasIterator::new(self.0).map_while(Result::ok);
        items.map(|item: NlaBuffer<&'a [u8]>| {
            let (kind, length) = (item.kind(), item.length().into());
            (kind, item.into_inner().get(NLA_HEADER_SIZE..length).unwrap_or_default())
        })
    }

    pub(crate) fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.all().find(|(k, _)| *k == kind).map(|(_, value)| value)
    }

    /// A string attribute without its trailing NUL.
    pub(crate) fn text(self, kind: u16) -> Option<&'a str> {
        std::str::from_utf8(self.get(kind)?.strip_suffix(&[0])?).ok()
    }

    pub(crate) fn nested(self, kind: u16) -> Option<Self> {
        self.get(kind).map(Self)
    }

    pub(crate) fn long_number(self, kind: u16) -> Option<u64> {
        self.get(kind)?.try_into().ok().map(u64::from_be_bytes)
    }

    pub(crate) fn number(self, kind: u16) -> Option<u32> {
        self.get(kind)?.try_into().ok().map(u32::from_be_bytes)
    }
}

/// A socket for [`Raw`] messages.
///
/// # Errors
/// A kernel without nfnetlink.
pub(crate) fn open() -> io::Result<Netlink<Raw>> {
    Netlink::open(NETLINK_NETFILTER)
}
