//! The request of setup and teardown → the endpoints to attach or detach.

use super::json_reader::{Mistakes, Node, Required, cut, entries, items};
use super::network;
use super::options::Allow;
use super::plugin::{self, Plugins};
use super::wire::{Networks, PerNetworkOptions, PortMapping, Request};
use crate::model::network::Subnet;
use crate::model::publish::HostBind;
use crate::model::{Container, Endpoint, IfName, Isolation, Mac, Network, Proto, Publish};
use crate::ops::{EndpointRequest, Leaving};
use crate::plan::build::default_routes;
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;
use std::ffi::OsString;
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
pub(super) fn attach(text: &str, plugin_dirs: &[OsString]) -> Result<Attach, String> {
    let document = parse(text)?;
    let mistakes = Mistakes::default();
    let attach = Node::root(&document, &mistakes).get().and_then(|request| read(&request, plugin_dirs));
    match attach {
        Some(attach) if mistakes.is_empty() => Ok(attach),
        _ => Err(mistakes.report()),
    }
}

/// Tolerates mistakes: a container must be removed even if its request would no longer be accepted by setup.
///
/// # Errors
/// The container or the names of its networks are missing.
pub(super) fn detach(text: &str, plugin_dirs: &[OsString]) -> Result<Detach, String> {
    let document = parse(text)?;
    let mistakes = Mistakes::default();
    let request = Node::root(&document, &mistakes).get();
    let container = request.as_ref().and_then(container);
    let networks = request.as_ref().and_then(Node::networks).map(|n| named(&n)).unwrap_or_default();
    let (Some(container), true) = (container, mistakes.is_empty()) else { return Err(mistakes.report()) };
    // Later mistakes are ignored.
    let plugins = request.as_ref().map(|r| Plugins::new(plugin_dirs, r.value));
    let infos = request.as_ref().and_then(Node::network_info);
    let leaving = networks.into_iter().map(|(key, options)| {
        let info = infos.as_ref().and_then(|i| i.find(&key)?.get());
        Leaving {
            network: network::name(info.as_ref(), &key).to_owned(),
            attachment: info.and_then(|i| {
                let plugin = plugins.as_ref().and_then(|p| p.attachment(&i, options.value));
                plugin.or_else(|| network::attachment(&i))
            }),
            interface: options.get().and_then(|o| o.interface_name()?.checked::<IfName>()),
        }
    });
    let leaving = leaving.collect();
    let endpoints = attach(text, plugin_dirs).map(|a| a.endpoints).unwrap_or_default();
    Ok(Detach { container, leaving, endpoints })
}

fn parse(text: &str) -> Result<Required<Request>, String> {
    // Through a `Value`, in which the last of duplicate fields wins, as in Go.
    let value: Value = serde_json::from_str(text).map_err(|e| format!("it is not JSON: {e}"))?;
    Required::deserialize(value).map_err(|e| format!("it is not a request: {e}"))
}

