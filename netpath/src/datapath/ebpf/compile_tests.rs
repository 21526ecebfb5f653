//! The tables of synthetic hosts, without a kernel.

use super::*;
use crate::model::fixtures::{at, name, record, tcp};
use crate::model::{Mac, Network as ModelNetwork, TrafficIds};

fn tables(records: Vec<Record>) -> Tables {
    compile(&Desired { records }, &HostView::default())
}

/// The look-up of the programs on a port, in order: host address, target, container port.
fn seen(t: &Tables, port: u16) -> Vec<(Addr, V4, V6, u16)> {
    let slot = t.slots.iter().find(|s| s.first <= port && u32::from(port) < u32::from(s.first) + s.count);
    let mut next = slot.map_or(0, |s| s.rule + 1);
    let mut found = Vec::new();
    while next != 0 {
        let rule = &t.rules[next - 1];
        assert!(rule.host_port <= port && port - rule.host_port < rule.count, "{rule:?} does not hold {port}");
        found.push((rule.host, rule.to4, rule.to6, rule.container_port + (port - rule.host_port)));
        next = rule.next as usize;
        assert!(found.len() <= layout::RULE_CHAIN as usize);
    }
    found
}

const A: &str = "10.88.0.2/16";
const A4: V4 = [10, 88, 0, 2];
const B: &str = "10.88.0.3/16";
const B4: V4 = [10, 88, 0, 3];
const NO6: V6 = [0; 16];

#[test]
fn a_range_costs_one_rule() {
    let t = tables(vec![record(1, &[A], vec![tcp(HostBind::Any, 10_000, 20_000, 10_000)])]);
    assert_eq!(1, t.rules.len());
    assert_eq!(vec![Slots { proto: 6, first: 10_000, count: 10_000, rule: 0 }], t.slots);
    assert_eq!(vec![(Addr::ANY, A4, NO6, 29_999)], seen(&t, 19_999));
    assert!(seen(&t, 20_000).is_empty());
}

#[test]
fn the_widest_range_reaches_the_last_port() {
    let t = tables(vec![record(1, &[A], vec![tcp(HostBind::Any, 1, 1, 65_535)])]);
    assert_eq!(vec![(Addr::ANY, A4, NO6, 65_535)], seen(&t, 65_535));
    assert!(seen(&t, 0).is_empty());
}

#[test]
fn the_older_owner_answers_and_its_end_reveals_the_younger() {
    let old = record(1, &[A], vec![tcp(HostBind::Any, 80, 80, 1)]);
    let young = record(2, &[B], vec![tcp(HostBind::Any, 80, 8080, 1)]);
    assert_eq!(vec![(Addr::ANY, A4, NO6, 80)], seen(&tables(vec![young.clone(), old]), 80));
    assert_eq!(vec![(Addr::ANY, B4, NO6, 8080)], seen(&tables(vec![young]), 80));
}

#[test]
fn one_address_comes_before_every_address() {
    let any = record(1, &[A], vec![tcp(HostBind::Any, 80, 80, 1)]);
    let one = record(2, &[B], vec![tcp(at("192.0.2.1"), 80, 80, 1)]);
    let t = tables(vec![any, one]);
    assert_eq!(vec![(Addr::v4([192, 0, 2, 1]), B4, NO6, 80), (Addr::ANY, A4, NO6, 80)], seen(&t, 80));
}

#[test]
fn ports_inside_a_range_lead_on_to_the_range() {
    let range = record(1, &[A], vec![tcp(HostBind::Any, 1000, 1000, 1000)]);
    let inside: Vec<Publish> = (0..100).map(|i| tcp(at("192.0.2.1"), 1000 + 10 * i, 7000 + i, 1)).collect();
    let t = tables(vec![range, record(2, &[B], inside)]);
    assert_eq!(101, t.rules.len(), "the range stays one rule, since nothing comes after it anywhere");
    assert_eq!(vec![(Addr::v4([192, 0, 2, 1]), B4, NO6, 7001), (Addr::ANY, A4, NO6, 1010)], seen(&t, 1010));
    assert_eq!(vec![(Addr::ANY, A4, NO6, 1011)], seen(&t, 1011));
}

