//! The document of setup and teardown → what is to be attached or detached.

use super::network;
use super::own::Allow;
use super::read::{Mistakes, Node, cut};
use crate::model::publish::HostBind;
use crate::model::{Attachment, Container, Endpoint, IfName, Isolation, Mac, Network, Proto, Publish};
use crate::ops::{EndpointRequest, Leaving};
use crate::plan::build::default_routes;
use ipnet::IpNet;
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub struct Attach {
    pub container: Container,
    pub endpoints: Vec<EndpointRequest>,
    /// Upstream servers that the engine wants for this container.
    pub dns_servers: Vec<IpAddr>,
}

pub struct Detach {
    pub container: Container,
    pub leaving: Vec<Leaving>,
    pub endpoints: Vec<EndpointRequest>,
}

/// Everything is looked at before the first mistake is told.
///
/// # Errors
/// All mistakes in one text, each with the path of its field.
pub fn attach(text: &str) -> Result<Attach, String> {
    let value = parse(text)?;
    let mistakes = Mistakes::default();
    let attach = read(&Node::root(&value, &mistakes));
    match attach {
        Some(attach) if mistakes.is_empty() => Ok(attach),
        _ => Err(mistakes.told()),
    }
}

/// Takes what it can: a container has to go even if its description can no longer be attached.
///
/// # Errors
/// The container or the networks are not named.
pub fn detach(text: &str) -> Result<Detach, String> {
    let value = parse(text)?;
    let mistakes = Mistakes::default();
    let root = Node::root(&value, &mistakes);
    let container = container(&root);
    let networks = root.req("networks").map(|n| named(&n)).unwrap_or_default();
    let (Some(container), true) = (container, mistakes.is_empty()) else { return Err(mistakes.told()) };
    // From here on mistakes are no matter.
    let infos = root.opt("network_info");
    let leaving = networks
        .iter()
        .map(|(name, node)| {
            let info = infos.as_ref().and_then(|i| i.opt(name));
            Leaving {
                network: name.clone(),
                interface: node.opt("interface_name").and_then(|n| n.checked::<IfName>()),
                attachment: info.and_then(|i| attachment(&i)),
            }
        })
        .collect();
    let endpoints = attach(text).map(|a| a.endpoints).unwrap_or_default();
    Ok(Detach { container, leaving, endpoints })
}

fn is_managed_bridge(info: &Node<'_>) -> bool {
    let mode = info.opt("options").and_then(|o| o.opt("mode")).and_then(|m| m.text());
    matches!(mode, None | Some("managed"))
}

/// How netpath would have attached an endpoint of this network.
fn attachment(info: &Node<'_>) -> Option<Attachment> {
    match info.opt("driver")?.text()? {
        "bridge" if is_managed_bridge(info) => info.opt("network_interface")?.checked().map(Attachment::Bridge),
        "macvlan" => Some(Attachment::Macvlan(network::macvlan(info))),
        _ => None,
    }
}

fn parse(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|e| format!("it is not JSON: {e}"))
}

