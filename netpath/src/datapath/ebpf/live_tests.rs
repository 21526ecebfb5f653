//! The rung on a real kernel, in namespaces of the test thread: network, and mounts with a bpffs, so that nothing
//! outlives the test.

use super::maps::{Flows, PinnedMap, Shape};
use super::*;
use crate::datapath::filter::Foreign;
use crate::link::{BridgeSpec, Rtnl, netns};
use crate::model::fixtures::{at, record, tcp};
use crate::model::{Attachment, Departures, HostBind, IfName, LinkKind};
use crate::state::Store;
use netpath_common::addr::Addr;
use netpath_common::family::{Ipv4, Ipv6};
use netpath_common::layout::{self, Flow4, FlowKey4, Rule, SockKey, SockOrigin, name};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::collections::BTreeSet;

/// A network namespace with a bridge for the endpoints of `model::fixtures` and another one as uplink.
pub(super) struct Host {
    pub(super) rtnl: Rtnl,
    pub(super) cookie: u64,
    pub(super) store: Store,
}

impl Host {
    /// `None` where the test cannot run.
    pub(super) fn new(test: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() || sys::load_classifier(&[0xffff_ffff_0000_00b7, 0x95]).is_err() {
            println!("skip {test}: needs root and bpf(2)");
            return None;
        }
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("own namespaces");
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
        mount(Some("bpf"), pins::BPFFS, Some("bpf"), MsFlags::empty(), none).expect("own bpffs");
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).expect("own state");
        let rtnl = Rtnl::here().expect("a netlink socket");
        let cookie = netns::cookie().expect("a cookie");
        let host = Self { rtnl, cookie, store: Store::of(cookie) };
        for (bridge, address) in [("podman1", "10.88.0.1/16"), ("up0", "192.0.2.1/24")] {
            let bridge: IfName = bridge.parse().expect("a name");
            host.rtnl.add_bridge(BridgeSpec::named(&bridge)).expect("a bridge");
            let index = host.view().link_named(&bridge).expect("the bridge").index;
            host.rtnl.add_address(index, address.parse().expect("an address")).expect("an address");
        }
        Some(host)
    }

    pub(super) fn view(&self) -> HostView {
        self.rtnl.host_view(self.cookie).expect("a view of the host")
    }

    pub(super) fn pins(&self) -> Pins {
        Pins::of(self.cookie)
    }

    pub(super) fn index(&self, name: &str) -> u32 {
        self.view().link_named(&name.parse().expect("a name")).expect("a link").index
    }

    /// One endpoint per publish list, on podman1.
    pub(super) fn desired(&self, publishes: Vec<Vec<crate::model::Publish>>) -> Desired {
        let mut records = Vec::new();
        for (i, publishes) in publishes.into_iter().enumerate() {
            let mut r = record(i as u64 + 1, &[&format!("10.88.0.{}/16", i + 2)], publishes);
            if let Some(links) = r.bridged_mut() {
                links.bridge_index = self.index("podman1");
            }
            records.push(r);
        }
        Desired { records }
    }

    pub(super) fn reconcile(&self, desired: &Desired) -> usize {
        self.try_reconcile(desired).expect("reconcile")
    }

    fn try_reconcile(&self, desired: &Desired) -> Result<usize> {
        let lock = self.store.lock(&|| false)?;
        let context = Context {
            host: &self.view(),
            foreign: &Foreign::default(),
            store: &self.store,
            lock: &lock,
            departures: Departures::default(),
        };
        self.datapath().reconcile(desired, &context).map(|report| report.changed)
    }

    pub(super) fn datapath(&self) -> Ebpf {
        Ebpf::of(self.cookie)
    }

    pub(super) fn map<K, V>(&self, shape: &Shape<K, V>) -> PinnedMap<K, V> {
        PinnedMap::open(&self.pins(), shape).expect("the map")
    }

    /// First rule of a TCP port, as a program reads it.
    pub(super) fn rule(&self, port: usize) -> Option<Rule> {
        let slot = self.map(&maps::PORT_TCP).map(0, 65_536).expect("mapped").read(port) as usize;
        (slot != 0).then(|| self.map(&maps::RULE).map(0, layout::RULES).expect("mapped").read(slot))
    }

    fn links(&self) -> Vec<String> {
        let mut names = self.pins().names("link");
        names.sort();
        names
    }
}

