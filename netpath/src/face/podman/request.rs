//! The request of setup and teardown → the endpoints to attach or detach.

use super::json_reader::{Mistakes, Node, Required, cut, entries, items};
use super::network;
use super::options::Allow;
use super::wire::{self, Networks, PerNetworkOptions, PortMapping, Request};
use crate::model::publish::HostBind;
use crate::model::{Attachment, Container, Endpoint, IfName, Isolation, Mac, Network, Proto, Publish};
use crate::ops::{EndpointRequest, Leaving};
use crate::plan::build::default_routes;
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(super) struct Attach {
    pub container: Container,
    pub endpoints: Vec<EndpointRequest>,
    /// Upstream DNS servers of this container.
    pub dns_servers: Vec<IpAddr>,
}

pub(super) struct Detach {
    pub container: Container,
    pub leaving: Vec<Leaving>,
    pub endpoints: Vec<EndpointRequest>,
}

/// Checks the whole document and reports all mistakes together.
///
/// # Errors
/// All mistakes in one text, each with the path of its field.
pub(super) fn attach(text: &str) -> Result<Attach, String> {
    let document = parse(text)?;
    let mistakes = Mistakes::default();
    let attach = Node::root(&document, &mistakes).get().and_then(|request| read(&request));
    match attach {
        Some(attach) if mistakes.is_empty() => Ok(attach),
        _ => Err(mistakes.report()),
    }
}

/// Tolerates mistakes: a container must be removed even if its request would no longer be accepted by setup.
///
/// # Errors
/// The container or the names of its networks are missing.
pub(super) fn detach(text: &str) -> Result<Detach, String> {
    let document = parse(text)?;
    let mistakes = Mistakes::default();
    let request = Node::root(&document, &mistakes).get();
    let container = request.as_ref().and_then(container);
    let networks = request.as_ref().and_then(Node::networks).map(|n| named(&n)).unwrap_or_default();
    let (Some(container), true) = (container, mistakes.is_empty()) else { return Err(mistakes.report()) };
    // Later mistakes are ignored.
    let infos = request.and_then(|r| r.network_info());
    let leaving = networks.into_iter().map(|(network, options)| {
        let info = infos.as_ref().and_then(|i| i.find(&network)?.get());
        Leaving {
            network,
            interface: options.get().and_then(|o| o.interface_name()?.checked::<IfName>()),
            attachment: info.and_then(|i| attachment(&i)),
        }
    });
    let leaving = leaving.collect();
    let endpoints = attach(text).map(|a| a.endpoints).unwrap_or_default();
    Ok(Detach { container, leaving, endpoints })
}

/// The attachment that setup makes for an endpoint of this network.
fn attachment(info: &Node<'_, wire::Network>) -> Option<Attachment> {
    let mode = info.options().and_then(|o| o.find("mode")?.get()).map(|m| m.text());
    match info.driver()?.text() {
        "bridge" if matches!(mode, None | Some("managed")) => {
            info.network_interface()?.checked().map(Attachment::Bridge)
        }
        "macvlan" => Some(Attachment::Macvlan(network::macvlan(info))),
        _ => None,
    }
}

fn parse(text: &str) -> Result<Required<Request>, String> {
    // Through a `Value`, in which the last of duplicate fields wins, as in Go.
    let value: Value = serde_json::from_str(text).map_err(|e| format!("it is not JSON: {e}"))?;
    Required::deserialize(value).map_err(|e| format!("it is not a request: {e}"))
}

fn read(request: &Node<'_, Request>) -> Option<Attach> {
    let container = container(request);
    let networks = request.networks();
    // A list means contract 2.0, whose default isolation is strict.
    let list = networks.as_ref().is_some_and(|n| matches!(n.value, Networks::List(_)));
    let isolation = if list { Isolation::Strict } else { Isolation::Open };
    let dns_servers: Vec<IpAddr> = items(request.dns_servers()).filter_map(|n| n.parsed("an IP address")).collect();
    let publishes: Vec<Publish> = items(request.port_mappings()).filter_map(|n| publish(&n)).collect();
    let infos = request.network_info();
    let mut requests: Vec<EndpointRequest> = Vec::new();
    for (name, node) in networks.map(|n| named(&n)).unwrap_or_default() {
        let info = infos.as_ref().and_then(|i| i.find(&name));
        if infos.is_some() && info.is_none() {
            node.wrong(format!("network_info has no network {:?}", cut(&name)));
        }
        let described = info.and_then(|i| network::read(&i.get()?, &name, isolation));
        let Some(node) = node.get() else { continue };
        let endpoint = endpoint(&node, described.as_ref().map(|d| &d.network), &dns_servers);
        let own = Allow::of_endpoint(&node, &publishes);
        let (Some(described), Some(endpoint)) = (described, endpoint) else { continue };
        let (network, allow) = (described.network, described.allow.overridden_by(own));
        check_gateways_on_link(&node, &network, &endpoint);
        for other in &requests {
            if other.network.name == network.name {
                node.wrong(format!("network {name:?} is named twice"));
            } else if network.bridge().is_some() && other.network.bridge() == network.bridge() {
                node.wrong(format!("networks {:?} and {name:?} have the same bridge", other.network.name));
            }
            if other.endpoint.interface == endpoint.interface {
                node.wrong(format!("interface_name {} is given twice", endpoint.interface));
            }
            if endpoint.host_interface.is_some() && other.endpoint.host_interface == endpoint.host_interface {
                node.wrong("host_interface_name is given twice");
            }
        }
        let publishes = allow.publishes(&publishes);
        requests.push(EndpointRequest { network, endpoint, publishes, allow: allow.all.unwrap_or_default() });
    }
    Some(Attach { container: container?, endpoints: requests, dns_servers })
}

