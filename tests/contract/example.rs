//! The worked example of the contract, in both shapes and on each rung: answer, links, routes, settings, DNS, ports.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use support::example::worked_example;
use support::host::Netns;
use support::need;
use support::netavark::{Netavark, Rung, Shape};
use support::residue::Residue;
use support::topology::{CLIENT4, CLIENT6, HOST4, HOST4_SECOND, HOST6, Topology};
use support::traffic::{ANY, Dial, Proto, Server};

#[test]
fn as_a_map_with_tcx() -> Result<()> {
    example(Shape::Map, Rung::Tcx)
}

#[test]
fn as_an_array_with_tcx() -> Result<()> {
    example(Shape::Array, Rung::Tcx)
}

#[test]
fn as_an_array_with_clsact() -> Result<()> {
    example(Shape::Array, Rung::Clsact)
}

#[test]
fn as_a_map_with_iptables() -> Result<()> {
    example(Shape::Map, Rung::Iptables)
}

#[test]
fn as_an_array_with_iptables() -> Result<()> {
    example(Shape::Array, Rung::Iptables)
}

fn example(shape: Shape, rung: Rung) -> Result<()> {
    // Netavark 1.4.0 knows no routes, no host_interface_name and no array.
    need!(need::netpath(), need::rung(rung));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::on(&topology, rung)?;
    let shop = topology.container("shop")?;
    let document = worked_example(shape, &shop.id);

    let answer = netavark.try_setup(&shop, &document)?;
    let blocks = answer.json()?;
    assert_eq!(1, answer.stdout.trim_end().lines().count(), "one line: {answer}");
    let inside = links(&shop)?;
    assert_eq!(expected_answer(&inside["eth1"]["address"]), blocks, "the status blocks");
    host_links(&topology.host)?;
    container_links(&shop, &inside, shape)?;
    settings(&topology.host, &shop)?;
    dns_files(&topology, &shop.id)?;
    ports(&topology, &shop)?;

    let answer = netavark.try_teardown(&shop, &document)?;
    answer.done()?;
    assert_eq!("", answer.stdout, "teardown prints nothing");
    residue.nothing_left(&topology, &[&shop])
}

fn expected_answer(mac: &Value) -> Value {
    json!({
        "front": {
            "dns_search_domains": ["dns.podman"],
            "dns_server_ips": ["10.89.7.1", "fd41:7::1"],
            "interfaces": {"eth0": {"mac_address": "0a:11:22:33:44:55", "subnets": [
                {"gateway": "10.89.7.1", "ipnet": "10.89.7.5/24"},
                {"gateway": "fd41:7::1", "ipnet": "fd41:7::5/64"}]}}
        },
        "back": {
            "dns_search_domains": [],
            "dns_server_ips": ["9.9.9.9"],
            "interfaces": {"eth1": {"mac_address": mac, "subnets": [{"gateway": "10.89.8.1", "ipnet": "10.89.8.5/24"}]}}
        }
    })
}

/// `ip address`, by the name of the link.
fn links(netns: &Netns) -> Result<Value> {
    let mut by_name = serde_json::Map::new();
    for link in netns.ip_json(&["address", "show"])?.as_array().context("no list of links")? {
        by_name.insert(link["ifname"].as_str().unwrap_or("").to_owned(), link.clone());
    }
    Ok(by_name.into())
}

/// "10.89.7.1/24" and so on, without link-local addresses.
fn addresses(link: &Value) -> Vec<String> {
    let all = link["addr_info"].as_array().into_iter().flatten();
    all.filter(|a| a["scope"] == "global")
        .map(|a| format!("{}/{}", a["local"].as_str().unwrap_or(""), a["prefixlen"]))
        .collect()
}

fn host_links(host: &Netns) -> Result<()> {
    let links = links(host)?;
    assert_eq!(vec!["10.89.7.1/24", "fd41:7::1/64"], addresses(&links["podman7"]), "{}", links["podman7"]);
    assert_eq!(vec!["10.89.8.1/24"], addresses(&links["podman8"]), "{}", links["podman8"]);
    for bridge in ["podman7", "podman8"] {
        assert_eq!("bridge", links[bridge]["linkinfo"]["info_kind"], "{bridge}");
        assert_eq!("UP", links[bridge]["operstate"], "{bridge}");
    }
    assert_eq!("podman7", links["vshop"]["master"], "host_interface_name: {}", links["vshop"]);
    for link in ["podman7", "vshop"] {
        assert_eq!(1400, links[link]["mtu"], "{link}");
    }
    let ports = |bridge: &str| links.as_object().into_iter().flatten().filter(|(_, l)| l["master"] == bridge).count();
    assert_eq!((1, 1), (ports("podman7"), ports("podman8")), "ports of the bridges");
    Ok(())
}

