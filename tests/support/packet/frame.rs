//! Frames as values, and their bytes with checksums computed here, independently of the programs.

use super::{CLIENT_MAC, HOST_MAC, Mac};
use std::net::IpAddr;

#[derive(Clone, Debug, PartialEq)]
pub enum L4 {
    Tcp {
        sport: u16,
        dport: u16,
        flags: u8,
    },
    Udp {
        sport: u16,
        dport: u16,
        zero_sum: bool,
    },
    /// Sixteen bytes with an arbitrary checksum.
    Sctp {
        sport: u16,
        dport: u16,
    },
    Echo {
        request: bool,
        id: u16,
    },
    /// An ICMP error; the payload is the quoted packet.
    Error {
        kind: u8,
        code: u8,
    },
    /// Any other protocol, by number; or a later fragment of one.
    Raw(u8),
}

/// A fragment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Piece {
    pub id: u16,
    /// In units of eight bytes.
    pub offset: u16,
    pub more: bool,
}

impl Piece {
    pub const FIRST: Self = Self { id: 7, offset: 0, more: true };
    pub const LAST: Self = Self { id: 7, offset: 4, more: false };
}

/// A frame as values; lengths and checksums are filled in by [`Frame::bytes`].
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    pub dmac: Mac,
    pub smac: Mac,
    pub tagged: bool,
    pub src: IpAddr,
    pub dst: IpAddr,
    pub ttl: u8,
    pub l4: L4,
    pub payload: Vec<u8>,
    /// IPv4 options, or IPv6 destination options headers, of this many four- or eight-byte units.
    pub options: usize,
    pub fragment: Option<Piece>,
    /// Sequence and acknowledgement numbers of a TCP segment; by default those of a connection without data: 1 and 0 of a SYN,
    /// else 2, and 2.
    pub numbers: Option<(u32, u32)>,
}

pub const SYN: u8 = 0x02;
pub const ACK: u8 = 0x10;
pub const FIN: u8 = 0x01;
pub const RST: u8 = 0x04;

impl Frame {
    pub fn new(src: IpAddr, dst: IpAddr, l4: L4) -> Self {
        let payload = b"payload".to_vec();
        Self {
            dmac: HOST_MAC,
            smac: CLIENT_MAC,
            tagged: false,
            src,
            dst,
            ttl: 64,
            l4,
            payload,
            options: 0,
            fragment: None,
            numbers: None,
        }
    }

    pub fn tcp(src: (IpAddr, u16), dst: (IpAddr, u16), flags: u8) -> Self {
        Self::new(src.0, dst.0, L4::Tcp { sport: src.1, dport: dst.1, flags })
    }

    pub fn udp(src: (IpAddr, u16), dst: (IpAddr, u16)) -> Self {
        Self::new(src.0, dst.0, L4::Udp { sport: src.1, dport: dst.1, zero_sum: false })
    }

    /// Sets the hardware addresses `to` and `from`.
    #[must_use]
    pub fn macs(mut self, to: Mac, from: Mac) -> Self {
        (self.dmac, self.smac) = (to, from);
        self
    }

    /// With these sequence and acknowledgement numbers.
    #[must_use]
    pub fn numbered(mut self, seq: u32, ack: u32) -> Self {
        self.numbers = Some((seq, ack));
        self
    }

    /// This frame one hop later, with other ends.
    #[must_use]
    pub fn becomes(&self, src: (IpAddr, u16), dst: (IpAddr, u16)) -> Self {
        let mut f = self.clone();
        (f.src, f.dst) = (src.0, dst.0);
        f.ttl -= 1;
        match &mut f.l4 {
            L4::Tcp { sport, dport, .. } | L4::Udp { sport, dport, .. } | L4::Sctp { sport, dport } => {
                (*sport, *dport) = (src.1, dst.1);
            }
            L4::Echo { id, .. } => *id = src.1,
            L4::Raw(_) | L4::Error { .. } => {}
        }
        f
    }

    /// Without its Ethernet header, as quoted by an ICMP error.
    pub fn quoted(&self) -> Vec<u8> {
        self.bytes().split_off(14)
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = [self.dmac, self.smac].concat();
        if self.tagged {
            out.extend([0x81, 0x00, 0x00, 0x05]);
        }
        let v4 = self.src.is_ipv4();
        out.extend(if v4 { [0x08, 0x00] } else { [0x86, 0xdd] });
        let transport = self.transport(v4);
        out.extend(if v4 { self.header4(transport.len()) } else { self.header6(transport.len()) });
        out.extend(transport);
        out
    }

