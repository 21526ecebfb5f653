//! Matching of packets to the rules of published ports.

use crate::addr::Addr;
use crate::family::{Family, Ipv6};
use crate::layout::Rule;

/// Whether `rule` serves `host`:`port` (host byte order) of `proto`, provided that `host` is an address of the host itself: a
/// port may be published on an address that another machine has now. With one branch, as [`serves`].
#[inline(always)]
pub fn covers(rule: &Rule, host: &Addr, port: u16, proto: u8) -> bool {
    let other_host = u64::from(difference(&rule.host, &Addr::ANY)) * u64::from(difference(&rule.host, host));
    let offset = u32::from(port.wrapping_sub(rule.host_port));
    // The highest bit is set if the offset is the smaller one.
    let beyond = !offset.wrapping_sub(u32::from(rule.count)) >> 31;
    (other_host | u64::from(beyond) | u64::from(rule.proto ^ proto)) == 0
}

/// The container's port for host port `port`, which the rule covers; host byte order.
#[inline(always)]
pub const fn container_port(rule: &Rule, port: u16) -> u16 {
    rule.container_port.wrapping_add(port.wrapping_sub(rule.host_port))
}

/// As [`covers`], by a rule that serves the family, and leads to the container at `target` unless that is unset. With few
/// branches: the verifier walks the rest of the program once per branch, for each rule of a chain.
#[inline(always)]
pub fn serves<F: Family>(rule: &Rule, host: &Addr, port: u16, proto: u8, target: &F::Addr) -> bool {
    let (leads, none) = (F::target(rule), F::Addr::default());
    // A product is zero if one of the factors is.
    let other_target = u64::from(F::difference(&leads, target)) * u64::from(F::difference(target, &none));
    let other_host = u64::from(difference(&rule.host, &Addr::ANY)) * u64::from(difference(&rule.host, host));
    let other = other_target | other_host | u64::from(rule.proto ^ proto);
    other == 0 && port.wrapping_sub(rule.host_port) < rule.count && !F::is_unset(&leads)
}

#[inline(always)]
fn difference(a: &Addr, b: &Addr) -> u32 {
    Ipv6::difference(&a.0, &b.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::Ipv4;
    use crate::layout::{PROTO_TCP, PROTO_UDP};
    use proptest::prelude::*;

    const HOST: Addr = Addr::v4([192, 0, 2, 1]);

    fn rule(host: Addr, host_port: u16, container_port: u16, count: u16) -> Rule {
        Rule { host, host_port, container_port, count, proto: PROTO_TCP, ..Rule::default() }
    }

    #[test]
    fn a_rule_covers_only_its_address_ports_and_protocol() {
        let r = rule(HOST, 8080, 80, 10);
        assert!(covers(&r, &HOST, 8080, PROTO_TCP));
        assert!(covers(&r, &HOST, 8089, PROTO_TCP));
        assert!(!covers(&r, &HOST, 8090, PROTO_TCP), "beyond the range");
        assert!(!covers(&r, &HOST, 8079, PROTO_TCP), "before the range");
        assert!(!covers(&r, &HOST, 8080, PROTO_UDP), "another protocol");
        assert!(!covers(&r, &Addr::v4([192, 0, 2, 2]), 8080, PROTO_TCP), "another address");
    }

    #[test]
    fn a_wildcard_covers_every_address() {
        assert!(covers(&rule(Addr::ANY, 8080, 80, 1), &HOST, 8080, PROTO_TCP));
    }

    #[test]
    fn a_rule_without_ports_covers_nothing() {
        assert!(!covers(&rule(Addr::ANY, 0, 0, 0), &HOST, 0, PROTO_TCP));
    }

    #[test]
    fn a_rule_serves_what_it_covers_for_its_container_alone() {
        const WEB: [u8; 4] = [10, 89, 7, 5];
        for host in [HOST, Addr::ANY, Addr::v4([192, 0, 2, 10])] {
            let r = Rule { to4: WEB, ..rule(host, 5060, 5060, 2) };
            for port in 5059..5063 {
                for proto in [PROTO_TCP, PROTO_UDP] {
                    let covered = covers(&r, &HOST, port, proto);
                    assert_eq!(covered, serves::<Ipv4>(&r, &HOST, port, proto, &[0; 4]), "any container");
                    assert_eq!(covered, serves::<Ipv4>(&r, &HOST, port, proto, &WEB));
                    assert!(!serves::<Ipv4>(&r, &HOST, port, proto, &[10, 89, 7, 6]), "another");
                    assert!(!serves::<Ipv6>(&r, &HOST, port, proto, &[0; 16]), "the other family");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn ports_of_a_range_keep_their_distance(first in 1u16.., to in 1u16.., count in 1u16.., port: u16) {
            prop_assume!(u32::from(first) + u32::from(count) <= 65_536 && u32::from(to) + u32::from(count) <= 65_536);
            let r = rule(HOST, first, to, count);
            let inside = port >= first && u32::from(port) < u32::from(first) + u32::from(count);
            prop_assert_eq!(inside, covers(&r, &HOST, port, PROTO_TCP));
            if inside {
                prop_assert_eq!(port - first, container_port(&r, port) - to);
            }
        }
    }
}
