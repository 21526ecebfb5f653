//! Documents that netavark serves are served, and what it refuses is refused in its words.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use support::example::worked_example;
use support::host::Netns;
use support::need;
use support::netavark::{Document, Netavark, Network, Shape};
use support::residue::Residue;
use support::topology::{Container, Topology};

fn four() -> Network {
    Network::new("four", "podman7").subnet("10.89.7.0/24", "10.89.7.1")
}

/// Sets up, looks, tears down; nothing is left.
fn with(document: &Document, prepare: &str, look: impl FnOnce(&Container, &Value, &str) -> Result<()>) -> Result<()> {
    let topology = Topology::new()?;
    let netavark = Netavark::with(&topology, &[])?;
    let shop = topology.container("shop")?;
    shop.ip(prepare)?;
    let residue = Residue::watch(&topology)?;
    let answer = netavark.try_setup(&shop, &document.json(&shop))?;
    look(&shop, &answer.json()?, &answer.stderr)?;
    netavark.teardown(&shop, document)?;
    residue.nothing_left(&topology, &[])?;
    assert_eq!(Vec::<String>::new(), routes(&shop)?, "routes after teardown");
    ensure!(shop.ip_json(&["link", "show"])?.to_string().matches("\"ifname\":\"eth0\"").count() == 0, "eth0 is left");
    Ok(())
}

/// Destinations of the routes with a gateway, or with a type.
fn routes(netns: &Netns) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for family in ["-4", "-6"] {
        let routes = netns.ip_json(&[family, "route", "show"])?;
        let own = routes
            .as_array()
            .into_iter()
            .flatten()
            .filter(|r| r["gateway"].is_string() || r["type"].as_str().is_some_and(|t| t != "unicast"));
        found.extend(own.map(|r| r["dst"].as_str().unwrap_or("-").to_owned()));
    }
    Ok(found)
}

const OTHER: &str = "link set lo up\nlink add other0 type veth peer name other1\naddr add 10.9.9.2/24 dev other0\n\
                     addr add fd09::2/64 dev other0 nodad\nlink set other0 up\nlink set other1 up\n";

#[test]
fn a_gateway_is_reached_by_another_interface_of_the_container() -> Result<()> {
    need!(need::root(), need::netpath());
    let network = four().set(
        "routes",
        json!([{"destination": "10.92.0.0/24", "gateway": "10.9.9.1"}, {"destination": "fd92::/64", "gateway": "fd09::1"}]),
    );
    with(&Document::new().on(&network, "eth0", &["10.89.7.5"]), OTHER, |shop, _, _| {
        assert_eq!(vec!["default", "10.92.0.0/24", "fd92::/64"], routes(shop)?);
        Ok(())
    })
}

#[test]
fn a_route_by_another_interface_goes_with_a_failed_setup() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let netavark = Netavark::with(&topology, &[])?;
    let shop = topology.container("shop")?;
    shop.ip(OTHER)?;
    let residue = Residue::watch(&topology)?;
    let routes_of = json!([
        {"destination": "10.92.0.0/24", "gateway": "10.9.9.1"}, {"destination": "10.93.0.0/24", "gateway": "10.200.0.1"},
    ]);
    let document = Document::new().on(&four().set("routes", routes_of), "eth0", &["10.89.7.5"]);
    let told = netavark.try_setup(&shop, &document.json(&shop))?.error()?;
    ensure!(told.contains("add route 10.93.0.0/24 via 10.200.0.1"), "{told}");
    assert_eq!(Vec::<String>::new(), routes(&shop)?);
    residue.nothing_left(&topology, &[])
}

#[test]
fn the_key_of_a_network_may_differ_from_its_name() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let shop = topology.container("shop")?;
    for shape in [Shape::Map, Shape::Array] {
        let mut document = Document::new().shape(shape).on(&four(), "eth0", &["10.89.7.5"]).json(&shop);
        document["network_info"]["four"]["name"] = json!("vier");
        let answer = netavark.try_setup(&shop, &document)?.json()?;
        assert_eq!(json!("10.89.7.5/24"), answer["vier"]["interfaces"]["eth0"]["subnets"][0]["ipnet"], "{answer}");
        netavark.try_teardown(&shop, &document)?.done()?;
        residue.nothing_left(&topology, &[&shop])?;
    }
    Ok(())
}

