//! The document of setup and teardown → what is to be attached or detached.

use super::network;
use super::read::{Mistakes, Node};
use crate::model::publish::HostBind;
use crate::model::{Container, Endpoint, IfName, Isolation, Mac, Network, Proto, Publish, Record};
use crate::ops::Leaving;
use ipnet::IpNet;
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

/// A record that does not know its namespace yet: that comes from the command line.
pub struct Wanted(Record);

impl Wanted {
    pub fn at(mut self, netns: &Path) -> Record {
        self.0.netns = netns.to_owned();
        self.0
    }
}

pub struct Attach {
    pub container: Container,
    pub records: Vec<Wanted>,
    /// Upstream servers that the engine wants for this container.
    pub dns_servers: Vec<IpAddr>,
}

pub struct Detach {
    pub container: Container,
    pub leaving: Vec<Leaving>,
    pub records: Vec<Record>,
}

/// Everything is looked at before the first mistake is told.
///
/// # Errors
/// All mistakes in one text, each with the path of its field.
pub fn attach(text: &str) -> Result<Attach, String> {
    let value = parse(text)?;
    let mistakes = Mistakes::default();
    let attach = read(&Node::root(&value, &mistakes));
    match attach {
        Some(attach) if mistakes.is_empty() => Ok(attach),
        _ => Err(mistakes.told()),
    }
}

/// Takes what it can: a container has to go even if its description can no longer be attached.
///
/// # Errors
/// The container or the networks are not named.
pub fn detach(text: &str) -> Result<Detach, String> {
    let value = parse(text)?;
    let mistakes = Mistakes::default();
    let root = Node::root(&value, &mistakes);
    let container = container(&root);
    let networks = root.req("networks").map(|n| named(&n)).unwrap_or_default();
    let (Some(container), true) = (container, mistakes.is_empty()) else { return Err(mistakes.told()) };
    // From here on mistakes are no matter.
    let infos = root.opt("network_info");
    let leaving = networks
        .iter()
        .map(|(name, node)| {
            let info = infos.as_ref().and_then(|i| i.opt(name));
            let managed = info.as_ref().is_some_and(is_managed_bridge);
            Leaving {
                network: name.clone(),
                interface: node.opt("interface_name").and_then(|n| n.checked::<IfName>()),
                bridge: info.filter(|_| managed).and_then(|i| i.opt("network_interface")?.checked::<IfName>()),
            }
        })
        .collect();
    let records = attach(text).map(|a| a.records.into_iter().map(|r| r.at(Path::new(""))).collect());
    Ok(Detach { container, leaving, records: records.unwrap_or_default() })
}

fn is_managed_bridge(info: &Node<'_>) -> bool {
    let mode = info.opt("options").and_then(|o| o.opt("mode")).and_then(|m| m.text());
    info.opt("driver").and_then(|d| d.text()) == Some("bridge") && matches!(mode, None | Some("managed"))
}

fn parse(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|e| format!("it is not JSON: {e}"))
}

fn read(root: &Node<'_>) -> Option<Attach> {
    let container = container(root);
    let networks = root.req("networks");
    // The defaults differ between the two generations of the contract, as do the shapes.
    let isolation = if networks.as_ref().is_some_and(Node::is_array) { Isolation::Strict } else { Isolation::Open };
    let dns_servers: Vec<IpAddr> = root.list("dns_servers").iter().filter_map(|n| n.parsed("an IP address")).collect();
    let publishes: Vec<Publish> = root.list("port_mappings").iter().filter_map(publish).collect();
    let infos = root.req("network_info");
    let mut records: Vec<Record> = Vec::new();
    for (name, node) in networks.map(|n| named(&n)).unwrap_or_default() {
        let info = infos.as_ref().filter(|i| i.is_object()).and_then(|i| i.req(&name));
        let network = info.and_then(|i| network::read(&i, &name, isolation));
        let endpoint = endpoint(&node, network.as_ref(), &dns_servers);
        let (Some(network), Some(endpoint), Some(container)) = (network, endpoint, &container) else { continue };
        for other in &records {
            if other.network.name == network.name {
                node.wrong(format!("network {name:?} is named twice"));
            } else if other.network.bridge == network.bridge {
                node.wrong(format!("networks {:?} and {name:?} have the same bridge", other.network.name));
            }
            if other.endpoint.interface == endpoint.interface {
                node.wrong(format!("interface_name {} is given twice", endpoint.interface));
            }
            if endpoint.host_interface.is_some() && other.endpoint.host_interface == endpoint.host_interface {
                node.wrong("host_interface_name is given twice");
            }
        }
        records.push(Record {
            order: 0,
            container: container.clone(),
            netns: PathBuf::new(),
            // A network without a way in publishes nothing.
            publishes: if network.internal { Vec::new() } else { publishes.clone() },
            network,
            endpoint,
            links: None,
        });
    }
    Some(Attach { container: container?, records: records.into_iter().map(Wanted).collect(), dns_servers })
}

