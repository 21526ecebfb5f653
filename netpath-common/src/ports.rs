//! Which source ports are tried for a translated flow, and in which order (RFC 6056 §3.3.1).

/// Ports looked at before a flow is refused. A bound for the verifier; with half of the range taken, one flow in
/// 2^23 is refused.
pub const PORT_TRIES: u32 = 24;

/// The `i`-th port to try, host byte order: first the sender's own, then the range from a point drawn by `random` on.
#[inline(always)]
pub const fn candidate(own: u16, min: u16, max: u16, random: u32, i: u32) -> u16 {
    if i == 0 || max < min {
        return own;
    }
    let span = (max - min) as u64 + 1;
    // Multiply and shift: uniform over the range without a division.
    let mut at = ((random as u64 * span) >> 32) + i as u64;
    if at >= span {
        at -= span;
    }
    // A range smaller than the tries would still point beyond its end.
    if at >= span { max } else { min + at as u16 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_senders_own_port_comes_first() {
        assert_eq!(40_000, candidate(40_000, 61_000, 65_535, 7, 0));
    }

    proptest! {
        #[test]
        fn every_other_port_is_drawn_from_the_range(
            own: u16, a: u16, b: u16, random: u32, i in 1..PORT_TRIES
        ) {
            let (min, max) = (a.min(b), a.max(b));
            let port = candidate(own, min, max, random, i);
            prop_assert!((min..=max).contains(&port));
        }

        #[test]
        fn no_port_is_tried_twice(own in 1u16..61_000, random: u32) {
            let mut tried: Vec<u16> = (0..PORT_TRIES).map(|i| candidate(own, 61_000, 65_535, random, i)).collect();
            tried.sort_unstable();
            tried.dedup();
            prop_assert_eq!(PORT_TRIES as usize, tried.len());
        }
    }
}
