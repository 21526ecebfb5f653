//! The part of the wire format (RFC 1035, 6891) that each query takes: its question is read and an answer with addresses written
//! without a value on the heap. `pointer.rs` and the command line use hickory-proto, for everything else.

use bytes::BufMut;
use std::net::IpAddr;

pub(super) const HEADER: usize = 12;
/// The largest UDP answer, as of DNS Flag Day 2020: it is not fragmented on any usual link.
pub(super) const MAX_UDP: u16 = 1232;
const MIN_UDP: u16 = 512;
/// Of the question's name, in an answer.
const POINTER_TO_QUESTION: u16 = 0xc000 | HEADER as u16;
const MAX_NAME: usize = 255;

pub(super) const A: u16 = 1;
pub(super) const SOA: u16 = 6;
pub(super) const PTR: u16 = 12;
pub(super) const AAAA: u16 = 28;
const OPT: u16 = 41;
pub(super) const IN: u16 = 1;

const RESPONSE: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const AUTHORITATIVE: u16 = 0x0400;
const TRUNCATED: u16 = 0x0200;
const RECURSION_DESIRED: u16 = 0x0100;
const RECURSION_AVAILABLE: u16 = 0x0080;
const CHECKING_DISABLED: u16 = 0x0010;

/// Response codes.
pub(super) mod code {
    pub(in super::super) const NO_ERROR: u8 = 0;
    pub(in super::super) const FORMAT_ERROR: u8 = 1;
    pub(in super::super) const SERVER_FAILURE: u8 = 2;
    pub(in super::super) const NO_SUCH_NAME: u8 = 3;
    pub(in super::super) const NOT_IMPLEMENTED: u8 = 4;
    pub(in super::super) const REFUSED: u8 = 5;
    /// The low bits of BADVERS, 16; the high ones are in the OPT record.
    pub(in super::super) const BAD_VERSION_LOW: u8 = 0;
}

/// A name in lower case, its labels separated by dots, without a dot at the end.
#[derive(Clone, Debug)]
pub(super) struct Name {
    bytes: [u8; MAX_NAME],
    length: u8,
    /// A label contains a dot itself, so that the text has two meanings. No container has such a name.
    ambiguous: bool,
}

impl Name {
    pub(super) fn text(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// Reads a name without pointers at `at`, and returns where it ends.
    fn read(message: &[u8], mut at: usize) -> Option<(Self, usize)> {
        let mut name = Self { bytes: [0; MAX_NAME], length: 0, ambiguous: false };
        let begin = at;
        loop {
            let length = usize::from(*message.get(at)?);
            at += 1;
            // Also compression, which is of no use in the first name of a message.
            if length > 63 || at + length - begin > MAX_NAME {
                return None;
            }
            if length == 0 {
                return Some((name, at));
            }
            let label = message.get(at..at + length)?;
            let mut end = usize::from(name.length);
            if end > 0 {
                name.bytes[end] = b'.';
                end += 1;
            }
            for (to, byte) in name.bytes[end..].iter_mut().zip(label) {
                *to = byte.to_ascii_lowercase();
                name.ambiguous |= *byte == b'.';
            }
            name.length = (end + length) as u8;
            at += length;
        }
    }
}

/// What the OPT record of a query says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Edns {
    payload: u16,
    version: u8,
    pub dnssec_ok: bool,
}

/// A query with one question.
#[derive(Clone, Debug)]
pub(super) struct Query<'a> {
    message: &'a [u8],
    pub name: Name,
    pub kind: u16,
    pub class: u16,
    question_end: usize,
    pub edns: Option<Edns>,
}

/// Why a message is not answered as a query.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reject {
    /// No answer at all: the message is too short, or itself an answer.
    Silence,
    /// This response code.
    Code(u8),
}

