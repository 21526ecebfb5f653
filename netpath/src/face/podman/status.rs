//! What setup answers: one block for each network.

use crate::model::{Links, Record};
use serde_json::{Map, Value, json};
use std::net::IpAddr;

/// Everything but what the kernel has yet to choose.
pub struct Status {
    blocks: Vec<Block>,
}

struct Block {
    network: String,
    interface: String,
    dns_server_ips: Vec<IpAddr>,
    dns_search_domains: Vec<&'static str>,
    subnets: Vec<Value>,
}

impl Status {
    /// `dns_servers`: what containers on networks without DNS are to ask.
    pub fn of(records: &[Record], dns_servers: &[IpAddr]) -> Self {
        Self { blocks: records.iter().map(|r| Block::of(r, dns_servers)).collect() }
    }

    /// One line. `links` are in the order of the records.
    pub fn with(self, links: &[Links]) -> Value {
        let mut status = Map::new();
        for (block, links) in self.blocks.into_iter().zip(links) {
            let interface = json!({ "mac_address": links.container_mac().to_string(), "subnets": block.subnets });
            let answer = json!({
                "dns_search_domains": block.dns_search_domains,
                "dns_server_ips": block.dns_server_ips,
                "interfaces": { block.interface: interface },
            });
            status.insert(block.network, answer);
        }
        Value::Object(status)
    }
}

impl Block {
    fn of(record: &Record, dns_servers: &[IpAddr]) -> Self {
        let (network, endpoint) = (&record.network, &record.endpoint);
        let subnets = endpoint.addresses.iter().map(|address| {
            let subnet = network.subnets.iter().find(|s| s.net.contains(&address.addr()));
            json!({ "ipnet": address, "gateway": subnet.and_then(|s| s.gateway) })
        });
        Self {
            network: network.name.clone(),
            interface: endpoint.interface.to_string(),
            dns_server_ips: if network.dns {
                network.gateways().map(|(gateway, _)| gateway).collect()
            } else {
                dns_servers.to_vec()
            },
            dns_search_domains: if network.dns { vec!["dns.podman"] } else { Vec::new() },
            subnets: subnets.collect(),
        }
    }
}
