//! One entry of `network_info` → a network.

use super::json_reader::{Node, entries, items};
use super::options::{Allow, Options, is_netpaths};
use super::wire;
use crate::model::attachment::Macvlan;
use crate::model::network::{Route, RouteKind, Subnet};
use crate::model::{Attachment, IfName, Isolation, Mtu, Network};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Default metric of default and static routes.
const METRIC: u32 = 100;
/// Default metric of default routes through a macvlan, which precede those through a bridge.
const MACVLAN_METRIC: u32 = 99;

/// A network, and the allow lists of its containers' published ports.
pub(super) struct Described {
    pub network: Network,
    pub allow: Allow,
}

/// Records every mistake; `None` if the entry gives no network.
///
/// `isolation`: the default.
pub(super) fn read(node: &Node<'_, wire::Network>, name: &str, isolation: Isolation) -> Option<Described> {
    if let Some(own) = node.name()
        && own.text() != name
    {
        own.wrong(format!("expected {name:?}, the key of its network, found {:?}", own.text()));
    }
    let id = node.id().and_then(|n| n.non_empty());
    let driver = node.driver();
    let is_macvlan = match driver.as_ref().map(Node::text) {
        Some("macvlan") => true,
        None | Some("bridge") => false,
        Some(other) => {
            if let Some(driver) = &driver {
                driver.wrong(format!("driver {other:?} is not supported; this version has bridge and macvlan"));
            }
            // The other fields have another meaning with that driver.
            return None;
        }
    };
    let dns = node.dns_enabled();
    let internal = node.internal();
    let _ = node.ipv6_enabled();
    if let Some(driver) = node.ipam_options().and_then(|o| o.find("driver")?.get())
        && !matches!(driver.text(), "" | "host-local")
    {
        driver.wrong(format!("{:?} is not supported; this version has host-local", driver.text()));
    }
    let subnets: Vec<Subnet> = subnets(node);
    let v6 = subnets.iter().any(|s| s.net.addr().is_ipv6());
    let driver_options = DriverOptions::read(node, isolation, v6, is_macvlan);
    let options = Options::of_network(node);
    if is_macvlan && options != Options::default() {
        node.wrong("options netpath.… have no effect on a macvlan network, which the datapath does not serve");
    }
    let attachment = if is_macvlan {
        Some(Attachment::Macvlan(macvlan(node)))
    } else {
        node.network_interface().and_then(|n| n.checked::<IfName>()).map(Attachment::Bridge)
    };
    if options.direct && internal.as_ref().is_some_and(|n| *n.value) {
        node.wrong("netpath.direct opens a network, and this one is internal; it cannot be both");
    }
    let dns_servers = items(node.network_dns_servers()).filter_map(|n| n.parsed("an IP address")).collect();
    let mut network = Network {
        name: name.to_owned(),
        id: id?.to_owned(),
        attachment: attachment?,
        mtu: driver_options.mtu,
        subnets,
        routes: Vec::new(),
        internal: *internal?.value,
        isolation: driver_options.isolation,
        default_route: !driver_options.no_default_route,
        metric: driver_options.metric,
        outbound4: driver_options.outbound4,
        outbound6: driver_options.outbound6,
        path: options.path,
        direct: options.direct,
        masquerade: options.masquerade,
        xdp: options.xdp,
        // The gateway of a macvlan is another machine, so no DNS server of netpath can listen on it.
        dns: *dns?.value && !is_macvlan,
        dns_servers,
    };
    network.routes = routes(node, &network);
    Some(Described { network, allow: options.allow })
}

/// The macvlan options of a network. Records mistakes.
pub(super) fn macvlan(node: &Node<'_, wire::Network>) -> Macvlan {
    let option = |key| node.options().and_then(|o| o.find(key)?.get());
    // Without a parent, the link of the default route is used.
    let parent = Some(node.below("network_interface", &node.value.network_interface)).filter(|n| n.value.is_given());
    Macvlan {
        parent: parent.and_then(Node::get).filter(|n| !n.text().is_empty()).and_then(|n| n.checked::<IfName>()),
        mode: option("mode").and_then(|n| n.text().parse().map_err(|e| n.wrong(e)).ok()).unwrap_or_default(),
        bclim: option("bclim").and_then(|n| n.parsed("a whole number")),
    }
}

