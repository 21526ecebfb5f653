//! Options and counters in the maps of a real kernel.

use super::addr::mapped;
use super::live_tests::Host;
use super::*;
use crate::datapath::netfilter::moved_sctp;
use crate::link::VethSpec;
use crate::model::fixtures::tcp;
use crate::model::{HostBind, Proto, Publish, TrafficIds, Xdp};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Map, MapData, PerCpuArray, PerCpuValues};
use netpath_common::layout::program::XDP_IN;
use netpath_common::layout::{self, AllowKey, Traffic, name};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsRawFd;

fn open(host: &Host, name: &str) -> Map {
    MapData::from_pin(host.pins().map(name)).and_then(Map::from_map_data).expect("the map")
}

fn lets_in(host: &Host, list: u32, client: &str) -> bool {
    let map: LpmTrie<_, AllowKey, u32> = LpmTrie::try_from(open(host, name::ALLOW)).expect("a trie");
    let key = AllowKey { list: list.to_be_bytes(), client: mapped(client.parse().expect("an address")) };
    map.get(&Key::new(160, key), 0).is_ok()
}

fn lists(host: &Host) -> usize {
    let map: LpmTrie<_, AllowKey, u32> = LpmTrie::try_from(open(host, name::ALLOW)).expect("a trie");
    map.iter().count()
}

#[test]
#[ignore = "needs root"]
fn an_allow_list_is_there_as_long_as_a_rule_names_it() {
    let Some(host) = Host::new("an_allow_list_is_there_as_long_as_a_rule_names_it") else { return };
    let mut desired = host.desired(vec![vec![tcp(HostBind::Any, 80, 80, 1)], vec![tcp(HostBind::Any, 81, 80, 1)]]);
    for record in &mut desired.records {
        record.allow = ["192.0.2.0/24", "2001:db8::/32"].map(|n| n.parse().expect("a network")).to_vec();
    }
    host.reconcile(&desired);
    let first = host.rule(80).expect("published").allow;
    assert_eq!((first, 2), (host.rule(81).expect("published").allow, lists(&host)), "one list for both");
    for (client, is_in) in [("192.0.2.9", true), ("192.0.3.9", false), ("2001:db8::9", true), ("2001:db9::", false)] {
        assert_eq!(is_in, lets_in(&host, first, client), "{client}");
    }
    assert_eq!(0, host.reconcile(&desired));

    desired.records[0].allow = vec!["198.51.100.7/32".parse().expect("a network")];
    host.reconcile(&desired);
    let second = host.rule(80).expect("published").allow;
    assert!(second != first && host.rule(81).expect("published").allow == first);
    assert!(lets_in(&host, second, "198.51.100.7") && !lets_in(&host, second, "192.0.2.9"));
    assert_eq!(3, lists(&host));
    desired.records[1].allow = Vec::new();
    host.reconcile(&desired);
    assert_eq!((0, 1), (host.rule(81).expect("published").allow, lists(&host)));
    host.reconcile(&Desired::default());
}

#[test]
#[ignore = "needs root"]
fn bits_of_np_near_follow_the_subnets() {
    let Some(host) = Host::new("bits_of_np_near_follow_the_subnets") else { return };
    let may_hold = |address: &str| {
        let words = host.map(&maps::SUBNET_HINTS).dump(4_096).expect("a dump");
        let (word, bit) = layout::subnet_hint(&mapped(address.parse().expect("an address")));
        words.iter().any(|(i, w)| *i == word && w & bit != 0)
    };
    let mut desired = host.desired(vec![vec![], vec![]]);
    desired.records[1].network.subnets[0].net = "10.99.0.0/16".parse().expect("a subnet");
    host.reconcile(&desired);
    assert!(may_hold("10.88.0.2") && may_hold("10.99.0.1") && !may_hold("10.89.0.1"));
    assert_eq!(0, host.reconcile(&desired));
    desired.records.pop();
    host.reconcile(&desired);
    assert!(may_hold("10.88.0.2") && !may_hold("10.99.0.1"));
    host.reconcile(&Desired::default());
}