    fn proto(&self, v4: bool) -> u8 {
        match self.l4 {
            L4::Tcp { .. } => 6,
            L4::Udp { .. } => 17,
            L4::Sctp { .. } => 132,
            L4::Echo { .. } | L4::Error { .. } => {
                if v4 {
                    1
                } else {
                    58
                }
            }
            L4::Raw(n) => n,
        }
    }

    fn transport(&self, v4: bool) -> Vec<u8> {
        let mut t = Vec::new();
        let check_at = match self.l4 {
            L4::Tcp { sport, dport, flags } => {
                t.extend(sport.to_be_bytes());
                t.extend(dport.to_be_bytes());
                let own = if flags & SYN == 0 { 2_u32 } else { 1 };
                let (seq, ack) = self.numbers.unwrap_or((own, if flags & ACK == 0 { 0 } else { 2 }));
                t.extend(seq.to_be_bytes());
                t.extend(ack.to_be_bytes());
                t.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
                Some(16)
            }
            L4::Udp { sport, dport, zero_sum } => {
                t.extend(sport.to_be_bytes());
                t.extend(dport.to_be_bytes());
                t.extend(((8 + self.payload.len()) as u16).to_be_bytes());
                t.extend([0, 0]);
                if zero_sum { None } else { Some(6) }
            }
            L4::Echo { request, id } => {
                t.push(match (v4, request) {
                    (true, true) => 8,
                    (true, false) => 0,
                    (false, true) => 128,
                    (false, false) => 129,
                });
                t.extend([0, 0, 0]);
                t.extend(id.to_be_bytes());
                t.extend([0, 1]);
                Some(2)
            }
            L4::Sctp { sport, dport } => {
                t.extend(sport.to_be_bytes());
                t.extend(dport.to_be_bytes());
                t.extend([1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 4]);
                None
            }
            L4::Error { kind, code } => {
                t.extend([kind, code, 0, 0, 0, 0, 0x05, 0x00]);
                Some(2)
            }
            L4::Raw(_) => None,
        };
        t.extend(&self.payload);
        if let Some(at) = check_at {
            let mut covered = Vec::new();
            if !(v4 && matches!(self.l4, L4::Echo { .. } | L4::Error { .. })) {
                covered.extend(octets(self.src));
                covered.extend(octets(self.dst));
                covered.extend((t.len() as u32).to_be_bytes());
                covered.extend(u32::from(self.proto(v4)).to_be_bytes());
            }
            covered.extend(&t);
            let mut sum = checksum(&covered);
            if matches!(self.l4, L4::Udp { .. }) && sum == 0 {
                sum = 0xffff;
            }
            t[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        t
    }

    fn header4(&self, len: usize) -> Vec<u8> {
        let header_len = 20 + self.options * 4;
        let mut h = vec![0x40 | (header_len / 4) as u8, 0];
        h.extend(((header_len + len) as u16).to_be_bytes());
        let piece = self.fragment.map(|p| (p.id, p.offset | if p.more { 0x2000 } else { 0 }));
        let (id, fragment) = piece.unwrap_or((0x1234, 0x4000));
        h.extend(id.to_be_bytes());
        h.extend(fragment.to_be_bytes());
        h.extend([self.ttl, self.proto(true), 0, 0]);
        h.extend(octets(self.src));
        h.extend(octets(self.dst));
        // "No operation".
        h.extend(vec![1; self.options * 4]);
        let sum = checksum(&h);
        h[10..12].copy_from_slice(&sum.to_be_bytes());
        h
    }

    fn header6(&self, len: usize) -> Vec<u8> {
        let mut chain: Vec<u8> = vec![60; self.options];
        if self.fragment.is_some() {
            chain.push(44);
        }
        chain.push(self.proto(false));
        let mut h = vec![0x60, 0, 0, 0];
        h.extend(((len + (chain.len() - 1) * 8) as u16).to_be_bytes());
        h.extend([chain[0], self.ttl]);
        h.extend(octets(self.src));
        h.extend(octets(self.dst));
        for pair in chain.windows(2) {
            match self.fragment {
                Some(piece) if pair[0] == 44 => {
                    let at = piece.offset << 3 | u16::from(piece.more);
                    h.extend([pair[1], 0]);
                    h.extend(at.to_be_bytes());
                    h.extend(u32::from(piece.id).to_be_bytes());
                }
                // A destination options header with one PadN.
                _ => h.extend([pair[1], 0, 1, 4, 0, 0, 0, 0]),
            }
        }
        h
    }
}

fn octets(a: IpAddr) -> Vec<u8> {
    match a {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// RFC 1071 §4.1.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
