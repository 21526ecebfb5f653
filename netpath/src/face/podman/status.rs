//! What setup answers: one block for each network.

use super::wire::{self, NetAddress, NetInterface, StatusBlock};
use crate::model::error::{Context, Result};
use crate::model::{Links, Record};
use std::net::IpAddr;

/// Everything but what the kernel has yet to choose.
pub struct Status(wire::Status);

impl Status {
    /// `dns_servers`: what containers on networks without DNS are to ask.
    pub fn of(records: &[Record], dns_servers: &[IpAddr]) -> Self {
        Self(records.iter().map(|r| (r.network.name.clone(), block(r, dns_servers))).collect())
    }

    /// One line. `links` are in the order of the records.
    ///
    /// # Errors
    /// It cannot be serialised.
    pub fn with(mut self, links: &[Links]) -> Result<String> {
        for (block, links) in self.0.values_mut().zip(links) {
            for interface in block.interfaces.iter_mut().flat_map(|i| i.values_mut()) {
                interface.mac_address = links.container_mac.to_string();
            }
        }
        let line = serde_json::to_string(&self.0).context(|| "cannot write the answer of setup".into())?;
        Ok(line + "\n")
    }
}

fn block(record: &Record, dns_servers: &[IpAddr]) -> StatusBlock {
    let (network, endpoint) = (&record.network, &record.endpoint);
    let subnets = endpoint.addresses.iter().map(|address| {
        let subnet = network.subnets.iter().find(|s| s.net.contains(&address.addr()));
        NetAddress { ipnet: *address, gateway: subnet.and_then(|s| s.gateway), ..NetAddress::default() }
    });
    let interface = NetInterface { subnets: Some(subnets.collect()), ..NetInterface::default() };
    let (servers, domains) = if network.dns {
        (network.gateways().map(|(gateway, _)| gateway).collect(), vec!["dns.podman".to_owned()])
    } else {
        (dns_servers.to_vec(), Vec::new())
    };
    StatusBlock {
        dns_search_domains: Some(domains),
        dns_server_ips: Some(servers),
        interfaces: Some([(endpoint.interface.to_string(), interface)].into()),
        ..StatusBlock::default()
    }
}