fn container(request: &Node<'_, Request>) -> Option<Container> {
    let id = request.container_id().and_then(|n| n.non_empty());
    let name = request.container_name().map(|n| n.text());
    Some(Container { id: id?.to_owned(), name: name?.to_owned() })
}

/// The networks of a list or map with their names, in the order of the document.
fn named<'a>(networks: &Node<'a, Networks>) -> Vec<(String, Node<'a, Required<PerNetworkOptions>>)> {
    match networks.value {
        Networks::List(list) => {
            let name = |n: &Node<'a, Required<PerNetworkOptions>>| n.clone().get()?.name()?.non_empty();
            networks.with(list).fields().filter_map(|n| Some((name(&n)?.to_owned(), n))).collect()
        }
        Networks::Map(map) => {
            let (unnamed, named): (Vec<_>, Vec<_>) = entries(Some(networks.with(map))).partition(|(k, _)| k.is_empty());
            unnamed.iter().for_each(|(_, n)| n.wrong("the name of a network is empty"));
            named.into_iter().map(|(name, n)| (name.to_owned(), n)).collect()
        }
    }
}

fn endpoint(node: &Node<'_, PerNetworkOptions>, network: Option<&Network>, dns_servers: &[IpAddr]) -> Option<Endpoint> {
    let interface = node.interface_name().and_then(|n| {
        let name = n.checked::<IfName>()?;
        if matches!(name.as_str(), "lo" | "all" | "default") {
            n.wrong(format!("{:?} is reserved by the kernel", name.as_str()));
            return None;
        }
        Some(name)
    });
    let is_set = |n: &Node<'_, String>| !n.value.is_empty();
    let mac = node.static_mac().filter(is_set).and_then(|n| n.checked::<Mac>());
    let aliases = items(node.aliases()).map(|n| n.value.clone()).collect();
    let host_interface = node.options().and_then(|o| o.find("host_interface_name")?.get());
    let host_interface = host_interface.filter(is_set).and_then(|n| n.checked::<IfName>());
    let ips = node.static_ips();
    if ips.as_ref().is_none_or(|l| l.value.is_empty()) {
        node.wrong("no static ips provided in static_ips");
    }
    let mut addresses: Vec<IpNet> = Vec::new();
    for field in items(ips) {
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

/// The kernel rejects a route whose gateway is in no subnet of the interface's addresses.
fn check_gateways_on_link(node: &Node<'_, PerNetworkOptions>, network: &Network, endpoint: &Endpoint) {
    let routes = default_routes(network).into_iter().chain(network.routes.iter().cloned());
    for route in routes {
        let Some(gateway) = route.gateway else { continue };
        // Missing addresses are reported separately.
        if !endpoint.addresses.is_empty() && !endpoint.addresses.iter().any(|a| a.contains(&gateway)) {
            node.wrong(format!("static_ips has no address in the subnet of {gateway}, the gateway of route {route}"));
        }
    }
}

fn publish(node: &Node<'_, PortMapping>) -> Option<Publish> {
    let bind = node.host_ip().and_then(|n| match n.text() {
        "" => Some(HostBind::Any),
        _ => Some(match n.parsed::<IpAddr>("an IP address")?.to_canonical() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => HostBind::AnyV4,
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => HostBind::AnyV6,
            address => HostBind::Address(address),
        }),
    });
    let proto = node.protocol().and_then(|n| n.checked::<Proto>());
    let (host_port, container_port, range) = (node.host_port(), node.container_port(), node.range());
    Publish::new(bind?, proto?, *host_port?.value, *container_port?.value, *range?.value)
        .map_err(|e| match e.split_once(": ") {
            Some((field, why)) => node.below(field, node.value).wrong(why),
            None => node.wrong(e),
        })
        .ok()
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