#[test]
fn ranges_that_overlap_in_part_answer_in_each_part() {
    let first = record(1, &[A], vec![tcp(HostBind::Any, 100, 100, 100)]);
    let second = record(2, &[B], vec![tcp(HostBind::Any, 150, 500, 100), tcp(at("192.0.2.1"), 190, 900, 20)]);
    let t = tables(vec![first, second]);
    let one = Addr::v4([192, 0, 2, 1]);
    assert_eq!(vec![(Addr::ANY, A4, NO6, 149)], seen(&t, 149));
    assert_eq!(vec![(Addr::ANY, A4, NO6, 150)], seen(&t, 150), "the older range owns the overlap");
    assert_eq!(vec![(one, B4, NO6, 900), (Addr::ANY, A4, NO6, 190)], seen(&t, 190));
    assert_eq!(vec![(one, B4, NO6, 910), (Addr::ANY, B4, NO6, 550)], seen(&t, 200));
    assert_eq!(vec![(Addr::ANY, B4, NO6, 560)], seen(&t, 210));
    assert!(seen(&t, 250).is_empty());
}

#[test]
fn a_second_network_serves_the_family_that_the_first_has_not() {
    let publish = vec![tcp(HostBind::Any, 80, 80, 1)];
    let t = tables(vec![record(1, &[A], publish.clone()), record(2, &[B, "fd00::3/64"], publish)]);
    let v6: Ipv6Addr = "fd00::3".parse().expect("an address");
    assert_eq!(vec![(Addr::ANY, A4, NO6, 80), (Addr::ANY, [0; 4], v6.octets(), 80)], seen(&t, 80));
}

#[test]
fn a_bind_to_one_family_serves_only_it() {
    let both = [A, "fd00::2/64"];
    let publishes = vec![tcp(HostBind::AnyV4, 80, 80, 1), tcp(HostBind::AnyV6, 81, 81, 1), tcp(at("::"), 82, 82, 1)];
    let t = tables(vec![record(1, &both, publishes)]);
    let v6: Ipv6Addr = "fd00::2".parse().expect("an address");
    assert_eq!(vec![(Addr::ANY, A4, NO6, 80)], seen(&t, 80));
    let flags: Vec<u8> = t.rules.iter().map(|r| r.flags).collect();
    assert_eq!(vec![layout::RULE_V4_ONLY, 0, 0], flags, "::1 is not led to a port of 0.0.0.0");
    assert_eq!(vec![(Addr::ANY, [0; 4], v6.octets(), 81)], seen(&t, 81));
    assert_eq!(vec![(Addr::ANY, [0; 4], v6.octets(), 82)], seen(&t, 82));
    let none = tables(vec![record(1, &[A], vec![tcp(HostBind::AnyV6, 80, 80, 1)])]);
    assert!(none.rules.is_empty() && none.slots.is_empty());
}

#[test]
fn a_record_without_links_is_left_alone_and_its_bridge_is_no_uplink() {
    let mut r = record(1, &[A], vec![tcp(HostBind::Any, 80, 80, 1)]);
    r.links = None;
    let host = HostView {
        cookie: 7,
        links: vec![link(10, "podman1", LinkKind::Bridge, None, &["10.88.0.1/16"])],
        ..HostView::default()
    };
    let t = compile(&Desired { records: vec![r] }, &host);
    assert!(t.rules.is_empty() && t.endpoints.is_empty() && t.networks.is_empty());
    assert!(t.uplinks.is_empty());
    assert_eq!(7, t.config.netns_cookie);
}

fn link(index: u32, n: &str, kind: LinkKind, master: Option<u32>, addresses: &[&str]) -> HostLink {
    HostLink {
        index,
        name: name(n),
        kind,
        master,
        mtu: 1500,
        mac: Some(Mac::from_kernel([2, 0, 0, 0, 0, 9])),
        driver: None,
        up: false,
        addresses: addresses.iter().map(|a| a.parse().expect("an address")).collect(),
    }
}