#[derive(Default)]
struct DriverOptions {
    mtu: Option<Mtu>,
    isolation: Isolation,
    metric: u32,
    no_default_route: bool,
    outbound4: Option<Ipv4Addr>,
    outbound6: Option<Ipv6Addr>,
}

impl DriverOptions {
    /// Ignores options that netavark ignores. [`Options`] has those of netpath.
    fn read(network: &Node<'_, wire::Network>, isolation: Isolation, v6: bool, is_macvlan: bool) -> Self {
        let metric = if is_macvlan { MACVLAN_METRIC } else { METRIC };
        let mut options = Self { isolation, metric, ..Self::default() };
        for (key, node) in entries(network.options()).filter(|(key, _)| !is_netpaths(key)) {
            let Some(node) = node.get() else { continue };
            let text = node.text();
            match key {
                // [`macvlan`] reads `mode` and `bclim`.
                "isolate" | "outbound_addr4" | "outbound_addr6" | "mode" | "vlan" | "vrf" if is_macvlan => {}
                "mtu" => options.mtu = mtu(&node, text, v6),
                "isolate" => match text {
                    "true" => options.isolation = Isolation::Isolated,
                    "false" => options.isolation = Isolation::Open,
                    "strict" => options.isolation = Isolation::Strict,
                    _ => node.wrong(format!("{text:?}: expected true, false or strict")),
                },
                "metric" => options.metric = node.parsed("a whole number from 0 to 4294967295").unwrap_or(metric),
                "no_default_route" => match text {
                    "true" | "1" => options.no_default_route = true,
                    "false" | "0" => {}
                    _ => node.wrong(format!("{text:?}: expected true or false")),
                },
                "outbound_addr4" => options.outbound4 = node.parsed("an IPv4 address"),
                "outbound_addr6" => options.outbound6 = node.parsed("an IPv6 address"),
                "mode" => match text {
                    "" | "managed" => {}
                    "unmanaged" => node.wrong("\"unmanaged\" is not supported yet; netpath creates the bridge itself"),
                    _ => node.wrong(format!("{text:?}: expected managed")),
                },
                "vlan" | "vrf" => node.wrong("this option is not supported yet"),
                _ => tracing::debug!(option = key, "not an option of bridge networks; ignored"),
            }
        }
        options
    }
}

/// 0 and an empty text count as absent.
fn mtu(node: &Node<'_, String>, text: &str, v6: bool) -> Option<Mtu> {
    if text.is_empty() || text == "0" {
        return None;
    }
    let bytes: u32 = node.parsed("a number of bytes")?;
    let mtu = Mtu::try_from(bytes).map_err(|e| node.wrong(e)).ok()?;
    if v6 && bytes < 1280 {
        node.wrong(format!("{bytes}: a network with IPv6 needs at least 1280"));
    }
    Some(mtu)
}

