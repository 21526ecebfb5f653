//! Allow lists → `np_allow`: one list for all publishes with the same clients.
//!
//! A list's number is a hash of its content. So a number never means two lists in turn, and rules that are still
//! reachable keep theirs while other lists change.

use super::addr::{mapped, prefix};
use ipnet::IpNet;
use netpath_common::layout::AllowKey;
use std::collections::BTreeMap;
use zerocopy::IntoBytes;

/// Content of `np_allow`: prefix length and key, as bytes.
pub(super) type Entries = BTreeMap<(u32, [u8; 20]), u32>;

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Lists {
    known: BTreeMap<u32, Vec<IpNet>>,
    pub entries: Entries,
}

impl Lists {
    /// The number of the list of these networks; 0 = every client is allowed.
    pub(super) fn number(&mut self, allow: &[IpNet]) -> u32 {
        if allow.is_empty() {
            return 0;
        }
        let mut list: Vec<IpNet> = allow.iter().map(IpNet::trunc).collect();
        list.sort_unstable();
        list.dedup();
        let mut number = hash(&list);
        loop {
            match self.known.get(&number) {
                _ if number == 0 => {}
                Some(other) if *other == list => return number,
                None => break,
                // Two lists with one number: probability 2^-32.
                Some(_) => {}
            }
            number = number.wrapping_add(1);
        }
        for (len, base) in list.iter().flat_map(prefixes) {
            let [a, b, c, d] = number.to_be_bytes();
            let key = AllowKey { list: [a, b, c, d], client: netpath_common::addr::Addr(base) };
            let mut bytes = [0; 20];
            bytes.copy_from_slice(key.as_bytes());
            self.entries.insert((32 + len, bytes), 1);
        }
        self.known.insert(number, list);
        number
    }
}

/// FNV-1a
fn hash(list: &[IpNet]) -> u32 {
    let words = list.iter().flat_map(|net| mapped(net.addr()).0.into_iter().chain([net.prefix_len()]));
    words.fold(0x811c_9dc5, |h, byte| (h ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// The prefixes over v4-mapped addresses. An IPv6 prefix that contains the v4-mapped range is split around it.
fn prefixes(net: &IpNet) -> Vec<(u32, [u8; 16])> {
    const CORNER: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0];
    let (len, base) = prefix(net);
    let IpNet::V6(v6) = net else { return vec![(len, base)] };
    if !v6.contains(&std::net::Ipv6Addr::from(CORNER)) {
        return vec![(len, base)];
    }
    // At each level on the path to the v4-mapped range: the subtree that does not contain it.
    (len..96)
        .map(|bit| {
            let (byte, mask) = ((bit / 8) as usize, 0x80_u8 >> (bit % 8));
            let mut half = [0; 16];
            half[..byte].copy_from_slice(&CORNER[..byte]);
            let before = !(mask | (mask - 1));
            half[byte] = CORNER[byte] & before | !CORNER[byte] & mask;
            (bit + 1, half)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use netpath_common::addr::Addr;

    fn nets(words: &[&str]) -> Vec<IpNet> {
        words.iter().map(|w| w.parse().expect("a network")).collect()
    }

    /// The programs' look-up: the longest prefix that matches list and client.
    fn lets_in(lists: &Lists, number: u32, client: &str) -> bool {
        let client = mapped(client.parse().expect("an address"));
        let mut key = number.to_be_bytes().to_vec();
        key.extend(client.0);
        let bit = |bytes: &[u8], i: u32| bytes[(i / 8) as usize] >> (7 - i % 8) & 1;
        lists.entries.keys().any(|(len, base)| (0..*len).all(|i| bit(base, i) == bit(&key, i)))
    }

    #[test]
    fn equal_lists_are_one_whatever_their_order() {
        let mut lists = Lists::default();
        let a = lists.number(&nets(&["192.0.2.0/24", "2001:db8::/32"]));
        assert_eq!(a, lists.number(&nets(&["2001:db8::/32", "192.0.2.9/24", "192.0.2.0/24"])));
        assert_eq!(2, lists.entries.len());
        let b = lists.number(&nets(&["192.0.2.0/24"]));
        assert!(b != a && a != 0 && b != 0);
        assert_eq!(0, lists.number(&[]), "no list allows every client");
        let mut alone = Lists::default();
        assert_eq!(b, alone.number(&nets(&["192.0.2.0/24"])), "its number does not depend on other lists");
    }

    #[test]
    fn a_list_allows_its_networks_alone() {
        let mut lists = Lists::default();
        let a = lists.number(&nets(&["192.0.2.0/24", "2001:db8::/32", "198.51.100.7/32"]));
        let b = lists.number(&nets(&["203.0.113.0/24"]));
        for (client, of_a, of_b) in [
            ("192.0.2.77", true, false),
            ("192.0.3.1", false, false),
            ("198.51.100.7", true, false),
            ("198.51.100.8", false, false),
            ("203.0.113.5", false, true),
            ("2001:db8:7::1", true, false),
            ("2001:db9::1", false, false),
        ] {
            assert_eq!((of_a, of_b), (lets_in(&lists, a, client), lets_in(&lists, b, client)), "{client}");
        }
        assert!(lists.entries.keys().all(|(len, _)| (33..=160).contains(len)));
    }

    #[test]
    fn all_of_one_family_is_none_of_the_other() {
        let mut lists = Lists::default();
        let (v4, v6) = (lists.number(&nets(&["0.0.0.0/0"])), lists.number(&nets(&["::/0"])));
        let both = lists.number(&nets(&["::/0", "0.0.0.0/0"]));
        for (client, is_v4) in [("192.0.2.1", true), ("255.255.255.255", true), ("2001:db8::1", false), ("::1", false)]
        {
            assert_eq!((is_v4, !is_v4), (lets_in(&lists, v4, client), lets_in(&lists, v6, client)), "{client}");
            assert!(lets_in(&lists, both, client));
        }
        for near in ["::fffe:ffff:ffff", "::1:0:0:0", "::ffff"] {
            assert!(lets_in(&lists, v6, near) && !lets_in(&lists, v4, near), "{near}: {:?}", Addr::ANY);
        }
    }
}
