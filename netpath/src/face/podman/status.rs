//! What setup answers: one block for each network.

use crate::model::Attachment;
use crate::ops::Attached;
use serde_json::{Map, Value, json};
use std::net::IpAddr;

/// `dns_servers`: what containers on networks without DNS are to ask.
pub fn of(attached: &[Attached], dns_servers: &[IpAddr]) -> Value {
    Value::Object(attached.iter().map(|a| (a.network.name.clone(), block(a, dns_servers))).collect::<Map<_, _>>())
}

fn block(attached: &Attached, dns_servers: &[IpAddr]) -> Value {
    let Attached { network, endpoint, mac } = attached;
    let subnets = endpoint.addresses.iter().map(|address| {
        let subnet = network.subnets.iter().find(|s| s.net.contains(&address.addr()));
        json!({ "ipnet": address, "gateway": subnet.and_then(|s| s.gateway) })
    });
    let servers: Vec<IpAddr> = match &network.attachment {
        _ if network.dns => network.gateways().map(|(gateway, _)| gateway).collect(),
        Attachment::Bridge(_) => dns_servers.to_vec(),
        // As Netavark.
        Attachment::Macvlan(_) => Vec::new(),
    };
    let mut interfaces = Map::new();
    let interface = json!({ "mac_address": mac.to_string(), "subnets": subnets.collect::<Vec<_>>() });
    interfaces.insert(endpoint.interface.to_string(), interface);
    json!({
        "dns_search_domains": if network.dns { vec!["dns.podman"] } else { Vec::new() },
        "dns_server_ips": servers,
        "interfaces": interfaces,
    })
}
