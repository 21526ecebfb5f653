use super::*;

const ID: &str = "abc123def4567890123456789012345678901234567890123456789012345678";

/// The input for a network with these fields.
fn input(network: Value) -> Value {
    let mut whole = json!({"name": "lan", "id": ID, "driver": "bridge", "dns_enabled": false, "internal": false, "ipv6_enabled": false});
    for (key, value) in network.as_object().expect("an object") {
        whole[key] = value.clone();
    }
    json!({
        "network": whole,
        "used": {"interfaces": ["podman1"], "names": {"old": "0", "podman2": "1"}, "subnets": ["10.89.0.0/24", "fd01:203:405:607::/64"]},
        "options": {"subnet_pools": [{"base": "10.89.0.0/16", "size": 24}], "default_interface_name": "podman",
            "check_used_subnets": true},
    })
}

fn host() -> Host {
    Host { links: Some(vec!["podman3".into(), "eth0".into()]), random: [1, 2, 3, 4, 5, 6, 7] }
}

fn try_create(input: &Value) -> Result<Value> {
    let none = |driver: &str, _: &Value| Err(format!("no plugin {driver}"));
    complete(&input.to_string(), &host(), none).map(|line| {
        assert!(line.ends_with('\n') && line.lines().count() == 1, "{line}");
        serde_json::from_str(&line).expect("JSON")
    })
}

fn create(network: Value) -> Value {
    try_create(&input(network)).expect("a network")
}

#[test]
fn a_bridge_network_is_completed() {
    let mut found = create(json!({"labels": {"a": "b"}, "of_tomorrow": [1], "subnets": null}));
    let created = found.as_object_mut().expect("an object").remove("created").expect("a time");
    assert!(created.as_str().expect("a text").starts_with("20"), "{created}");
    let expected = json!({
        "name": "lan", "id": ID, "driver": "bridge", "dns_enabled": false, "internal": false, "ipv6_enabled": false,
        // podman1 is a used bridge, podman2 a network, podman3 a link; 10.89.0.0/24 is used.
        "network_interface": "podman4", "subnets": [{"subnet": "10.89.1.0/24", "gateway": "10.89.1.1"}],
        "ipam_options": {"driver": "host-local"}, "labels": {"a": "b"}, "of_tomorrow": [1],
    });
    assert_eq!(expected, found);
}

#[test]
fn subnets_and_gateways_are_completed() {
    let subnets = |network: Value| create(network)["subnets"].clone();
    let v4 = json!({"subnet": "10.89.1.0/24", "gateway": "10.89.1.1"});
    // fd01:203:405:607:: is used.
    let v6 = json!({"subnet": "fd01:203:405:608::/64", "gateway": "fd01:203:405:608::1"});
    assert_eq!(json!([v4, v6]), subnets(json!({"ipv6_enabled": true})));
    let own = json!({"subnet": "10.100.0.0/24", "gateway": "10.100.0.9", "lease_range": {"start_ip": "10.100.0.20"}});
    assert_eq!(json!([own, v6]), subnets(json!({"ipv6_enabled": true, "subnets": [own]})));
    let six = json!({"subnets": [{"subnet": "fdcc::/64"}]});
    assert_eq!(json!(true), create(six.clone())["ipv6_enabled"]);
    assert_eq!(json!([{"subnet": "fdcc::/64", "gateway": "fdcc::1"}]), subnets(six));
    assert_eq!(json!([{"subnet": "10.89.1.0/24"}]), subnets(json!({"internal": true})), "no gateway");
    assert_eq!(json!([v4]), subnets(json!({"internal": true, "dns_enabled": true})));
    assert_eq!(
        json!([{"subnet": "10.7.0.0/24", "gateway": "10.7.0.1"}]),
        subnets(json!({"subnets": [{"subnet": "10.7.0.9/24"}]}))
    );
}