/// The pins count as those of another object then.
fn unmark(pins: &Pins) {
    for mark in pins.marks(pins::OBJECT) {
        pins.unmark(&format!("{}{mark}", pins::OBJECT)).expect("unmarked");
    }
}

#[test]
#[ignore = "needs root"]
fn a_second_reconcile_changes_nothing_and_an_empty_one_leaves_nothing() {
    let Some(host) = Host::new("a_second_reconcile_changes_nothing_and_an_empty_one_leaves_nothing") else { return };
    let desired = host.desired(vec![vec![tcp(HostBind::Any, 8080, 80, 1)]]);
    assert!(host.reconcile(&desired) > 0);
    assert_eq!(0, host.reconcile(&desired));
    let rule = host.rule(8080).expect("published");
    assert_eq!((80, [10, 88, 0, 2]), (rule.container_port, rule.to4));
    let (up, bridge) = (host.index("up0"), host.index("podman1"));
    let mut expected: Vec<String> = attach::SOCKETS.iter().map(|(n, _)| (*n).to_owned()).collect();
    expected.extend([format!("np_bridge_in-{bridge}"), "np_lo_in-1".to_owned()]);
    expected.extend([format!("np_uplink_in-{up}"), format!("np_uplink_out-{up}")]);
    expected.sort();
    assert_eq!(expected, host.links());

    assert!(host.reconcile(&Desired::default()) > 0);
    assert!(!std::path::Path::new("/sys/fs/bpf/netpath").exists());
    assert_eq!(0, host.reconcile(&Desired::default()));
}

#[test]
#[ignore = "needs root"]
fn the_younger_owner_appears_when_the_older_goes() {
    let Some(host) = Host::new("the_younger_owner_appears_when_the_older_goes") else { return };
    let mut desired = host.desired(vec![vec![tcp(HostBind::Any, 80, 1, 1)], vec![tcp(HostBind::Any, 80, 2, 1)]]);
    host.reconcile(&desired);
    assert_eq!(1, host.rule(80).expect("the older").container_port);
    desired.records.remove(0);
    host.reconcile(&desired);
    assert_eq!(2, host.rule(80).expect("the younger").container_port);
    desired.records[0].publishes = vec![tcp(at("192.0.2.1"), 81, 2, 1)];
    host.reconcile(&desired);
    assert_eq!(None, host.rule(80));
    assert_eq!(2, host.rule(81).expect("another port").container_port);
    host.reconcile(&Desired::default());
}

#[test]
#[ignore = "needs root"]
fn a_range_takes_one_rule_whatever_its_size() {
    let Some(host) = Host::new("a_range_takes_one_rule_whatever_its_size") else { return };
    let one = vec![tcp(HostBind::Any, 80, 80, 1)];
    let rules = |publishes: Vec<crate::model::Publish>| {
        host.reconcile(&host.desired(vec![one.clone(), publishes]));
        let slots = host.map(&maps::PORT_TCP).map(0, 65_536).expect("mapped");
        (0..65_536).map(|port| slots.read(port)).filter(|slot| *slot != 0).collect::<BTreeSet<_>>().len()
    };
    assert_eq!(1, rules(Vec::new()));
    assert_eq!(2, rules(vec![tcp(HostBind::Any, 9000, 80, 1)]));
    assert_eq!(2, rules(vec![tcp(HostBind::Any, 10_000, 10_000, 10_000)]));
    assert_eq!(2_001, rules((0..2_000).map(|i| tcp(HostBind::Any, 20_000 + i, 80, 1)).collect()));
    assert_eq!(80, host.rule(80).expect("still there").host_port);
    host.reconcile(&Desired::default());
}

