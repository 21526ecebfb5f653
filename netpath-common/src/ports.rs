//! Candidates for the source port of a translated flow, and their order (RFC 6056 §3.3.1).

/// Ports tried before a flow is refused. A bound for the verifier; with three quarters of the range in use, one flow
/// in 900,000 is refused.
pub const PORT_TRIES: u32 = 48;
/// The last tries may reuse the port of a closed or orphaned flow (`flow::is_closed`, `flow::may_be_orphaned`).
pub const EVICT_TRIES: u32 = 24;

/// The `i`-th port to try, host byte order: first the sender's own, then ports of the range, each drawn
/// independently. Other software uses ports in blocks (a program's own range) or every second one
/// (`net/ipv4/inet_hashtables.c, __inet_hash_connect()`), and a linear search would make such blocks grow. A range
/// with fewer ports than tries is searched in full from a random start.
#[inline(always)]
pub const fn candidate(own: u16, min: u16, max: u16, random: u32, i: u32) -> u16 {
    if i == 0 || max < min {
        return own;
    }
    let span = (max - min) as u32 + 1;
    let (draw, step) = if span < PORT_TRIES { (0, i) } else { (i, 0) };
    let drawn = mix(random.wrapping_add(draw.wrapping_mul(0x9e37_79b9)));
    // Multiply and shift: uniform over the range.
    let at = ((drawn as u64 * span as u64) >> 32) as u32 + step;
    min + (at % span) as u16
}

/// Each bit of `x` changes half of the bits of the result, so that flows do not collide along one sequence of ports
/// (A. Appleby, MurmurHash3, `fmix32`).
#[inline(always)]
const fn mix(mut x: u32) -> u32 {
    x = (x ^ (x >> 16)).wrapping_mul(0x85eb_ca6b);
    x = (x ^ (x >> 13)).wrapping_mul(0xc2b2_ae35);
    x ^ (x >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_senders_own_port_comes_first() {
        assert_eq!(40_000, candidate(40_000, 61_000, 65_535, 7, 0));
    }

    /// The search of the programs: the first free port.
    fn found(own: u16, range: (u16, u16), random: u32, is_taken: impl Fn(u16) -> bool) -> Option<u16> {
        (0..PORT_TRIES).map(|i| candidate(own, range.0, range.1, random, i)).find(|port| !is_taken(*port))
    }

    proptest! {
        #[test]
        fn in_a_small_range_a_free_port_is_always_found_and_never_a_taken_one(
            own: u16, min in 1_024u16..65_000, span in 1..PORT_TRIES as u16, random: u32, taken: u64, takes_own: bool
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
        fn in_a_large_range_the_found_port_is_free(own: u16, random: u32, modulus in 2u16..40, rest in 0u16..40) {
            let is_taken = |port: u16| port % modulus == rest % modulus;
            let found = found(own, (61_000, 65_535), random, is_taken);
            prop_assert!(found.is_some_and(|p| !is_taken(p)), "one of {} is taken, {:?} was found", modulus, found);
        }

        #[test]
        fn every_port_after_the_first_is_in_the_range(
            own: u16, a: u16, b: u16, random: u32, i in 1..PORT_TRIES
        ) {
            let (min, max) = (a.min(b), a.max(b));
            let port = candidate(own, min, max, random, i);
            prop_assert!((min..=max).contains(&port));
        }

        #[test]
        fn the_search_leaves_a_block_of_taken_ports(own in 1u16..1_024, random: u32, first in 1_024u16..60_000, parity in 0u16..2) {
            let is_taken = |port: u16| port == own || (first..first + 2_000).contains(&port) || port % 2 == parity;
            prop_assert!(found(own, (1_024, 65_535), random, is_taken).is_some());
        }

        #[test]
        fn in_a_small_range_eviction_is_tried_for_each_port(min in 1_024u16..65_000, span in 1..=EVICT_TRIES as u16, random: u32) {
            let max = min + (span - 1);
            let mut hard: Vec<u16> =
                (PORT_TRIES - EVICT_TRIES..PORT_TRIES).map(|i| candidate(7, min, max, random, i)).collect();
            hard.sort_unstable();
            hard.dedup();
            prop_assert_eq!(usize::from(span), hard.len());
        }

        #[test]
        fn few_ports_are_tried_twice(own in 1u16..1_024, random: u32) {
            let mut tried: Vec<u16> = (0..PORT_TRIES).map(|i| candidate(own, 1_024, 65_535, random, i)).collect();
            tried.sort_unstable();
            tried.dedup();
            prop_assert!(tried.len() as u32 >= PORT_TRIES - 4, "{:?}", tried);
        }
    }

    /// Each of the concurrent flows finds a different port.
    #[test]
    fn three_quarters_of_the_range_are_assigned_without_a_refusal() {
        let mut random = 1u32;
        let mut taken = std::collections::HashSet::new();
        for n in 0..48_384 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let port = found(7, (1_024, 65_535), random, |p| p == 7 || taken.contains(&p));
            assert!(port.is_some_and(|p| taken.insert(p)), "refused beside {n} others");
        }
    }
}