#[test]
fn pools_are_tried_in_their_order() {
    let of = |pools: Value, used: Value| {
        let mut input = input(json!({}));
        input["options"]["subnet_pools"] = pools;
        input["used"]["subnets"] = used;
        try_create(&input).map(|n| n["subnets"][0]["subnet"].as_str().expect("a subnet").to_owned())
    };
    let pool = |base: &str, size: u32| json!({"base": base, "size": size});
    assert_eq!(
        Ok("10.1.0.0/25".into()),
        of(json!([pool("10.0.0.0/24", 25), pool("10.1.0.0/24", 25)]), json!(["10.0.0.0/24"]))
    );
    assert_eq!(Ok("10.0.0.128/25".into()), of(json!([pool("10.0.0.0/24", 25)]), json!(["10.0.0.3/32"])));
    // A large used network is passed in one step: 2^24 small ones would take seconds.
    assert_eq!(Ok("11.0.0.0/30".into()), of(json!([pool("8.0.0.0/5", 30)]), json!(["8.0.0.0/7", "10.0.0.0/8"])));
    for pools in
        [json!([]), json!([pool("10.0.0.0/24", 16)]), json!([pool("10.0.0.0/24", 33)]), json!([pool("fd00::/8", 64)])]
    {
        assert_eq!(Err("could not find free subnet from subnet pools".to_owned()), of(pools, json!([])));
    }
    let full = of(json!([pool("255.255.255.0/24", 25)]), json!(["255.255.255.0/24"]));
    assert_eq!(Err("could not find free subnet from subnet pools".to_owned()), full);
}

#[test]
fn networks_that_share_a_bridge_may_share_its_name_and_subnet() {
    for options in [json!({"vlan": "7"}), json!({"mode": "unmanaged"})] {
        let network =
            json!({"network_interface": "podman1", "options": options, "subnets": [{"subnet": "10.89.0.0/24"}]});
        assert_eq!("podman1", create(network)["network_interface"]);
    }
}

#[test]
fn options_of_docker_are_translated_and_booleans_written_as_netavark_reads_them() {
    let network = create(json!({"options": {
        "com.docker.network.driver.mtu": "1400", "com.docker.network.bridge.name": "br9", "isolate": "",
        "no_default_route": "1", "outbound_addr4": "192.0.2.1", "netpath.path": "kernel",
    }}));
    assert_eq!("br9", network["network_interface"]);
    let options = json!({"isolate": "true", "no_default_route": "true", "outbound_addr4": "192.0.2.1", "netpath.path": "kernel", "mtu": "1400"});
    assert_eq!(options, network["options"]);
}

#[test]
fn macvlan_and_ipvlan_have_no_dns_and_ask_dhcp_without_subnets() {
    let network = create(json!({"driver": "macvlan", "dns_enabled": true, "network_interface": "eth0"}));
    assert_eq!((&json!("dhcp"), &json!(false)), (&network["ipam_options"]["driver"], &network["dns_enabled"]));
    let network =
        create(json!({"driver": "ipvlan", "options": {"mode": "l3"}, "subnets": [{"subnet": "10.200.0.0/24"}]}));
    assert_eq!(
        ("host-local", "10.200.0.1"),
        (
            network["ipam_options"]["driver"].as_str().expect("a text"),
            network["subnets"][0]["gateway"].as_str().expect("a text")
        )
    );
}