fn subnets(network: &Node<'_, wire::Network>) -> Vec<Subnet> {
    let mut subnets: Vec<Subnet> = Vec::new();
    for node in items(network.subnets()) {
        let field = node.subnet();
        let net = field.as_ref().and_then(|n| n.parsed::<IpNet>("a subnet with its prefix length")).map(|n| n.trunc());
        let gateway_field = node.gateway();
        let gateway = gateway_field.as_ref().and_then(|n| n.parsed::<IpAddr>("an IP address"));
        let (Some(net), Some(field)) = (net, field) else { continue };
        if let Some(why) = unusable(&net) {
            field.wrong(format!("{net} cannot be a container network: {why}"));
            continue;
        }
        if let Some(other) = subnets.iter().find(|o| overlap(&o.net, &net)) {
            field.wrong(format!("{net} overlaps {} of the same network", other.net));
            continue;
        }
        if let (Some(gateway), Some(field)) = (gateway, gateway_field)
            && !net.contains(&gateway)
        {
            field.wrong(format!("{gateway} is not in {net}"));
        }
        subnets.push(Subnet { net, gateway });
    }
    subnets
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// Special-purpose ranges (RFC 6890) that no bridge can have.
fn unusable(net: &IpNet) -> Option<&'static str> {
    let v4 = |a, b, c, d, len| IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), len));
    let v6 = |a: u16, len| IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, 0, 0, 0, 0, 0, 0, 0), len));
    let reserved = [
        (v4(0, 0, 0, 0, 8), "it holds addresses of this network (0.0.0.0/8)"),
        (v4(127, 0, 0, 0, 8), "it holds loopback addresses (127.0.0.0/8)"),
        (v4(224, 0, 0, 0, 3), "it holds multicast or reserved addresses (224.0.0.0/3)"),
        (v6(0, 8), "it holds loopback or mapped addresses (::/8)"),
        (v6(0xfe80, 10), "it holds link-local addresses (fe80::/10)"),
        (v6(0xff00, 8), "it holds multicast addresses (ff00::/8)"),
    ];
    reserved.iter().find(|(range, _)| overlap(range, net)).map(|(_, why)| *why)
}

fn routes(node: &Node<'_, wire::Network>, network: &Network) -> Vec<Route> {
    let mut routes: Vec<Route> = crate::plan::build::default_routes(network);
    let default = routes.len();
    for node in items(node.routes()) {
        let Some(route) = route(&node, network) else { continue };
        let same = |r: &&Route| r.destination == route.destination && r.metric == route.metric;
        match routes.iter().find(same) {
            Some(other) => node.wrong(format!("{route} conflicts with {other}")),
            None => routes.push(route),
        }
    }
    routes.split_off(default)
}

fn route(node: &Node<'_, wire::Route>, network: &Network) -> Option<Route> {
    let destination = node.destination()?.parsed::<IpNet>("a destination with its prefix length")?.trunc();
    let field = node.gateway();
    let gateway = field.as_ref().and_then(|n| n.parsed::<IpAddr>("an IP address"));
    let metric = node.metric().map_or(METRIC, |n| *n.value);
    let kind = match node.route_type() {
        None if node.value.route_type.is_given() => return None,
        None => RouteKind::Unicast,
        Some(n) => match n.text() {
            "unicast" => RouteKind::Unicast,
            "blackhole" => RouteKind::Blackhole,
            "unreachable" => RouteKind::Unreachable,
            "prohibit" => RouteKind::Prohibit,
            other => {
                n.wrong(format!("{other:?}: expected unicast, blackhole, unreachable or prohibit"));
                return None;
            }
        },
    };
    let is_given = node.value.gateway.is_given();
    if kind == RouteKind::Unicast {
        if !is_given {
            node.below("gateway", node.value).wrong("it is missing");
        }
        check_gateway(&field?, gateway?, &destination, network)?;
    } else if is_given {
        node.below("gateway", node.value).wrong("only a unicast route has a gateway");
        return None;
    }
    if destination.addr().is_ipv6() && !network.has_v6() || destination.addr().is_ipv4() && !network.has_v4() {
        node.wrong(format!("{destination}: the network has no subnet of that family"));
        return None;
    }
    Some(Route { destination, gateway, metric, kind })
}

/// The kernel accepts a gateway only if it is on the link.
fn check_gateway(field: &Node<'_, String>, gateway: IpAddr, destination: &IpNet, network: &Network) -> Option<()> {
    if gateway.is_ipv4() != destination.addr().is_ipv4() {
        field.wrong(format!("{gateway} is not of the family of {destination}"));
        return None;
    }
    let on_link = network.subnets.iter().any(|s| s.net.contains(&gateway));
    if !on_link {
        field.wrong(format!("{gateway} is in none of the network's subnets"));
        return None;
    }
    Some(())
}
