//! Ipvlan networks: links, modes, and what cannot be.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use support::need;
use support::netavark::{Document, Netavark, Network};
use support::residue::Residue;
use support::topology::{CLIENT4, Topology};

const IPVLAN: &str = "link add link v0 name iv0 type ipvlan mode l2";

fn lan(parent: &str) -> Network {
    Network::new("lan", parent).set("driver", "ipvlan").subnet("192.0.2.0/24", &CLIENT4.to_string())
}

fn document(network: &Network, address: &str) -> Document {
    Document::new().on(network, "eth0", &[address])
}

#[test]
fn every_mode_makes_an_ipvlan_with_its_address_and_routes() -> Result<()> {
    need!(need::netpath(), need::accepted("ip", IPVLAN));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let web = topology.container("web")?;
    for (option, mode) in [("", "l2"), ("l2", "l2"), ("l3", "l3"), ("l3s", "l3s")] {
        let document =
            document(&lan("eth0").option("mode", option).option("mtu", "1400").option("metric", "7"), "192.0.2.50");
        let answer = netavark.setup(&web, &document)?;
        let link = web.ip_json(&["link", "show", "dev", "eth0"])?[0].take();
        let info = &link["linkinfo"];
        assert_eq!((json!("ipvlan"), json!(mode)), (info["info_kind"].clone(), info["info_data"]["mode"].clone()));
        assert_eq!(json!(1400), link["mtu"]);
        let interface = &answer["lan"]["interfaces"]["eth0"];
        assert_eq!(link["address"], interface["mac_address"], "that of the parent");
        assert_eq!(json!([{"ipnet": "192.0.2.50/24", "gateway": CLIENT4}]), interface["subnets"]);
        assert_eq!(
            (json!([]), json!([])),
            (answer["lan"]["dns_server_ips"].clone(), answer["lan"]["dns_search_domains"].clone())
        );
        let route = web.ip_json(&["route", "show", "default"])?;
        assert_eq!((json!("192.0.2.2"), json!(7)), (route[0]["gateway"].clone(), route[0]["metric"].clone()));
        assert_eq!("0", web.sysctl("net/ipv6/conf/eth0/autoconf")?);
        netavark.teardown(&web, &document)?;
        netavark.teardown(&web, &document)?;
        residue.nothing_left(&topology, &[&web])?;
    }
    Ok(())
}

#[test]
fn impossible_requests_are_refused_with_a_reason_and_leave_nothing() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let web = topology.container("web")?;
    for (network, expected) in [
        (lan("absent0"), "parent interface absent0 does not exist (this host has eth0); nothing was changed"),
        (lan("eth0").option("mode", "loud"), "invalid ipvlan mode \"loud\""),
        (lan("eth0").option("netpath.xdp", "on"), "have no effect on a network of kind ipvlan"),
        (
            lan("eth0").option("mode", "l3").set("ipam_options", json!({"driver": "dhcp"})),
            "ipam_options.driver: ipam driver dhcp is not supported with ipvlan in mode l3",
        ),
    ] {
        let told = netavark.try_setup(&web, &document(&network, "192.0.2.50").json(&web))?.error()?;
        ensure!(told.contains(expected), "expected {expected:?} in {told:?}");
        residue.nothing_left(&topology, &[&web])?;
    }
    Ok(())
}

#[test]
fn a_kernel_without_ipvlan_says_so_and_keeps_nothing() -> Result<()> {
    need!(need::root(), need::netpath());
    if need::accepted("ip", IPVLAN).is_ok() {
        need!(Err::<(), _>("a kernel without ipvlan".to_owned()));
    }
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let web = topology.container("web")?;
    let told =
        Netavark::with(&topology, &[])?.try_setup(&web, &document(&lan("eth0"), "192.0.2.50").json(&web))?.error()?;
    ensure!(told.contains("create ipvlan interface eth0 on parent eth0: Netlink error: "), "{told}");
    residue.nothing_left(&topology, &[&web])
}

#[test]
fn published_ports_warn_and_say_what_to_do() -> Result<()> {
    need!(need::netpath(), need::accepted("ip", IPVLAN));
    let topology = Topology::new()?;
    let netavark = Netavark::with(&topology, &[])?;
    let web = topology.container("web")?;
    let document = document(&lan("eth0"), "192.0.2.50").publish("", 8080, 80, "tcp");
    let answer = netavark.try_setup(&web, &document.json(&web))?;
    let _: Value = answer.json()?;
    for words in ["published ports have no effect on network lan", "attach it to a bridge network too"] {
        ensure!(answer.stderr.contains(words), "{answer}");
    }
    netavark.teardown(&web, &document)
}