#[test]
fn uplinks_pass_packets_and_have_no_master() {
    let host = HostView {
        cookie: 1,
        links: vec![
            link(1, "lo", LinkKind::Loopback, None, &["127.0.0.1/8"]),
            link(2, "eth0", LinkKind::Other, None, &["192.0.2.1/24", "2001:db8::1/64"]),
            link(3, "eth1", LinkKind::Other, None, &[]),
            link(4, "eth2", LinkKind::Other, Some(5), &["192.0.2.9/24"]),
            link(5, "br0", LinkKind::Bridge, None, &["198.51.100.1/24"]),
            link(6, "unnumbered", LinkKind::Other, None, &["fe80::1/64"]),
            link(7, "client", LinkKind::Veth, None, &["203.0.113.1/24"]),
            link(8, "fresh", LinkKind::Veth, None, &["fe80::2/64"]),
            link(10, "podman1", LinkKind::Bridge, None, &["10.88.0.1/16"]),
            link(21, "veth0", LinkKind::Veth, Some(10), &["fe80::3/64"]),
            link(22, "blue", LinkKind::Vrf, None, &[]),
            link(23, "eth3", LinkKind::Other, Some(22), &["192.0.2.33/24"]),
            HostLink { up: true, ..link(24, "bare", LinkKind::Other, None, &[]) },
            HostLink { up: true, ..link(25, "nested", LinkKind::Veth, None, &["fe80::4/64"]) },
            HostLink { up: true, driver: Some("ifb".into()), ..link(26, "ifb0", LinkKind::Other, None, &[]) },
        ],
        ..HostView::default()
    };
    let t = compile(&Desired { records: vec![record(1, &[A], vec![])] }, &host);
    assert_eq!(vec![2, 5, 6, 7, 23, 24, 25], t.uplinks.keys().copied().collect::<Vec<_>>());
    assert_eq!([192, 0, 2, 1], t.uplinks[&2].source4);
    let first6 = "2001:db8::1".parse::<Ipv6Addr>().expect("an address").octets();
    assert_eq!(first6, t.uplinks[&6].source6, "a link-local address is no source for the outside");
    for bare in [24, 25] {
        assert_eq!(([192, 0, 2, 1], first6), (t.uplinks[&bare].source4, t.uplinks[&bare].source6));
    }
    assert_eq!([0; 16], t.uplinks[&23].source6, "addresses of other routing domains are no sources in a VRF");
    let owner = |address| t.locals.get(&Addr::v4(address).0).copied();
    assert_eq!((Some(10), Some(2)), (owner([10, 88, 0, 1]), owner([192, 0, 2, 1])));
    assert_eq!(1, t.config.lo_ifindex);
}

#[test]
fn an_ipv4_subnet_lies_96_bits_deep_and_carries_its_networks_flags() {
    let mut r = record(1, &[A, "fd00::2/64"], vec![]);
    r.network.isolation = Isolation::Strict;
    r.network.internal = true;
    let t = tables(vec![r]);
    let flags = layout::NET_STRICT | layout::NET_INTERNAL;
    assert_eq!(Some(&Subnet { bridge: 10, flags }), t.subnets.get(&(112, Addr::v4([10, 88, 0, 0]).0)));
    assert_eq!(flags, t.networks[&10].flags);
    assert_eq!([10, 88, 0, 1], t.networks[&10].gateway4);
    assert_eq!(2, t.endpoints.len());
}

#[test]
fn a_chain_ends_where_the_programs_stop_looking() {
    let chain = layout::RULE_CHAIN;
    let many = (1..=chain + 1).map(|i| tcp(at(&format!("192.0.2.{i}")), 80, 80, 1)).collect();
    let t = tables(vec![record(1, &[A], many)]);
    assert_eq!(chain as usize, seen(&t, 80).len());
    assert_eq!(1, t.left_out);
}

