//! Values of which each bit is known, unknown but the same for every packet of a flow, or different between its packets.

/// The answer of a test to an established packet of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    No,
    Yes,
    /// The same for every packet of the flow, but not known.
    Maybe,
    /// It differs between packets: the reason.
    Varies(&'static str),
}

use Answer::{Maybe, No, Varies, Yes};

impl Answer {
    pub(super) fn of(is: bool) -> Self {
        if is { Yes } else { No }
    }

    pub(super) fn inverted_if(self, inverted: bool) -> Self {
        match self {
            Yes if inverted => No,
            No if inverted => Yes,
            other => other,
        }
    }

    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (No, _) | (_, No) => No,
            (Varies(why), _) | (_, Varies(why)) => Varies(why),
            (Maybe, _) | (_, Maybe) => Maybe,
            (Yes, Yes) => Yes,
        }
    }

    pub(super) fn or(self, other: Self) -> Self {
        self.inverted_if(true).and(other.inverted_if(true)).inverted_if(true)
    }
}

/// Bits that are neither `known` nor `varying` are the same for every packet of the flow, but not known.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Byte {
    value: u8,
    known: u8,
    varying: u8,
}

/// A sequence of bytes as packets and registers have them.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Bits {
    bytes: Vec<Byte>,
    /// Why bits vary, if some do.
    why: &'static str,
}

impl Bits {
    pub(super) fn known(bytes: &[u8]) -> Self {
        Self { bytes: bytes.iter().map(|b| Byte { value: *b, known: 0xff, varying: 0 }).collect(), why: "" }
    }

    pub(super) fn unknown(length: usize) -> Self {
        Self { bytes: vec![Byte::default(); length], why: "" }
    }

    pub(super) fn varying(length: usize, why: &'static str) -> Self {
        Self { bytes: vec![Byte { varying: 0xff, ..Byte::default() }; length], why }
    }

    /// `None`: not known.
    pub(super) fn maybe<const N: usize>(bytes: Option<[u8; N]>) -> Self {
        bytes.map_or_else(|| Self::unknown(N), |b| Self::known(&b))
    }

    /// Only the bits of `mask` are known.
    pub(super) fn with_mask(value: &[u8], mask: &[u8]) -> Self {
        let byte = |(value, known): (&u8, &u8)| Byte { value: value & known, known: *known, varying: 0 };
        Self { bytes: value.iter().zip(mask).map(byte).collect(), why: "" }
    }

    /// Makes the unknown bits vary.
    pub(super) fn otherwise_varying(mut self, why: &'static str) -> Self {
        for byte in &mut self.bytes {
            byte.varying = !byte.known;
        }
        self.why = why;
        self
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn append(&mut self, other: &Self) {
        self.bytes.extend(&other.bytes);
        self.why = if self.why.is_empty() { other.why } else { self.why };
    }

    /// Bytes past the end are unknown.
    pub(super) fn slice(&self, offset: usize, length: usize) -> Self {
        let byte = |at| self.bytes.get(at).copied().unwrap_or_default();
        Self { bytes: (offset..offset.saturating_add(length)).map(byte).collect(), why: self.why }
    }

    /// Overwrites bytes; those past the end are lost.
    pub(super) fn store(&mut self, offset: usize, other: &Self) {
        for (to, from) in self.bytes.iter_mut().skip(offset).zip(&other.bytes) {
            *to = *from;
        }
        self.why = if other.why.is_empty() { self.why } else { other.why };
    }

    /// `(self & mask) ^ xor`; missing bytes of both are zero.
    pub(super) fn masked(&self, mask: &[u8], xor: &[u8]) -> Self {
        let byte = |(at, b): (usize, &Byte)| {
            let (mask, xor) = (mask.get(at).copied().unwrap_or(0), xor.get(at).copied().unwrap_or(0));
            let known = b.known | !mask;
            Byte { value: ((b.value & mask) ^ xor) & known, known, varying: b.varying & mask }
        };
        Self { bytes: self.bytes.iter().enumerate().map(byte).collect(), why: self.why }
    }

    /// With the bytes of each group of `size` in reverse order.
    pub(super) fn swapped(&self, size: usize) -> Self {
        let bytes = self.bytes.chunks(size.max(1)).flat_map(|group| group.iter().rev().copied()).collect();
        Self { bytes, why: self.why }
    }

    /// All bytes, if they are known.
    pub(super) fn all_known(&self) -> Option<Vec<u8>> {
        self.bytes.iter().map(|b| (b.known == 0xff).then_some(b.value)).collect()
    }

    /// What any function of these bytes gives that is not computed here.
    pub(super) fn function(&self, length: usize) -> Self {
        if self.vary() { Self::varying(length, self.why) } else { Self::unknown(length) }
    }

    fn vary(&self) -> bool {
        self.bytes.iter().any(|b| b.varying != 0)
    }

    /// The answer of a test that needs bits which are not known.
    fn undecided(&self) -> Answer {
        if self.vary() { Varies(self.why) } else { Maybe }
    }

    /// Whether the first bytes are equal to `data`.
    pub(super) fn equal(&self, data: &[u8]) -> Answer {
        let this = self.slice(0, data.len());
        let pairs = || this.bytes.iter().zip(data);
        match () {
            () if pairs().any(|(b, d)| (b.value ^ d) & b.known != 0) => No,
            () if pairs().all(|(b, _)| b.known == 0xff) => Yes,
            () => this.undecided(),
        }
    }

    /// Whether they are between `first` and `last` in the order of bytes.
    pub(super) fn between(&self, first: &[u8], last: &[u8]) -> Answer {
        if first == last {
            return self.equal(first);
        }
        let this = self.slice(0, first.len());
        match this.all_known() {
            Some(bytes) => Answer::of(first <= bytes.as_slice() && bytes.as_slice() <= last),
            None => this.undecided(),
        }
    }

    /// A test whose result is a function of them that is not computed here; `is`: of bytes that are known.
    pub(super) fn test(&self, is: impl FnOnce(&[u8]) -> bool) -> Answer {
        self.all_known().map_or_else(|| self.undecided(), |bytes| Answer::of(is(&bytes)))
    }
}