/// Ports must stay open if the new rules do not fit.
#[test]
#[ignore = "needs root"]
fn more_rules_than_there_is_room_for_leave_every_port_as_it_is() {
    let Some(host) = Host::new("more_rules_than_there_is_room_for_leave_every_port_as_it_is") else { return };
    let one = host.desired(vec![vec![tcp(HostBind::Any, 80, 80, 1)]]);
    host.reconcile(&one);
    let single = |proto, port| crate::model::Publish::new(HostBind::Any, proto, port, 80, 1).expect("a publish");
    let many = [crate::model::Proto::Tcp, crate::model::Proto::Udp]
        .into_iter()
        .flat_map(|proto| (20_000..60_000).map(move |port| single(proto, port)));
    let desired = host.desired(vec![vec![tcp(HostBind::Any, 80, 80, 1)], many.collect()]);
    let refused = host.try_reconcile(&desired).expect_err("80,001 rules");
    assert!(refused.to_string().contains("65535 rules"), "{refused}");
    assert_eq!(80, host.rule(80).expect("still published").host_port);
    assert!(host.datapath().limits(&[], &desired.records).is_some(), "refused before anything is changed");
    host.reconcile(&one);
    assert_eq!(80, host.rule(80).expect("still published").host_port);
    host.reconcile(&Desired::default());
}

#[test]
#[ignore = "needs root"]
fn what_is_half_there_is_put_right() {
    let Some(host) = Host::new("what_is_half_there_is_put_right") else { return };
    let desired = host.desired(vec![vec![tcp(HostBind::Any, 80, 80, 1)]]);
    host.reconcile(&desired);
    let pins = host.pins();
    // State after a kill while pins were made or removed: the mark is never there without its programs, links may be
    // missing.
    pins.unpin(&pins.link("np_lo_in-1")).expect("unpinned");
    pins.unpin(&pins.link("np_connect4")).expect("unpinned");
    assert_eq!(2, host.reconcile(&desired));
    unmark(&pins);
    pins.unpin(&pins.prog("np_lo_in")).expect("unpinned");
    pins.unpin(&pins.map(name::LOCAL)).expect("unpinned");
    assert!(host.reconcile(&desired) > 0);
    assert_eq!(0, host.reconcile(&desired));
    // A map of another shape under one of the names.
    unmark(&pins);
    pins.unpin(&pins.map(name::LOCAL)).expect("unpinned");
    std::fs::rename(pins.map(name::UPLINK), pins.map(name::LOCAL)).expect("renamed");
    assert!(host.reconcile(&desired) > 0);
    assert_eq!(0, host.reconcile(&desired));
    assert_eq!(80, host.rule(80).expect("published").host_port);
    host.reconcile(&Desired::default());
}

