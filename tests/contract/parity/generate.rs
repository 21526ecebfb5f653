//! Hosts' lives drawn from a seed: networks, the documents of containers on them, and changes of DNS servers.

use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use support::rng::Rng;

/// What is done on one host: every container is set up in order, then the networks are updated, then the containers are torn down.
pub(super) struct Life {
    pub documents: Vec<Value>,
    /// A network, and its servers with commas between.
    pub updates: Vec<(String, String)>,
    /// Hardware addresses that the documents ask for.
    pub pinned: BTreeSet<String>,
}

/// The bridge that both hosts have before, for unmanaged networks, with its addresses.
pub(super) const BRIDGE: [&str; 3] = ["lan0", "10.70.0.1/16", "fd70::1/64"];

/// Chance of `n` in 100.
fn chance(rng: &Rng, n: u64) -> bool {
    rng.below(100) < n
}

struct Network {
    info: Value,
    /// For each subnet the text before the host's part, and how much one host differs from the next.
    prefixes: Vec<String>,
    on_parent: bool,
}

impl Life {
    pub(super) fn of(seed: u64) -> Self {
        let rng = Rng::of(seed);
        let networks: Vec<Network> = (0..1 + rng.below(3)).map(|n| network(&rng, n)).collect();
        let mut pinned = BTreeSet::new();
        let count = 1 + rng.below(3);
        let documents = (0..count).map(|n| document(&rng, &networks, seed, n, &mut pinned)).collect();
        let with_dns = networks.iter().filter(|n| n.info["dns_enabled"] == true && chance(&rng, 50));
        let servers = ["9.9.9.9", "9.9.9.9,2620:fe::9", ""];
        let name = |n: &Network| n.info["name"].as_str().unwrap_or_default().to_owned();
        let updates = with_dns.map(|n| (name(n), (*rng.pick(&servers)).to_owned())).collect();
        Self { documents, updates, pinned }
    }
}

fn network(rng: &Rng, n: u64) -> Network {
    let kind = *rng.pick(&["bridge", "bridge", "bridge", "unmanaged", "macvlan", "macvlan"]);
    let on_parent = kind == "macvlan";
    let ipam = match (kind, rng.below(10)) {
        ("bridge", _) | (_, 1..) => "host-local",
        _ => "none",
    };
    let mut options = Map::new();
    let mut set = |key: &str, percent: u64, values: &[&str]| {
        if chance(rng, percent) {
            options.insert(key.to_owned(), json!(rng.pick(values)));
        }
    };
    set("mtu", 30, &["1280", "1400", "1500", "0", "9000"]);
    set("metric", 30, &["1", "99", "100", "2048"]);
    set("no_default_route", 20, &["true", "false"]);
    if on_parent {
        set("mode", 50, &["bridge", "private", "vepa", "passthru"]);
        set("bclim", 30, &["-1", "0", "5"]);
    } else {
        set("isolate", 50, &["true", "false", "strict"]);
        set("outbound_addr4", 10, &["192.0.2.10"]);
        set("outbound_addr6", 10, &["2001:db8:1::10"]);
    }
    let interface = match kind {
        "unmanaged" => {
            options.insert("mode".into(), json!("unmanaged"));
            BRIDGE[0].to_owned()
        }
        "macvlan" if chance(rng, 40) => String::new(),
        "macvlan" => "eth0".to_owned(),
        _ => {
            set_managed(rng, &mut options);
            format!("podman{n}")
        }
    };
    let internal = chance(rng, 20);
    let (subnets, prefixes) = if ipam == "none" { (Vec::new(), Vec::new()) } else { subnets(rng, n, kind) };
    let v6 = subnets.iter().any(|s| s["subnet"].as_str().is_some_and(|s| s.contains(':')));
    let mut info = json!({
        "name": format!("net{n}"), "id": format!("{:064x}", 0xa000 + n),
        "driver": if on_parent { "macvlan" } else { "bridge" }, "network_interface": interface,
        "internal": internal, "ipv6_enabled": v6, "dns_enabled": !on_parent && ipam != "none" && chance(rng, 40),
        "ipam_options": {"driver": ipam}, "subnets": subnets, "options": options, "created": "2026-07-01T10:00:00Z",
    });
    let routes = routes(rng, n, info["subnets"].as_array().map_or(&[], Vec::as_slice));
    if !routes.is_empty() {
        info["routes"] = json!(routes);
    }
    if info["dns_enabled"] == true && chance(rng, 40) {
        info["network_dns_servers"] = json!(["192.0.2.53"]);
    }
    Network { info, prefixes, on_parent }
}

fn set_managed(rng: &Rng, options: &mut Map<String, Value>) {
    if chance(rng, 20) {
        options.insert("mode".into(), json!("managed"));
    }
}

