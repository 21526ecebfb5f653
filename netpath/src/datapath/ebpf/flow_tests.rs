//! Halves of flows in the maps of a real kernel, and flows of earlier layouts.

use super::live_tests::Host;
use super::maps::{Flows, PinnedMap};
use super::*;
use crate::model::HostBind;
use crate::model::fixtures::tcp;
use netpath_common::family::Ipv4;
use netpath_common::layout::{self, Flow4, FlowKey4, name};

/// The slot of the other entry may belong to another flow.
#[test]
#[ignore = "needs root"]
fn an_invalidated_flow_removes_no_entry_of_another_flow() {
    use netpath_common::layout::{Next, SIDE_BRIDGE, SIDE_UPLINK};
    let Some(host) = Host::new("an_invalidated_flow_removes_no_entry_of_another_flow") else { return };
    host.reconcile(&host.desired(vec![vec![]]));
    let pins = host.pins();
    let map = host.map(&Ipv4::FLOWS);
    let half = |side: u8, src: [u8; 4], dst: [u8; 4], to: ([u8; 4], [u8; 4]), ifindex: u32, reverse_side: u8| {
        let mut flow = Flow4 { src: to.0, dst: to.1, ..Flow4::default() };
        flow.next = Next { ifindex, reverse_side, ..Next::default() };
        (FlowKey4 { src, dst, proto: layout::PROTO_UDP, side, ..FlowKey4::default() }, flow)
    };
    let (container, uplink, server, other) = ([10, 88, 0, 2], [192, 0, 2, 1], [203, 0, 113, 7], [10, 88, 0, 3]);
    let (key, flow) = half(SIDE_BRIDGE, container, server, (uplink, server), 99, SIDE_UPLINK);
    let place = netpath_common::nat_plan::other_key::<Ipv4>(&flow, layout::PROTO_UDP);
    let (_, other_flow) = half(SIDE_UPLINK, server, uplink, (server, other), 5, SIDE_BRIDGE);
    map.update(&[key, place], &[flow, other_flow]).expect("written");
    assert_eq!(1, invalidate::flows_by(&pins, &[99].into()).expect("purged"));
    assert!(map.get(&key).expect("read").is_none());
    assert!(map.get(&place).expect("read").is_some(), "a half of another flow is gone");
    host.reconcile(&Desired::default());
}

/// Up to layout 5 an uplink's egress could masquerade: such a flow has no program any more, but another rung can take it over.
#[test]
#[ignore = "needs root"]
fn flows_that_an_earlier_version_masqueraded_at_egress_are_handed_over_but_not_migrated() {
    use netpath_common::layout::{LAYOUT_VERSION, Next, PROTO_UDP, SIDE_BRIDGE, SIDE_EGRESS, SIDE_UPLINK};
    use netpath_common::reason::Reason;
    let test = "flows_that_an_earlier_version_masqueraded_at_egress_are_handed_over_but_not_migrated";
    let Some(host) = Host::new(test) else { return };
    let desired = host.desired(vec![vec![tcp(HostBind::Any, 8080, 80, 1)]]);
    host.reconcile(&desired);
    let now = expire::now().expect("the clock");
    let (ifindex, host_address, server) = (host.index("up0"), [192, 0, 2, 1], [203, 0, 113, 7]);
    let flow = |src: [u8; 4], dst, to: ([u8; 4], [u8; 4]), sides: (u8, u8), origin: Reason| {
        let next = Next { ifindex, last_seen: now, reverse_side: sides.1, origin: origin as u8, ..Next::default() };
        let key = FlowKey4 { src, dst, proto: PROTO_UDP, side: sides.0, ..FlowKey4::default() };
        (key, Flow4 { src: to.0, dst: to.1, next, ..Flow4::default() })
    };
    let container = [10, 88, 0, 2];
    let (published, masqueraded, own) = (
        flow(server, host_address, (server, container), (SIDE_UPLINK, SIDE_BRIDGE), Reason::FlowPublished),
        flow(container, server, (host_address, server), (SIDE_EGRESS, SIDE_UPLINK), Reason::FlowMasqueraded),
        flow(host_address, server, ([192, 0, 2, 2], server), (SIDE_EGRESS, SIDE_UPLINK), Reason::FlowHost),
    );
    let all = [published, masqueraded, own];
    let this = host.pins().root().to_owned();
    let earlier = this.to_string_lossy().replace(&format!("/v{LAYOUT_VERSION}/"), "/v5/");
    std::fs::create_dir(std::path::Path::new(&earlier).parent().expect("a parent")).expect("made");
    std::fs::rename(&this, &earlier).expect("renamed");
    let (_, pins) = Pins::of_other_versions(host.cookie).into_iter().find(|(v, _)| *v == 5).expect("it is there");
    replace_by_earlier(&pins.map(name::FLOW4), size_of::<FlowKey4>(), size_of::<<Ipv4 as Flows>::Earlier>());
    let map = PinnedMap::of_another_layout(&pins, &Ipv4::EARLIER).expect("of that size");
    map.update(&all.map(|f| f.0), &all.map(|f| as_earlier(&f.1))).expect("written");

    let handed_over: Vec<_> =
        host.datapath().connections().expect("listed").iter().map(|c| c.original.source).collect();
    assert_eq!(2, handed_over.len(), "{handed_over:?}");
    assert!([server, container].iter().all(|a| handed_over.contains(&std::net::IpAddr::from(*a))), "{handed_over:?}");
    host.reconcile(&desired);
    let map = host.map(&Ipv4::FLOWS);
    let is_there = all.map(|f| map.get(&f.0).expect("read").is_some());
    assert_eq!([true, false, true], is_there);
    host.reconcile(&Desired::default());
}

/// A flow as up to layout 6, without acknowledgement and serial number.
fn as_earlier(flow: &Flow4) -> <Ipv4 as Flows>::Earlier {
    use netpath_common::layout::Next;
    use std::mem::offset_of;
    use zerocopy::IntoBytes;
    let at = offset_of!(Flow4, next);
    let (ack, after) = (at + offset_of!(Next, ack), at + offset_of!(Next, match_dmac));
    let bytes = flow.as_bytes();
    [&bytes[..ack], &bytes[after..]].concat().try_into().expect("of that size")
}

/// Pins an empty LRU_HASH with these sizes instead of the map at `pin`.
fn replace_by_earlier(pin: &std::path::Path, key: usize, value: usize) {
    use std::os::fd::{FromRawFd, OwnedFd};
    use std::os::unix::ffi::OsStrExt;
    // include/uapi/linux/bpf.h: BPF_MAP_CREATE and BPF_OBJ_PIN, the beginnings of their attributes.
    const LRU_HASH: u32 = 9;
    std::fs::remove_file(pin).expect("removed");
    let map = [LRU_HASH, key as u32, value as u32, 1_024, 0, 0, 0, 0];
    // SAFETY: the kernel reads the attributes, whose size it is told.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, 0, map.as_ptr(), size_of_val(&map)) };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: just opened, and without another owner.
    let _map = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let path = std::ffi::CString::new(pin.as_os_str().as_bytes()).expect("no zero byte");
    let object = [path.as_ptr() as u64, fd as u64];
    // SAFETY: the kernel reads the attributes, whose size it is told, and the path, which ends with a zero byte; both outlive the call.
    let pinned = unsafe { libc::syscall(libc::SYS_bpf, 6, object.as_ptr(), size_of_val(&object)) };
    assert_eq!(0, pinned, "{}", std::io::Error::last_os_error());
}
