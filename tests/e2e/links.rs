//! Uplinks of other kinds than a plain veth. Without kernel support for a device, its test is skipped with the reason.

use crate::rig::{Rig, rig, serve, web};
use anyhow::{Context, Result, ensure};
use std::net::IpAddr;
use std::time::{Duration, Instant};
use support::host::Netns;
use support::need;
use support::netavark::{Document, Network, Rung};
use support::topology::{CARDS, CLIENT4, CLIENT6, Family, HOST4, HOST6, Topology, answers_for};
use support::traffic::{Dial, Proto, exchange, wait_until_answered};

on_every_rung!(
    a_vlan,
    a_bridge_that_holds_the_address,
    a_bridge_that_filters_vlans,
    a_macvlan,
    an_ipvlan,
    a_bond,
    a_member_of_a_vrf,
    an_address_on_a_dummy,
    a_network_card,
    a_vlan_on_a_network_card,
    a_macvlan_on_a_network_card,
    an_ipvlan_on_a_network_card,
    a_wire_that_delays_and_reorders,
    a_client_whose_hardware_address_changes,
);

fn dials(ip: IpAddr, port: u16) -> [Dial; 3] {
    [
        Dial::new(Proto::Tcp, ip, port).bytes(300_000),
        Dial::new(Proto::Udp, ip, port).bytes(1_300),
        Dial::new(Proto::Udp, ip, port).unconnected(),
    ]
}

fn published() -> Document {
    let net = Network::dual(7);
    Document::new().on_dual(&net, "eth0", 7, 5).publish("", 8080, 80, "tcp").publish("", 8080, 80, "udp")
}

/// Moves the host's and the client's addresses from `eth0` to a device that these lines of `ip` create.
fn moved(host: (&str, &str), client: Option<(&str, &str)>) -> Result<Topology> {
    moved_in(Topology::new()?, host, client)
}

/// The same to a device on a network card, or to the card; the client has its addresses on `client`.
fn moved_to_card(host: (&str, &str), client: (&str, &str)) -> Result<Topology> {
    moved_in(Topology::with_cards()?, host, Some(client))
}

fn moved_in(topology: Topology, host: (&str, &str), client: Option<(&str, &str)>) -> Result<Topology> {
    let leave = format!("route del default via {CLIENT4}\nroute del default via {CLIENT6} dev eth0\n");
    let (lines, device) = host;
    topology.host.ip(&format!(
        "{leave}addr flush dev eth0\n{lines}\n\
         addr add {HOST4}/24 dev {device}\naddr add {HOST6}/64 dev {device} nodad\nlink set {device} up\n"
    ))?;
    if let Some((lines, device)) = client {
        topology.client.ip(&format!(
            "addr flush dev eth0\n{lines}\n\
             addr add {CLIENT4}/24 dev {device}\naddr add {CLIENT6}/64 dev {device} nodad\nlink set {device} up\n"
        ))?;
    }
    answers_for(&topology.host, HOST6)?;
    answers_for(&topology.client, CLIENT6)?;
    topology.host.ip(&format!("route add default via {CLIENT4}\nroute add default via {CLIENT6} dev {device}\n"))?;
    Ok(topology)
}

/// Inbound by a published port, and outbound with the host's address.
fn serves(topology: Result<Topology>, rung: Rung) -> Result<()> {
    serves_and(topology, rung, |_| Ok(()))
}

