//! What routes and rules of the host say of a flow: its way by protocol and ports, and its MTU.

use crate::{STACK, at_host, client, host, outside};
use anyhow::{Context, Result, ensure};
use netpath_common::addr::Addr;
use netpath_common::layout::program::{BRIDGE_IN, UPLINK_IN};
use netpath_common::layout::{self, SIDE_BRIDGE, Uplink};
use netpath_common::reason::Reason;
use std::io::Write;
use std::process::{Command, Stdio};
use support::packet::{BRIDGE_MAC, Frame, Lab, REDIRECTED, SYN, WEB_MAC, container, mapped};

fn ip(lines: &str) -> Result<()> {
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().context("cannot run ip")?;
    ip.stdin.take().context("no pipe to ip")?.write_all(lines.as_bytes())?;
    ensure!(ip.wait()?.success(), "ip: {lines}");
    Ok(())
}

/// A second uplink with a gateway, and its index.
fn second_uplink(lab: &mut Lab) -> Result<u32> {
    ip("link add eth1 type veth peer name eth1p\n\
        link set eth1p up\n\
        link set eth1 up\n\
        addr add 198.51.100.1/24 dev eth1\n\
        addr add 2001:db8:2::1/64 dev eth1 nodad\n\
        neigh add 198.51.100.2 dev eth1 lladdr 02:00:00:00:00:52 nud permanent\n\
        neigh add 2001:db8:2::2 dev eth1 lladdr 02:00:00:00:00:52 nud permanent\n")?;
    let index = nix::net::if_::if_nametoindex("eth1")?;
    let (source4, source6) = ([198, 51, 100, 1], "2001:db8:2::1".parse::<std::net::Ipv6Addr>()?.octets());
    let uplink = Uplink { mtu: 1500, mac: [2, 0, 0, 0, 0, 0x51], ethernet: 1, source4, source6 };
    lab.put(layout::name::UPLINK, index, uplink)?;
    Ok(index)
}

/// The way of a container's packet.
fn way(lab: &mut Lab, v4: bool, frame: Frame) -> Result<(u32, u16)> {
    lab.forget()?;
    let out = lab.run(BRIDGE_IN, lab.bridge, &frame.macs(BRIDGE_MAC, WEB_MAC).bytes())?;
    ensure!(out.action == REDIRECTED, "{out:?}");
    lab.hops(v4, SIDE_BRIDGE)?.first().copied().context("no flow")
}

#[test]
fn rules_by_protocol_and_ports_choose_the_way() -> Result<()> {
    let mut lab = Lab::new(&[BRIDGE_IN])?;
    let (first, second) = (lab.uplink, second_uplink(&mut lab)?);
    ip("route add default via 198.51.100.2 table 100\n\
        route add default via 2001:db8:2::2 dev eth1 table 100\n\
        rule add iif np7 ipproto tcp dport 443 lookup 100\n\
        rule add iif np7 ipproto udp sport 5000-5010 lookup 100\n")?;
    for rule in ["ipproto tcp dport 443", "ipproto udp sport 5000-5010"] {
        let words = format!("-6 rule add iif np7 {rule} lookup 100");
        ensure!(Command::new("ip").args(words.split(' ')).status()?.success(), "{words}");
    }
    for v4 in [true, false] {
        let (web, there) = (container(7, v4), outside(v4));
        for (what, frame, expected) in [
            ("tcp to 443", Frame::tcp((web, 40_000), (there, 443), SYN), second),
            ("tcp to another port", Frame::tcp((web, 40_000), (there, 80), SYN), first),
            ("udp to 443", Frame::udp((web, 40_000), (there, 443)), first),
            ("udp from 5005", Frame::udp((web, 5_005), (there, 53)), second),
        ] {
            assert_eq!(expected, way(&mut lab, v4, frame)?.0, "{what}, v4 {v4}");
        }
    }
    Ok(())
}

/// `fib_multipath_hash_policy`: 1 spreads connections by their ports.
#[test]
fn connections_are_spread_over_several_next_hops_by_their_ports() -> Result<()> {
    let mut lab = Lab::new(&[BRIDGE_IN])?;
    let (first, second) = (lab.uplink, second_uplink(&mut lab)?);
    for family in ["ipv4", "ipv6"] {
        std::fs::write(format!("/proc/sys/net/{family}/fib_multipath_hash_policy"), "1")?;
    }
    ip("route replace default nexthop via 192.0.2.2 nexthop via 198.51.100.2\n\
        route del default via 2001:db8:1::2 dev eth0\n\
        route add default nexthop via 2001:db8:1::2 dev eth0 nexthop via 2001:db8:2::2 dev eth1\n")?;
    for v4 in [true, false] {
        let mut ways = std::collections::BTreeMap::<u32, usize>::new();
        for port in 40_000..40_032 {
            let frame = Frame::udp((container(7, v4), port), (outside(v4), 53));
            let chosen = way(&mut lab, v4, frame.clone())?.0;
            assert_eq!(chosen, way(&mut lab, v4, frame)?.0, "the same connection");
            *ways.entry(chosen).or_default() += 1;
        }
        assert!([first, second].iter().all(|way| ways.get(way).is_some_and(|n| *n > 4)), "v4 {v4}: {ways:?}");
    }
    Ok(())
}

