//! The parsed headers of a packet.

use netpath_common::family::{Family, Tuple};
use netpath_common::tcp::{self, Segment};

/// Whether a packet is a fragment.
#[derive(Clone, Copy, Default, PartialEq)]
pub enum Fragment {
    #[default]
    No,
    /// With the transport header.
    First,
    /// Without the transport header.
    Later,
}

impl Fragment {
    /// From the offset and the "more fragments" bit.
    #[inline(always)]
    pub fn at(offset: u16, more: u16) -> Self {
        match (offset, more) {
            (0, 0) => Self::No,
            (0, _) => Self::First,
            _ => Self::Later,
        }
    }
}

/// The fields of the network header that translation needs.
#[derive(Clone, Copy, Default)]
pub struct Ip {
    pub proto: u8,
    pub ttl: u8,
    /// IPv4: the header's checksum. IPv6: the payload's length.
    pub word: [u8; 2],
    pub fragment: Fragment,
    /// Identification of a fragment, in packet order.
    pub id: u32,
    /// Offset of the transport header from the start of the packet.
    pub l4: usize,
    /// Length of the IP packet, from its header.
    pub len: u32,
    /// IPv6: traffic class and flow label, by which next hops are chosen, in packet order.
    pub flow: u32,
    /// Length of headers that segments of a GSO packet do not have.
    pub gone: u32,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    Tcp,
    Udp,
    /// Ports are read but never changed.
    Sctp,
    EchoRequest,
    EchoReply,
    /// An ICMP error: the quotation is in scratch (`icmp.rs`). Only the addresses of the tuple are set.
    Error,
    /// A later fragment with unknown ports. Only the addresses of the tuple are set.
    Fragment,
    /// A protocol without ports; they are zero.
    Other,
    /// A transport header that is truncated, malformed or not translatable.
    Odd,
}

pub struct Packet<F: Family> {
    pub tuple: Tuple<F>,
    pub ip: Ip,
    pub kind: Kind,
    pub segment: Segment,
    /// The hook's side, one of `layout::SIDE_*`.
    pub side: u8,
    pub l3: usize,
    /// Offset of the transport checksum, and the flags of `bpf_l4_csum_replace` for a change of addresses; 0 = it
    /// does not cover them. Stored as numbers, so that the verifier walks [`rewrite`] once and not once per protocol.
    pub check: usize,
    pub address_flags: u64,
    /// Length of network and transport headers: each segment of a GSO packet has them besides its payload.
    pub headers: u32,
}

impl<F: Family> Packet<F> {
    /// Whether a flow can begin with the packet. The ports of a later fragment are a guess (`fragment.rs`).
    #[inline(always)]
    pub fn may_begin(&self) -> bool {
        // TCP flows begin with a SYN. Other segments are left to the stack.
        self.ip.fragment != Fragment::Later && (self.kind != Kind::Tcp || tcp::is_syn(self.segment.flags))
    }
}

/// The quoted packet, and its tuple before translation.
pub struct Quoted<F: Family> {
    pub tuple: Tuple<F>,
    pub ip: Ip,
    pub to: Tuple<F>,
}

/// The headers of a plain packet, for the fast path. Filled in place and passed by reference to save stack.
pub struct FastHeaders<F: Family> {
    /// The key for the flow table, with the hook's side.
    pub key: F::Key,
    pub proto: u8,
    pub ttl: u8,
    /// IPv4: the header's checksum.
    pub sum: [u8; 2],
    pub segment: Segment,
    /// Length of the network and transport headers.
    pub headers: u32,
}

impl<F: Family> FastHeaders<F> {
    #[inline(always)]
    pub fn new() -> Self {
        Self { key: F::Key::default(), proto: 0, ttl: 0, sum: [0; 2], segment: Segment::default(), headers: 0 }
    }

    #[inline(always)]
    pub fn tuple(&self) -> &Tuple<F> {
        F::tuple(&self.key)
    }
}