fn container_links(shop: &Netns, links: &Value, shape: Shape) -> Result<()> {
    assert_eq!(vec!["10.89.7.5/24", "fd41:7::5/64"], addresses(&links["eth0"]));
    assert_eq!(vec!["10.89.8.5/24"], addresses(&links["eth1"]));
    assert_eq!("0a:11:22:33:44:55", links["eth0"]["address"]);
    assert_eq!(1400, links["eth0"]["mtu"]);
    for link in ["eth0", "eth1", "lo"] {
        let up = links[link]["flags"].as_array().is_some_and(|f| f.iter().any(|f| f == "UP"));
        assert!(up, "{link} is not up: {}", links[link]);
    }
    if shape == Shape::Array {
        let index = |l: &str| links[l]["ifindex"].as_u64();
        assert!(index("eth0") < index("eth1"), "interfaces in the order of the array");
    }
    // destination, device, gateway, metric
    let mut routes = Vec::new();
    for family in ["-4", "-6"] {
        for r in shop.ip_json(&[family, "route", "show"])?.as_array().into_iter().flatten() {
            if r["gateway"].is_string() {
                let word = |k: &str| r[k].as_str().unwrap_or("").to_owned();
                routes.push(format!("{} {} {} {}", word("dst"), word("dev"), word("gateway"), r["metric"]));
            }
        }
    }
    let expected = ["default eth0 10.89.7.1 100", "172.20.0.0/16 eth0 10.89.7.254 50", "default eth0 fd41:7::1 100"];
    assert_eq!(expected.to_vec(), routes, "routes through a gateway");
    Ok(())
}

fn settings(host: &Netns, shop: &Netns) -> Result<()> {
    let rows = [
        (host, "net/ipv4/ip_forward", "1"),
        (host, "net/ipv6/conf/all/forwarding", "1"),
        (host, "net/ipv4/conf/podman7/rp_filter", "2"),
        (host, "net/ipv4/conf/podman8/rp_filter", "2"),
        (host, "net/ipv4/conf/podman8/forwarding", "0"),
        (host, "net/ipv6/conf/podman7/accept_dad", "0"),
        (host, "net/ipv6/conf/podman7/accept_ra", "0"),
        (host, "net/ipv6/conf/vshop/accept_dad", "0"),
        (shop, "net/ipv6/conf/eth0/autoconf", "0"),
        (shop, "net/ipv6/conf/eth0/accept_dad", "0"),
        (shop, "net/ipv4/conf/eth0/arp_notify", "1"),
        (shop, "net/ipv4/conf/eth0/rp_filter", "2"),
    ];
    for (netns, path, expected) in rows {
        assert_eq!(expected, netns.sysctl(path)?, "{path}");
    }
    Ok(())
}

fn dns_files(topology: &Topology, id: &str) -> Result<()> {
    let file = topology.config_dir().join("aardvark-dns/front");
    let text = std::fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
    let lines: Vec<&str> = text.lines().collect();
    ensure!(lines.len() == 2, "expected a header and one line: {lines:?}");
    assert_eq!("10.89.7.1,fd41:7::1", lines[0].trim());
    assert_eq!(format!("{id} 10.89.7.5 fd41:7::5 shop,5d2f0c1b7a9e,www 9.9.9.9"), lines[1].trim());
    assert!(!topology.config_dir().join("aardvark-dns/back").exists(), "back has no DNS");
    // The container asks the gateway for a name of its own network.
    let answer = shop_address(topology)?;
    assert_eq!("10.89.7.5", answer);
    Ok(())
}

/// Queries the DNS server of `front` for www, from the host, by a hand-written query.
fn shop_address(topology: &Topology) -> Result<String> {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in ["www", "dns", "podman"] {
        query.push(label.len() as u8);
        query.extend(label.bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    topology.host.run(|| {
        let socket = std::net::UdpSocket::bind("10.89.7.1:0")?;
        socket.set_read_timeout(Some(support::host::SOON))?;
        socket.send_to(&query, "10.89.7.1:53")?;
        let mut answer = [0; 512];
        let (len, _) =
            support::traffic::again(|| socket.recv_from(&mut answer)).context("no answer of the DNS server")?;
        let address = answer[..len].last_chunk::<4>().context("a short answer")?;
        Ok(std::net::Ipv4Addr::from(*address).to_string())
    })
}

fn ports(topology: &Topology, shop: &Netns) -> Result<()> {
    let _servers = [
        Server::echo(shop, Proto::Tcp, ANY, 80, "http")?,
        Server::echo(shop, Proto::Tcp, ANY, 443, "https")?,
        Server::echo(shop, Proto::Udp, ANY, 5_001, "media")?,
    ];
    let client = &topology.client;
    let answered = [
        (Dial::new(Proto::Tcp, HOST4, 8080), "http", CLIENT4),
        (Dial::new(Proto::Tcp, HOST6, 8080), "http", CLIENT6),
        (Dial::new(Proto::Udp, HOST4_SECOND, 15_001), "media", CLIENT4),
        (Dial::new(Proto::Tcp, HOST6, 8443), "https", CLIENT6),
    ];
    for (dial, server, source) in answered {
        let seen = dial.ask(client)?;
        assert_eq!((server, source), (seen.server.as_str(), seen.client.ip()), "{dial}");
    }
    Dial::new(Proto::Udp, HOST4, 15_001).must_fail(client)?;
    Dial::new(Proto::Udp, HOST4_SECOND, 15_003).must_fail(client)?;
    Dial::new(Proto::Tcp, HOST4, 8443).must_fail(client)
}
