//! The bitmap of `np_near`: which parts of the address space contain containers.

use ipnet::{IpNet, Ipv6Net};
use netpath_common::addr::Addr;
use netpath_common::layout::{SUBNET_HINT_WORDS, subnet_hint};
use std::net::{Ipv4Addr, Ipv6Addr};

pub(super) type Words = Vec<u64>;

/// One bit for each 16-bit prefix of IPv4 subnets and each 48-bit prefix of IPv6 ones.
pub(super) fn of(nets: impl IntoIterator<Item = IpNet>) -> Words {
    let mut words = vec![0; SUBNET_HINT_WORDS as usize];
    let mut mark = |address: Addr| {
        let (word, bit) = subnet_hint(&address);
        words[word as usize] |= bit;
    };
    for net in nets {
        match net {
            IpNet::V4(v4) => {
                let first = u32::from(v4.network()) >> 16;
                let last = u32::from(v4.broadcast()) >> 16;
                (first..=last).for_each(|part| mark(Addr::v4(Ipv4Addr::from(part << 16).octets())));
            }
            IpNet::V6(v6) => parts(&v6).for_each(|a| mark(Addr::v6(a.octets()))),
        }
    }
    words
}

/// An address of each /48. The bit is a sum of the prefix's three words, so that 16 free bits give every possible
/// sum.
fn parts(net: &Ipv6Net) -> impl Iterator<Item = Ipv6Addr> + use<> {
    let first = u128::from(net.network()) >> 80;
    let count = 1_u128 << 48_u8.saturating_sub(net.prefix_len()).min(16);
    (first..first + count).map(|part| Ipv6Addr::from(part << 80))
}

/// The union: for changes where new bits are set before old ones are cleared.
pub(super) fn joined(a: &[u64], b: &[u64]) -> Words {
    a.iter().zip(b).map(|(a, b)| a | b).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may_hold(words: &[u64], address: &str) -> bool {
        let (word, bit) = subnet_hint(&super::super::addr::mapped(address.parse().expect("an address")));
        words[word as usize] & bit != 0
    }

    fn words(net: &str) -> Words {
        of([net.parse().expect("a network")])
    }

    #[test]
    fn every_address_of_a_subnet_is_in_the_bitmap_and_little_else() {
        for (net, inside, outside) in [
            ("10.88.0.0/16", vec!["10.88.0.1", "10.88.255.255"], "10.89.0.1"),
            ("10.88.3.0/24", vec!["10.88.3.1", "10.88.200.1"], "10.87.3.1"),
            ("172.16.0.0/12", vec!["172.16.0.1", "172.24.1.1", "172.31.255.255"], "172.32.0.1"),
            ("fd41:7:8:9::/64", vec!["fd41:7:8:9::1", "fd41:7:8:ffff::1"], "fd41:7:9::1"),
            ("fd41:7::/40", vec!["fd41:7::1", "fd41:7:ff::1"], "fd41:7:100::1"),
        ] {
            let words = words(net);
            for address in inside {
                assert!(may_hold(&words, address), "{address} in {net}");
            }
            assert!(!may_hold(&words, outside), "{outside} beside {net}");
        }
        for wide in ["fd00::/8", "2001:db8::/32", "::/0"] {
            assert!(words(wide).iter().all(|w| *w == u64::MAX), "{wide}");
        }
        assert_eq!(1, words("10.88.0.0/24").iter().map(|w| w.count_ones()).sum::<u32>());
        assert_eq!(16, words("172.16.0.0/12").iter().map(|w| w.count_ones()).sum::<u32>());
    }
}