fn container(root: &Node<'_>) -> Option<Container> {
    let id = root.req("container_id").and_then(|n| network::non_empty(&n));
    let name = root.req("container_name").and_then(|n| n.text());
    Some(Container { id: id?.to_owned(), name: name?.to_owned() })
}

/// The networks with their names, in the order of the document: a list (Podman 6) or a map by name (before).
fn named<'a>(networks: &Node<'a>) -> Vec<(String, Node<'a>)> {
    if networks.is_array() {
        let name = |n: &Node<'a>| n.req("name").and_then(|f| network::non_empty(&f)).map(str::to_owned);
        return networks.items().into_iter().filter_map(|n| Some((name(&n)?, n))).collect();
    }
    let entries = networks.entries();
    entries
        .into_iter()
        .filter_map(|(name, node)| {
            if name.is_empty() {
                node.wrong("the name of a network is empty");
                return None;
            }
            Some((name.to_owned(), node))
        })
        .collect()
}

fn endpoint(node: &Node<'_>, network: Option<&Network>, dns_servers: &[IpAddr]) -> Option<Endpoint> {
    let interface = node.req("interface_name").and_then(|n| {
        let name = n.checked::<IfName>()?;
        if matches!(name.as_str(), "lo" | "all" | "default") {
            n.wrong(format!("{:?} is a name that every namespace has already", name.as_str()));
            return None;
        }
        Some(name)
    });
    let given = |n: &Node<'_>| n.text().is_none_or(|t| !t.is_empty());
    let mac = node.opt("static_mac").filter(given).and_then(|n| n.checked::<Mac>());
    let aliases = node.list("aliases").iter().filter_map(|n| n.text().map(str::to_owned)).collect();
    let host_interface = node
        .opt("options")
        .and_then(|o| o.opt("host_interface_name"))
        .filter(given)
        .and_then(|n| n.checked::<IfName>());
    let ips = node.list("static_ips");
    if ips.is_empty() {
        node.wrong("no static ips provided in static_ips");
    }
    let mut addresses: Vec<IpNet> = Vec::new();
    for field in &ips {
        let Some(ip) = field.parsed::<IpAddr>("an IP address") else { continue };
        let Some(network) = network else { continue };
        let subnet = network.subnets.iter().find(|s| s.net.contains(&ip));
        let Some(subnet) = subnet else {
            field.wrong(format!("{ip} is in none of the subnets of network {:?}", network.name));
            continue;
        };
        if subnet.gateway == Some(ip) {
            field.wrong(format!("{ip} is the gateway of network {:?}", network.name));
        }
        if addresses.iter().any(|a| a.addr() == ip) {
            field.wrong(format!("{ip} is given twice"));
        }
        addresses.extend(IpNet::new(ip, subnet.net.prefix_len()));
    }
    Some(Endpoint { interface: interface?, host_interface, addresses, mac, aliases, dns_servers: dns_servers.to_vec() })
}

