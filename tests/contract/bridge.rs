//! Options of bridge networks that change links: modes, VLAN, VRF, MTU, names, and what stays as it is.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use support::host::Netns;
use support::need;
use support::netavark::{Document, Netavark, Network};
use support::residue::Residue;
use support::topology::{Container, Topology};

/// With an address of its own; others change it with their ports.
const UNMANAGED: &str = "link add podman7 address 0a:00:00:00:00:07 type bridge\nlink set podman7 up\n";
const VLANS: &str = "link add name br9 type bridge vlan_filtering 1";
const VRF: &str = "link add name red type vrf table 1010";

fn four() -> Network {
    Network::new("four", "podman7").subnet("10.89.7.0/24", "10.89.7.1")
}

fn on(network: &Network, address: &str) -> Document {
    Document::new().on(network, "eth0", &[address])
}

/// A host, the backend, and two containers.
struct Case {
    topology: Topology,
    one: Container,
    two: Container,
}

impl Case {
    fn new(prepare: &str) -> Result<Self> {
        let topology = Topology::new()?;
        topology.host.ip(prepare)?;
        let (one, two) = (topology.container("one")?, topology.container("two")?);
        Ok(Self { topology, one, two })
    }

    fn netavark(&self) -> Result<Netavark<'_>> {
        Netavark::with(&self.topology, &[])
    }
}

fn link(netns: &Netns, name: &str) -> Result<Value> {
    netns.ip_json(&["link", "show", "dev", name]).map(|mut l| l[0].take())
}

/// The port of `bridge` on the host.
fn ports(host: &Netns, bridge: &str) -> Result<Vec<String>> {
    let links = host.ip_json(&["link", "show", "master", bridge])?;
    Ok(links.as_array().into_iter().flatten().filter_map(|l| Some(l["ifname"].as_str()?.to_owned())).collect())
}

#[test]
fn an_unmanaged_bridge_must_exist_and_stays_as_it_is() -> Result<()> {
    need!(need::root(), need::netpath());
    let case = Case::new("")?;
    let (host, netavark) = (&case.topology.host, case.netavark()?);
    let residue = Residue::watch(&case.topology)?;
    let document = on(&four().option("mode", "unmanaged"), "10.89.7.5").publish("", 8080, 80, "tcp");
    let told = netavark.try_setup(&case.one, &document.json(&case.one))?.error()?;
    let text =
        "in unmanaged mode, the bridge must already exist on the host: Netlink error: No such device (os error 19)";
    ensure!(told.contains(text) && told.contains("nothing was changed"), "{told}");
    residue.nothing_left(&case.topology, &[&case.one])?;

    host.ip(UNMANAGED)?;
    let residue = Residue::watch(&case.topology)?;
    let settings = ["rp_filter", "route_localnet"].map(|key| format!("net/ipv4/conf/podman7/{key}"));
    let before = settings.each_ref().map(|key| host.sysctl(key).ok());
    let answer = netavark.try_setup(&case.one, &document.json(&case.one))?;
    answer.json()?;
    ensure!(answer.stderr.contains("published ports have no effect on network four"), "{answer}");
    assert_eq!(before, settings.each_ref().map(|key| host.sysctl(key).ok()), "sysctls of the bridge");
    assert_eq!("0", host.sysctl("net/ipv4/ip_forward")?, "the host does not become a router");
    assert_eq!("1", case.one.sysctl("net/ipv6/conf/eth0/autoconf")?, "the container may configure itself");
    let addresses = host.ip_json(&["-4", "addr", "show", "dev", "podman7"])?;
    ensure!(!addresses.to_string().contains("10.89.7.1"), "the gateway is another machine: {addresses}");
    assert_eq!(1, ports(host, "podman7")?.len());
    let route = case.one.ip_json(&["route", "show", "default"])?;
    assert_eq!(json!("10.89.7.1"), route[0]["gateway"]);
    netavark.teardown(&case.one, &document)?;
    netavark.teardown(&case.one, &document)?;
    residue.nothing_left(&case.topology, &[&case.one])
}

#[test]
fn an_unmanaged_bridge_serves_dns_on_its_own_addresses() -> Result<()> {
    need!(need::root(), need::netpath());
    let case = Case::new(UNMANAGED)?;
    let (host, netavark) = (&case.topology.host, case.netavark()?);
    let document = on(&four().option("mode", "unmanaged").set("dns_enabled", true), "10.89.7.5");
    let told = netavark.try_setup(&case.one, &document.json(&case.one))?.error()?;
    let text = "bridge 'podman7' in unmanaged mode has no usable IP addresses. Aardvark-dns requires at least one address \
                (should not be an IPv6 link-local address) to bind to. Please add an IP address or disable DNS for this \
                network (--disable-dns).";
    ensure!(told.contains(text), "{told}");
    host.ip("addr add 10.89.7.9/24 dev podman7\n")?;
    let residue = Residue::watch(&case.topology)?;
    let answer = netavark.setup(&case.one, &document)?;
    assert_eq!(json!(["10.89.7.9"]), answer["four"]["dns_server_ips"]);
    let file = std::fs::read_to_string(case.topology.config_dir().join("aardvark-dns/four"))?;
    ensure!(file.starts_with("10.89.7.9\n"), "{file}");
    netavark.teardown(&case.one, &document)?;
    residue.nothing_left(&case.topology, &[&case.one])
}