#[test]
#[ignore = "needs root"]
fn a_map_of_another_shape_is_refused_and_nothing_is_written_through_it() {
    let Some(host) = Host::new("a_map_of_another_shape_is_refused_and_nothing_is_written_through_it") else { return };
    let desired = host.desired(vec![vec![tcp(HostBind::Any, 80, 80, 1)]]);
    host.reconcile(&desired);
    let pins = host.pins();
    fn shape_of<K, V>(pins: &Pins, shape: &Shape<K, V>) -> std::result::Result<(), String> {
        PinnedMap::open(pins, shape).map(drop).map_err(|e| format!("{}: {e}", shape.name()))
    }
    let shapes = [
        shape_of(&pins, &maps::CONFIG),
        shape_of(&pins, &maps::PORT_TCP),
        shape_of(&pins, &maps::PORT_UDP),
        shape_of(&pins, &maps::PORT_SCTP),
        shape_of(&pins, &maps::RULE),
        shape_of(&pins, &maps::ENDPOINT),
        shape_of(&pins, &maps::NETWORK),
        shape_of(&pins, &maps::SUBNET),
        shape_of(&pins, &maps::UPLINK),
        shape_of(&pins, &maps::LOCAL),
        shape_of(&pins, &maps::ALLOW),
        shape_of(&pins, &maps::SUBNET_HINTS),
        shape_of(&pins, &maps::NAT_PORT),
        shape_of(&pins, &maps::SOCK),
        shape_of(&pins, &maps::TRAFFIC),
        shape_of(&pins, &maps::COUNT),
        shape_of(&pins, &Ipv4::FLOWS),
        shape_of(&pins, &Ipv6::FLOWS),
    ];
    for shape in shapes {
        shape.expect("the shapes are those of the object");
    }

    // Larger keys and values than the caller's buffers; the right sizes and another type; fewer entries.
    for (name, in_its_place, cause) in [
        (
            name::FLOW4,
            name::FLOW6,
            "expected LruHash with keys of 16 bytes, values of 48 bytes, 65536 entries; found LruHash with keys of 40 bytes, values of 72 bytes, 32768 entries",
        ),
        (name::PORT_UDP, name::LOCAL, "found Hash with keys of 16 bytes"),
        (
            name::COUNT,
            name::CONFIG,
            "expected PerCpuArray with keys of 4 bytes, values of 16 bytes, 64 entries; found Array with keys of 4 bytes, values of 16 bytes, 1 entries",
        ),
    ] {
        let (kept, taken) = (pins.map("kept"), pins.map(in_its_place));
        std::fs::rename(pins.map(name), &kept).expect("set aside");
        std::fs::rename(&taken, pins.map(name)).expect("in its place");
        let refused = match name {
            name::FLOW4 => PinnedMap::open(&pins, &Ipv4::FLOWS).err(),
            name::PORT_UDP => PinnedMap::open(&pins, &maps::PORT_UDP).err(),
            _ => PinnedMap::open(&pins, &maps::COUNT).err(),
        };
        let refused = refused.expect("a map of another shape");
        assert!(refused.to_string().starts_with(&format!("cannot open map {name}: expected")), "{refused}");
        assert!(refused.to_string().contains(cause), "{refused}");
        assert!(refused.next_step().is_some_and(|next| next.contains("object-*")), "{refused:?}");
        std::fs::rename(pins.map(name), &taken).expect("back");
        std::fs::rename(&kept, pins.map(name)).expect("back");
    }

    // The remedy of the error.
    pins.unpin(&pins.map(name::UPLINK)).expect("unpinned");
    std::fs::rename(pins.map(name::NETWORK), pins.map(name::UPLINK)).expect("in its place");
    let refused = host.try_reconcile(&desired).expect_err("a map of another shape");
    assert!(refused.to_string().contains("cannot open map"), "{refused}");
    unmark(&pins);
    host.reconcile(&desired);
    assert_eq!(80, host.rule(80).expect("published").host_port);
    host.reconcile(&Desired::default());
}

#[test]
#[ignore = "needs root"]
fn a_program_is_loaded_when_something_needs_it() {
    let Some(host) = Host::new("a_program_is_loaded_when_something_needs_it") else { return };
    let desired = host.desired(vec![vec![]]);
    host.reconcile(&desired);
    let (pins, later) = (host.pins(), BTreeSet::from([layout::program::UPLINK_IN_L3]));
    let has = |name: &str| pins.names("prog").iter().any(|n| n == name);
    assert!(has(layout::program::UPLINK_IN) && !has(layout::program::UPLINK_IN_L3));
    assert_eq!(1, loader::ensure(&pins, &later, Families::V4).expect("loaded"));
    assert_eq!(0, loader::ensure(&pins, &later, Families::V4).expect("there already"));
    assert!(has(layout::program::UPLINK_IN) && has(layout::program::UPLINK_IN_L3));
    assert_eq!(0, host.reconcile(&desired));
    host.reconcile(&Desired::default());
}

#[test]
#[ignore = "needs root"]
fn a_link_that_lost_its_pin_may_take_a_while_to_go() {
    let Some(host) = Host::new("a_link_that_lost_its_pin_may_take_a_while_to_go") else { return };
    let desired = host.desired(vec![vec![]]);
    host.reconcile(&desired);
    let pin = host.pins().link("np_lo_in-1");
    let held = sys::open_pin(&pin).expect("opened").expect("a link");
    host.pins().unpin(&pin).expect("unpinned");
    // As the kernel's work queue on a busy machine.
    let later = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        drop(held);
    });
    assert_eq!(1, host.reconcile(&desired));
    later.join().expect("let go");
    host.reconcile(&Desired::default());
}