#[test]
#[ignore = "needs root"]
fn sctp_is_published_on_its_own_port_alone() {
    let Some(host) = Host::new("sctp_is_published_on_its_own_port_alone") else { return };
    let sctp = |to| Publish::new(HostBind::Any, Proto::Sctp, 5000, to, 1).expect("a publish");
    let slot = || host.map(&maps::PORT_SCTP).map(0, 65_536).expect("mapped").read(5000);
    let mut desired = host.desired(vec![vec![sctp(5000)]]);
    assert!(host.datapath().refusals(&desired.records[0]).is_empty());
    host.reconcile(&desired);
    assert!(slot() != 0);
    assert!(host.rule(5000).is_none(), "nothing of it is TCP");
    desired.records[0].publishes = vec![sctp(5001)];
    if moved_sctp().is_ok() {
        assert!(host.datapath().refusals(&desired.records[0]).is_empty(), "netfilter does it")
    } else {
        let refusal = host.datapath().refusals(&desired.records[0]).remove(0);
        assert_eq!("publish 5001/sctp as 5000/sctp", refusal.feature);
        assert!(refusal.next.contains("publish it as 5001/sctp"), "{}", refusal.next);
        println!("skip: needs iptables");
        host.reconcile(&Desired::default());
        return;
    }
    host.reconcile(&desired);
    assert_eq!(0, slot());
    assert!(host.store.uses_netfilter());
    host.reconcile(&Desired::default());
    assert!(!host.store.uses_netfilter());
}

#[test]
#[ignore = "needs root"]
fn a_counter_starts_at_zero_and_counts_while_its_endpoint_stays() {
    let Some(host) = Host::new("a_counter_starts_at_zero_and_counts_while_its_endpoint_stays") else { return };
    let port = |p| vec![tcp(HostBind::Any, p, 80, 1)];
    let mut desired = host.desired(vec![port(80), port(81)]);
    let ids = |own: u16| TrafficIds { own, publishes: vec![own + 1] };
    desired.records[0].traffic = ids(1);
    desired.records[1].traffic = ids(3);
    host.reconcile(&desired);
    assert_eq!((2, 4), (host.rule(80).expect("published").traffic, host.rule(81).expect("published").traffic));
    let count = |id: u32, packets_in: u64| {
        let mut map: PerCpuArray<_, Traffic> = PerCpuArray::try_from(open(&host, name::TRAFFIC)).expect("an array");
        let cpus = map.get(&id, 0).expect("an element").len();
        let each = vec![Traffic { packets_in, ..Traffic::default() }; cpus];
        let each = PerCpuValues::try_from(each).expect("one for each processor");
        map.set(id, each, 0).expect("written");
    };
    let read = || {
        let counters = traffic::Counters::open(&host.pins()).expect("the map");
        [1, 2, 3, 4].map(|id| counters.read(id).expect("an element").packets_in > 0)
    };
    (1..=4).for_each(|id| count(id, 7));
    assert_eq!(0, host.reconcile(&desired));
    assert_eq!([true; 4], read());
    // One endpoint is removed, another gets its counters.
    let next = desired.records.remove(0);
    host.reconcile(&desired);
    let mut next = Record { order: 9, ..next };
    next.endpoint.addresses = vec!["10.88.0.77/16".parse().expect("an address")];
    desired.records.push(next);
    host.reconcile(&desired);
    assert_eq!([false, false, true, true], read());
    host.reconcile(&Desired::default());
}

#[test]
#[ignore = "needs root"]
fn xdp_that_has_gone_is_not_in_the_way_of_what_comes() {
    let Some(host) = Host::new("xdp_that_has_gone_is_not_in_the_way_of_what_comes") else { return };
    host.reconcile(&host.desired(vec![vec![]]));
    let name = |n: &str| n.parse().expect("a name");
    let bridge = host.index("podman1");
    let spec =
        VethSpec { interface: name("in1"), mac: None, host_interface: Some(name("up1")), bridge, mtu: Some(1500) };
    let here = std::fs::File::open("/proc/thread-self/ns/net").expect("this namespace");
    host.rtnl.add_veth(&spec, here.as_raw_fd()).expect("a veth");
    let (pins, index) = (host.pins(), host.index("up1"));
    loader::ensure(&pins, &BTreeSet::from([XDP_IN]), Families::Both).expect("loaded");
    let at = |index| xdp::reconcile(&pins, &BTreeMap::from([(index, Xdp::On)])).expect("reconciled");
    assert_eq!([1, 0], [at(index), at(index)]);
    // The kernel frees a link without a pin later; until then it is attached.
    let held = sys::open_pin(&pins.link(&format!("{XDP_IN}-{index}"))).expect("opened").expect("a link");
    assert_eq!(1, xdp::reconcile(&pins, &BTreeMap::new()).expect("gone"));
    assert_eq!(1, at(index));
    assert!(xdp::refused(&pins).is_empty(), "{:?}", xdp::refused(&pins));
    drop(held);
    // A bridge has no native XDP: the earlier program is removed, and the refusal is marked.
    assert_eq!(1, at(bridge));
    let refused = xdp::refused(&pins);
    assert!(
        matches!(refused.as_slice(), [one] if one.ifindex == bridge && one.why().contains("no native")),
        "{refused:?}"
    );
    host.reconcile(&Desired::default());
}
