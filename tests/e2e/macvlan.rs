//! Containers on the wire of one of the host's links, with addresses of it: the client beside the host reaches them without the
//! host's doing, and whatever serves bridges leaves them alone.

use crate::rig::{Rig, rig, serve, serve_at};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::net::IpAddr;
use support::host::Netns;
use support::need;
use support::netavark::{Document, Network, Rung};
use support::residue::{Residue, Snapshot};
use support::topology::{CLIENT4, CLIENT6, Container, FAR4, Family, OUTSIDE4, OUTSIDE6, Topology};
use support::traffic::{Dial, Proto, Server};

on_every_rung!(a_container_is_on_the_wire_of_its_parent, two_macvlans_and_a_bridge_serve_side_by_side);

const MACVLAN: &str = "link add link v0 name mv0 type macvlan mode bridge";
const MODES: [&str; 5] = ["bridge", "private", "vepa", "passthru", "source"];

/// On the wire between host and client, which is the router there.
fn lan(name: &str) -> Network {
    Network::new(name, "eth0")
        .set("driver", "macvlan")
        .subnet("192.0.2.0/24", &CLIENT4.to_string())
        .subnet("2001:db8:1::/64", &CLIENT6.to_string())
}

/// Host `n` of [`lan`].
fn on_lan(n: u8) -> [IpAddr; 2] {
    [format!("192.0.2.{n}"), format!("2001:db8:1::{n}")].map(|a| a.parse().expect("an address"))
}

fn attached(document: Document, network: &Network, interface: &str, n: u8) -> Document {
    let [v4, v6] = on_lan(n).map(|a| a.to_string());
    document.on(network, interface, &[&v4, &v6])
}

/// Servers beyond the client, whose answers come from the address that was asked.
fn outside(rig: &Rig<'_>) -> Result<Vec<Server>> {
    let mut servers = Vec::new();
    for family in Family::BOTH {
        servers.extend(serve_at(&rig.topology.client, family.outside(), 9000, "outside")?);
    }
    Ok(servers)
}

fn link(netns: &Netns, name: &str) -> Result<Value> {
    netns.ip_json(&["link", "show", "dev", name]).map(|mut l| l[0].take())
}

fn default_routes(netns: &Netns) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for family in ["-4", "-6"] {
        let routes = netns.ip_json(&[family, "route", "show", "default"])?;
        let line = |r: &Value| format!("{} {} {}", r["gateway"], r["dev"], r["metric"]).replace('"', "");
        found.extend(routes.as_array().into_iter().flatten().map(line));
    }
    Ok(found)
}

/// Clients on the wire see it and it sees who is behind them, each with its own address.
fn reached(rig: &Rig<'_>, web: &Container, n: u8) {
    for (address, family) in on_lan(n).into_iter().zip(Family::BOTH) {
        for proto in Proto::BOTH {
            rig.sees("in", &rig.topology.client, &Dial::new(proto, address, 80), "web", family.client());
            rig.sees("out", web, &Dial::new(proto, family.outside(), 9000), "outside", address);
        }
    }
}

