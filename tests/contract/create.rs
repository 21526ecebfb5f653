//! `create`: a network that Podman 6 is about to save is completed, and the result can be set up.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use support::need;
use support::netavark::{Answer, Document, Netavark, Network};
use support::residue::Residue;
use support::topology::Topology;

fn input(network: &Value) -> Value {
    let mut whole = json!({
        "name": "lan", "id": "a".repeat(64), "driver": "bridge", "dns_enabled": false, "internal": false, "ipv6_enabled": false,
    });
    for (key, value) in network.as_object().into_iter().flatten() {
        whole[key] = value.clone();
    }
    json!({
        "network": whole, "used": {"interfaces": [], "names": {"old": "b"}, "subnets": ["10.89.0.0/24"]},
        "options": {"subnet_pools": [{"base": "10.89.0.0/16", "size": 24}], "default_interface_name": "podman", "check_used_subnets": true},
    })
}

fn create(netavark: &Netavark<'_>, network: &Value) -> Result<Answer> {
    netavark.call(&["create"], input(network).to_string().as_bytes())
}

#[test]
fn a_created_network_can_be_set_up() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    topology.host.ip("link add podman1 type bridge\n")?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let shop = topology.container("shop")?;
    let answer = create(&netavark, &json!({"ipv6_enabled": true, "labels": {"netpath.masquerade": "false"}}))?;
    ensure!(answer.stderr.is_empty() && answer.stdout.lines().count() == 1, "{answer}");
    let network = answer.json()?;
    assert_eq!("podman2", network["network_interface"], "podman1 is a link of the host");
    assert_eq!(json!({"subnet": "10.89.1.0/24", "gateway": "10.89.1.1"}), network["subnets"][0]);
    let v6 = network["subnets"][1]["subnet"].as_str().unwrap_or_default().to_owned();
    ensure!(v6.starts_with("fd") && v6.ends_with("::/64"), "{v6}");
    let again = create(&netavark, &json!({"ipv6_enabled": true}))?.json()?;
    assert_ne!(network["subnets"][1], again["subnets"][1], "IPv6 subnets are random");

    let six = v6.replace("::/64", "::5");
    let network = Network { name: "lan".into(), info: network };
    let document = Document::new().on(&network, "eth0", &["10.89.1.5", &six]);
    netavark.setup(&shop, &document)?;
    netavark.teardown(&shop, &document)?;
    residue.nothing_left(&topology, &[&shop])
}

#[test]
fn the_input_may_come_from_a_file() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let netavark = Netavark::with(&topology, &[])?;
    let file = topology.dir().join("create.json");
    std::fs::write(&file, input(&json!({})).to_string())?;
    netavark.call(&["--file", &file.to_string_lossy(), "create"], b"")?.done()?;
    let told = netavark.call(&["--file", "/no/such", "create"], b"")?.error()?;
    ensure!(told.contains("failed to load network create: IO error: No such file or directory (os error 2)"), "{told}");
    Ok(())
}

/// Podman recognises the first text; the others are what users search for.
#[test]
fn errors_are_netavarks_alone() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let netavark = Netavark::with(&topology, &[])?;
    for (network, error) in [
        (json!({"name": "old"}), "network already exists old"),
        (json!({"name": "a b"}), "Invalid characters in network name \"a b\": must match [a-zA-Z0-9][a-zA-Z0-9_.-]*"),
        (json!({"options": {"warp": "9"}}), "unsupported bridge network option: warp"),
        (
            json!({"subnets": [{"subnet": "10.89.0.0/25"}]}),
            "subnet 10.89.0.0/25 is already used on the host or by another config",
        ),
        (json!({"driver": "macvlan", "network_interface": "absent0"}), "parent interface absent0 does not exist"),
        (json!({"driver": "ipvlan"}), "ipam driver dhcp is not supported with ipvlan"),
    ] {
        assert_eq!(error, create(&netavark, &network)?.error()?);
    }
    let vlan = create(&netavark, &json!({"options": {"vlan": "5000"}}))?.error()?;
    ensure!(vlan.contains("vlan must be between 0 and 4094"), "{vlan}");
    Ok(())
}

/// What netavark 2.1 rejects here, although its own setup takes it.
#[test]
fn options_that_setup_takes_are_accepted() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let netavark = Netavark::with(&topology, &[])?;
    let options =
        json!({"outbound_addr4": "192.0.2.1", "outbound_addr6": "2001:db8::1", "isolate": "", "no_default_route": "1"});
    let created = create(&netavark, &json!({"options": options}))?.json()?;
    assert_eq!(json!("true"), created["options"]["isolate"]);
    assert_eq!(json!("true"), created["options"]["no_default_route"]);
    Ok(())
}