#[test]
fn without_an_ipam_driver_the_interface_has_no_addresses() -> Result<()> {
    need!(need::root(), need::netpath());
    let network = four().set("ipam_options", json!({"driver": "none"})).set("subnets", json!([]));
    let document = Document::new().attach(&network, json!({"interface_name": "eth0"}));
    with(&document, "", |shop, answer, _| {
        assert_eq!(json!([]), answer["four"]["interfaces"]["eth0"]["subnets"]);
        let link = shop.ip_json(&["-4", "addr", "show", "dev", "eth0"])?;
        ensure!(!link.to_string().contains("\"local\""), "{link}");
        let link = shop.ip_json(&["link", "show", "dev", "eth0"])?;
        ensure!(link[0]["flags"].to_string().contains("\"UP\""), "{link}");
        assert_eq!(Vec::<String>::new(), routes(shop)?);
        Ok(())
    })
}

#[test]
fn a_container_may_have_the_address_of_the_gateway() -> Result<()> {
    need!(need::root(), need::netpath());
    let document = Document::new().on(&four().set("internal", true), "eth0", &["10.89.7.1"]);
    let warned = |stderr: &str| stderr.contains("10.89.7.1 is the gateway of network \"four\"");
    with(&document, "", |_, _, stderr| {
        ensure!(warned(stderr), "{stderr}");
        Ok(())
    })?;
    // A router for others has no route through itself.
    with(&Document::new().on(&four(), "eth0", &["10.89.7.1"]), "", |shop, _, stderr| {
        ensure!(warned(stderr), "{stderr}");
        assert_eq!(Vec::<String>::new(), routes(shop)?);
        Ok(())
    })
}

#[test]
fn several_addresses_of_one_subnet_are_all_given() -> Result<()> {
    need!(need::root(), need::netpath());
    let network = four().subnet("fd41:7::/64", "fd41:7::1");
    let document = Document::new().on(&network, "eth0", &["fd41:7::6", "10.89.7.9", "fd41:7::5", "10.89.7.5"]);
    with(&document, "", |shop, answer, _| {
        let subnets = answer["four"]["interfaces"]["eth0"]["subnets"].as_array().context("no subnets")?;
        let nets: Vec<&str> = subnets.iter().filter_map(|s| s["ipnet"].as_str()).collect();
        assert_eq!(
            vec!["10.89.7.9/24", "10.89.7.5/24", "fd41:7::6/64", "fd41:7::5/64"],
            nets,
            "by subnet, then as given"
        );
        let there = shop.ip_json(&["addr", "show", "dev", "eth0"])?.to_string();
        for address in ["10.89.7.9", "10.89.7.5", "fd41:7::6", "fd41:7::5"] {
            ensure!(there.contains(address), "{address} is not in {there}");
        }
        Ok(())
    })
}

/// Recorded from Podman 4.3.1; written from the structures of 5.8 and 6.
#[test]
fn documents_of_every_podman_are_served() -> Result<()> {
    need!(need::root(), need::netpath());
    for (podman, text) in [
        ("4.3", include_str!("../../netpath/src/face/podman/testdata/podman-4.3.json")),
        ("5.8", include_str!("../../netpath/src/face/podman/testdata/podman-5.8.json")),
        ("6", include_str!("../../netpath/src/face/podman/testdata/podman-6.json")),
    ] {
        let topology = Topology::new()?;
        let residue = Residue::watch(&topology)?;
        let netavark = Netavark::with(&topology, &[])?;
        let shop = topology.container("shop")?;
        let document: Value = serde_json::from_str(text)?;
        let answer = netavark.try_setup(&shop, &document)?;
        ensure!(answer.stderr.is_empty(), "Podman {podman}: a normal run says nothing: {answer}");
        let networks = answer.json()?.as_object().map_or(0, serde_json::Map::len);
        let wanted = document["networks"].as_array().map(Vec::len);
        let wanted = wanted.or(document["networks"].as_object().map(serde_json::Map::len));
        assert_eq!(wanted, Some(networks), "Podman {podman} counts the answers");
        let answer = netavark.try_teardown(&shop, &document)?;
        answer.done()?;
        ensure!(answer.stderr.is_empty() && answer.stdout.is_empty(), "Podman {podman}: {answer}");
        residue.nothing_left(&topology, &[&shop]).with_context(|| format!("Podman {podman}"))?;
    }
    Ok(())
}