/// Of a route without `lock`, the kernel's look-up returns the device's MTU.
#[test]
fn the_mtu_of_a_route_is_that_of_its_flows() -> Result<()> {
    const TAKES: u16 = 1_300;
    let mut lab = Lab::new(&[UPLINK_IN, BRIDGE_IN])?;
    lab.publish(1, Addr::ANY, 8080, 7)?;
    let uplink = lab.uplink;
    ip("neigh add 192.0.2.2 dev eth0 lladdr 02:00:00:00:00:42 nud permanent\n\
        neigh add 2001:db8:1::2 dev eth0 lladdr 02:00:00:00:00:42 nud permanent\n")?;
    for v4 in [true, false] {
        let web = container(7, v4);
        let udp = |size: usize| Frame { payload: vec![0; size], ..Frame::udp((web, 40_000), (outside(v4), 53)) };
        assert_eq!((uplink, 1500), way(&mut lab, v4, udp(100))?, "before, v4 {v4}");
        let (beyond, bits) = (outside(v4), if v4 { 32 } else { 128 });
        let gateway = client(v4);
        ip(&format!("route add {beyond}/{bits} via {gateway} dev eth0 mtu lock {TAKES}\n"))?;
        let headers = if v4 { 28 } else { 48 };
        let fits = usize::from(TAKES) - headers;
        // A flow from before follows with the packet that looks its next hop up again.
        lab.age_flows(v4, 2)?;
        for (size, action) in [(fits, REDIRECTED), (fits + 1, STACK)] {
            let out = lab.run(BRIDGE_IN, lab.bridge, &udp(size).macs(BRIDGE_MAC, WEB_MAC).bytes())?;
            assert_eq!(action, out.action, "{size} bytes, v4 {v4}: {out:?}");
        }
        lab.forget()?;
        let out = lab.run(BRIDGE_IN, lab.bridge, &udp(fits + 1).macs(BRIDGE_MAC, WEB_MAC).bytes())?;
        assert_eq!((STACK, vec![(Reason::StackMtu, 1)]), (out.action, out.counted), "the first, v4 {v4}");
        assert_eq!((uplink, TAKES), way(&mut lab, v4, udp(fits))?, "another, v4 {v4}");
        // And for answers to that client.
        lab.forget()?;
        let asked = at_host(Frame::udp((beyond, 40_000), (host(v4), 8080)));
        assert_eq!(REDIRECTED, lab.action(UPLINK_IN, uplink, &asked.bytes())?);
        assert_eq!(vec![(uplink, TAKES)], lab.hops(v4, SIDE_BRIDGE)?, "answers, v4 {v4}");
    }
    Ok(())
}

/// The answer to a client to whom the host's own route leads by the second uplink: it leaves as the request came if the
/// interface has the dialled address, else by the host's route (an address on `lo`: LVS, direct return).
#[test]
fn answers_leave_as_the_request_came_or_by_the_hosts_route_by_whose_the_address_is() -> Result<()> {
    let mut lab = Lab::new(&[UPLINK_IN])?;
    lab.publish(1, Addr::ANY, 8080, 7)?;
    let (first, second) = (lab.uplink, second_uplink(&mut lab)?);
    ip("addr add 192.0.2.77/32 dev lo\naddr add 2001:db8:1::77/128 dev lo\n")?;
    for v4 in [true, false] {
        let beyond = outside(v4);
        let on_lo = if v4 { crate::ip("192.0.2.77") } else { crate::ip("2001:db8:1::77") };
        lab.put(layout::name::LOCAL, mapped(on_lo), 1_u32)?;
        let (bits, gateway) = if v4 { (32, "198.51.100.2") } else { (128, "2001:db8:2::2") };
        ip(&format!("route add {beyond}/{bits} via {gateway} dev eth1\n"))?;
        for (dialled, way) in [(host(v4), first), (on_lo, second)] {
            lab.forget()?;
            let asked = at_host(Frame::udp((beyond, 40_000), (dialled, 8080)));
            assert_eq!(REDIRECTED, lab.action(UPLINK_IN, first, &asked.bytes())?, "{dialled}");
            assert_eq!(vec![(way, 1500)], lab.hops(v4, SIDE_BRIDGE)?, "{dialled}");
        }
    }
    Ok(())
}
