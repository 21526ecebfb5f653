//! Options of networks and containers, one by one.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use support::host::Netns;
use support::need;
use support::netavark::{Document, Netavark, Network};
use support::residue::Residue;
use support::topology::{Container, Family, Topology};

/// Sets `document` up, runs `look`, tears it down, and checks that nothing is left.
fn with(document: &Document, look: impl FnOnce(&Topology, &Container, &Value) -> Result<()>) -> Result<()> {
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let shop = topology.container("shop")?;
    let blocks = netavark.setup(&shop, document)?;
    look(&topology, &shop, &blocks)?;
    netavark.teardown(&shop, document)?;
    residue.nothing_left(&topology, &[&shop])
}

fn dual(net: &Network) -> Document {
    Document::new().on_dual(net, "eth0", 7, 5)
}

/// "dst gateway metric type" of the container's routes that have a gateway or an explicit type.
fn routes(netns: &Netns) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for family in ["-4", "-6"] {
        for r in netns.ip_json(&[family, "route", "show"])?.as_array().into_iter().flatten() {
            let word = |k: &str| r[k].as_str().unwrap_or("-").to_owned();
            let kind = r["type"].as_str().unwrap_or("unicast");
            if r["gateway"].is_string() || kind != "unicast" {
                lines.push(format!("{} {} {} {kind}", word("dst"), word("gateway"), r["metric"]));
            }
        }
    }
    lines.sort();
    Ok(lines)
}

fn mtu(netns: &Netns, link: &str) -> Result<u64> {
    netns.ip_json(&["link", "show", "dev", link])?[0]["mtu"].as_u64().context("no mtu")
}