fn publish(node: &Node<'_>) -> Option<Publish> {
    let bind = node.req("host_ip").and_then(|n| match n.text()? {
        "" => Some(HostBind::Any),
        _ => Some(match n.parsed::<IpAddr>("an IP address")?.to_canonical() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => HostBind::AnyV4,
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => HostBind::AnyV6,
            address => HostBind::Address(address),
        }),
    });
    let proto = node.req("protocol").and_then(|n| match n.text()? {
        "tcp" => Some(Proto::Tcp),
        "udp" => Some(Proto::Udp),
        "sctp" => Some(Proto::Sctp),
        other => {
            n.wrong(format!("{other:?}: expected tcp, udp or sctp"));
            None
        }
    });
    let port = |key| node.req(key).and_then(|n| n.number(u16::MAX));
    let (host_port, container_port, range) = (port("host_port"), port("container_port"), port("range"));
    Publish::new(bind?, proto?, host_port?, container_port?, range?)
        .map_err(|e| match e.split_once(": ") {
            Some((field @ ("host_port" | "container_port" | "range"), why)) => {
                if let Some(n) = node.req(field) {
                    n.wrong(why);
                }
            }
            _ => node.wrong(e),
        })
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::network::RouteKind;
    use serde_json::json;

    /// The worked example of the contract.
    fn shop() -> Value {
        json!({
            "container_id": "5d2f0c1b7a9e4c38", "container_name": "shop", "container_hostname": "shop01",
            "dns_servers": ["9.9.9.9"],
            "port_mappings": [
                {"host_ip": "", "host_port": 8080, "container_port": 80, "range": 1, "protocol": "tcp"},
                {"host_ip": "192.0.2.10", "host_port": 15000, "container_port": 5000, "range": 3, "protocol": "udp"},
                {"host_ip": "::", "host_port": 8443, "container_port": 443, "range": 0, "protocol": "tcp"}
            ],
            "networks": [
                {"name": "front", "interface_name": "eth0", "static_ips": ["10.89.7.5", "fd41:7::5"],
                 "static_mac": "0a:11:22:33:44:55", "aliases": ["www"], "options": {"host_interface_name": "vshop"}},
                {"name": "back", "interface_name": "eth1", "static_ips": ["10.89.8.5"]}
            ],
            "network_info": {
                "front": {
                    "name": "front", "id": "a1", "driver": "bridge", "network_interface": "podman7",
                    "subnets": [{"subnet": "10.89.7.0/24", "gateway": "10.89.7.1"},
                                {"subnet": "fd41:7::/64", "gateway": "fd41:7::1"}],
                    "routes": [{"destination": "172.20.0.0/16", "gateway": "10.89.7.254", "metric": 50}],
                    "ipv6_enabled": true, "internal": false, "dns_enabled": true,
                    "options": {"mtu": "1400", "isolate": "true"}, "ipam_options": {"driver": "host-local"}
                },
                "back": {
                    "name": "back", "id": "a2", "driver": "bridge", "network_interface": "podman8",
                    "subnets": [{"subnet": "10.89.8.0/24", "gateway": "10.89.8.1"}],
                    "ipv6_enabled": false, "internal": true, "dns_enabled": false
                }
            }
        })
    }

    fn records(document: &Value) -> Vec<Record> {
        let attach = attach(&document.to_string()).expect("a document without mistakes");
        attach.records.into_iter().map(|w| w.at(Path::new("/run/netns/x"))).collect()
    }

    fn mistake(document: &Value) -> String {
        attach(&document.to_string()).err().expect("a mistake")
    }

    /// The example with one value changed.
    fn with(pointer: &str, value: Value) -> Value {
        let mut document = shop();
        match document.pointer_mut(pointer) {
            Some(place) => *place = value,
            None => {
                let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
                let parent = document.pointer_mut(parent).expect("a parent");
                parent.as_object_mut().expect("an object").insert(key.into(), value);
            }
        }
        document
    }

    #[test]
    fn the_worked_example_becomes_two_endpoints() {
        let records = records(&shop());
        let [front, back] = records.as_slice() else { panic!("two networks") };
        assert_eq!(("front", "podman7"), (front.network.name.as_str(), front.network.bridge.as_str()));
        assert_eq!(Some(1400), front.network.mtu.map(|m| m.bytes()));
        assert_eq!(Isolation::Isolated, front.network.isolation);
        assert_eq!(Isolation::Strict, back.network.isolation, "the default of a list");
        assert_eq!("10.89.7.5/24", front.endpoint.addresses[0].to_string());
        assert_eq!("fd41:7::5/64", front.endpoint.addresses[1].to_string());
        assert_eq!(RouteKind::Unicast, front.network.routes[0].kind);
        assert_eq!(3, front.publishes.len());
        assert_eq!(HostBind::AnyV6, front.publishes[2].bind);
        assert_eq!(1, front.publishes[2].count(), "a range of 0 counts as 1");
        assert!(back.publishes.is_empty(), "an internal network publishes nothing");
        assert_eq!(Some("vshop"), front.endpoint.host_interface.as_ref().map(IfName::as_str));
    }

    #[test]
    fn a_map_of_networks_keeps_its_order_and_has_the_older_isolation() {
        let mut document = shop();
        document["networks"] = json!({
            "front": {"interface_name": "eth0", "static_ips": ["10.89.7.5"]},
            "back": {"interface_name": "eth1", "static_ips": ["10.89.8.5"]},
        });
        let records = records(&document);
        let names: Vec<&str> = records.iter().map(|r| r.network.name.as_str()).collect();
        assert_eq!(vec!["front", "back"], names);
        assert_eq!(Isolation::Open, records[1].network.isolation);
    }

    #[test]
    fn each_mistake_names_its_field() {
        let rows = [
            ("/container_id", json!(7), "container_id: expected a string, found 7"),
            ("/container_id", json!(""), "container_id: it is empty"),
            (
                "/networks/0/static_ips/1",
                json!("10.89.0.300"),
                r#"networks[0].static_ips[1]: "10.89.0.300" is not an IP address"#,
            ),
            (
                "/networks/0/static_ips/0",
                json!("10.1.1.1"),
                "networks[0].static_ips[0]: 10.1.1.1 is in none of the subnets",
            ),
            ("/networks/0/static_ips/0", json!("10.89.7.1"), "networks[0].static_ips[0]: 10.89.7.1 is the gateway"),
            ("/networks/0/static_ips", json!([]), "networks[0]: no static ips provided"),
            ("/networks/0/static_mac", json!("01:00:00:00:00:00"), "networks[0].static_mac: "),
            ("/networks/0/interface_name", json!(""), "networks[0].interface_name: "),
            ("/networks/0/interface_name", json!("lo"), "networks[0].interface_name: "),
            ("/networks/1/interface_name", json!("eth0"), "networks[1]: interface_name eth0 is given twice"),
            ("/networks/1/name", json!("front"), "networks[1]: network \"front\" is named twice"),
            ("/networks/0/name", json!("x"), "network_info.x: it is missing"),
            ("/networks/0/options/host_interface_name", json!("a b"), "networks[0].options.host_interface_name: "),
            ("/networks", json!(null), "networks: expected an object, found null"),
            ("/network_info", json!([]), "network_info: expected an object, found a list"),
            (
                "/network_info/front/driver",
                json!("macvlan"),
                "network_info.front.driver: driver \"macvlan\" is not supported",
            ),
            ("/network_info/front/name", json!("other"), "network_info.front.name: expected \"front\""),
            ("/network_info/front/internal", json!("no"), "network_info.front.internal: expected true or false"),
            ("/network_info/front/subnets/0/subnet", json!("10.89.7.0/33"), "network_info.front.subnets[0].subnet: "),
            (
                "/network_info/front/subnets/1/subnet",
                json!("10.89.0.0/16"),
                "network_info.front.subnets[1].subnet: 10.89.0.0/16 overlaps",
            ),
            (
                "/network_info/front/subnets/0/subnet",
                json!("127.0.0.0/24"),
                "network_info.front.subnets[0].subnet: 127.0.0.0/24 cannot be",
            ),
            (
                "/network_info/front/subnets/0/subnet",
                json!("0.0.0.0/0"),
                "network_info.front.subnets[0].subnet: 0.0.0.0/0 cannot be",
            ),
            (
                "/network_info/front/subnets/0/gateway",
                json!("10.9.9.9"),
                "network_info.front.subnets[0].gateway: 10.9.9.9 is not in",
            ),
            (
                "/network_info/front/routes/0/gateway",
                json!("10.9.9.9"),
                "network_info.front.routes[0].gateway: 10.9.9.9 is in none",
            ),
            (
                "/network_info/front/routes/0/gateway",
                json!("fd41:7::9"),
                "network_info.front.routes[0].gateway: fd41:7::9 is not of the family",
            ),
            (
                "/network_info/front/routes/0/route_type",
                json!("blackhole"),
                "network_info.front.routes[0].gateway: a route that leads nowhere",
            ),
            ("/network_info/front/routes/0/route_type", json!("x"), "network_info.front.routes[0].route_type: "),
            (
                "/network_info/front/routes/0/metric",
                json!(-1),
                "network_info.front.routes[0].metric: expected a whole number from 0 to 4294967295, found -1",
            ),
            (
                "/network_info/front/options/mtu",
                json!("90000"),
                "network_info.front.options.mtu: 90000: expected 68 to 65535",
            ),
            (
                "/network_info/front/options/mtu",
                json!("1279"),
                "network_info.front.options.mtu: 1279: a network with IPv6",
            ),
            ("/network_info/front/options/isolate", json!("x"), "network_info.front.options.isolate: "),
            (
                "/network_info/front/options/mode",
                json!("unmanaged"),
                "network_info.front.options.mode: \"unmanaged\" is not supported yet",
            ),
            ("/network_info/front/options/vlan", json!("7"), "network_info.front.options.vlan: "),
            ("/network_info/front/options/netpath.path", json!("x"), "network_info.front.options.\"netpath.path\": "),
            (
                "/network_info/front/ipam_options/driver",
                json!("dhcp"),
                "network_info.front.ipam_options.driver: \"dhcp\" is not supported",
            ),
            (
                "/network_info/back/network_interface",
                json!("podman7"),
                "networks[1]: networks \"front\" and \"back\" have the same bridge",
            ),
            (
                "/network_info/back/network_interface",
                json!(null),
                "network_info.back.network_interface: expected a string, found null",
            ),
            ("/port_mappings/0/host_ip", json!("x"), "port_mappings[0].host_ip: \"x\" is not an IP address"),
            (
                "/port_mappings/0/host_port",
                json!(70000),
                "port_mappings[0].host_port: expected a whole number from 0 to 65535, found 70000",
            ),
            ("/port_mappings/0/container_port", json!(0), "port_mappings[0].container_port: 0 is not a port"),
            (
                "/port_mappings/1/range",
                json!(60000),
                "port_mappings[1].range: 60000 ports from host_port 15000 end beyond 65535",
            ),
            (
                "/port_mappings/0/protocol",
                json!("icmp"),
                "port_mappings[0].protocol: \"icmp\": expected tcp, udp or sctp",
            ),
            ("/dns_servers/0", json!("x"), "dns_servers[0]: \"x\" is not an IP address"),
        ];
        for (pointer, value, expected) in rows {
            let found = mistake(&with(pointer, value.clone()));
            assert!(found.contains(expected), "{pointer} = {value}\nexpected {expected}\nfound    {found}");
        }
    }

    #[test]
    fn every_field_that_must_be_there_is_missed_by_name() {
        let rows = [
            "/container_id",
            "/container_name",
            "/networks",
            "/network_info",
            "/networks/0/interface_name",
            "/network_info/front/name",
            "/network_info/front/id",
            "/network_info/front/driver",
            "/network_info/front/internal",
            "/network_info/front/dns_enabled",
            "/network_info/front/ipv6_enabled",
            "/network_info/front/network_interface",
            "/network_info/front/subnets/0/subnet",
            "/network_info/front/routes/0/gateway",
            "/port_mappings/0/host_ip",
            "/port_mappings/0/range",
            "/port_mappings/0/host_port",
            "/port_mappings/0/container_port",
            "/port_mappings/0/protocol",
        ];
        for pointer in rows {
            let mut document = shop();
            let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
            document.pointer_mut(parent).and_then(Value::as_object_mut).expect("a parent").remove(key);
            let found = mistake(&document);
            assert!(found.contains(&format!("{key}: it is missing")), "{pointer}: {found}");
        }
    }

    #[test]
    fn options_that_nobody_knows_are_ignored() {
        assert_eq!(2, records(&with("/network_info/front/options/com.example.x", json!("1"))).len());
        assert_eq!(2, records(&with("/unknown", json!([1]))).len());
    }

    #[test]
    fn all_mistakes_are_told_at_once_and_not_without_end() {
        let mut document = with("/dns_servers", json!(vec!["x"; 50]));
        document["container_id"] = json!(null);
        let found = mistake(&document);
        assert!(
            found.starts_with("container_id: ") && found.contains("dns_servers[0]") && found.ends_with("and 41 more")
        );
        assert!(mistake(&with("/container_id", json!(["x".repeat(100_000)]))).len() < 1_000);
    }

    #[test]
    fn a_container_goes_even_if_its_networks_can_no_longer_be_read() {
        let mut document = with("/network_info/front/driver", json!("macvlan"));
        document["port_mappings"] = json!("nonsense");
        let detach = detach(&document.to_string()).expect("enough is known");
        assert_eq!("5d2f0c1b7a9e4c38", detach.container.id);
        assert!(detach.records.is_empty());
        let bridges: Vec<Option<&str>> = detach.leaving.iter().map(|l| l.bridge.as_ref().map(IfName::as_str)).collect();
        assert_eq!(vec![None, Some("podman8")], bridges, "only a bridge of ours may be removed");
        assert!(super::detach("{}").is_err());
    }
}
