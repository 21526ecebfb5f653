use super::*;
use crate::model::attachment::{Ipvlan, IpvlanMode, Macvlan, MacvlanMode};
use crate::model::network::RouteKind;
use crate::model::{Attachment, TranslationPath, Xdp};
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

fn records(document: &Value) -> Vec<EndpointRequest> {
    attach(&document.to_string(), &[]).expect("a document without mistakes").endpoints
}

fn mistake(document: &Value) -> String {
    attach(&document.to_string(), &[]).err().expect("a mistake")
}

/// The example with one value changed.
fn with(pointer: &str, value: Value) -> Value {
    let mut document = shop();
    if let Some(place) = document.pointer_mut(pointer) {
        *place = value
    } else {
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        let parent = document.pointer_mut(parent).expect("a parent");
        parent.as_object_mut().expect("an object").insert(key.into(), value);
    }
    document
}

#[test]
fn the_worked_example_becomes_two_endpoints() {
    let records = records(&shop());
    let [front, back] = records.as_slice() else { panic!("two networks") };
    assert_eq!(("front", "podman7"), (front.network.name.as_str(), front.network.bridge().expect("a bridge").as_str()));
    assert_eq!(Some(1400), front.network.mtu.map(crate::model::network::Mtu::bytes));
    assert_eq!(Isolation::Isolated, front.network.isolation);
    assert_eq!(Isolation::Strict, back.network.isolation, "the default of the list form");
    assert_eq!("10.89.7.5/24", front.endpoint.addresses[0].to_string());
    assert_eq!("fd41:7::5/64", front.endpoint.addresses[1].to_string());
    assert_eq!(RouteKind::Unicast, front.network.routes[0].kind);
    assert_eq!(3, front.publishes.len());
    assert_eq!(HostBind::AnyV6, front.publishes[2].bind);
    assert_eq!(1, front.publishes[2].count(), "a range of 0 counts as 1");
    assert_eq!(Some("vshop"), front.endpoint.host_interface.as_ref().map(IfName::as_str));
}