#[test]
#[ignore = "needs root"]
fn the_bridge_of_the_last_endpoint_never_becomes_an_uplink() {
    let Some(host) = Host::new("the_bridge_of_the_last_endpoint_never_becomes_an_uplink") else { return };
    let mut desired = host.desired(vec![vec![], vec![]]);
    desired.records[1].network.attachment = Attachment::Bridge("other".parse().expect("a name"));
    if let Some(links) = desired.records[1].bridged_mut() {
        links.bridge_index = host.index("lo"); // any interface without another address
    }
    host.reconcile(&desired);
    let bridge = host.index("podman1");
    desired.records.remove(0);
    host.reconcile(&desired);
    assert!(!host.links().contains(&format!("np_bridge_in-{bridge}")));
    assert!(!host.links().contains(&format!("np_uplink_in-{bridge}")), "{:?}", host.links());
    host.reconcile(&Desired::default());
}

#[test]
#[ignore = "needs root"]
fn clsact_serves_where_tcx_does_not_and_leaves_foreign_filters_alone() {
    let Some(host) = Host::new("clsact_serves_where_tcx_does_not_and_leaves_foreign_filters_alone") else { return };
    let desired = host.desired(vec![vec![]]);
    host.reconcile(&desired);
    let (pins, up, bridge) = (host.pins(), host.index("up0"), host.index("podman1"));
    // A foreign qdisc on the uplink.
    let mut tc = clsact::Tc::open().expect("netlink");
    assert!(tc.add_qdisc(up).expect("a qdisc"));

    let wanted = attach::wanted(&compile::compile(&desired, &host.view()));
    assert!(attach::reconcile(&pins, &wanted, Some(TcMode::Clsact)).expect("clsact") > 0);
    assert_eq!(0, attach::reconcile(&pins, &wanted, Some(TcMode::Clsact)).expect("clsact again"));
    assert_eq!(0, attach::reconcile(&pins, &wanted, None).expect("kept without force"));
    assert_eq!(attach::SOCKETS.len(), host.links().len(), "TCX links are gone: {:?}", host.links());
    let (_, id) = loader::program(&pins, "np_uplink_out").expect("the program");
    assert_eq!(Some(id), tc.our_filter(up, true).expect("a dump").expect("a filter").prog_id);
    assert!(tc.our_filter(bridge, false).expect("a dump").is_some());

    host.reconcile(&Desired::default());
    assert_eq!(None, tc.our_filter(up, true).expect("a dump"));
    assert!(tc.has_qdisc(up).expect("a dump"), "a foreign qdisc was removed");
    assert!(!tc.has_qdisc(bridge).expect("a dump"), "our own qdisc stays behind");
}

#[test]
#[ignore = "needs root"]
fn uplinks_that_come_and_go_are_followed() {
    let Some(host) = Host::new("uplinks_that_come_and_go_are_followed") else { return };
    let desired = host.desired(vec![vec![]]);
    host.reconcile(&desired);
    let late: IfName = "late".parse().expect("a name");
    host.rtnl.add_bridge(BridgeSpec::named(&late)).expect("a bridge");
    let index = host.index("late");
    host.rtnl.add_address(index, "198.51.100.1/24".parse().expect("an address")).expect("an address");
    assert!(host.view().links.iter().any(|l| l.kind == LinkKind::Bridge && l.index == index));
    host.reconcile(&desired);
    assert!(host.links().contains(&format!("np_uplink_in-{index}")));
    host.rtnl.delete(&[index]).expect("deleted");
    host.reconcile(&desired);
    assert!(!host.links().contains(&format!("np_uplink_in-{index}")), "{:?}", host.links());
    assert_eq!(0, host.reconcile(&desired));
    host.reconcile(&Desired::default());
}

#[test]
#[ignore = "needs root"]
fn flows_of_a_removed_endpoint_are_invalidated_and_others_stay() {
    let Some(host) = Host::new("flows_of_a_removed_endpoint_are_invalidated_and_others_stay") else { return };
    let mut desired = host.desired(vec![vec![], vec![]]);
    host.reconcile(&desired);
    let flows = host.map(&Ipv4::FLOWS);
    let key = |dst: [u8; 4]| FlowKey4 { src: [192, 0, 2, 9], dst, proto: layout::PROTO_UDP, ..FlowKey4::default() };
    let to = |dst: [u8; 4]| Flow4 { src: [192, 0, 2, 9], dst, ..Flow4::default() };
    let (first, second) = ([10, 88, 0, 2], [10, 88, 0, 3]);
    // One with the container's address before translation, two after.
    let keys = [key(first), key([192, 0, 2, 1]), key([192, 0, 2, 2])];
    flows.update(&keys, &[to([192, 0, 2, 1]), to(first), to(second)]).expect("written");
    let socks = host.map(&maps::SOCK);
    let sock = SockKey { cookie: 1, to: Addr::v4(first), ..SockKey::default() };
    socks.update(&[sock], &[SockOrigin::default()]).expect("written");

    desired.records.remove(0);
    host.reconcile(&desired);
    let left: Vec<FlowKey4> = flows.dump(16).expect("a dump").into_iter().map(|(k, _)| k).collect();
    assert_eq!(vec![key([192, 0, 2, 2])], left);
    assert!(socks.dump(16).expect("a dump").is_empty());
    host.reconcile(&Desired::default());
}