/// The same, and then `more`.
fn serves_and(topology: Result<Topology>, rung: Rung, more: impl FnOnce(&Rig<'_>) -> Result<()>) -> Result<()> {
    rig(topology, rung, |rig| {
        let (web, _servers) = web(rig, published())?;
        let _near = serve(&rig.topology.client, 9000, "near")?;
        for family in Family::BOTH {
            reached(rig, family, family.host());
            for dial in dials(family.client(), 9000) {
                rig.sees("out", &web.0, &dial, "near", family.host());
            }
        }
        more(rig)?;
        Ok(vec![web])
    })
}

fn reached(rig: &Rig<'_>, family: Family, address: IpAddr) {
    for dial in dials(address, 8080) {
        rig.sees("in", &rig.topology.client, &dial, "web", family.client());
    }
}

/// The `ip` command that creates a VLAN, for [`need::accepted`].
const VLAN: &str = "link add link v0 name v0.5 type vlan id 5";
const MACVLAN: &str = "link add link v0 name mv0 type macvlan mode bridge";
const IPVLAN: &str = "link add link v0 name iv0 type ipvlan mode l2";

fn a_vlan(rung: Rung) -> Result<()> {
    need!(need::accepted("ip", VLAN));
    let tagged = ("link add link eth0 name eth0.5 type vlan id 5", "eth0.5");
    serves(moved(tagged, Some(tagged)), rung)
}

fn a_bridge_that_holds_the_address(rung: Rung) -> Result<()> {
    need!(need::accepted("ip", "link add br0 type bridge"));
    serves(moved(("link add br0 type bridge\nlink set eth0 master br0", "br0"), None), rung)
}

/// The host's addresses are in VLAN 5, which the port accepts tagged, and untagged frames are dropped. Addresses in VLAN 6 are
/// unreachable until the port accepts that VLAN too.
fn a_bridge_that_filters_vlans(rung: Rung) -> Result<()> {
    need!(
        need::program("bridge"),
        need::accepted("ip", VLAN),
        need::accepted("ip", "link add br0 type bridge vlan_filtering 1"),
    );
    let lines = "link add br0 type bridge vlan_filtering 1\nlink set eth0 master br0\nlink set br0 up\n\
                 link add link br0 name br0.5 type vlan id 5\nlink add link br0 name br0.6 type vlan id 6";
    let tagged = "link add link eth0 name eth0.5 type vlan id 5\nlink add link eth0 name eth0.6 type vlan id 6";
    let topology = moved((lines, "br0.5"), Some((tagged, "eth0.5")))?;
    for words in ["add dev eth0 vid 5", "del dev eth0 vid 1", "add dev br0 vid 5 self", "add dev br0 vid 6 self"] {
        bridge_vlan(&topology.host, words)?;
    }
    let Topology { host, client, .. } = &topology;
    for (netns, device, of) in [(host, "br0.6", Family::host_far as fn(_) -> _), (client, "eth0.6", Family::far)] {
        let [v4, v6] = Family::BOTH.map(of);
        netns.ip(&format!(
            "addr add {v4}/24 dev {device}\naddr add {v6}/64 dev {device} nodad\nlink set {device} up\n"
        ))?;
        answers_for(netns, v6)?;
    }
    serves_and(Ok(topology), rung, |rig| {
        let Topology { host, client, .. } = rig.topology;
        let each = || Family::BOTH.into_iter().flat_map(|f| Proto::BOTH.map(|p| (f, Dial::new(p, f.host_far(), 8080))));
        for (_, dial) in each() {
            rig.silent("a VLAN that the port has not", client, &dial);
        }
        bridge_vlan(host, "add dev eth0 vid 6")?;
        for (family, dial) in each() {
            // The client resolves the hardware address again after its time-out.
            rig.met("a VLAN that the port has", wait_until_answered(client, &dial));
            rig.sees("a VLAN that the port has", client, &dial, "web", family.far());
        }
        Ok(())
    })
}

fn bridge_vlan(netns: &Netns, words: &str) -> Result<()> {
    let args: Vec<&str> = ["vlan"].into_iter().chain(words.split(' ')).collect();
    netns.command("bridge", &args).map(drop)
}

fn a_macvlan(rung: Rung) -> Result<()> {
    need!(need::accepted("ip", MACVLAN));
    let topology = moved(("link add link eth0 name mv0 type macvlan mode bridge", "mv0"), None)?;
    serves(alone(topology, "eth0", "eth0"), rung)
}

/// Otherwise the device below a macvlan answers for the address too, and packets arrive where no address is.
fn alone(topology: Topology, below: &str, client: &str) -> Result<Topology> {
    topology.host.set_sysctl(&format!("net/ipv4/conf/{below}/arp_ignore"), "1")?;
    topology.client.ip(&format!("neigh flush dev {client}\n"))?;
    Ok(topology)
}

fn an_ipvlan(rung: Rung) -> Result<()> {
    need!(need::accepted("ip", IPVLAN));
    serves(moved(("link add link eth0 name iv0 type ipvlan mode l2", "iv0"), None), rung)
}

fn a_bond(rung: Rung) -> Result<()> {
    need!(need::accepted("ip", "link add bond0 type bond mode active-backup miimon 50"));
    let lines = "link add bond0 type bond mode active-backup miimon 50\n\
                 link set eth0 down\nlink set eth0 master bond0\nlink set bond0 up";
    serves(moved((lines, "bond0"), None), rung)
}

/// With netfilter rules alone a packet in the VRF finds no route to a bridge outside of it.
fn a_member_of_a_vrf(rung: Rung) -> Result<()> {
    need!(need::accepted("ip", "link add blue type vrf table 10"));
    need!(if rung.is_ebpf() { Ok(()) } else { Err("a route from the VRF to the bridge".to_owned()) });
    let topology = Topology::new()?;
    topology.host.ip("link add blue type vrf table 10\nlink set blue up\nlink set eth0 master blue\n")?;
    // A device loses its IPv6 addresses when it becomes a member.
    topology.host.ip(&format!("addr replace {HOST6}/64 dev eth0 nodad\n"))?;
    answers_for(&topology.host, HOST6)?;
    rig(Ok(topology), rung, |rig| {
        let (web, _servers) = web(rig, published())?;
        for family in Family::BOTH {
            reached(rig, family, family.host());
        }
        Ok(vec![web])
    })
}

/// As on a router with service addresses.
fn an_address_on_a_dummy(rung: Rung) -> Result<()> {
    need!(need::accepted("ip", "link add dummy0 type dummy"));
    let addresses: [IpAddr; 2] = ["203.0.113.77".parse()?, "2001:db8:fe::77".parse()?];
    let topology = Topology::new()?;
    topology.host.ip("link add dummy0 type dummy\nlink set dummy0 up\n")?;
    for (address, host) in addresses.into_iter().zip([HOST4, HOST6]) {
        let nodad = if address.is_ipv6() { " nodad" } else { "" };
        topology.host.ip(&format!("addr add {address} dev dummy0{nodad}\n"))?;
        topology.client.ip(&format!("route add {address} via {host}\n"))?;
        answers_for(&topology.host, address)?;
    }
    rig(Ok(topology), rung, |rig| {
        let (web, _servers) = web(rig, published())?;
        for (family, address) in Family::BOTH.into_iter().zip(addresses) {
            reached(rig, family, address);
            reached(rig, family, family.host());
        }
        Ok(vec![web])
    })
}

/// The client's card without a device on it.
const CARD: (&str, &str) = ("", CARDS[1]);

fn a_network_card(rung: Rung) -> Result<()> {
    need!(need::cards());
    serves(moved_to_card(("", CARDS[0]), CARD), rung)
}

fn a_vlan_on_a_network_card(rung: Rung) -> Result<()> {
    need!(need::cards(), need::accepted("ip", VLAN));
    let host = ("link add link card0 name card0.5 type vlan id 5", "card0.5");
    serves(moved_to_card(host, ("link add link card1 name card1.5 type vlan id 5", "card1.5")), rung)
}

/// The card has to accept frames for a second hardware address.
fn a_macvlan_on_a_network_card(rung: Rung) -> Result<()> {
    need!(need::cards(), need::accepted("ip", MACVLAN));
    let topology = moved_to_card(("link add link card0 name mv0 type macvlan mode bridge", "mv0"), CARD)?;
    serves(alone(topology, CARDS[0], CARDS[1]), rung)
}

fn an_ipvlan_on_a_network_card(rung: Rung) -> Result<()> {
    need!(need::cards(), need::accepted("ip", IPVLAN));
    serves(moved_to_card(("link add link card0 name iv0 type ipvlan mode l2", "iv0"), CARD), rung)
}

/// No byte is lost, and the two directions of a flow stay one flow.
fn a_wire_that_delays_and_reorders(rung: Rung) -> Result<()> {
    const QDISC: &str = "root netem delay 3ms 2ms reorder 20%";
    need!(need::accepted("tc", &format!("qdisc add dev v0 {QDISC}")));
    let topology = Topology::new()?;
    for netns in [&topology.host, &topology.client] {
        let line = format!("qdisc add dev eth0 {QDISC}");
        netns.command("tc", &line.split(' ').collect::<Vec<_>>()).context("netem")?;
    }
    let shown = topology.host.command("tc", &["qdisc", "show", "dev", "eth0"])?;
    ensure!(shown.contains("netem"), "eth0 has {shown}");
    serves(Ok(topology), rung)
}

/// As when another machine takes over an address, and announces it.
fn a_client_whose_hardware_address_changes(rung: Rung) -> Result<()> {
    rig(Topology::new(), rung, |rig| {
        let (web, _servers) = web(rig, published())?;
        let _outside = serve(&rig.topology.client, 9000, "outside")?;
        let Topology { client, host, .. } = rig.topology;
        for (n, family) in [(1, Family::V4), (2, Family::V6)] {
            let mut stream = client.run(|| Dial::new(Proto::Tcp, family.host(), 8080).connect_stream())?;
            let mut out = web.0.run(|| Dial::new(Proto::Tcp, family.client(), 9000).connect_stream())?;
            for _ in 0..3 {
                exchange(&mut stream, b"before")?;
                exchange(&mut out, b"before")?;
            }
            let (mac, address) = (format!("02:00:00:00:99:0{n}"), family.client());
            client.ip(&format!("link set eth0 address {mac}\n"))?;
            host.ip(&format!("neigh replace {address} dev eth0 lladdr {mac} nud reachable\n"))?;
            let begun = Instant::now();
            exchange(&mut stream, b"after").with_context(|| format!("{family:?}, published"))?;
            exchange(&mut out, b"after").with_context(|| format!("{family:?}, masqueraded"))?;
            // A second until a flow resolves again, and the sender's retransmission pause.
            let took = begun.elapsed();
            rig.note(took < Duration::from_secs(4), || format!("{family:?}: an answer after {took:?}"));
            for dial in dials(family.host(), 8080) {
                rig.sees("another connection", client, &dial, "web", family.client());
            }
        }
        Ok(vec![web])
    })
}