#[test]
fn a_map_of_networks_keeps_its_order_and_defaults_to_open_isolation() {
    let mut document = shop();
    document["networks"] = json!({
        "front": {"interface_name": "eth0", "static_ips": ["10.89.7.5", "fd41:7::5"]},
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
            "networks[0].static_ips[0]: not all static IPs matched a subnet: expected 2, got 1: 10.1.1.1 is in none",
        ),
        ("/networks/0/static_ips/1", json!("10.89.7.5"), "networks[0].static_ips[1]: 10.89.7.5 is given twice"),
        ("/networks/0/static_ips", json!(null), "networks[0]: no static ips provided"),
        (
            "/networks/0/static_ips",
            json!(["10.89.7.5"]),
            "networks[0]: static_ips has no address in the subnet of the gateway of route default via fd41:7::1",
        ),
        ("/networks/0/static_mac", json!("01:00:00:00:00:00"), "networks[0].static_mac: "),
        ("/networks/0/static_mac", json!("0a:11"), "networks[0].static_mac: invalid mac length for address: 0a:11"),
        ("/networks/0/static_mac", json!("0a:11:x:0:0:0"), "unable to parse mac address 0a:11:x:0:0:0"),
        ("/networks/0/interface_name", json!(""), "networks[0].interface_name: no container interface name given"),
        ("/networks/0/interface_name", json!("lo"), "networks[0].interface_name: "),
        ("/networks/1/interface_name", json!("eth0"), "networks[1]: interface_name eth0 is given twice"),
        ("/networks/1/name", json!("front"), "networks[1]: network \"front\" is named twice"),
        ("/networks/0/name", json!("x"), "networks[0]: network info for network x not found"),
        ("/networks/0/options/host_interface_name", json!("a b"), "networks[0].options.host_interface_name: "),
        ("/networks", json!(null), "networks: expected an object, found null"),
        ("/network_info", json!([]), "network_info: expected an object, found a list"),
        ("/network_info/front/driver", json!("warp"), "network_info.front.driver: unknown network driver \"warp\""),
        ("/network_info/front/internal", json!("no"), "network_info.front.internal: expected true or false"),
        ("/network_info/front/subnets/0/subnet", json!("10.89.7.0/33"), "network_info.front.subnets[0].subnet: "),
        (
            "/network_info/front/subnets/1/subnet",
            json!("10.89.0.0/16"),
            "network_info.front.subnets[1].subnet: overlapping subnets: 10.89.7.0/24 and 10.89.0.0/16",
        ),
        ("/network_info/front/subnets/1/subnet", json!("10.89.7.9/24"), "duplicate subnet defined: 10.89.7.0/24"),
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
            "network_info.front.subnets[0].gateway: gateway 10.9.9.9 not in subnet 10.89.7.0/24",
        ),
        (
            "/network_info/front/routes/0/gateway",
            json!("fd41:7::9"),
            "network_info.front.routes[0].gateway: route with ipv4 destination and ipv6 gateway (172.20.0.0/16 via fd41:7::9)",
        ),
        (
            "/network_info/front/routes/0/route_type",
            json!("blackhole"),
            "network_info.front.routes[0].gateway: route 172.20.0.0/16 must not have a gateway for type blackhole",
        ),
        (
            "/network_info/front/routes/0/gateway",
            json!(null),
            "route 172.20.0.0/16 requires a gateway for type unicast",
        ),
        ("/network_info/front/routes/0/route_type", json!("x"), "routes[0].route_type: invalid route type \"x\""),
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
        ("/network_info/front/options/mtu", json!("1279"), "network_info.front.options.mtu: 1279: a network with IPv6"),
        ("/network_info/front/options/mtu", json!("9x"), "options.mtu: unable to parse \"mtu\": invalid digit found"),
        ("/network_info/front/options/metric", json!("x"), "options.metric: unable to parse \"metric\": "),
        ("/network_info/front/options/no_default_route", json!("x"), "unable to parse \"no_default_route\": "),
        ("/network_info/front/options/isolate", json!("x"), "options.isolate: invalid isolate option \"x\""),
        ("/network_info/front/options/mode", json!("x"), "options.mode: invalid bridge mode \"x\""),
        ("/network_info/front/options/vlan", json!("4095"), "options.vlan: 4095: vlan must be between 0 and 4094"),
        ("/network_info/front/options/vlan", json!("x"), "options.vlan: unable to parse \"vlan\": invalid digit found"),
        ("/network_info/front/options/vrf", json!("a b"), "network_info.front.options.vrf: "),
        (
            "/network_info/front/options/netpath.path",
            json!("x"),
            r#"network_info.front.options."netpath.path": "x": expected auto, kernel or offload"#,
        ),
        (
            "/network_info/front/options/netpath.direct",
            json!("yes"),
            r#"network_info.front.options."netpath.direct": "yes": expected true or false"#,
        ),
        (
            "/network_info/front/options/netpath.allow",
            json!("192.0.2.0/24,192.0.2.0/33"),
            r#"network_info.front.options."netpath.allow": "192.0.2.0/33" is neither a network nor an address"#,
        ),
        ("/network_info/front/options/netpath.allow", json!(""), r#""netpath.allow": "" is neither"#),
        (
            "/network_info/front/options/netpath.pahts",
            json!("kernel"),
            r#"network_info.front.options."netpath.pahts": netpath has no option of that name"#,
        ),
        (
            "/network_info/front/labels",
            json!({"netpath.masquerade": "off"}),
            r#"network_info.front.labels."netpath.masquerade": "off": expected true or false"#,
        ),
        (
            "/network_info/front/labels",
            json!({"netpath.xpd": "on"}),
            r#"network_info.front.labels."netpath.xpd": netpath has no option of that name"#,
        ),
        (
            "/network_info/front/labels",
            json!({"netpath.xdp": "true"}),
            r#"network_info.front.labels."netpath.xdp": "true": expected auto, on or off"#,
        ),
        (
            "/networks/0/options/netpath.xdp",
            json!("on"),
            r#"networks[0].options."netpath.xdp": this is an option of the network"#,
        ),
        (
            "/network_info/back/options",
            json!({"netpath.direct": "true"}),
            "network_info.back: netpath.direct opens a network, and this one is internal",
        ),
        (
            "/networks/0/options/netpath.path",
            json!("kernel"),
            r#"networks[0].options."netpath.path": this is an option of the network"#,
        ),
        (
            "/networks/0/options/netpath.allow",
            json!("everybody"),
            r#"networks[0].options."netpath.allow": "everybody" is neither"#,
        ),
        (
            "/network_info/front/ipam_options/driver",
            json!("dhcp"),
            "ipam_options.driver: cannot use dhcp ipam driver without using the option mode=unmanaged",
        ),
        ("/network_info/front/ipam_options/driver", json!("x"), "ipam_options.driver: unsupported ipam driver x"),
        ("/network_info/back/network_interface", json!(null), "network_interface: no bridge interface name given"),
        ("/network_info/back/network_interface", json!(""), "network_interface: no bridge interface name given"),
        ("/network_info/back/network_interface", json!(7), "network_interface: expected a string, found 7"),
        ("/port_mappings/0/host_ip", json!("x"), "host_ip: invalid host ip \"x\" provided for port 8080"),
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
        ("/port_mappings/0/protocol", json!("icmp"), "port_mappings[0].protocol: \"icmp\": expected tcp, udp or sctp"),
        ("/dns_servers/0", json!("x"), "dns_servers[0]: \"x\" is not an IP address"),
    ];
    for (pointer, value, expected) in rows {
        let found = mistake(&with(pointer, value.clone()));
        assert!(found.contains(expected), "{pointer} = {value}\nexpected {expected}\nfound    {found}");
    }
}

