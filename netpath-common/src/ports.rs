//! Which source ports are tried for a translated flow, and in which order (RFC 6056 §3.3.1).

/// Ports looked at before a flow is refused. A bound for the verifier; with half of the range taken, one flow in
/// 2^23 is refused.
pub const PORT_TRIES: u32 = 24;
/// The last of these may take the port of a flow that is spent (`flow::is_spent`).
pub const HARDER_TRIES: u32 = 12;

/// Neighbours that are looked at in one place. Others hold ports in blocks (a program's own range) and every other one
/// (`net/ipv4/inet_hashtables.c, __inet_hash_connect()`): few of them in many places meet neither.
const NEIGHBOURS: u32 = 4;

/// The `i`-th port to try, host byte order: first the sender's own, then a few each in places of the range that `random`
/// draws. A range of no more ports than there are tries is gone through from such a place on.
#[inline(always)]
pub const fn candidate(own: u16, min: u16, max: u16, random: u32, i: u32) -> u16 {
    if i == 0 || max < min {
        return own;
    }
    let span = (max - min) as u64 + 1;
    let (place, step) = if span <= PORT_TRIES as u64 { (0, i) } else { (i / NEIGHBOURS, i % NEIGHBOURS) };
    // Odd factors: each place is drawn as evenly as `random` is (D. Knuth, The Art of Computer Programming 3, 6.4).
    let drawn = random.wrapping_add(place.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b);
    // Multiply and shift: uniform over the range without a division.
    let mut at = ((drawn as u64 * span) >> 32) + step as u64;
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

    /// As programs search: the first that nobody has.
    fn found(own: u16, range: (u16, u16), random: u32, is_taken: impl Fn(u16) -> bool) -> Option<u16> {
        (0..PORT_TRIES).map(|i| candidate(own, range.0, range.1, random, i)).find(|port| !is_taken(*port))
    }

    proptest! {
        #[test]
        fn a_taken_port_is_never_found_and_a_free_one_always_where_all_are_tried(
            own: u16, min in 1_024u16..65_000, span in 1..PORT_TRIES as u16, random: u32, taken: u32, takes_own: bool
        ) {
            let max = min + (span - 1);
            let is_taken = |port: u16| match port {
                p if (min..=max).contains(&p) => taken & 1 << (p - min) != 0,
                _ => takes_own,
            };
            let any_free = !is_taken(own) || (min..=max).any(|p| !is_taken(p));
            let found = found(own, (min, max), random, is_taken);
            prop_assert_eq!(any_free, found.is_some());
            prop_assert!(found.is_none_or(|p| !is_taken(p)));
            prop_assert!(is_taken(own) || found == Some(own), "its own was free");
        }

        #[test]
        fn in_a_large_range_what_is_found_is_free(own: u16, random: u32, modulus in 2u16..40, rest in 0u16..40) {
            let is_taken = |port: u16| port % modulus == rest % modulus;
            let found = found(own, (61_000, 65_535), random, is_taken);
            prop_assert!(found.is_some_and(|p| !is_taken(p)), "one of {} is taken, {:?} was found", modulus, found);
        }

        #[test]
        fn every_other_port_is_drawn_from_the_range(
            own: u16, a: u16, b: u16, random: u32, i in 1..PORT_TRIES
        ) {
            let (min, max) = (a.min(b), a.max(b));
            let port = candidate(own, min, max, random, i);
            prop_assert!((min..=max).contains(&port));
        }

        #[test]
        fn a_block_of_taken_ports_is_left(own in 1u16..1_024, random: u32, first in 1_024u16..60_000, parity in 0u16..2) {
            let is_taken = |port: u16| port == own || (first..first + 2_000).contains(&port) || port % 2 == parity;
            prop_assert!(found(own, (1_024, 65_535), random, is_taken).is_some());
        }

        #[test]
        fn hardly_a_port_is_tried_twice(own in 1u16..1_024, random: u32) {
            let mut tried: Vec<u16> = (0..PORT_TRIES).map(|i| candidate(own, 1_024, 65_535, random, i)).collect();
            tried.sort_unstable();
            tried.dedup();
            prop_assert!(tried.len() as u32 >= PORT_TRIES - 2 * NEIGHBOURS, "{:?}", tried);
        }
    }
}
