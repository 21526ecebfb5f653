//! Reproducible random numbers: the same numbers from the same seed.

use std::cell::Cell;

/// A generator seeded by `NETPATH_SEED`, else by a seed that every failure prints.
pub struct Rng {
    seed: u64,
    state: Cell<u64>,
}

impl std::fmt::Display for Rng {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NETPATH_SEED={}", self.seed)
    }
}

impl Default for Rng {
    fn default() -> Self {
        Self::new()
    }
}

impl Rng {
    pub fn new() -> Self {
        Self::of(std::env::var("NETPATH_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(20_260_701))
    }

    /// A generator with another seed than the run's.
    pub fn of(seed: u64) -> Self {
        let rng = Self { seed, state: Cell::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1) };
        for _ in 0..8 {
            rng.below(2);
        }
        rng
    }

    pub fn seed(&self) -> u64 {
        self.seed
    }

    pub fn below(&self, end: u64) -> u64 {
        let mut s = self.state.get();
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        self.state.set(s);
        (s >> 16) % end
    }

    pub fn pick<'a, T>(&self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}