#[test]
#[ignore = "needs root"]
fn a_dump_finds_every_element_whatever_the_chunk() {
    let Some(host) = Host::new("a_dump_finds_every_element_whatever_the_chunk") else { return };
    host.reconcile(&host.desired(vec![vec![]]));
    let flows = host.map(&Ipv4::FLOWS);
    let keys: Vec<FlowKey4> = (0..2_000_u32)
        .map(|i| FlowKey4 { src: i.to_be_bytes(), proto: layout::PROTO_TCP, ..FlowKey4::default() })
        .collect();
    flows.update(&keys, &vec![Flow4::default(); keys.len()]).expect("written");
    for chunk in [1, 7, 256, 100_000] {
        let mut found: Vec<[u8; 4]> = flows.dump(chunk).expect("a dump").into_iter().map(|(k, _)| k.src).collect();
        found.sort_unstable();
        assert_eq!(keys.iter().map(|k| k.src).collect::<Vec<_>>(), found, "chunk {chunk}");
    }
    host.reconcile(&Desired::default());
}

#[test]
#[ignore = "needs root"]
fn another_build_takes_over_in_place_and_a_monitor_is_left_alone() {
    let Some(host) = Host::new("another_build_takes_over_in_place_and_a_monitor_is_left_alone") else { return };
    let desired = host.desired(vec![vec![tcp(HostBind::Any, 80, 80, 1)]]);
    host.reconcile(&desired);
    let pins = host.pins();
    let all_pinned = || attached::attached(&pins).expect("hooks").iter().all(|h| h.pinned);
    assert!(all_pinned());
    let older = || {
        unmark(&pins);
        pins.mark(&format!("{}0123", pins::OBJECT)).expect("marked");
    };
    older();
    assert!(host.reconcile(&desired) > 0);
    assert!(all_pinned(), "links run the programs that were loaded last");
    assert!(matches!(&pins.marks(pins::OBJECT)[..], [mark] if mark.starts_with(loader::DIGEST)));

    let monitor = monitor_lock::MonitorLock::take(&pins).expect("a lock").expect("no other monitor");
    assert!(monitor_lock::MonitorLock::take(&pins).expect("a lock").is_none());
    older();
    host.reconcile(&desired);
    assert!(!all_pinned(), "programs were taken from a living monitor");
    assert!(monitor.holds());
    drop(monitor);
    host.reconcile(&desired);
    assert!(all_pinned());
    let monitor = monitor_lock::MonitorLock::take(&pins).expect("a lock").expect("no other monitor");
    host.reconcile(&Desired::default());
    assert!(!monitor.holds());
    host.reconcile(&desired);
    assert!(!monitor.holds(), "a lock of pins that are gone passes for one of those that came after");
    host.reconcile(&Desired::default());
}

/// A command that only tests for a running monitor holds the same lock briefly.
#[test]
#[ignore = "needs root"]
fn a_monitor_starts_while_commands_ask_for_one() {
    let Some(host) = Host::new("a_monitor_starts_while_commands_ask_for_one") else { return };
    host.reconcile(&host.desired(vec![vec![]]));
    let (pins, stop) = (host.pins(), std::sync::atomic::AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    monitor_lock::monitor_is_alive(&pins);
                }
            });
        }
        let failed = (0..200).filter(|_| monitor_lock::MonitorLock::take(&pins).expect("a lock").is_none()).count();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(0, failed, "of 200");
    });
    host.reconcile(&Desired::default());
}