fn a_container_is_on_the_wire_of_its_parent(rung: Rung) -> Result<()> {
    need!(need::accepted("ip", MACVLAN));
    rig(Topology::new(), rung, |rig| {
        let network = lan("lan")
            .option("mtu", "1400")
            .set("routes", json!([{"destination": "172.20.0.0/16", "gateway": CLIENT4}]))
            .set("dns_enabled", true);
        let [v4, v6] = on_lan(50).map(|a| a.to_string());
        let options = json!({"interface_name": "eth0", "static_ips": [v4, v6], "static_mac": "0a:11:22:33:44:55"});
        let document = Document::new().attach(&network, options).publish("", 8080, 80, "tcp").dns_server("9.9.9.9");
        let web = rig.topology.container("web")?;
        let answer = rig.netavark.setup(&web, &document)?;
        let subnets = json!([
            {"ipnet": "192.0.2.50/24", "gateway": CLIENT4}, {"ipnet": "2001:db8:1::50/64", "gateway": CLIENT6},
        ]);
        let expected = json!({"lan": {
            "dns_search_domains": [], "dns_server_ips": [],
            "interfaces": {"eth0": {"mac_address": "0a:11:22:33:44:55", "subnets": subnets}},
        }});
        assert_eq!(expected, answer);
        let there = link(&web, "eth0")?;
        assert_eq!(
            json!(["macvlan", "bridge"]),
            json!([there["linkinfo"]["info_kind"], there["linkinfo"]["info_data"]["mode"]])
        );
        assert_eq!((json!(1400), json!("0a:11:22:33:44:55")), (there["mtu"].clone(), there["address"].clone()));
        let defaults = [format!("{CLIENT4} eth0 99"), format!("{CLIENT6} eth0 99")];
        assert_eq!(defaults.to_vec(), default_routes(&web)?);
        let route = web.ip_json(&["route", "show", "172.20.0.0/16"])?;
        assert_eq!((json!("192.0.2.2"), json!(100)), (route[0]["gateway"].clone(), route[0]["metric"].clone()));
        assert_eq!("1", web.sysctl("net/ipv4/conf/eth0/arp_notify")?);
        assert_eq!("0", web.sysctl("net/ipv6/conf/eth0/autoconf")?);

        let _web = serve(&web, 80, "web")?;
        let _outside = outside(rig)?;
        reached(rig, &web, 50);
        let dial = Dial::new(Proto::Tcp, Family::V4.host(), 8080);
        rig.silent("its published port", &rig.topology.client, &dial);
        if rung.is_ebpf() {
            let now = Snapshot::take(rig.topology, &[])?;
            ensure!(now.of("bpf").is_empty(), "a host without a bridge has programs: {:?}", now.of("bpf"));
        }
        Ok(vec![(web, document)])
    })
}

fn two_macvlans_and_a_bridge_serve_side_by_side(rung: Rung) -> Result<()> {
    need!(need::accepted("ip", MACVLAN));
    rig(Topology::with_far(), rung, |rig| {
        // Beyond their wires the container answers as it was asked: by the bridge.
        let lan = lan("lan").option("no_default_route", "1");
        let far = Network::new("far", "eth1").set("driver", "macvlan").subnet("198.51.100.0/24", &FAR4.to_string());
        let far = far.option("no_default_route", "1");
        let bridged = Document::new().on_dual(&Network::dual(7), "eth0", 7, 5);
        let document = attached(bridged, &lan, "eth1", 50)
            .on(&far, "eth2", &["198.51.100.50"])
            .publish("", 80, 80, "tcp")
            .publish("", 80, 80, "udp");
        let (web, document) = rig.up("web", document)?;
        let _web = serve(&web, 80, "web")?;
        let _outside = outside(rig)?;
        let all = |rig: &Rig<'_>| {
            for (family, proto) in Family::BOTH.into_iter().flat_map(|f| Proto::BOTH.map(|p| (f, p))) {
                let dial = Dial::new(proto, family.host(), 80).from(family.outside(), 0);
                rig.sees("published", &rig.topology.client, &dial, "web", family.outside());
                let dial = Dial::new(proto, on_lan(50)[family as usize], 80);
                rig.sees("on the wire", &rig.topology.client, &dial, "web", family.client());
                let dial = Dial::new(proto, family.outside(), 9000);
                rig.sees("out by the bridge", &web, &dial, "outside", family.host());
            }
            let far = Dial::new(Proto::Tcp, IpAddr::from([198, 51, 100, 50]), 80);
            rig.sees("on the other wire", rig.topology.far(), &far, "web", FAR4);
        };
        all(rig);
        // A reconcile neither serves nor forgets records that the datapath does not serve.
        let other = rig.up("other", Document::new().on_dual(&Network::dual(8), "eth0", 8, 5))?;
        rig.netavark.teardown(&other.0, &other.1)?;
        rig.netavark.call(&["firewall-reload"], b"")?.done()?;
        assert_eq!(json!(3), rig.status()?["endpoints"]);
        all(rig);
        Ok(vec![(web, document), other])
    })
}