fn read(request: &Node<'_, Request>, plugin_dirs: &[OsString]) -> Option<Attach> {
    let plugins = Plugins::new(plugin_dirs, request.value);
    let container = container(request);
    let networks = request.networks();
    // A list means contract 2.0, whose default isolation is strict.
    let list = networks.as_ref().is_some_and(|n| matches!(n.value, Networks::List(_)));
    let isolation = if list { Isolation::Strict } else { Isolation::Open };
    let dns_servers: Vec<IpAddr> = items(request.dns_servers()).filter_map(|n| n.parsed("an IP address")).collect();
    let publishes: Vec<Publish> = items(request.port_mappings()).filter_map(|n| publish(&n)).collect();
    let host_name = request.container_hostname().map_or("", |n| n.text());
    let infos = request.network_info();
    let mut requests: Vec<EndpointRequest> = Vec::new();
    for (key, node) in networks.map(|n| named(&n)).unwrap_or_default() {
        let info = infos.as_ref().and_then(|i| i.find(&key));
        if infos.is_some() && info.is_none() {
            let key = cut(&key);
            node.wrong(format!("network info for network {key} not found: network_info has no such key"));
        }
        let info = info.and_then(Node::get);
        let name = network::name(info.as_ref(), &key);
        let plugin = info.as_ref().and_then(|i| plugins.attachment(i, node.value));
        let has_addresses = plugin.is_none() && info.as_ref().is_none_or(network::has_addresses);
        let described = info.as_ref().and_then(|i| match plugin {
            Some(plugin) => {
                let network = plugin::network(i, name, plugin)?;
                Some(network::Described { network, allow: Allow::default() })
            }
            None => network::read(i, name, isolation),
        });
        let Some(node) = node.get() else { continue };
        let endpoint = endpoint(&node, described.as_ref().map(|d| &d.network), has_addresses, &dns_servers);
        let endpoint = endpoint.map(|e| Endpoint { host_name: host_name.to_owned(), ..e });
        let own = Allow::of_endpoint(&node, &publishes);
        let (Some(described), Some(endpoint)) = (described, endpoint) else { continue };
        let (network, allow) = (described.network, described.allow.overridden_by(own));
        check_default_gateways(&node, &network, &endpoint, &requests);
        for other in &requests {
            if other.network.name == network.name {
                node.wrong(format!("network {name:?} is named twice"));
            } else if network.bridge().is_some() && other.network.bridge() == network.bridge() {
                tracing::warn!("networks {:?} and {name:?} have the same bridge", other.network.name);
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

/// `network`: `None` if it has mistakes. `has_addresses`: `static_ips` is read.
fn endpoint(
    node: &Node<'_, PerNetworkOptions>,
    network: Option<&Network>,
    has_addresses: bool,
    dns_servers: &[IpAddr],
) -> Option<Endpoint> {
    let interface = node.interface_name().and_then(|n| {
        if n.text().is_empty() {
            n.wrong("no container interface name given");
            return None;
        }
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
    let addresses = if has_addresses { addresses(node, network) } else { Vec::new() };
    let (interface, dns_servers, host_name) = (interface?, dns_servers.to_vec(), String::new());
    Some(Endpoint { interface, host_interface, addresses, mac, aliases, dns_servers, host_name })
}

/// In the order of their subnets, as netavark assigns them: the first one of a family receives published ports.
fn addresses(node: &Node<'_, PerNetworkOptions>, network: Option<&Network>) -> Vec<IpNet> {
    let list = node.static_ips();
    if list.is_none() && !node.value.static_ips.is_given() {
        node.wrong("no static ips provided in static_ips");
    }
    let ips: Vec<_> = items(list).filter_map(|n| Some((n.parsed::<IpAddr>("an IP address")?, n))).collect();
    let Some(network) = network else { return Vec::new() };
    if network.subnets.is_empty() && !ips.is_empty() {
        tracing::warn!("network {:?} has no subnets; the container gets no addresses on it", network.name);
        return Vec::new();
    }
    let subnet = |ip: &IpAddr| network.subnets.iter().position(|s| s.net.contains(ip));
    let (expected, got) = (ips.len(), ips.iter().filter(|(ip, _)| subnet(ip).is_some()).count());
    let mut addresses: Vec<(usize, IpNet)> = Vec::new();
    for (ip, field) in ips {
        let Some(at) = subnet(&ip) else {
            let name = &network.name;
            field.wrong(format!(
                "not all static IPs matched a subnet: expected {expected}, got {got}: {ip} is in none of network {name:?}"
            ));
            continue;
        };
        let Subnet { net, gateway } = &network.subnets[at];
        if *gateway == Some(ip) {
            tracing::warn!("{ip} is the gateway of network {:?} and an address of the container", network.name);
        }
        if addresses.iter().any(|(_, a)| a.addr() == ip) {
            field.wrong(format!("{ip} is given twice"));
        }
        addresses.extend(IpNet::new(ip, net.prefix_len()).map(|address| (at, address)));
    }
    addresses.sort_by_key(|(at, _)| *at);
    addresses.into_iter().map(|(_, address)| address).collect()
}

/// The kernel rejects a route whose gateway is in no subnet of the container's addresses: those before, and those of this network.
fn check_default_gateways(
    node: &Node<'_, PerNetworkOptions>,
    network: &Network,
    endpoint: &Endpoint,
    before: &[EndpointRequest],
) {
    let addresses = || before.iter().map(|r| &r.endpoint).chain([endpoint]).flat_map(|e| &e.addresses);
    for route in default_routes(network) {
        if route.gateway.is_some_and(|g| !addresses().any(|a| a.contains(&g))) {
            node.wrong(format!("static_ips has no address in the subnet of the gateway of route {route}"));
        }
    }
}

fn publish(node: &Node<'_, PortMapping>) -> Option<Publish> {
    let host_port = node.host_port();
    let bind = node.host_ip().and_then(|n| match (n.text(), n.text().parse::<IpAddr>()) {
        ("", _) => Some(HostBind::Any),
        (_, Ok(address)) => Some(match address.to_canonical() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => HostBind::AnyV4,
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => HostBind::AnyV6,
            address => HostBind::Address(address),
        }),
        (text, Err(_)) => {
            let port = host_port.as_ref().map_or(0, |p| *p.value);
            n.wrong(format!("invalid host ip {:?} provided for port {port}", cut(text)));
            None
        }
    });
    let proto = node.protocol().and_then(|n| n.checked::<Proto>());
    let (container_port, range) = (node.container_port(), node.range());
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
