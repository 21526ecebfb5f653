//! Connections on a synthetic host, without a kernel: 192.0.2.2 on uplink 2, containers 10.88.0.2 and 10.88.0.3 on bridge 10.

use super::*;
use crate::datapath::ebpf::compile::compile;
use crate::model::fixtures::{record, tcp};
use crate::model::{Desired, HostBind, HostLink, HostView, LinkKind, Record, TrafficIds};

const UPLINK: u32 = 2;
const BRIDGE: u32 = 10;
/// Ends of the veths of both containers.
const VETHS: [u32; 2] = [21, 22];

fn link(index: u32, name: &str, kind: LinkKind, address: &str) -> HostLink {
    HostLink {
        index,
        name: name.parse().expect("an interface name"),
        kind,
        master: None,
        mtu: 1400,
        mac: Some(crate::model::Mac::from_kernel([2, 0, 0, 0, 0, 9])),
        driver: None,
        up: true,
        addresses: vec![address.parse().expect("an address with its prefix")],
    }
}

fn records() -> Vec<Record> {
    let mut web = record(1, &["10.88.0.2/16"], vec![tcp(HostBind::Any, 8080, 80, 10)]);
    web.traffic = TrafficIds { own: 3, publishes: vec![4] };
    let mut other = record(2, &["10.88.0.3/16"], Vec::new());
    other.traffic = TrafficIds { own: 5, publishes: Vec::new() };
    vec![web, other]
}

fn tables(records: Vec<Record>) -> Tables {
    let links = vec![
        link(1, "lo", LinkKind::Loopback, "127.0.0.1/8"),
        link(UPLINK, "eth0", LinkKind::Other, "192.0.2.2/24"),
        link(BRIDGE, "podman1", LinkKind::Bridge, "10.88.0.1/16"),
    ];
    compile(&Desired { records }, &HostView { links, ..HostView::default() })
}

fn direction(text: &str) -> Direction {
    let (from, to) = text.split_once(" > ").expect("two ends");
    let [from, to] = [from, to].map(|t| t.parse::<std::net::SocketAddr>().expect("an address"));
    Direction { source: from.ip(), destination: to.ip(), source_port: from.port(), destination_port: to.port() }
}

fn plan(tables: &Tables, original: &str, translated: &str) -> Option<NewFlow<Ipv4>> {
    let (original, translated) = (direction(original), direction(translated));
    let connection = Connection { transport: Transport::Tcp, original, translated, replied: true, timeout_s: 1 };
    let address = |a| if let IpAddr::V4(a) = a { Some(a.octets()) } else { None };
    Host::new(tables, &|_, _, _| Some(UPLINK)).plan(&connection, &address)
}

#[track_caller]
fn begins(original: &str, translated: &str, sides: (u8, u8), origin: Reason) -> NewFlow<Ipv4> {
    let plan = plan(&tables(records()), original, translated).expect("a flow");
    assert_eq!((sides, origin as u8), ((plan.side, plan.reverse_side), plan.origin), "{original}");
    plan
}

#[test]
fn a_published_connection_leads_into_its_container_and_back_to_the_uplink() {
    let plan = begins(
        "192.0.2.9:4000 > 192.0.2.2:8083",
        "192.0.2.9:4000 > 10.88.0.2:83",
        (SIDE_UPLINK, SIDE_BRIDGE),
        Reason::FlowPublished,
    );
    assert_eq!((VETHS[0], FORWARD_PEER, 4), (plan.there.ifindex, plan.there.forward, plan.traffic));
    let there = [plan.there.match_dmac, plan.there.next_hop_mac];
    assert_eq!([[2, 0, 0, 0, 1, VETHS[0] as u8], [2, 0, 0, 0, 0, 1]], there);
    assert_eq!((UPLINK, FORWARD_NEIGH, 1400), (plan.back.ifindex, plan.back.forward, plan.back.mtu));
    assert_eq!([2, 0, 0, 0, 0, 1], plan.back.match_dmac, "the container sends to its bridge");
}

