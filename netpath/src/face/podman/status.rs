//! The output of `setup`: one block for each network.

use super::wire::{self, NetAddress, NetInterface, StatusBlock};
use crate::model::Attachment;
use crate::model::error::{Context, Result};
use crate::ops::{Attached, Made};
use std::net::IpAddr;

/// One line of JSON. `dns_servers`: the servers for containers on networks without DNS.
///
/// # Errors
/// The status cannot be serialised.
pub(super) fn of(attached: &[Attached], dns_servers: &[IpAddr]) -> Result<String> {
    let blocks = attached.iter().map(|a| Ok((a.network.name.clone(), block(a, dns_servers)?)));
    let status = blocks.collect::<Result<wire::Status>>()?;
    let line = serde_json::to_string(&status).context(|| "cannot write the answer of setup".into())?;
    Ok(line + "\n")
}

fn block(attached: &Attached, dns_servers: &[IpAddr]) -> Result<StatusBlock> {
    let Attached { network, endpoint, result, lease } = attached;
    let mac = match result {
        Made::Interface(mac) => mac,
        Made::Plugin(status) => {
            let what = || format!("cannot read the answer of the plugin of network {}", network.name);
            return serde_json::from_str(status).context(what);
        }
    };
    let subnets = endpoint.addresses.iter().map(|address| {
        let subnet = network.subnets.iter().find(|s| s.net.contains(&address.addr()));
        let is_same_family = |g: &IpAddr| g.is_ipv4() == address.addr().is_ipv4();
        let leased = || lease.as_ref().and_then(|l| l.gateway).filter(is_same_family);
        let gateway = subnet.map_or_else(leased, |s| s.gateway);
        NetAddress { ipnet: *address, gateway, ..NetAddress::default() }
    });
    let mac_address = mac.to_string();
    let interface = NetInterface { mac_address, subnets: Some(subnets.collect()), ..NetInterface::default() };
    let servers = match &network.attachment {
        _ if network.dns => network.dns_addresses(),
        // Those of `--dns` take precedence.
        _ if dns_servers.is_empty() && lease.is_some() => {
            lease.as_ref().map_or_else(Vec::new, |l| l.dns_servers.clone())
        }
        Attachment::Bridge(_) | Attachment::Unmanaged(_) => dns_servers.to_vec(),
        // As in netavark.
        Attachment::Macvlan(_) | Attachment::Ipvlan(_) | Attachment::Plugin(_) => Vec::new(),
    };
    let domain = if network.dns { Some("dns.podman".to_owned()) } else { None };
    // As in netavark, which replaces its own.
    let domains: Vec<String> = lease.as_ref().and_then(|l| l.domain.clone()).or(domain).into_iter().collect();
    Ok(StatusBlock {
        dns_search_domains: Some(domains),
        dns_server_ips: Some(servers),
        interfaces: Some([(endpoint.interface.to_string(), interface)].into()),
        ..StatusBlock::default()
    })
}