/// One to three, each with its gateway or without.
fn subnets(rng: &Rng, n: u64, kind: &str) -> (Vec<Value>, Vec<String>) {
    let v4 = |m: u64| (format!("10.{}.{m}.0/24", 80 + n), format!("10.{}.{m}.", 80 + n));
    let v6 = |m: u64| (format!("fd42:{n}:{m}::/64"), format!("fd42:{n}:{m}::"));
    let all = match (kind, rng.below(5)) {
        // Inside the bridge's own, so that its gateway is there.
        ("unmanaged", _) => {
            vec![
                (format!("10.70.0.0/{}", rng.pick(&[16, 24])), format!("10.70.0.1{n}")),
                ("fd70::/64".into(), format!("fd70::{}", n + 1)),
            ]
        }
        (_, 0) => vec![v6(1)],
        (_, 1) => vec![v4(1)],
        (_, 2) => vec![v4(1), v6(1), v4(2)],
        (_, 3) => vec![v6(1), v4(1), v6(2)],
        _ => vec![v4(1), v6(1)],
    };
    let mut subnets = Vec::new();
    for (net, prefix) in &all {
        let base = net.split('/').next().unwrap_or_default();
        // `10.70.0.0` and `fd70::`: the first address, or another.
        let trunk = base.strip_suffix('0').filter(|_| !base.contains(':')).unwrap_or(base);
        let gateway = format!("{trunk}{}", if kind == "unmanaged" { 1 } else { *rng.pick(&[1, 1, 1, 254]) });
        let mut subnet = json!({"subnet": net});
        if chance(rng, 85) {
            subnet["gateway"] = json!(gateway);
        }
        if chance(rng, 20) {
            subnet["lease_range"] = json!({"start_ip": format!("{prefix}2"), "end_ip": format!("{prefix}9")});
        }
        subnets.push(subnet);
    }
    (subnets, all.into_iter().map(|(_, prefix)| prefix).collect())
}

/// Of every type, through gateways in the subnets.
fn routes(rng: &Rng, n: u64, subnets: &[Value]) -> Vec<Value> {
    let mut routes = Vec::new();
    if chance(rng, 60) {
        return routes;
    }
    for m in 0..1 + rng.below(4) {
        let Some(subnet) = subnets.get(rng.below(subnets.len().max(1) as u64) as usize) else { return routes };
        let net = subnet["subnet"].as_str().unwrap_or_default();
        let v6 = net.contains(':');
        let destination = if v6 { format!("fd99:{n}:{m}::/48") } else { format!("172.{}.{m}.0/24", 20 + n) };
        let mut route = json!({"destination": destination});
        match *rng.pick(&["", "unicast", "blackhole", "unreachable", "prohibit"]) {
            kind @ ("" | "unicast") => {
                let base = net.split('/').next().unwrap_or_default();
                let trunk = base.strip_suffix('0').filter(|_| !v6).unwrap_or(base);
                let trunk = if chance(rng, 95) { trunk } else { *rng.pick(&["10.99.0.", "fd98::"]) };
                route["gateway"] = json!(format!("{trunk}77"));
                if !kind.is_empty() {
                    route["route_type"] = json!(kind);
                }
            }
            kind => route["route_type"] = json!(kind),
        }
        if chance(rng, 40) {
            route["metric"] = json!(rng.pick(&[1, 100, 777]));
        }
        routes.push(route);
    }
    routes
}

fn document(rng: &Rng, networks: &[Network], seed: u64, n: u64, pinned: &mut BTreeSet<String>) -> Value {
    let mut attached: Vec<(&Network, Value)> = Vec::new();
    for (at, network) in networks.iter().enumerate() {
        // At least one, and the first container is on all.
        if n > 0 && chance(rng, 40) && (at + 1 < networks.len() || !attached.is_empty()) {
            continue;
        }
        let mut own = json!({"interface_name": format!("eth{}", attached.len())});
        let mut ips: Vec<String> = network.prefixes.iter().map(|p| format!("{p}{}", 5 + n)).collect();
        match rng.below(20) {
            0 | 1 => ips.extend(network.prefixes.first().map(|p| format!("{p}{}", 9 + n))),
            2 => drop(ips.pop()),
            _ => {}
        }
        if network.info["ipam_options"]["driver"] == "host-local" {
            own["static_ips"] = json!(ips);
        }
        if chance(rng, 30) {
            let mac = format!("0a:11:22:33:{at:02x}:{n:02x}");
            own["static_mac"] = json!(if chance(rng, 80) { mac.clone() } else { mac.replace(':', "-") });
            pinned.insert(mac);
        }
        if chance(rng, 30) {
            own["aliases"] = json!([format!("alias{n}")]);
        }
        if chance(rng, 30) && !network.on_parent {
            own["options"] = json!({"host_interface_name": format!("host{at}of{n}")});
        }
        attached.push((network, own));
    }
    let name = |network: &Network| network.info["name"].as_str().unwrap_or_default().to_owned();
    let info: Map<String, Value> = attached.iter().map(|(network, _)| (name(network), network.info.clone())).collect();
    let networks = if chance(rng, 50) {
        attached.iter().map(|(network, own)| (name(network), own.clone())).collect::<Map<_, _>>().into()
    } else {
        let named = attached.iter().map(|(network, own)| {
            let mut own = own.clone();
            own["name"] = json!(name(network));
            own
        });
        Value::Array(named.collect())
    };
    let mut document = json!({
        "container_id": format!("{:064x}", (seed << 8) + n + 0xc000_0000_0000), "container_name": format!("box{n}"),
        "networks": networks, "network_info": info,
    });
    if chance(rng, 30) {
        document["port_mappings"] = json!([{
            "host_ip": rng.pick(&["", "0.0.0.0", "192.0.2.10"]), "host_port": 8000 + n, "container_port": 80,
            "range": 1 + rng.below(3), "protocol": rng.pick(&["tcp", "udp"]),
        }]);
        document["port_mappings"][0]["host_port"] = json!(8000 + 10 * n);
    }
    if chance(rng, 30) {
        document["dns_servers"] = json!(["192.0.2.99", "2001:db8::99"]);
    }
    if chance(rng, 50) {
        document["container_hostname"] = json!(format!("host-of-{n}"));
    }
    document
}