#[test]
fn a_network_has_the_flags_of_its_options() {
    let flags = |change: &dyn Fn(&mut ModelNetwork)| {
        let mut r = record(1, &[A], vec![]);
        change(&mut r.network);
        let t = compile(&Desired { records: vec![r] }, &HostView::default());
        assert!(t.subnets.values().all(|s| s.flags == t.networks[&10].flags));
        t.networks[&10].flags
    };
    assert_eq!(layout::NET_MASQUERADE, flags(&|_| {}));
    assert_eq!(0, flags(&|n| n.masquerade = false));
    assert_eq!(layout::NET_MASQUERADE | layout::NET_DIRECT, flags(&|n| n.direct = true));
    let closed = |n: &mut ModelNetwork| (n.internal, n.direct, n.masquerade) = (true, true, true);
    assert_eq!(layout::NET_INTERNAL, flags(&closed), "an internal network has no way in or out");
}

#[test]
fn rules_carry_their_allow_list_and_their_counter() {
    let publishes = vec![tcp(HostBind::Any, 80, 80, 1), tcp(HostBind::Any, 1000, 1000, 10)];
    let mut of_two = record(1, &[A], publishes.clone());
    of_two.allow = vec!["192.0.2.0/24".parse().expect("a network")];
    of_two.traffic = TrafficIds { own: 1, publishes: vec![2, 3] };
    let mut other = record(2, &[B], vec![tcp(at("192.0.2.1"), 1005, 1, 1)]);
    other.traffic = TrafficIds { own: 4, publishes: vec![5] };
    let t = tables(vec![of_two, other]);
    let of = |id: u32| t.rules.iter().filter(|r| r.traffic == id).collect::<Vec<_>>();
    assert_eq!((1, 1, 1), (of(2).len(), of(3).len(), of(5).len()));
    let list = of(2)[0].allow;
    assert!(list != 0 && of(3).iter().all(|r| r.allow == list) && of(5)[0].allow == 0);
    assert_eq!(1, t.allow.entries.len());
    assert_eq!(Some(4), t.endpoints.get(&Addr::v4(B4).0).map(|e| e.traffic));
    assert_eq!(BTreeMap::from([(1, vec![1, 2, 3]), (4, vec![4, 5])]), t.traffic);
}

#[test]
fn sctp_has_slots_of_its_own_and_keeps_its_port() {
    let sctp = |host, to| Publish::new(HostBind::Any, Proto::Sctp, host, to, 1).expect("a publish");
    let t = tables(vec![record(1, &[A], vec![sctp(5000, 5000), sctp(6000, 5000)])]);
    assert_eq!(vec![Slots { proto: layout::PROTO_SCTP, first: 5000, count: 1, rule: 0 }], t.slots);
    assert_eq!((1, layout::PROTO_SCTP), (t.rules.len(), t.rules[0].proto));
    let flags =
        |publishes| tables(vec![record(1, &[A], publishes)]).endpoints.values().map(|e| e.flags).collect::<Vec<_>>();
    assert_eq!(
        vec![layout::ENDPOINT_MOVED_SCTP],
        flags(vec![sctp(5000, 5000), sctp(6000, 5000)]),
        "netfilter has the other"
    );
    assert_eq!(vec![0], flags(vec![sctp(5000, 5000), tcp(HostBind::Any, 6000, 5000, 1)]));
}

#[test]
fn counters_are_handed_out_once_and_never_run_over() {
    let with = |own, publishes: &[u16]| TrafficIds { own, publishes: publishes.to_vec() };
    let two = record(1, &[A], vec![tcp(HostBind::Any, 80, 80, 1), tcp(HostBind::Any, 1000, 1000, 10)]);
    assert_eq!(with(1, &[2, 3]), TrafficIds::for_record(&two, std::iter::empty()));
    let others = [with(1, &[4]), with(3, &[]), with(0, &[0, 0]), with(u16::MAX, &[])];
    assert_eq!(with(2, &[5, 6]), TrafficIds::for_record(&two, others.iter()));
    let last = layout::TRAFFICS as u16 - 1;
    let all = |up_to: u16| with(1, &(2..=up_to).collect::<Vec<_>>());
    assert_eq!(with(last - 1, &[last]), TrafficIds::for_record(&two, [all(last - 2)].iter()));
    assert_eq!(with(0, &[]), TrafficIds::for_record(&two, [all(last)].iter()));
}

