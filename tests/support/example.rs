//! The worked example of the backend contract: two networks, three published ports, static addresses and a route.

use crate::netavark::Shape;
use serde_json::{Value, json};

/// For container `id`. 192.0.2.10 is the topology's second host address.
pub fn worked_example(shape: Shape, id: &str) -> Value {
    let front = json!({
        "interface_name": "eth0", "static_ips": ["10.89.7.5", "fd41:7::5"], "static_mac": "0a:11:22:33:44:55",
        "aliases": ["5d2f0c1b7a9e", "www"], "options": {"host_interface_name": "vshop"},
    });
    let back = json!({"interface_name": "eth1", "static_ips": ["10.89.8.5"]});
    let networks = match shape {
        Shape::Map => json!({"front": front, "back": back}),
        Shape::Array => {
            let mut both = [front, back];
            both[0]["name"] = "front".into();
            both[1]["name"] = "back".into();
            json!(both)
        }
    };
    json!({
        "container_id": id,
        "container_name": "shop",
        "container_hostname": "shop01",
        "dns_servers": ["9.9.9.9"],
        "port_mappings": [
            {"host_ip": "", "host_port": 8080, "container_port": 80, "range": 1, "protocol": "tcp"},
            {"host_ip": "192.0.2.10", "host_port": 15000, "container_port": 5000, "range": 3, "protocol": "udp"},
            {"host_ip": "::", "host_port": 8443, "container_port": 443, "range": 1, "protocol": "tcp"},
        ],
        "networks": networks,
        "network_info": {
            "front": {
                "name": "front", "id": "a000000000000000000000000000000000000000000000000000000000000001",
                "driver": "bridge", "network_interface": "podman7", "created": "2026-07-01T10:00:00Z",
                "subnets": [{"subnet": "10.89.7.0/24", "gateway": "10.89.7.1"},
                            {"subnet": "fd41:7::/64", "gateway": "fd41:7::1"}],
                "routes": [{"destination": "172.20.0.0/16", "gateway": "10.89.7.254", "metric": 50}],
                "ipv6_enabled": true, "internal": false, "dns_enabled": true,
                "options": {"mtu": "1400", "isolate": "true"}, "ipam_options": {"driver": "host-local"},
            },
            "back": {
                "name": "back", "id": "a000000000000000000000000000000000000000000000000000000000000002",
                "driver": "bridge", "network_interface": "podman8",
                "subnets": [{"subnet": "10.89.8.0/24", "gateway": "10.89.8.1"}],
                "ipv6_enabled": false, "internal": true, "dns_enabled": false,
                "ipam_options": {"driver": "host-local"},
            },
        },
    })
}