#[test]
fn ports_of_a_vlan_network_are_untagged_members_of_it() -> Result<()> {
    need!(need::netpath(), need::accepted("ip", VLANS), need::program("bridge"));
    let case = Case::new("link add podman8 address 0a:00:00:00:00:08 type bridge\nlink set podman8 up\n")?;
    let (host, netavark) = (&case.topology.host, case.netavark()?);
    let residue = Residue::watch(&case.topology)?;
    let of_port = |bridge: &str| -> Result<String> {
        assert_eq!(json!(1), link(host, bridge)?["linkinfo"]["info_data"]["vlan_filtering"], "{bridge}");
        let port = ports(host, bridge)?.pop().context("no port")?;
        Ok(host.command("bridge", &["vlan", "show", "dev", &port])?.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    let managed = on(&four().option("vlan", "20"), "10.89.7.5");
    netavark.setup(&case.one, &managed)?;
    let shown = of_port("podman7")?;
    ensure!(shown.contains("20 PVID Egress Untagged"), "{shown}");
    let other = Network::new("other", "podman8").subnet("10.89.8.0/24", "10.89.8.1");
    let unmanaged = on(&other.option("vlan", "30").option("mode", "unmanaged"), "10.89.8.5");
    netavark.setup(&case.two, &unmanaged)?;
    let shown = of_port("podman8")?;
    ensure!(shown.contains("30 PVID Egress Untagged"), "{shown}");
    netavark.teardown(&case.one, &managed)?;
    netavark.teardown(&case.two, &unmanaged)?;
    host.ip("link set podman8 type bridge vlan_filtering 0\n")?;
    residue.nothing_left(&case.topology, &[&case.one, &case.two])
}

#[test]
fn a_vlan_that_the_kernel_cannot_have_leaves_nothing() -> Result<()> {
    need!(need::root(), need::netpath());
    if need::accepted("ip", VLANS).is_ok() {
        need!(Err::<(), _>("a kernel without CONFIG_BRIDGE_VLAN_FILTERING".to_owned()));
    }
    let case = Case::new("")?;
    let residue = Residue::watch(&case.topology)?;
    let document = on(&four().option("vlan", "20"), "10.89.7.5");
    let told = case.netavark()?.try_setup(&case.one, &document.json(&case.one))?.error()?;
    ensure!(told.contains("podman7"), "{told}");
    residue.nothing_left(&case.topology, &[&case.one])
}

#[test]
fn a_bridge_joins_its_vrf_and_takes_the_mtu_of_its_default_route() -> Result<()> {
    need!(need::netpath(), need::accepted("ip", VRF));
    let prepare = format!("{VRF}\nlink set red up\n").replace("link add name", "link add");
    let case = Case::new(&prepare)?;
    let (host, netavark) = (&case.topology.host, case.netavark()?);
    host.ip("link add up0 mtu 1342 type veth peer name up1\nlink set up0 master red\naddr add 10.7.0.2/24 dev up0\n\
         link set up0 up\nlink set up1 up\nroute add default via 10.7.0.1 dev up0 table 1010\n")?;
    let residue = Residue::watch(&case.topology)?;
    let document = on(&four().option("vrf", "red"), "10.89.7.5");
    netavark.setup(&case.one, &document)?;
    assert_eq!(json!("red"), link(host, "podman7")?["master"]);
    assert_eq!(json!(1342), link(&case.one, "eth0")?["mtu"]);
    netavark.teardown(&case.one, &document)?;
    residue.nothing_left(&case.topology, &[&case.one])
}

#[test]
fn a_vrf_that_does_not_exist_is_refused() -> Result<()> {
    need!(need::root(), need::netpath());
    let case = Case::new("")?;
    let residue = Residue::watch(&case.topology)?;
    let netavark = case.netavark()?;
    for (vrf, text) in [
        ("red", "get vrf to set up bridge interface: Netlink error: No such device (os error 19)"),
        ("eth0", "vrf eth0 already exists but is another interface"),
    ] {
        let document = on(&four().option("vrf", vrf), "10.89.7.5");
        let told = netavark.try_setup(&case.one, &document.json(&case.one))?.error()?;
        ensure!(told.contains(text) && told.contains("nothing was changed"), "{told}");
        residue.nothing_left(&case.topology, &[&case.one])?;
    }
    Ok(())
}

#[test]
fn an_existing_bridge_gives_its_mtu_and_keeps_it() -> Result<()> {
    need!(need::root(), need::netpath());
    let case = Case::new("link add podman7 type bridge\nlink set podman7 mtu 1342 up\n")?;
    let (host, netavark) = (&case.topology.host, case.netavark()?);
    let (plain, small) = (on(&four(), "10.89.7.5"), on(&four().option("mtu", "1300"), "10.89.7.6"));
    netavark.setup(&case.one, &plain)?;
    assert_eq!(json!(1342), link(&case.one, "eth0")?["mtu"]);
    netavark.setup(&case.two, &small)?;
    assert_eq!(json!(1300), link(&case.two, "eth0")?["mtu"]);
    assert_eq!(json!(1342), link(host, "podman7")?["mtu"]);
    netavark.teardown(&case.one, &plain)?;
    netavark.teardown(&case.two, &small)
}

#[test]
fn the_bridge_keeps_its_mac_while_ports_come_and_go() -> Result<()> {
    need!(need::root(), need::netpath());
    let case = Case::new("")?;
    let (host, netavark) = (&case.topology.host, case.netavark()?);
    let (first, second) = (on(&four(), "10.89.7.5"), on(&four(), "10.89.7.6"));
    netavark.setup(&case.one, &first)?;
    let mac = link(host, "podman7")?["address"].clone();
    netavark.setup(&case.two, &second)?;
    // The lowest address there is, which an unpinned bridge takes.
    let port = ports(host, "podman7")?.pop().context("no port")?;
    host.ip(&format!("link set {port} address 00:00:00:00:00:02\n"))?;
    assert_eq!(mac, link(host, "podman7")?["address"]);
    netavark.teardown(&case.one, &first)?;
    assert_eq!(mac, link(host, "podman7")?["address"]);
    netavark.teardown(&case.two, &second)
}

#[test]
fn a_taken_host_interface_name_is_refused() -> Result<()> {
    need!(need::root(), need::netpath());
    let case = Case::new("link add taken0 type bridge\n")?;
    let residue = Residue::watch(&case.topology)?;
    let options =
        json!({"interface_name": "eth0", "static_ips": ["10.89.7.5"], "options": {"host_interface_name": "taken0"}});
    let document = Document::new().attach(&four(), options);
    let told = case.netavark()?.try_setup(&case.one, &document.json(&case.one))?.error()?;
    let text = "create veth pair: interface eth0 already exists on container namespace or taken0 exists on host namespace: \
                Netlink error: File exists (os error 17)";
    ensure!(told.contains(text) && told.contains("next: choose another host_interface_name"), "{told}");
    residue.nothing_left(&case.topology, &[&case.one])
}

#[test]
fn interfaces_are_created_in_the_order_of_the_document() -> Result<()> {
    need!(need::root(), need::netpath());
    let case = Case::new("")?;
    let netavark = case.netavark()?;
    let networks: Vec<Network> = (1..=4)
        .map(|n| {
            Network::new(&format!("n{n}"), &format!("podman{n}"))
                .subnet(&format!("10.89.{n}.0/24"), &format!("10.89.{n}.1"))
        })
        .collect();
    let mut document = Document::new().shape(support::netavark::Shape::Array);
    for n in [3, 1, 4, 2_usize] {
        document = document.on(&networks[n - 1], &format!("eth{n}"), &[&format!("10.89.{n}.5")]);
    }
    netavark.setup(&case.one, &document)?;
    let links = case.one.ip_json(&["link", "show"])?;
    let mut links: Vec<(u64, String)> = links
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|l| Some((l["ifindex"].as_u64()?, l["ifname"].as_str()?.to_owned())))
        .filter(|(_, name)| name != "lo")
        .collect();
    links.sort_unstable();
    assert_eq!(vec!["eth3", "eth1", "eth4", "eth2"], links.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>());
    netavark.teardown(&case.one, &document)
}

#[test]
fn two_networks_of_a_container_may_have_the_same_bridge() -> Result<()> {
    need!(need::root(), need::netpath());
    let case = Case::new("")?;
    let (host, netavark) = (&case.topology.host, case.netavark()?);
    let residue = Residue::watch(&case.topology)?;
    let other = Network::new("other", "podman7").subnet("10.89.8.0/24", "10.89.8.1");
    let document = on(&four(), "10.89.7.5").on(&other, "eth1", &["10.89.8.5"]);
    netavark.setup(&case.one, &document)?;
    assert_eq!(2, ports(host, "podman7")?.len());
    let addresses = host.ip_json(&["addr", "show", "dev", "podman7"])?.to_string();
    ensure!(addresses.contains("10.89.7.1") && addresses.contains("10.89.8.1"), "{addresses}");
    netavark.teardown(&case.one, &document)?;
    residue.nothing_left(&case.topology, &[&case.one])
}