#[test]
fn impossible_networks_are_refused_with_netavarks_text() {
    let subnet = |s: &str| json!({"subnets": [{"subnet": s}]});
    let route = |r: Value| json!({"routes": [r]});
    for (network, error) in [
        (json!({"name": ""}), "Network name must be supplied"),
        (json!({"name": "bad!"}), "Invalid characters in network name \"bad!\": must match [a-zA-Z0-9][a-zA-Z0-9_.-]*"),
        (json!({"name": "old"}), "network already exists old"),
        (json!({"id": ""}), "Network id must be supplied"),
        (json!({"id": "x"}), "Network id must be a hexadecimal string \"x\""),
        (json!({"id": "abc"}), "Network id must be exactly 64 characters long, got 3: abc"),
        (json!({"network_interface": "podman1"}), "bridge name podman1 already in use"),
        (json!({"network_interface": "-x"}), "bridge name -x is invalid"),
        (
            json!({"network_interface": "sixteen-bytes-xx"}),
            "Interface name is too long: interface names must be 15 characters or less: sixteen-bytes-xx",
        ),
        (json!({"network_interface": ".."}), "Interface name cannot be . or .."),
        (json!({"network_interface": "a:b"}), "Interface name cannot contain\":\""),
        (json!({"options": {"warp": "9"}}), "unsupported bridge network option: warp"),
        (json!({"options": {"mtu": "x"}}), "unable to parse \"mtu\": invalid digit found in string"),
        (json!({"options": {"vlan": "4095"}}), "vlan must be between 0 and 4094"),
        (json!({"options": {"isolate": "x"}}), "invalid isolate option \"x\""),
        (json!({"options": {"mode": "x"}}), "invalid bridge mode \"x\""),
        (json!({"ipam_options": {"driver": "x"}}), "Unsupported ipam driver: x"),
        (
            json!({"ipam_options": {"driver": "dhcp"}}),
            "cannot use dhcp ipam driver without using the option mode=unmanaged",
        ),
        (
            json!({"ipam_options": {"driver": "none"}, "subnets": [{"subnet": "10.1.0.0/24"}]}),
            "None ipam driver is set but subnets are given",
        ),
        (
            json!({"network_dns_servers": ["192.0.2.1"]}),
            "cannot set NetworkDNSServers if DNS is not enabled for the network",
        ),
        (json!({"dns_enabled": true, "network_dns_servers": ["x"]}), "invalid IP address syntax"),
        (subnet("10.89.0.128/25"), "subnet 10.89.0.128/25 is already used on the host or by another config"),
        (
            subnet("10.1.0.0/31"),
            "could not create gateway for subnet 10.1.0.0/31 because it has a 31 or greater subnet prefix",
        ),
        (
            subnet("fd01::1/128"),
            "could not create gateway for subnet fd01::1/128 because it has a 128 or greater subnet prefix",
        ),
        (subnet("127.0.0.0/24"), "127.0.0.0/24 cannot be a container network"),
        (
            json!({"subnets": [{"subnet": "10.1.0.0/24", "gateway": "10.2.0.1"}]}),
            "gateway 10.2.0.1 not in subnet 10.1.0.0/24",
        ),
        (
            json!({"subnets": [{"subnet": "10.1.0.0/24"}, {"subnet": "10.1.0.0/24"}]}),
            "duplicate subnet defined: 10.1.0.0/24",
        ),
        (
            json!({"subnets": [{"subnet": "10.1.2.0/23"}, {"subnet": "10.1.3.248/30"}]}),
            "overlapping subnets: 10.1.2.0/23 and 10.1.3.248/30",
        ),
        (
            json!({"subnets": [{"subnet": "10.1.0.0/24", "lease_range": {"start_ip": "10.2.0.1"}}]}),
            "lease range start_ip 10.2.0.1 not in subnet 10.1.0.0/24",
        ),
        (
            json!({"subnets": [{"subnet": "10.1.0.0/24", "lease_range": {"end_ip": "10.2.0.1"}}]}),
            "lease range end_ip 10.2.0.1 not in subnet 10.1.0.0/24",
        ),
        (
            json!({"subnets": [{"subnet": "10.1.0.0/24", "lease_range": {"start_ip": "10.1.0.9", "end_ip": "10.1.0.8"}}]}),
            "lease range start_ip 10.1.0.9 must be less than or equal to end_ip 10.1.0.8",
        ),
        (route(json!({"destination": "10.9.0.1/24", "gateway": "10.89.1.9"})), "route destination invalid"),
        (route(json!({"destination": "10.9.0.0", "gateway": "10.89.1.9"})), "invalid IP address syntax"),
        (route(json!({"destination": "10.9.0.0/24", "gateway": "x"})), "invalid IP address syntax"),
        (route(json!({"destination": "10.9.0.0/24"})), "route 10.9.0.0/24 requires a gateway for type unicast"),
        (route(json!({"destination": "10.9.0.0/24", "route_type": "x"})), "invalid route type \"x\""),
        (
            route(json!({"destination": "10.9.0.0/24", "route_type": "prohibit", "gateway": "10.89.1.9"})),
            "route 10.9.0.0/24 must not have a gateway for type prohibit",
        ),
        (json!({"driver": "macvlan", "network_interface": "eth9"}), "parent interface eth9 does not exist"),
        (
            json!({"driver": "macvlan", "ipam_options": {"driver": "host-local"}}),
            "macvlan driver needs at least one subnet specified when the host-local ipam driver is set",
        ),
        (
            json!({"driver": "macvlan", "ipam_options": {"driver": "dhcp"}, "subnets": [{"subnet": "10.1.0.0/24"}]}),
            "ipam driver dhcp set but subnets are set",
        ),
        (
            json!({"driver": "macvlan", "options": {"vlan": "9"}, "subnets": [{"subnet": "10.1.0.0/24"}]}),
            "unsupported vlan network option: vlan",
        ),
        (
            json!({"driver": "macvlan", "options": {"mode": "x"}, "subnets": [{"subnet": "10.1.0.0/24"}]}),
            "invalid macvlan mode \"x\"",
        ),
        (json!({"driver": "ipvlan"}), "ipam driver dhcp is not supported with ipvlan"),
        (
            json!({"driver": "ipvlan", "options": {"mode": "x"}, "subnets": [{"subnet": "10.1.0.0/24"}]}),
            "invalid ipvlan mode \"x\"",
        ),
        (
            json!({"driver": "ipvlan", "options": {"bclim": "9"}, "subnets": [{"subnet": "10.1.0.0/24"}]}),
            "unsupported ipvlan network option bclim",
        ),
        (json!({"driver": "warp"}), "no plugin warp"),
        (json!({"internal": "x"}), "network.internal: expected true or false"),
    ] {
        let found = try_create(&input(network.clone())).expect_err(error);
        assert!(found.contains(error), "{network}\nexpected {error}\nfound    {found}");
    }
    for (pointer, error) in [
        ("/options/default_interface_name", "default interface name is not set"),
        ("/options/subnet_pools", "options.subnet_pools: expected a list, found null"),
        ("/used/names", "used.names: expected an object, found null"),
        ("/options/check_used_subnets", "options.check_used_subnets: expected true or false"),
    ] {
        let mut input = input(json!({}));
        *input.pointer_mut(pointer).expect("a field") = Value::Null;
        let found = try_create(&input).expect_err(error);
        assert!(found.contains(error), "{pointer}: {found}");
    }
    assert!(try_create(&json!(7)).is_err());
}

#[test]
fn a_plugin_keeps_the_identity_of_the_network() {
    let with = |change: fn(&mut Value)| {
        let plugin = |driver: &str, network: &Value| {
            assert_eq!("warp", driver);
            let mut network = network.clone();
            change(&mut network);
            Ok(network)
        };
        complete(&input(json!({"driver": "warp"})).to_string(), &host(), plugin)
    };
    let done = with(|n| n["options"] = json!({"speed": "9"})).expect("a network");
    assert!(done.contains(r#""options":{"speed":"9"}"#) && done.contains("created"), "{done}");
    for (change, what) in [
        ((|n| n["name"] = json!("x")) as fn(&mut Value), "name"),
        (|n| n["id"] = json!("x"), "ID"),
        (|n| n["driver"] = json!("bridge"), "driver"),
    ] {
        assert_eq!(Err(format!("warp plugin invalid result: changed network {what}")), with(change));
    }
}
