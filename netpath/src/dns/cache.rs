//! Answers of upstream servers, kept as long as their TTLs say. Bounded in number and bytes.

use super::wire::{self, HEADER, Query, RecordSpan, Writer, code};
use indexmap::IndexMap;
use rand::RngExt;
use std::time::{Duration, Instant};

const MOST_ANSWERS: usize = 8_192;
const MOST_BYTES: usize = 2 * 1024 * 1024;
/// Of one answer; a larger one is not kept.
const LARGEST: usize = 8 * 1024;
const LONGEST: u32 = 3_600;
/// RFC 2308 §5 recommends one to three hours at most; names that are added should be found sooner.
const LONGEST_NEGATIVE: u32 = 300;
/// RFC 9520: a failure is remembered, so that clients that repeat a query do not make the failure worse.
const FAILURE: u32 = 1;

/// Which questions have the same answer: those of the same name, type and options, sent to the same servers. By labels: a label
/// with a dot is not two labels. Their lengths are below the letters.
pub(super) type Key = Box<[u8]>;

pub(super) fn key(query: &Query<'_>, upstreams: u64) -> Key {
    let name = query.labels().to_ascii_lowercase();
    let mut key = Vec::with_capacity(name.len() + 11);
    key.extend_from_slice(&upstreams.to_ne_bytes());
    key.extend_from_slice(&query.kind.to_ne_bytes());
    key.push(query.options());
    key.extend_from_slice(&name);
    key.into()
}

/// The answer of a server, without its header, question and OPT record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Reply {
    code: u8,
    counts: [u16; 3],
    records: Box<[u8]>,
    ttls_at: Box<[u16]>,
    /// Seconds.
    ttl: u32,
    made: Instant,
}

impl Reply {
    /// `message`: an answer to `query`. `None`: it is malformed.
    pub(super) fn read(message: &[u8], query: &Query<'_>, now: Instant) -> Option<Self> {
        let count = |at: usize| message.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]));
        let begin = HEADER + query.question().len();
        let (mut counts, mut ttls_at, mut ttl, mut at) = ([0; 3], Vec::new(), None::<u32>, begin);
        let mut end_of_negative = None;
        'sections: for (section, number) in [count(6)?, count(8)?, count(10)?].into_iter().enumerate() {
            for _ in 0..number {
                let record = RecordSpan::read(message, at)?;
                // Usually the last one. What follows is optional, and its pointers would be wrong.
                if record.is_opt() {
                    break 'sections;
                }
                if section == 1 && record.kind == wire::SOA && counts[0] == 0 {
                    let minimum = message.get(record.end - 4..record.end)?.first_chunk::<4>()?;
                    end_of_negative = Some(record.ttl.min(u32::from_be_bytes(*minimum)));
                }
                ttls_at.push(u16::try_from(record.ttl_at - begin).ok()?);
                // RFC 2181 §8: the highest bit means zero.
                let own = if record.ttl > i32::MAX as u32 { 0 } else { record.ttl };
                ttl = Some(ttl.map_or(own, |ttl| ttl.min(own)));
                counts[section] += 1;
                at = record.end;
            }
        }
        let code = wire::response_code(message);
        let is_answer = matches!(code, code::NO_ERROR | code::NO_SUCH_NAME);
        let ttl = match (is_answer, counts[0]) {
            (false, _) => FAILURE,
            (true, 0) => end_of_negative.unwrap_or(0).min(LONGEST_NEGATIVE),
            (true, _) => ttl.unwrap_or(0).min(LONGEST),
        };
        let (records, ttls_at) = (message.get(begin..at)?.into(), ttls_at.into());
        Some(Self { code, counts, records, ttls_at, ttl, made: now })
    }

    /// No server has answered.
    pub(super) fn failure(now: Instant) -> Self {
        let nothing = || Box::new([]);
        Self {
            code: code::SERVER_FAILURE,
            counts: [0; 3],
            records: nothing(),
            ttls_at: Box::new([]),
            ttl: FAILURE,
            made: now,
        }
    }

    /// Another server may have a better one.
    pub(super) fn is_inferior(&self) -> bool {
        !matches!(self.code, code::NO_ERROR | code::NO_SUCH_NAME)
    }

    pub(super) fn write(&self, query: &Query<'_>, limit: usize, now: Instant, out: &mut Vec<u8>) {
        let age = now.saturating_duration_since(self.made).as_secs().try_into().unwrap_or(u32::MAX);
        let mut writer = Writer::new(query, self.code, limit, out);
        writer.records(&self.records, self.counts, &self.ttls_at, age);
        writer.finish();
    }

    fn ends(&self) -> Instant {
        self.made + Duration::from_secs(self.ttl.into())
    }

    fn bytes(&self) -> usize {
        // With what the map needs.
        self.records.len() + self.ttls_at.len() * 2 + 160
    }
}

#[derive(Default)]
pub(super) struct Cache {
    replies: IndexMap<Key, Reply>,
    bytes: usize,
}

impl Cache {
    pub(super) fn get(&mut self, key: &[u8], now: Instant) -> Option<&Reply> {
        let at = self.replies.get_index_of(key)?;
        if self.replies[at].ends() <= now {
            self.remove(at);
            return None;
        }
        Some(&self.replies[at])
    }

    pub(super) fn put(&mut self, key: Key, reply: Reply, now: Instant) {
        if reply.ttl == 0 || reply.bytes() > LARGEST {
            return;
        }
        self.bytes += key.len() + reply.bytes();
        if let (at, Some(old)) = self.replies.insert_full(key, reply) {
            self.bytes -= self.replies.get_index(at).map_or(0, |(key, _)| key.len()) + old.bytes();
        }
        while self.replies.len() > MOST_ANSWERS || self.bytes > MOST_BYTES {
            self.evict(now);
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Of a few at random the one that ends first: nearly as good as the best one, and there is nothing to maintain.
    fn evict(&mut self, now: Instant) {
        let mut random = rand::rng();
        let sample = (0..5).map(|_| random.random_range(0..self.replies.len()));
        if let Some(at) = sample.min_by_key(|at| self.replies[*at].ends().max(now)) {
            self.remove(at);
        }
    }

    fn remove(&mut self, at: usize) {
        if let Some((key, reply)) = self.replies.swap_remove_index(at) {
            self.bytes -= key.len() + reply.bytes();
        }
    }
}