#[test]
fn a_missing_required_field_is_reported_by_name() {
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
        "/network_info/front/subnets/0/subnet",
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
fn unknown_options_and_fields_are_ignored() {
    assert_eq!(2, records(&with("/network_info/front/options/com.example.x", json!("1"))).len());
    assert_eq!(2, records(&with("/unknown", json!([1]))).len());
}

#[test]
fn documents_that_netavark_serves_are_served() {
    let front = |pointer: &str, value: Value| records(&with(pointer, value)).remove(0);
    // The network's own name is that of its records, status and DNS.
    assert_eq!("other", front("/network_info/front/name", json!("other")).network.name);
    assert_eq!("front", front("/network_info/front/name", json!("")).network.name);
    let renamed = detach(&with("/network_info/front/name", json!("other")).to_string(), &[]).expect("names");
    assert_eq!("other", renamed.leaving[0].network, "teardown finds the records of setup");
    let elsewhere = front("/network_info/front/routes/0/gateway", json!("10.9.9.9"));
    assert!(!elsewhere.endpoint.covers(&elsewhere.network.routes[0]), "removed by itself");
    assert!(elsewhere.endpoint.covers(&front("/unknown", json!(1)).network.routes[0]), "removed with the interface");
    let other_family = json!({"destination": "2001:db8::/32", "route_type": "blackhole"});
    assert_eq!(1, records(&with("/network_info/back/routes", json!([other_family])))[1].network.routes.len());
    let own = front("/networks/0/static_ips/0", json!("10.89.7.1"));
    assert_eq!("10.89.7.1/24", own.endpoint.addresses[0].to_string());
    for (text, isolation) in [("", Isolation::Isolated), ("1", Isolation::Isolated), ("0", Isolation::Open)] {
        assert_eq!(isolation, front("/network_info/front/options/isolate", json!(text)).network.isolation, "{text:?}");
    }
    assert_eq!(1, records(&with("/network_info/front/routes/0/route_type", json!("")))[0].network.routes.len());
    assert_eq!(2, records(&with("/network_info/back/network_interface", json!("podman7"))).len(), "the same bridge");
}

#[test]
fn without_an_ipam_driver_there_are_no_addresses_gateways_and_routes() {
    let mut document = with("/network_info/front/ipam_options/driver", json!("none"));
    for static_ips in [json!(null), json!(["10.89.7.5"])] {
        document["networks"][0]["static_ips"] = static_ips;
        let front = records(&document).remove(0);
        assert_eq!(
            (0, 0, 0),
            (front.endpoint.addresses.len(), front.network.subnets.len(), front.network.routes.len())
        );
    }
}

#[test]
fn addresses_are_in_the_order_of_their_subnets() {
    let front = records(&with("/networks/0/static_ips", json!(["fd41:7::5", "10.89.7.6", "10.89.7.5"]))).remove(0);
    let addresses: Vec<String> = front.endpoint.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(vec!["10.89.7.6/24", "10.89.7.5/24", "fd41:7::5/64"], addresses);
}

#[test]
fn the_last_of_duplicate_fields_wins() {
    let twice = shop().to_string().replacen('{', r#"{"container_name": 7,"#, 1);
    assert_eq!("shop", attach(&twice, &[]).expect("a document without mistakes").container.name);
}

#[test]
fn all_mistakes_are_reported_at_once_up_to_a_limit() {
    let mut document = with("/dns_servers", json!(vec!["x"; 50]));
    document["container_id"] = json!(null);
    let found = mistake(&document);
    assert!(found.starts_with("container_id: ") && found.contains("dns_servers[0]") && found.ends_with("and 41 more"));
    assert!(mistake(&with("/container_id", json!(["x".repeat(100_000)]))).len() < 1_000);
}

#[test]
fn detach_tolerates_networks_that_cannot_be_parsed() {
    let mut document = with("/network_info/front/driver", json!("warp"));
    document["port_mappings"] = json!("nonsense");
    let detach = detach(&document.to_string(), &[]).expect("container and networks are named");
    assert_eq!("5d2f0c1b7a9e4c38", detach.container.id);
    assert!(detach.endpoints.is_empty());
    let bridges: Vec<_> = detach.leaving.iter().map(|l| l.attachment.clone()).collect();
    let podman8 = Attachment::Bridge("podman8".parse().expect("a name"));
    assert_eq!(vec![None, Some(podman8)], bridges, "only a bridge of netpath may be removed");
    assert!(super::detach("{}", &[]).is_err());
}

#[test]
fn netpath_options_override_labels_of_the_same_name() {
    let of = |labels: Value, options: Value| {
        let mut document = with("/network_info/front/labels", labels);
        document["network_info"]["front"]["options"] = options;
        let front = records(&document).remove(0);
        let allow: Vec<String> = front.allow.iter().map(ToString::to_string).collect();
        (front.network.path, front.network.direct, front.network.masquerade, allow.join(" "))
    };
    assert_eq!((TranslationPath::Auto, false, true, String::new()), of(json!({}), json!({})));
    assert_eq!((TranslationPath::Auto, false, true, String::new()), of(json!(null), json!({"com.example.x": "y"})));
    let all = json!({
        "netpath.path": "kernel", "netpath.direct": "true", "netpath.masquerade": "false",
        "netpath.allow": "192.0.2.9/24, 2001:db8::/32,198.51.100.7,192.0.2.0/24,2001:db8::1", "owner": "x"
    });
    let read =
        (TranslationPath::Kernel, true, false, "192.0.2.0/24 2001:db8::/32 198.51.100.7/32 2001:db8::1/128".to_owned());
    assert_eq!(read, of(all.clone(), json!({})));
    assert_eq!(read, of(json!({}), all.clone()));
    let (path, direct, ..) = of(all, json!({"netpath.path": "offload", "netpath.direct": "false"}));
    assert_eq!((TranslationPath::Offload, false), (path, direct));
    assert_eq!(TranslationPath::Kernel, of(json!({"netpath.path": "edge"}), json!({})).0, "of earlier versions");
    let mut document = with("/network_info/front/labels", json!({"netpath.xdp": "on"}));
    assert_eq!([Xdp::On, Xdp::Auto], [0, 1].map(|n| records(&document)[n].network.xdp));
    document["network_info"]["front"]["options"] = json!({"netpath.xdp": "off"});
    assert_eq!(Xdp::Off, records(&document)[0].network.xdp);
    let labels = with("/network_info/front/labels", json!({"netpath": "x", "com.example": 7}));
    assert_eq!(2, records(&labels).len(), "other labels are ignored");
}

#[test]
fn the_allow_list_of_a_container_overrides_that_of_the_network() {
    let mut document = with("/network_info/front/options/netpath.allow", json!("192.0.2.0/24"));
    document["networks"][0]["options"]["netpath.allow"] = json!("198.51.100.7");
    assert_eq!(vec!["198.51.100.7/32".parse::<IpNet>().expect("a network")], records(&document)[0].allow);
}

#[test]
fn the_allow_list_of_a_port_overrides_that_of_all_ports() {
    let lists = |document: &Value| -> Vec<(u16, u16, u16, String)> {
        let front = records(document).remove(0);
        let words = |nets: &[IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let of = |p: &Publish| {
            (p.host_port(), p.container_port(), p.count(), words(p.allow.as_ref().unwrap_or(&front.allow)))
        };
        front.publishes.iter().map(of).collect()
    };
    let port = |proto: &str, host: u16, container: u16, range: u16| json!({"host_ip": "", "protocol": proto, "host_port": host, "container_port": container, "range": range});
    let mut document = with(
        "/port_mappings",
        json!([port("tcp", 8080, 80, 1), port("udp", 8080, 80, 1), port("udp", 20_000, 30_000, 100)]),
    );
    document["network_info"]["front"]["labels"] = json!({
        "netpath.allow": "192.0.2.0/24",
        "netpath.allow.8080/tcp": "198.51.100.7",
        "netpath.allow.8080": "203.0.113.0/24",
        "netpath.allow.20010-20019/udp": "0.0.0.0/0",
        "netpath.allow.9": "192.0.2.9",
    });
    let of_all = || "192.0.2.0/24".to_owned();
    let network = vec![
        (8080, 80, 1, "198.51.100.7/32".to_owned()),
        (8080, 80, 1, "203.0.113.0/24".to_owned()),
        (20_000, 30_000, 10, of_all()),
        (20_010, 30_010, 10, "0.0.0.0/0".to_owned()),
        (20_020, 30_020, 80, of_all()),
    ];
    assert_eq!(network, lists(&document));

    document["networks"][0]["options"] = json!({"netpath.allow": "192.0.2.1", "netpath.allow.8080/tcp": "192.0.2.2", "netpath.allow.20099/udp": "192.0.2.3"});
    let of_all = || "192.0.2.1/32".to_owned();
    let container = vec![
        (8080, 80, 1, "192.0.2.2/32".to_owned()),
        (8080, 80, 1, "203.0.113.0/24".to_owned()),
        (20_000, 30_000, 10, of_all()),
        (20_010, 30_010, 10, "0.0.0.0/0".to_owned()),
        (20_020, 30_020, 79, of_all()),
        (20_099, 30_099, 1, "192.0.2.3/32".to_owned()),
    ];
    assert_eq!(container, lists(&document));

    for (option, why) in [
        ("netpath.allow.8081", "publishes no such port"),
        ("netpath.allow.8080/sctp", "publishes no such port"),
        ("netpath.allow.", "expected a port"),
        ("netpath.allow.0", "expected a port"),
        ("netpath.allow.9-8", "expected a port"),
        ("netpath.allow.+80", "expected a port"),
        ("netpath.allow.80/icmp", "expected a port"),
        ("netpath.allowed", "no option of that name"),
    ] {
        let mut document = document.clone();
        document["networks"][0]["options"] = json!({option: "192.0.2.1"});
        let error = attach(&document.to_string(), &[]).err().expect(option);
        assert!(error.contains(why), "{option}: {error}");
    }
}

#[test]
fn an_unmanaged_bridge_is_only_used() {
    let mut document = with("/network_info/front/options/mode", json!("unmanaged"));
    document["network_info"]["front"]["options"]["vlan"] = json!("7");
    let front = records(&document).remove(0).network;
    let podman7 = Attachment::Unmanaged("podman7".parse().expect("a name"));
    assert_eq!((&podman7, Some(7), None), (&front.attachment, front.vlan, front.bridge()));
    let leaving = &detach(&document.to_string(), &[]).expect("names").leaving[0];
    assert_eq!(Some(&podman7), leaving.attachment.as_ref(), "teardown leaves the bridge");
    document["network_info"]["front"]["options"]["netpath.xdp"] = json!("on");
    assert!(mistake(&document).contains("have no effect on a network of kind unmanaged bridge"));
    document["network_info"]["front"]["options"] = json!({"vlan": "0", "mode": "managed", "vrf": ""});
    let front = records(&document).remove(0).network;
    assert_eq!((None, None, true), (front.vlan, front.vrf.clone(), front.bridge().is_some()));
}

#[test]
fn a_bridge_in_a_vrf_is_served_by_netfilter() {
    let front = |document: &Value| records(document).remove(0).network;
    let mut document = with("/network_info/front/options/vrf", json!("red"));
    assert_eq!(Some("red"), front(&document).vrf.as_ref().map(IfName::as_str));
    assert_eq!(TranslationPath::Kernel, front(&document).path);
    document["network_info"]["front"]["options"]["netpath.path"] = json!("offload");
    assert_eq!(TranslationPath::Offload, front(&document).path);
}

#[test]
fn ipvlan_options_are_parsed() {
    let ipvlan = |options: Value| {
        let mut document = with("/network_info/front/driver", json!("ipvlan"));
        document["network_info"]["front"]["network_interface"] = json!("enp1s0");
        document["network_info"]["front"]["options"] = options;
        document
    };
    for (text, mode) in [("", IpvlanMode::L2), ("l2", IpvlanMode::L2), ("l3", IpvlanMode::L3), ("l3s", IpvlanMode::L3S)]
    {
        let network = records(&ipvlan(json!({"mode": text, "mtu": "1400"}))).remove(0).network;
        let attachment = Attachment::Ipvlan(Ipvlan { parent: Some("enp1s0".parse().expect("a name")), mode });
        assert_eq!((&attachment, 99, false), (&network.attachment, network.metric, network.dns));
    }
    let reported = mistake(&ipvlan(json!({"mode": "bridge"})));
    assert!(reported.contains("options.mode: invalid ipvlan mode \"bridge\""), "{reported}");
}

/// The document is that of `podman network create -d macvlan -o parent=enp1s0`.
#[test]
fn macvlan_options_are_parsed() {
    let macvlan = |options: Value| {
        let mut document = with("/network_info/front/driver", json!("macvlan"));
        document["network_info"]["front"]["network_interface"] = json!("enp1s0");
        document["network_info"]["front"]["options"] = options;
        document
    };
    let network = |options: Value| records(&macvlan(options)).remove(0).network;
    let plain = network(json!({}));
    let parent = Some("enp1s0".parse().expect("a name"));
    let attachment = Macvlan { parent, ..Macvlan::default() };
    assert_eq!(Attachment::Macvlan(attachment.clone()), plain.attachment);
    assert_eq!((99, true, false), (plain.metric, plain.default_route, plain.dns), "no DNS on a macvlan");
    let all = network(json!({"mode": "vepa", "bclim": "-1", "mtu": "1400", "metric": "7", "no_default_route": "1"}));
    assert_eq!(Attachment::Macvlan(Macvlan { mode: MacvlanMode::Vepa, bclim: Some(-1), ..attachment }), all.attachment);
    let automatic = network(json!({"netpath.dhcp6": "on", "netpath.slaac": "on"}));
    assert_eq!((false, true, true), (automatic.dhcp, automatic.dhcp6, automatic.slaac), "beside static addresses");
    let managed = with("/network_info/front/options", json!({"netpath.dhcp6": "on"}));
    assert!(mistake(&managed).contains("are not for the addresses of a managed bridge"), "{}", mistake(&managed));
    assert_eq!((7, false, Some(1400)), (all.metric, all.default_route, all.mtu.map(crate::model::network::Mtu::bytes)));
    for (options, found) in [
        (json!({"mode": "managed"}), "network_info.front.options.mode: invalid macvlan mode \"managed\""),
        (json!({"bclim": "much"}), "network_info.front.options.bclim"),
        (
            json!({"netpath.direct": "true"}),
            "network_info.front: options netpath.… but for dhcp4, dhcp6 and slaac have no effect on a network of kind macvlan",
        ),
        (json!({"netpath.slaac": "yes"}), "netpath.slaac\": \"yes\": expected on or off"),
    ] {
        let reported = mistake(&macvlan(options));
        assert!(reported.contains(found), "{reported}");
    }
    let mut without_parent = macvlan(json!({}));
    without_parent["network_info"]["front"].as_object_mut().expect("an object").remove("network_interface");
    assert_eq!(Attachment::Macvlan(Macvlan::default()), records(&without_parent)[0].network.attachment);
    // Two networks of a container may have the same parent.
    let mut two = macvlan(json!({}));
    for (key, value) in [("driver", json!("macvlan")), ("network_interface", json!("enp1s0"))] {
        two["network_info"]["back"][key] = value;
    }
    assert_eq!(2, records(&two).len());
    let leaving = &detach(&two.to_string(), &[]).expect("container and networks are named").leaving[1];
    assert_eq!(plain.attachment, leaving.attachment.clone().expect("a macvlan"));
}
