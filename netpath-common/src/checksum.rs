//! Incremental update of the internet checksum (RFC 1071, RFC 1624 equation 3).
//!
//! All sums are of 16-bit words in memory order: the one's complement sum is independent of byte order as long as all
//! of its words have the same one (RFC 1071 §2 B), so nothing is swapped.

/// A sum of up to 2^32 words, folded to 32 bits with its carries: the `__wsum` that `bpf_l4_csum_replace` takes.
#[inline(always)]
pub const fn fold32(sum: u64) -> u32 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    (sum as u32).wrapping_add((sum >> 32) as u32)
}

#[inline(always)]
pub const fn fold16(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum as u16).wrapping_add((sum >> 16) as u16)
}

/// The checksum field `check` after the words covered by it changed by `difference`: the sum of the new words and of
/// the old ones inverted, 32 or 16 bits each. Never 0xffff, which a sender does not write (RFC 1624 §3).
#[inline(always)]
pub const fn replaced(check: [u8; 2], difference: u64) -> [u8; 2] {
    let old = !u16::from_ne_bytes(check);
    (!fold16(fold32(difference + old as u64))).to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Be16;
    use crate::family::{Family, Ipv4, Ipv6, Tuple};
    use proptest::prelude::*;

    /// RFC 1071 §4.1, byte by byte in big-endian order: shares nothing with the code above.
    fn full(bytes: &[u8]) -> [u8; 2] {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    }

    fn at(header: &[u8; 20], i: usize) -> [u8; 4] {
        core::array::from_fn(|k| header[i + k])
    }

    fn tuple<F: Family>(src: F::Addr, dst: F::Addr, sport: u16, dport: u16) -> Tuple<F> {
        Tuple { src, dst, sport: Be16::new(sport), dport: Be16::new(dport) }
    }

    /// A tuple, and its addresses one after the other.
    type Ends<F> = (Tuple<F>, Vec<u8>);

    fn translated<F: Family>(old: Ends<F>, new: Ends<F>, payload: &[u8], outer: [u8; 8]) -> Result<(), TestCaseError> {
        let bytes = |(t, addresses): &Ends<F>, check: [u8; 2]| {
            [addresses.as_slice(), &t.sport.0, &t.dport.0, &check, &[0, 17], payload].concat()
        };
        let (before, after) = (full(&bytes(&old, [0; 2])), full(&bytes(&new, [0; 2])));
        let ports = u64::from(!old.0.ports()) + u64::from(new.0.ports());
        let difference = u64::from(old.0.address_difference(&new.0)) + ports;
        let changed = replaced(before, difference);
        prop_assert_eq!(after, changed);
        // An ICMP error quotes ports and checksum: both change.
        let error = |ends: &Ends<F>, check| full(&[outer.as_slice(), &bytes(ends, check)].concat());
        let sums = u64::from(!u16::from_ne_bytes(before)) + u64::from(u16::from_ne_bytes(changed));
        prop_assert_eq!(error(&new, changed), replaced(error(&old, before), difference + sums));
        Ok(())
    }

    proptest! {
        #[test]
        fn a_changed_v4_header_has_the_checksum_of_one_computed_anew(
            mut header: [u8; 20], src: [u8; 4], dst: [u8; 4]
        ) {
            header[10..12].fill(0);
            let check = full(&header);
            let old = tuple::<Ipv4>(at(&header, 12), at(&header, 16), 0, 0);
            header[12..16].copy_from_slice(&src);
            header[16..20].copy_from_slice(&dst);
            let changed = replaced(check, u64::from(old.address_difference(&tuple::<Ipv4>(src, dst, 0, 0))));
            // A header of zeros alone is impossible: its version is 4.
            prop_assume!(header.iter().any(|b| *b != 0));
            prop_assert_eq!(full(&header), changed);
        }

        #[test]
        fn a_changed_v6_pseudo_header_has_the_checksum_of_one_computed_anew(
            old_src: [u8; 16], old_dst: [u8; 16], src: [u8; 16], dst: [u8; 16], rest in any::<[u8; 24]>()
        ) {
            let bytes = |s: &[u8; 16], d: &[u8; 16]| [s.as_slice(), d.as_slice(), rest.as_slice()].concat();
            prop_assume!(bytes(&src, &dst).iter().any(|b| *b != 0));
            prop_assume!(bytes(&old_src, &old_dst).iter().any(|b| *b != 0));
            let old = tuple::<Ipv6>(old_src, old_dst, 0, 0);
            let difference = old.address_difference(&tuple::<Ipv6>(src, dst, 0, 0));
            prop_assert_eq!(
                full(&bytes(&src, &dst)),
                replaced(full(&bytes(&old_src, &old_dst)), u64::from(difference))
            );
        }

        /// Transport header and payload behind the pseudo-header, as TCP, UDP and ICMPv6 are summed; and the same
        /// quoted in an ICMP error, whose own checksum follows each change.
        #[test]
        fn a_translated_packet_has_the_checksums_of_one_computed_anew(
            old4: ([u8; 4], [u8; 4], u16, u16), new4: ([u8; 4], [u8; 4], u16, u16),
            old6: ([u8; 16], [u8; 16], u16, u16), new6: ([u8; 16], [u8; 16], u16, u16),
            payload in proptest::collection::vec(any::<u8>(), 0..200), outer in any::<[u8; 8]>()
        ) {
            let of4 = |t: ([u8; 4], [u8; 4], u16, u16)| (tuple::<Ipv4>(t.0, t.1, t.2, t.3), [t.0, t.1].concat());
            let of6 = |t: ([u8; 16], [u8; 16], u16, u16)| (tuple::<Ipv6>(t.0, t.1, t.2, t.3), [t.0, t.1].concat());
            translated(of4(old4), of4(new4), &payload, outer)?;
            translated(of6(old6), of6(new6), &payload, outer)?;
        }

        #[test]
        fn the_sum_of_a_pseudo_header_is_the_checksum_of_it_inverted(
            src: [u8; 16], dst: [u8; 16], proto in 1u8.., len: u16
        ) {
            let tail = [0, 0, (len >> 8) as u8, len as u8, 0, 0, 0, proto];
            let bytes = |s: &[u8], d: &[u8]| [s, d, tail.as_slice()].concat();
            let invert = |check: [u8; 2]| check.map(|b| !b);
            let v6 = tuple::<Ipv6>(src, dst, 1, 2).pseudo_sum(proto, Be16::new(len));
            prop_assert_eq!(invert(full(&bytes(&src, &dst))), v6);
            let (src4, dst4): ([u8; 4], [u8; 4]) =
                (core::array::from_fn(|i| src[i]), core::array::from_fn(|i| dst[i]));
            let v4 = tuple::<Ipv4>(src4, dst4, 1, 2).pseudo_sum(proto, Be16::new(len));
            prop_assert_eq!(invert(full(&bytes(&src4, &dst4))), v4);
        }

        #[test]
        fn translating_there_and_back_gives_the_first_checksum(
            check in 0u16..0xffff, a: [u8; 4], b: [u8; 4], c: [u8; 4], d: [u8; 4]
        ) {
            let (from, to) = (tuple::<Ipv4>(a, b, 1, 2), tuple::<Ipv4>(c, d, 3, 4));
            let there = replaced(check.to_ne_bytes(), u64::from(from.address_difference(&to)));
            let back = replaced(there, u64::from(to.address_difference(&from)));
            prop_assert_eq!(check.to_ne_bytes(), back);
        }
    }
}