#[test]
fn the_mac_may_be_written_with_dashes() -> Result<()> {
    need!(need::root());
    let options = json!({"interface_name": "eth0", "static_ips": ["10.89.7.5"], "static_mac": "0a:11:22:33:44:55"});
    let mut dashes = options.clone();
    if !support::netavark::is_incumbent() {
        dashes["static_mac"] = "0A-11-22-33-44-55".into();
    }
    let net = Network::new("four", "podman7").subnet("10.89.7.0/24", "10.89.7.1");
    for options in [options, dashes] {
        with(&Document::new().attach(&net, options), |_, shop, blocks| {
            assert_eq!("0a:11:22:33:44:55", blocks["four"]["interfaces"]["eth0"]["mac_address"]);
            let link = shop.ip_json(&["link", "show", "dev", "eth0"])?;
            assert_eq!("0a:11:22:33:44:55", link[0]["address"]);
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn the_mtu_is_the_options_then_that_of_the_way_out() -> Result<()> {
    need!(need::root());
    with(&dual(&Network::dual(7).option("mtu", "1300")), |topology, shop, _| {
        assert_eq!((1300, 1300), (mtu(shop, "eth0")?, mtu(&topology.host, "podman7")?));
        Ok(())
    })?;
    need!(need::netpath());
    let topology = Topology::new()?;
    topology.host.ip("link set eth0 mtu 1342\n")?;
    topology.client.ip("link set eth0 mtu 1342\n")?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let shop = topology.container("shop")?;
    netavark.setup(&shop, &dual(&Network::dual(7)))?;
    assert_eq!(1342, mtu(&shop, "eth0")?, "the mtu of the default route's link");
    netavark.teardown(&shop, &dual(&Network::dual(7)))?;
    residue.nothing_left(&topology, &[&shop])
}

#[test]
fn large_transfers_fit_a_small_mtu() -> Result<()> {
    need!(need::root());
    let document = dual(&Network::dual(7).option("mtu", "1300")).publish("", 8080, 80, "tcp");
    with(&document, |topology, shop, _| {
        use support::traffic::{ANY, Dial, Proto, Server};
        let _server = Server::echo(shop, Proto::Tcp, ANY, 80, "web")?;
        let _out = Server::echo(&topology.client, Proto::Tcp, ANY, 9000, "near")?;
        for family in Family::BOTH {
            for (netns, ip, port) in [
                (&topology.client, family.host(), 8080),
                (&topology.host, family.host(), 8080),
                (&shop.netns, family.client(), 9000),
            ] {
                Dial::new(Proto::Tcp, ip, port).bytes(3_000_000).ask(netns)?;
            }
        }
        Ok(())
    })
}

#[test]
fn default_routes_have_the_metric_of_the_option() -> Result<()> {
    need!(need::root());
    let metric = |m: &str| vec![format!("default 10.89.7.1 {m} unicast"), format!("default fd41:7::1 {m} unicast")];
    with(&dual(&Network::dual(7)), |_, shop, _| {
        assert_eq!(metric("100"), routes(shop)?);
        Ok(())
    })?;
    with(&dual(&Network::dual(7).option("metric", "33")), |_, shop, _| {
        assert_eq!(metric("33"), routes(shop)?);
        Ok(())
    })
}

#[test]
fn no_default_route_is_given_where_none_is_wanted() -> Result<()> {
    need!(need::root(), need::netpath());
    for net in [Network::dual(7).option("no_default_route", "true"), Network::dual(7).set("internal", true)] {
        with(&dual(&net), |_, shop, _| {
            assert_eq!(Vec::<String>::new(), routes(shop)?, "{net:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn static_routes_of_every_kind_are_set() -> Result<()> {
    need!(need::root(), need::netpath());
    let net = Network::dual(7).set(
        "routes",
        json!([
            {"destination": "172.20.0.0/16", "gateway": "10.89.7.254", "metric": 50},
            {"destination": "172.21.0.0/16", "gateway": "10.89.7.254"},
            {"destination": "fd99::/64", "gateway": "fd41:7::99"},
            {"destination": "172.22.0.0/16", "route_type": "blackhole"},
            {"destination": "172.23.0.0/16", "route_type": "unreachable", "metric": 7},
            {"destination": "fd98::/64", "route_type": "prohibit"},
        ]),
    );
    with(&dual(&net), |_, shop, _| {
        let expected = [
            "172.20.0.0/16 10.89.7.254 50 unicast",
            "172.21.0.0/16 10.89.7.254 100 unicast",
            "172.22.0.0/16 - 100 blackhole",
            "172.23.0.0/16 - 7 unreachable",
            "default 10.89.7.1 100 unicast",
            "default fd41:7::1 100 unicast",
            "fd98::/64 - 100 prohibit",
            "fd99::/64 fd41:7::99 100 unicast",
        ];
        assert_eq!(expected.to_vec(), routes(shop)?);
        Ok(())
    })
}

#[test]
fn several_addresses_of_one_subnet_are_set() -> Result<()> {
    need!(need::root(), need::netpath());
    let document = Document::new().on(&Network::dual(7), "eth0", &["10.89.7.5", "10.89.7.6", "fd41:7::5", "fd41:7::6"]);
    with(&document, |topology, shop, blocks| {
        let subnets = blocks["net7"]["interfaces"]["eth0"]["subnets"].as_array().context("no subnets")?;
        let nets: Vec<&str> = subnets.iter().filter_map(|s| s["ipnet"].as_str()).collect();
        assert_eq!(vec!["10.89.7.5/24", "10.89.7.6/24", "fd41:7::5/64", "fd41:7::6/64"], nets);
        use support::traffic::{ANY, Dial, Proto, Server};
        let _server = Server::echo(shop, Proto::Tcp, ANY, 80, "web")?;
        for address in ["10.89.7.5", "10.89.7.6", "fd41:7::5", "fd41:7::6"] {
            Dial::new(Proto::Tcp, address.parse()?, 80).ask(&topology.host)?;
        }
        Ok(())
    })
}

#[test]
fn a_network_of_ipv6_alone_works() -> Result<()> {
    need!(need::root());
    let net = Network::new("six", "podman7").subnet("fd41:7::/64", "fd41:7::1");
    let document = Document::new().on(&net, "eth0", &["fd41:7::5"]).publish("", 8080, 80, "tcp");
    with(&document, |topology, shop, _| {
        use support::traffic::{ANY, Dial, Proto, Server};
        let _server = Server::echo(shop, Proto::Tcp, ANY, 80, "web")?;
        let seen = Dial::new(Proto::Tcp, Family::V6.host(), 8080).ask(&topology.client)?;
        assert_eq!(Family::V6.client(), seen.client.ip());
        Dial::new(Proto::Tcp, Family::V4.host(), 8080).must_fail(&topology.client)
    })
}

#[test]
fn dns_servers_are_reported_where_there_is_no_dns() -> Result<()> {
    need!(need::root(), need::netpath());
    with(&dual(&Network::dual(7)).dns_server("9.9.9.9").dns_server("2620:fe::fe"), |_, _, blocks| {
        assert_eq!(json!(["9.9.9.9", "2620:fe::fe"]), blocks["net7"]["dns_server_ips"]);
        assert_eq!(json!([]), blocks["net7"]["dns_search_domains"]);
        Ok(())
    })
}

#[test]
fn a_subnet_without_a_gateway_gives_no_route() -> Result<()> {
    need!(need::root(), need::netpath());
    let net = Network::new("still", "podman7").set("subnets", json!([{"subnet": "10.89.7.0/24"}]));
    with(&Document::new().on(&net, "eth0", &["10.89.7.5"]), |_, shop, blocks| {
        assert_eq!(
            json!([{"gateway": null, "ipnet": "10.89.7.5/24"}]),
            blocks["still"]["interfaces"]["eth0"]["subnets"]
        );
        assert_eq!(Vec::<String>::new(), routes(shop)?);
        Ok(())
    })
}