#[test]
fn xdp_is_where_frames_are_and_a_network_asks_for_it() {
    let mut host = HostView {
        cookie: 1,
        links: vec![
            link(2, "eth0", LinkKind::Other, None, &["192.0.2.1/24"]),
            link(3, "wg0", LinkKind::Other, None, &["198.51.100.1/24"]),
        ],
        ..HostView::default()
    };
    host.links[1].mac = None;
    let asked = |xdp, internal, takes_xdp| {
        let mut r = record(1, &[A], vec![]);
        (r.network.xdp, r.network.internal) = (xdp, internal);
        r.bridged_mut().expect("links").takes_xdp = takes_xdp;
        let t = compile(&Desired { records: vec![record(2, &["10.88.0.3/16"], vec![]), r] }, &host);
        let flags = t.endpoints.values().map(|e| e.flags).collect::<Vec<_>>();
        (t.xdp.into_keys().collect::<Vec<_>>(), flags)
    };
    let takes = layout::ENDPOINT_XDP;
    assert_eq!((vec![2], vec![takes, 0]), asked(Xdp::On, false, true));
    assert_eq!((vec![2], vec![0, 0]), asked(Xdp::On, false, false), "GRO could not be switched on");
    assert_eq!((vec![], vec![0, 0]), asked(Xdp::On, true, false), "internal");
    assert_eq!((vec![], vec![0, 0]), asked(Xdp::Off, false, false));
    assert_eq!((vec![], vec![0, 0]), asked(Xdp::Auto, false, false));
}

/// The oldest uplinks with addresses are served if there are more than the map holds.
#[test]
fn interfaces_beyond_the_map_of_uplinks_are_left_out_and_named() {
    let link = |index: u32| HostLink {
        index,
        name: name(&format!("up{index}")),
        kind: LinkKind::Other,
        master: None,
        mtu: 1500,
        mac: None,
        driver: None,
        up: true,
        addresses: vec!["192.0.2.1/24".parse().expect("an address")],
    };
    let bare = HostLink { addresses: Vec::new(), ..link(7) };
    // Unsorted.
    let links = (101..=layout::UPLINKS + 102).rev().map(link).chain([bare]).collect();
    let host = HostView { links, ..HostView::default() };
    let t = compile(&Desired { records: vec![record(1, &[A], vec![])] }, &host);
    assert_eq!((101..=layout::UPLINKS + 100).collect::<Vec<_>>(), t.uplinks.keys().copied().collect::<Vec<_>>());
    assert_eq!(vec![name("up357"), name("up358"), name("up7")], t.unserved);
    assert!(tables(vec![record(1, &[A], vec![])]).unserved.is_empty());
}

#[test]
fn the_mtu_of_an_ipv6_route_says_nothing_about_ipv4() {
    let net = |text: &str| text.parse().expect("a prefix");
    let compiled = |mtus: &[(&str, u32)]| {
        let route_mtus = Some(mtus.iter().map(|(to, mtu)| (net(to), *mtu)).collect());
        compile(&Desired::default(), &HostView { route_mtus, ..HostView::default() }).route_mtus.expect("read")
    };
    let every4 = (96, Addr::v4([0; 4]).0);
    assert_eq!(Some(&0), compiled(&[("::/0", 1280)]).get(&every4));
    assert_eq!(Some(&1400), compiled(&[("::/0", 1280), ("0.0.0.0/0", 1400)]).get(&every4));
    assert_eq!(None, compile(&Desired::default(), &HostView::default()).route_mtus, "not read");
}