#[test]
fn a_masqueraded_connection_keeps_the_port_that_it_was_given() {
    let plan = begins(
        "10.88.0.3:5000 > 203.0.113.5:443",
        "192.0.2.2:1024 > 203.0.113.5:443",
        (SIDE_BRIDGE, SIDE_UPLINK),
        Reason::FlowMasqueraded,
    );
    assert_eq!((UPLINK, VETHS[1], 5), (plan.there.ifindex, plan.back.ifindex, plan.traffic));
    assert_eq!(1024, plan.to.sport.value());
    assert_eq!(Ipv4::key(&plan.to.reversed(), PROTO_TCP, SIDE_UPLINK), plan.reverse_key());
}

#[test]
fn a_hairpin_and_a_client_on_the_host_come_back_to_their_own_side() {
    let hairpin = begins(
        "10.88.0.3:5000 > 192.0.2.2:8080",
        "10.88.0.1:5000 > 10.88.0.2:80",
        (SIDE_BRIDGE, SIDE_BRIDGE),
        Reason::FlowHairpin,
    );
    assert_eq!(VETHS, [hairpin.there.ifindex, hairpin.back.ifindex]);
    let local = begins(
        "127.0.0.1:5000 > 127.0.0.1:8080",
        "10.88.0.1:5000 > 10.88.0.2:80",
        (SIDE_LO, SIDE_BRIDGE),
        Reason::FlowLoopback,
    );
    assert_eq!((FORWARD_EGRESS, 1, FORWARD_INGRESS), (local.there.forward, local.back.ifindex, local.back.forward));
}

#[test]
fn the_hosts_own_connection_keeps_its_other_port() {
    let own = begins(
        "192.0.2.2:123 > 203.0.113.5:123",
        "192.0.2.2:1024 > 203.0.113.5:123",
        (SIDE_EGRESS, SIDE_UPLINK),
        Reason::FlowHost,
    );
    assert_eq!((UPLINK, FORWARD_STACK), (own.there.ifindex, own.back.forward));
}

#[test]
fn what_the_programs_leave_to_the_stack_gets_no_flow() {
    let same = |ends: &str| plan(&tables(records()), ends, ends).is_some();
    assert!(!same("10.88.0.3:5000 > 10.88.0.2:80"), "between containers");
    assert!(!same("10.88.0.3:5000 > 192.0.2.2:22"), "to the host");
    assert!(!same("192.0.2.2:5000 > 10.88.0.2:80"), "from the host");
    assert!(!same("192.0.2.2:5000 > 203.0.113.5:443"), "the host's own");
    assert!(!same("192.0.2.9:5000 > 192.0.2.2:22"), "to the host from outside");
    assert!(!same("198.51.100.1:5000 > 203.0.113.5:443"), "forwarded for others");
}

/// Replies are dropped at the uplink without a flow, unless the network is open.
#[test]
fn a_network_without_masquerade_needs_flows_unless_it_is_open() {
    let ends = "10.88.0.3:5000 > 203.0.113.5:443";
    let mut all = records();
    all.iter_mut().for_each(|r| r.network.masquerade = false);
    let flow = plan(&tables(all.clone()), ends, ends).expect("a flow");
    assert_eq!(flow.from, flow.to);
    all.iter_mut().for_each(|r| r.network.direct = true);
    assert!(plan(&tables(all), ends, ends).is_none());
}

#[test]
fn without_a_known_uplink_there_is_no_flow() {
    let tables = tables(records());
    let (original, translated) =
        (direction("10.88.0.3:5000 > 203.0.113.5:443"), direction("192.0.2.2:5000 > 203.0.113.5:443"));
    let connection = Connection { transport: Transport::Udp, original, translated, replied: false, timeout_s: 1 };
    let address = |a| if let IpAddr::V4(a) = a { Some(a.octets()) } else { None };
    for route in [None, Some(99)] {
        assert!(Host::new(&tables, &move |_, _, _| route).plan::<Ipv4>(&connection, &address).is_none());
    }
}
