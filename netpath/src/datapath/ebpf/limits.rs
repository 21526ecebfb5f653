//! What the maps have room for, checked before anything is changed.

use super::compile::{Tables, publish_all};
use crate::datapath::Refusal;
use crate::model::{Record, Rung, port_conflicts};
use ipnet::IpNet;
use netpath_common::layout;
use std::collections::BTreeSet;

/// The first limit that `coming` would exceed beside `there`.
pub(super) fn exceeded(there: &[Record], coming: &[Record]) -> Option<Refusal> {
    let rung = Rung::Ebpf;
    // Every address counts as two, one of each family.
    let most = layout::RULE_CHAIN as usize;
    if let Some((proto, port)) = port_conflicts::exceeds_limit(coming, there, most) {
        return Some(Refusal {
            feature: format!("publish port {port}/{proto} on one more address of the host"),
            why: format!("the {rung} datapath serves a port on {most} addresses, and so many are in use"),
            next: "publish it on every address, or use NETPATH_DATAPATH=iptables".into(),
        });
    }
    let all: Vec<&Record> = there.iter().chain(coming).collect();
    of_maps(&all).map(|(what, limit)| Refusal {
        feature: "attach one more container".into(),
        why: format!("the {rung} datapath has room for {limit} {what} of one host"),
        next: "use fewer of them, publish ranges instead of single ports, or set NETPATH_DATAPATH=iptables".into(),
    })
}

/// The first limit of the maps that `records` exceed, with or without links: the name of the objects, and the limit.
fn of_maps(records: &[&Record]) -> Option<(&'static str, u32)> {
    let mut tables = Tables::default();
    publish_all(records.iter().map(|r| (*r, 0)), &mut tables);
    let distinct = |all: &mut dyn Iterator<Item = IpNet>| all.collect::<BTreeSet<_>>().len();
    let bridges = records.iter().filter_map(|r| r.network.bridge()).collect::<BTreeSet<_>>().len();
    let subnets = distinct(&mut records.iter().flat_map(|r| r.network.subnets.iter().map(|s| s.net.trunc())));
    let addresses = distinct(&mut records.iter().flat_map(|r| &r.endpoint.addresses).map(|a| IpNet::from(a.addr())));
    let limits = [
        ("addresses of containers", addresses, layout::ENDPOINTS),
        ("networks", bridges, layout::NETWORKS),
        ("subnets", subnets, layout::SUBNETS),
        // Index 0 is unused.
        ("rules for published ports", tables.rules.len(), layout::RULES - 1),
        ("networks in allow lists", tables.allow.entries.len(), layout::ALLOWS),
    ];
    limits.into_iter().find(|(_, count, most)| *count > *most as usize).map(|(what, _, most)| (what, most))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixtures::{name, record, tcp};
    use crate::model::{Attachment, HostBind, Proto, Publish};
    use std::net::Ipv4Addr;

    const A: &str = "10.88.0.2/16";
    #[test]
    fn each_limit_of_the_maps_is_known_before_anything_is_written() {
        let exceeded = |records: &[Record]| of_maps(&records.iter().collect::<Vec<_>>());
        let on = |n: u32, mut r: Record| {
            r.network.attachment = Attachment::Bridge(name(&format!("br{n}")));
            r.links = None;
            r
        };
        let address = |n: u32| format!("10.{}.{}.2/24", n / 256, n % 256);
        let networks: Vec<Record> =
            (0..=layout::NETWORKS).map(|n| on(n, record(u64::from(n), &[&address(n)], vec![]))).collect();
        assert_eq!(None, exceeded(&networks[..layout::NETWORKS as usize]));
        assert_eq!(Some(("networks", layout::NETWORKS)), exceeded(&networks));
        let many = (0..layout::ENDPOINTS + 1).map(|n| format!("10.{}.{}.2/8", n / 256, n % 256)).collect::<Vec<_>>();
        let many = record(1, &many.iter().map(String::as_str).collect::<Vec<_>>(), vec![]);
        assert_eq!(Some(("addresses of containers", layout::ENDPOINTS)), exceeded(&[many]));
        let ports = |proto| (1..=40_000).map(move |p| Publish::new(HostBind::Any, proto, p, 80, 1).expect("a publish"));
        let single = record(1, &[A], ports(Proto::Tcp).chain(ports(Proto::Udp)).collect());
        assert_eq!(Some(("rules for published ports", layout::RULES - 1)), exceeded(&[single]));
        let mut lists = record(1, &[A], vec![tcp(HostBind::Any, 80, 80, 1)]);
        let net = |n: u32| IpNet::new(Ipv4Addr::from(0x0a00_0000 + n).into(), 32).expect("a network");
        lists.allow = (0..=layout::ALLOWS).map(net).collect();
        assert_eq!(Some(("networks in allow lists", layout::ALLOWS)), exceeded(&[lists]));
    }
}