impl<'a> Query<'a> {
    /// # Errors
    /// It is no query that can be answered.
    pub(super) fn parse(message: &'a [u8]) -> Result<Self, Reject> {
        let count = |at: usize| message.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]));
        let (Some(flags), Some(questions), Some(answers), Some(authorities), Some(additional)) =
            (count(2), count(4), count(6), count(8), count(10))
        else {
            return Err(Reject::Silence);
        };
        if flags & RESPONSE != 0 {
            return Err(Reject::Silence);
        }
        if flags & OPCODE != 0 {
            return Err(Reject::Code(code::NOT_IMPLEMENTED));
        }
        let malformed = Reject::Code(code::FORMAT_ERROR);
        if questions != 1 || answers != 0 || authorities != 0 {
            return Err(malformed);
        }
        let (name, end) = Name::read(message, HEADER).ok_or(malformed)?;
        let (kind, class) = (count(end).ok_or(malformed)?, count(end + 2).ok_or(malformed)?);
        let mut query = Self { message, name, kind, class, question_end: end + 4, edns: None };
        let mut at = query.question_end;
        for _ in 0..additional {
            let record = RecordSpan::read(message, at).ok_or(malformed)?;
            if record.kind == OPT {
                if query.edns.is_some() || record.kind_at != at + 1 {
                    return Err(malformed);
                }
                query.edns = Some(Edns {
                    payload: record.class,
                    version: (record.ttl >> 16) as u8,
                    dnssec_ok: record.ttl & 0x8000 != 0,
                });
            }
            at = record.end;
        }
        Ok(query)
    }

    /// Whether its name can be that of a container.
    pub(super) fn is_plain(&self) -> bool {
        !self.name.ambiguous && self.name.length > 0
    }

    pub(super) fn question(&self) -> &'a [u8] {
        &self.message[HEADER..self.question_end]
    }

    /// The labels of its name, as they were sent.
    pub(super) fn labels(&self) -> &'a [u8] {
        &self.message[HEADER..self.question_end - 4]
    }

    /// Everything in it that may change an upstream server's answer, besides its question.
    pub(super) fn options(&self) -> u8 {
        u8::from(self.edns.is_some_and(|e| e.dnssec_ok)) << 1 | u8::from(self.flags() & CHECKING_DISABLED != 0)
    }

    fn flags(&self) -> u16 {
        u16::from_be_bytes([self.message[2], self.message[3]])
    }

    /// The largest answer that its sender takes by UDP.
    pub(super) fn udp_limit(&self) -> usize {
        usize::from(self.edns.map_or(MIN_UDP, |e| e.payload.clamp(MIN_UDP, MAX_UDP)))
    }

    pub(super) fn has_unknown_version(&self) -> bool {
        self.edns.is_some_and(|e| e.version != 0)
    }

    /// As it is sent to an upstream server: with this id, these labels, and room for a large answer.
    pub(super) fn upstream(&self, id: u16, labels: &[u8], edns: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.question_end + 11);
        out.put_u16(id);
        out.put_u16(RECURSION_DESIRED | self.flags() & CHECKING_DISABLED);
        for count in [1, 0, 0, u16::from(edns)] {
            out.put_u16(count);
        }
        out.extend_from_slice(labels);
        out.extend_from_slice(&self.message[self.question_end - 4..self.question_end]);
        if edns {
            put_opt(&mut out, 0, self.edns.is_some_and(|e| e.dnssec_ok));
        }
        out
    }
}

fn put_opt(out: &mut Vec<u8>, high_code: u8, dnssec_ok: bool) {
    out.put_u8(0);
    out.put_u16(OPT);
    out.put_u16(MAX_UDP);
    out.put_u32(u32::from(high_code) << 24 | u32::from(dnssec_ok) << 15);
    out.put_u16(0);
}

/// Where a resource record lies in a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordSpan {
    kind_at: usize,
    pub kind: u16,
    pub class: u16,
    pub ttl: u32,
    pub ttl_at: usize,
    pub end: usize,
}

impl RecordSpan {
    pub(super) fn read(message: &[u8], at: usize) -> Option<Self> {
        let kind_at = skip_name(message, at)?;
        let fixed = message.get(kind_at..kind_at + 10)?;
        let half = |i: usize| u16::from_be_bytes([fixed[i], fixed[i + 1]]);
        let end = kind_at + 10 + usize::from(half(8));
        (end <= message.len()).then_some(Self {
            kind_at,
            kind: half(0),
            class: half(2),
            ttl: u32::from(half(4)) << 16 | u32::from(half(6)),
            ttl_at: kind_at + 4,
            end,
        })
    }

    pub(super) fn is_opt(&self) -> bool {
        self.kind == OPT
    }
}

/// Where the name at `at` ends. A pointer ends it.
pub(super) fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(*length),
            0xc0.. => return Some(at + 2),
            _ => return None,
        }
    }
}

/// Writes an answer to `query` behind what `out` holds.
pub(super) struct Writer<'q, 'a, 'o> {
    query: &'q Query<'a>,
    out: &'o mut Vec<u8>,
    start: usize,
    limit: usize,
    flags: u16,
    high_code: u8,
    counts: [u16; 3],
}

/// The owner of the SOA record of a negative answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Zone {
    /// The name of the question.
    Question,
    /// Its end, from this byte of its labels on.
    Suffix(usize),
    Root,
}

impl<'q, 'a, 'o> Writer<'q, 'a, 'o> {
    /// `limit`: bytes of the whole answer.
    pub(super) fn new(query: &'q Query<'a>, code: u8, limit: usize, out: &'o mut Vec<u8>) -> Self {
        let start = out.len();
        let flags = RESPONSE | RECURSION_AVAILABLE | query.flags() & (RECURSION_DESIRED | CHECKING_DISABLED);
        out.extend_from_slice(&query.message[..2]);
        out.extend_from_slice(&[0; HEADER - 2]);
        out.extend_from_slice(query.question());
        let limit = limit - if query.edns.is_some() { 11 } else { 0 };
        Self { query, out, start, limit, flags: flags | u16::from(code), high_code: 0, counts: [0; 3] }
    }