#[test]
fn errors_contain_netavarks_text() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let shop = topology.container("shop")?;
    let options = "/network_info/front/options";
    for (pointer, value, text) in [
        ("/networks/0/static_ips", json!(null), "no static ips provided"),
        ("/networks/0/static_ips/0", json!("10.1.1.1"), "not all static IPs matched a subnet: expected 2, got 1"),
        ("/networks/0/interface_name", json!(""), "no container interface name given"),
        ("/networks/0/name", json!("x"), "network info for network x not found"),
        ("/networks/0/static_mac", json!("0a:11"), "invalid mac length for address: 0a:11"),
        ("/networks/0/static_mac", json!("x:0:0:0:0:0"), "unable to parse mac address x:0:0:0:0:0: "),
        ("/network_info/front/network_interface", json!(""), "no bridge interface name given"),
        ("/network_info/front/driver", json!("warp"), "unknown network driver \"warp\""),
        ("/network_info/front/ipam_options/driver", json!("x"), "unsupported ipam driver x"),
        (
            "/network_info/front/ipam_options/driver",
            json!("dhcp"),
            "cannot use dhcp ipam driver without using the option mode=unmanaged",
        ),
        ("/network_info/front/subnets/1/subnet", json!("10.89.7.0/24"), "duplicate subnet defined: 10.89.7.0/24"),
        (
            "/network_info/front/subnets/1/subnet",
            json!("10.89.7.0/25"),
            "overlapping subnets: 10.89.7.0/24 and 10.89.7.0/25",
        ),
        (
            "/network_info/front/routes/0/gateway",
            json!(null),
            "route 172.20.0.0/16 requires a gateway for type unicast",
        ),
        (
            "/network_info/front/routes/0/gateway",
            json!("fd41:7::9"),
            "route with ipv4 destination and ipv6 gateway (172.20.0.0/16 via fd41:7::9)",
        ),
        ("/network_info/front/routes/0/route_type", json!("x"), "invalid route type \"x\""),
        (&format!("{options}/mtu"), json!("x"), "unable to parse \"mtu\": invalid digit found in string"),
        (&format!("{options}/metric"), json!("-1"), "unable to parse \"metric\": invalid digit found in string"),
        (&format!("{options}/vlan"), json!("4095"), "vlan must be between 0 and 4094"),
        (&format!("{options}/isolate"), json!("x"), "invalid isolate option \"x\""),
        (&format!("{options}/mode"), json!("x"), "invalid bridge mode \"x\""),
        (&format!("{options}/outbound_addr4"), json!("x"), "unable to parse \"outbound_addr4\": "),
        (
            &format!("{options}/no_default_route"),
            json!("x"),
            "unable to parse \"no_default_route\": provided string was not `true` or `false`",
        ),
        ("/port_mappings/0/host_ip", json!("x"), "invalid host ip \"x\" provided for port 8080"),
        ("/dns_servers/0", json!("10.89.7.1"), "which would cause aardvark-dns to forward queries to itself"),
    ] {
        let mut document = worked_example(Shape::Array, &shop.id);
        let (parent, key) = pointer.rsplit_once('/').context("a pointer")?;
        match document.pointer_mut(parent).context("a parent")? {
            Value::Array(list) => list[key.parse::<usize>()?] = value.clone(),
            parent => parent[key] = value.clone(),
        }
        let told = netavark.try_setup(&shop, &document)?.error().with_context(|| format!("{pointer} = {value}"))?;
        ensure!(told.contains(text), "{pointer} = {value}: expected {text:?} in {told:?}");
    }
    let document = worked_example(Shape::Array, &shop.id).to_string();
    let gone = netavark.call(&["setup", "/no/such"], document.as_bytes())?.error()?;
    ensure!(gone.contains("invalid namespace path: IO error: No such file or directory (os error 2)"), "{gone}");
    let unread = netavark.call(&["-f", "/no/such", "setup", &shop.path().to_string_lossy()], b"")?.error()?;
    ensure!(
        unread.contains("failed to load network options: IO error: No such file or directory (os error 2)"),
        "{unread}"
    );
    residue.nothing_left(&topology, &[&shop])
}

#[test]
fn logs_have_netavarks_form_and_an_unset_level_only_shows_errors() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let shop = topology.container("shop")?;
    let document = Document::new().on(&four().set("internal", true), "eth0", &["10.89.7.1"]);
    for (level, shown) in [("netavark=warn", true), ("", false), ("netavark=error", false)] {
        let netavark = Netavark::with(&topology, &[("RUST_LOG", level)])?;
        let answer = netavark.try_setup(&shop, &document.json(&shop))?;
        answer.json()?;
        ensure!(answer.stderr.starts_with("[WARN  netavark::") == shown, "{level:?}: {answer}");
        ensure!(shown || answer.stderr.is_empty(), "{level:?}: {answer}");
        netavark.teardown(&shop, &document)?;
    }
    Ok(())
}