/// With the rung that netpath takes by itself.
fn alone(test: impl FnOnce(&Rig<'_>) -> Result<Vec<(Container, Document)>>) -> Result<()> {
    need!(need::netpath(), need::accepted("ip", MACVLAN), need::rung(Rung::best_hooks()));
    rig(Topology::new(), Rung::best_hooks(), test)
}

#[test]
fn each_mode_is_the_kernels() -> Result<()> {
    alone(|rig| {
        for mode in MODES {
            let network = lan("lan").option("mode", mode).option("bclim", "3");
            let (web, document) = rig.up("web", attached(Document::new(), &network, "eth0", 50))?;
            let there = link(&web, "eth0")?;
            assert_eq!(mode, there["linkinfo"]["info_data"]["mode"]);
            let up = rig.up("other", attached(Document::new(), &network, "eth0", 51));
            if mode == "passthru" {
                let refused = format!("{:#}", up.err().context("two have the parent to themselves")?);
                ensure!(refused.contains("create macvlan interface eth0 on parent eth0"), "{refused}");
            } else {
                let (other, of_other) = up?;
                let _web = serve(&web, 80, "web")?;
                let dial = Dial::new(Proto::Tcp, on_lan(50)[0], 80);
                if mode == "bridge" {
                    rig.sees("of the same parent", &other, &dial, "web", on_lan(51)[0]);
                } else {
                    rig.silent(mode, &other, &dial);
                }
                rig.netavark.teardown(&other, &of_other)?;
            }
            rig.netavark.teardown(&web, &document)?;
        }
        Ok(Vec::new())
    })
}

#[test]
fn without_a_parent_it_is_on_the_link_of_the_default_route() -> Result<()> {
    alone(|rig| {
        let mut network = lan("lan");
        network.info.as_object_mut().context("an object")?.remove("network_interface");
        let (web, document) = rig.up("web", attached(Document::new(), &network, "eth0", 50))?;
        let (_web, _outside) = (serve(&web, 80, "web")?, outside(rig)?);
        reached(rig, &web, 50);
        Ok(vec![(web, document)])
    })
}

#[test]
fn an_internal_network_has_no_default_route_and_the_option_takes_it_too() -> Result<()> {
    alone(|rig| {
        let mut up = Vec::new();
        for (n, network) in
            [lan("lan").set("internal", true), lan("lan").option("no_default_route", "1")].iter().enumerate()
        {
            let (web, document) = rig.up("web", attached(Document::new(), network, "eth0", 50 + n as u8))?;
            assert_eq!(Vec::<String>::new(), default_routes(&web)?);
            let _web = serve(&web, 80, "web")?;
            let dial = Dial::new(Proto::Tcp, on_lan(50 + n as u8)[0], 80);
            rig.sees("on its wire", &rig.topology.client, &dial, "web", CLIENT4);
            let outside = Dial::new(Proto::Tcp, OUTSIDE4, 9000);
            rig.silent("beyond it", &web, &outside);
            up.push((web, document));
        }
        let metric = lan("lan").option("metric", "7");
        let (web, document) = rig.up("web", attached(Document::new(), &metric, "eth0", 60))?;
        assert_eq!(format!("{CLIENT6} eth0 7"), default_routes(&web)?[1]);
        let _outside = outside(rig)?;
        rig.sees("beyond", &web, &Dial::new(Proto::Tcp, OUTSIDE6, 9000), "outside", on_lan(60)[1]);
        up.push((web, document));
        Ok(up)
    })
}

/// Its engine was killed with it, or took the interface away: no teardown comes.
#[test]
fn a_container_that_is_gone_without_a_teardown_is_forgotten_and_no_other() -> Result<()> {
    need!(need::netpath(), need::accepted("ip", MACVLAN));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = support::netavark::Netavark::with(&topology, &[])?;
    let document = |n| attached(Document::new(), &lan("lan"), "eth0", n);
    let endpoints = || -> Result<Value> {
        let netpath = support::netavark::binary()?.display().to_string();
        topology.host.command(&netpath, &["gc"])?;
        let status = topology.host.command(&netpath, &["status", "--json"])?;
        Ok(serde_json::from_str::<Value>(&status)?["endpoints"].clone())
    };
    let [gone, bare, lives] = ["gone", "bare", "lives"].map(|name| topology.container(name));
    let (gone, bare, lives) = (gone?, bare?, lives?);
    for (n, container) in [&gone, &bare, &lives].into_iter().enumerate() {
        netavark.setup(container, &document(50 + n as u8))?;
    }
    assert_eq!(json!(3), endpoints()?);
    bare.ip("link del eth0\n")?;
    drop(gone);
    assert_eq!(json!(1), endpoints()?);
    netavark.teardown(&bare, &document(51))?;
    netavark.teardown(&lives, &document(52))?;
    residue.nothing_left(&topology, &[&bare, &lives])
}