    pub(super) fn authoritative(mut self) -> Self {
        self.flags |= AUTHORITATIVE;
        self
    }

    pub(super) fn bad_version(mut self) -> Self {
        self.high_code = 1;
        self
    }

    fn left(&self) -> usize {
        (self.start + self.limit).saturating_sub(self.out.len())
    }

    /// `false`: it does not fit, and the answer is marked as truncated.
    pub(super) fn address(&mut self, address: IpAddr, ttl: u32) -> bool {
        let length: u16 = if address.is_ipv4() { 4 } else { 16 };
        if !self.fits(12 + usize::from(length)) {
            return false;
        }
        self.out.put_u16(POINTER_TO_QUESTION);
        self.out.put_u16(if address.is_ipv4() { A } else { AAAA });
        self.out.put_u16(IN);
        self.out.put_u32(ttl);
        self.out.put_u16(length);
        match address {
            IpAddr::V4(a) => self.out.extend_from_slice(&a.octets()),
            IpAddr::V6(a) => self.out.extend_from_slice(&a.octets()),
        }
        self.counts[0] += 1;
        true
    }

    fn fits(&mut self, length: usize) -> bool {
        let fits = self.left() >= length;
        if !fits {
            self.flags |= TRUNCATED;
        }
        fits
    }

    /// The SOA record by which clients know for how long nothing is there (RFC 2308).
    pub(super) fn soa(&mut self, zone: Zone, ttl: u32) {
        if !self.fits(2 + 10 + 24) {
            return;
        }
        let pointer = match zone {
            Zone::Question => Some(POINTER_TO_QUESTION),
            Zone::Suffix(at) => Some(POINTER_TO_QUESTION + at as u16),
            Zone::Root => None,
        };
        let put_zone = |out: &mut Vec<u8>| match pointer {
            Some(pointer) => out.put_u16(pointer),
            None => out.put_u8(0),
        };
        put_zone(self.out);
        self.out.put_u16(SOA);
        self.out.put_u16(IN);
        self.out.put_u32(ttl);
        // Server and mailbox are not of interest: the zone itself stands for both.
        self.out.put_u16(if pointer.is_some() { 24 } else { 22 });
        put_zone(self.out);
        put_zone(self.out);
        // Serial, refresh, retry, expire, and the time to keep negative answers.
        for number in [1, 3600, 600, 86_400, ttl] {
            self.out.put_u32(number);
        }
        self.counts[1] += 1;
    }

    /// The records of an upstream server's answer, all or none: its answer section and so on, their TTLs being reduced by `age`.
    pub(super) fn records(&mut self, records: &[u8], counts: [u16; 3], ttls_at: &[u16], age: u32) {
        if !self.fits(records.len()) {
            return;
        }
        let at = self.out.len();
        self.out.extend_from_slice(records);
        for ttl_at in ttls_at {
            let Some(ttl) = self.out.get_mut(at + usize::from(*ttl_at)..).and_then(<[u8]>::first_chunk_mut::<4>) else {
                continue;
            };
            *ttl = u32::from_be_bytes(*ttl).saturating_sub(age).to_be_bytes();
        }
        self.counts = counts;
    }

    pub(super) fn finish(self) {
        let mut additional = self.counts[2];
        if let Some(edns) = self.query.edns {
            put_opt(self.out, self.high_code, edns.dnssec_ok);
            additional += 1;
        }
        let mut header = &mut self.out[self.start + 2..self.start + HEADER];
        header.put_u16(self.flags);
        for count in [1, self.counts[0], self.counts[1], additional] {
            header.put_u16(count);
        }
    }
}

/// An answer that has no more than a response code, to a message that may have no question.
pub(super) fn put_error(message: &[u8], code: u8, out: &mut Vec<u8>) {
    let Some(header) = message.get(..4) else { return };
    let flags = u16::from_be_bytes([header[2], header[3]]) & (OPCODE | RECURSION_DESIRED);
    out.extend_from_slice(&header[..2]);
    out.put_u16(RESPONSE | flags | u16::from(code));
    out.extend_from_slice(&[0; 8]);
}

/// An answer without its records, marked as truncated: the client asks again over TCP.
pub(super) fn cut(answer: &[u8]) -> Option<Vec<u8>> {
    let mut cut = answer.get(..skip_name(answer, HEADER)? + 4)?.to_vec();
    cut[2] |= (TRUNCATED >> 8) as u8;
    cut[6..HEADER].fill(0);
    Some(cut)
}

pub(super) fn response_code(message: &[u8]) -> u8 {
    message.get(3).map_or(code::SERVER_FAILURE, |b| b & 0x0f)
}

pub(super) fn is_truncated(message: &[u8]) -> bool {
    message.get(2).is_some_and(|b| b & (TRUNCATED >> 8) as u8 != 0)
}