fn read(root: &Node<'_>) -> Option<Attach> {
    let container = container(root);
    let networks = root.req("networks");
    // The defaults differ between the two generations of the contract, as do the shapes.
    let isolation = if networks.as_ref().is_some_and(Node::is_array) { Isolation::Strict } else { Isolation::Open };
    let dns_servers: Vec<IpAddr> = root.list("dns_servers").iter().filter_map(|n| n.parsed("an IP address")).collect();
    let publishes: Vec<Publish> = root.list("port_mappings").iter().filter_map(publish).collect();
    let infos = root.req("network_info");
    let mut requests: Vec<EndpointRequest> = Vec::new();
    for (name, node) in networks.map(|n| named(&n)).unwrap_or_default() {
        let infos = infos.as_ref().filter(|i| i.is_object());
        let info = infos.and_then(|i| i.opt(&name));
        if infos.is_some() && info.is_none() {
            node.wrong(format!("network_info has no network {:?}", cut(&name)));
        }
        let described = info.and_then(|i| network::read(&i, &name, isolation));
        let endpoint = endpoint(&node, described.as_ref().map(|d| &d.network), &dns_servers);
        let own = Allow::of_endpoint(&node, &publishes);
        let (Some(described), Some(endpoint)) = (described, endpoint) else { continue };
        let (network, allow) = (described.network, described.allow.overridden_by(own));
        routes_begin_somewhere(&node, &network, &endpoint);
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

fn container(root: &Node<'_>) -> Option<Container> {
    let id = root.req("container_id").and_then(|n| network::non_empty(&n));
    let name = root.req("container_name").and_then(|n| n.text());
    Some(Container { id: id?.to_owned(), name: name?.to_owned() })
}

/// The networks with their names, in the order of the document: a list (Podman 6) or a map by name (before).
fn named<'a>(networks: &Node<'a>) -> Vec<(String, Node<'a>)> {
    if networks.is_array() {
        let name = |n: &Node<'a>| n.req("name").and_then(|f| network::non_empty(&f)).map(str::to_owned);
        return networks.items().into_iter().filter_map(|n| Some((name(&n)?, n))).collect();
    }
    let entries = networks.entries();
    entries
        .into_iter()
        .filter_map(|(name, node)| {
            if name.is_empty() {
                node.wrong("the name of a network is empty");
                return None;
            }
            Some((name.to_owned(), node))
        })
        .collect()
}

fn endpoint(node: &Node<'_>, network: Option<&Network>, dns_servers: &[IpAddr]) -> Option<Endpoint> {
    let interface = node.req("interface_name").and_then(|n| {
        let name = n.checked::<IfName>()?;
        if matches!(name.as_str(), "lo" | "all" | "default") {
            n.wrong(format!("{:?} is a name that every namespace has already", name.as_str()));
            return None;
        }
        Some(name)
    });
    let given = |n: &Node<'_>| n.text().is_none_or(|t| !t.is_empty());
    let mac = node.opt("static_mac").filter(given).and_then(|n| n.checked::<Mac>());
    let aliases = node.list("aliases").iter().filter_map(|n| n.text().map(str::to_owned)).collect();
    let host_interface = node
        .opt("options")
        .and_then(|o| o.opt("host_interface_name"))
        .filter(given)
        .and_then(|n| n.checked::<IfName>());
    let ips = node.list("static_ips");
    if ips.is_empty() {
        node.wrong("no static ips provided in static_ips");
    }
    let mut addresses: Vec<IpNet> = Vec::new();
    for field in &ips {
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

/// The kernel takes no route whose gateway is not beside an address of the container.
fn routes_begin_somewhere(node: &Node<'_>, network: &Network, endpoint: &Endpoint) {
    let routes = default_routes(network).into_iter().chain(network.routes.iter().cloned());
    for route in routes {
        let Some(gateway) = route.gateway else { continue };
        // That there is no address at all has been told.
        if !endpoint.addresses.is_empty() && !endpoint.addresses.iter().any(|a| a.contains(&gateway)) {
            node.wrong(format!("static_ips has no address in the subnet of {gateway}, through which leads {route}"));
        }
    }
}

fn publish(node: &Node<'_>) -> Option<Publish> {
    let bind = node.req("host_ip").and_then(|n| match n.text()? {
        "" => Some(HostBind::Any),
        _ => Some(match n.parsed::<IpAddr>("an IP address")?.to_canonical() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => HostBind::AnyV4,
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => HostBind::AnyV6,
            address => HostBind::Address(address),
        }),
    });
    let proto = node.req("protocol").and_then(|n| n.text()?.parse::<Proto>().map_err(|e| n.wrong(e)).ok());
    let port = |key| node.req(key).and_then(|n| n.number(u16::MAX));
    let (host_port, container_port, range) = (port("host_port"), port("container_port"), port("range"));
    Publish::new(bind?, proto?, host_port?, container_port?, range?)
        .map_err(|e| match e.split_once(": ") {
            Some((field @ ("host_port" | "container_port" | "range"), why)) => {
                if let Some(n) = node.req(field) {
                    n.wrong(why);
                }
            }
            _ => node.wrong(e),
        })
        .ok()
}

#[cfg(test)]
#[path = "document_tests.rs"]
mod tests;
