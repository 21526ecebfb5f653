//! One entry of `network_info` → a network.

use super::json_reader::{Field, Node, entries, items};
use super::options::{Allow, Automatic, Options, is_netpaths};
use super::plugin::BUILT_IN;
use super::wire;
use crate::model::attachment::{Ipvlan, IpvlanMode, Macvlan};
use crate::model::network::{Route, RouteKind, Subnet};
use crate::model::{Attachment, IfName, Isolation, Mtu, Network, TranslationPath};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Default metric of default and static routes.
const METRIC: u32 = 100;
/// Default metric of default routes through a macvlan or ipvlan, which precede those through a bridge.
const PARENT_METRIC: u32 = 99;

/// A network, and the allow lists of its containers' published ports.
pub(super) struct Described {
    pub network: Network,
    pub allow: Allow,
}

/// Records every mistake; `None` if the entry gives no network.
///
/// `name`: of [`name`]; `isolation`: the default.
pub(super) fn read(node: &Node<'_, wire::Network>, name: &str, isolation: Isolation) -> Option<Described> {
    let _ = node.name();
    let id = node.id().and_then(|n| n.non_empty());
    let driver = node.driver();
    if let Some(driver) = driver.as_ref().filter(|d| !BUILT_IN.contains(&d.text())) {
        driver.wrong(format!("unknown network driver {:?}; --plugin-directory has no such program", driver.text()));
        // The other fields have another meaning with that driver.
        return None;
    }
    let on_parent = driver.as_ref().is_some_and(|d| d.text() != "bridge");
    let dns = node.dns_enabled();
    let internal = node.internal();
    let _ = node.ipv6_enabled();
    check_ipam(node);
    let has_addresses = has_addresses(node);
    let subnets: Vec<Subnet> = if has_addresses { subnets(node) } else { Vec::new() };
    let v6 = subnets.iter().any(|s| s.net.addr().is_ipv6());
    let driver_options = DriverOptions::read(node, isolation, v6, on_parent);
    let mut options = Options::of_network(node);
    let attachment = attachment(node);
    let on_managed = matches!(attachment, Some(Attachment::Bridge(_)));
    let is_routed = matches!(&attachment, Some(Attachment::Ipvlan(i)) if i.mode != IpvlanMode::L2);
    if options.auto != Automatic::default() && (on_managed || is_routed) {
        let which =
            if on_managed { "a managed bridge, whose containers get theirs from the engine" } else { "ipvlan l3" };
        node.wrong(format!("options netpath.dhcp4, dhcp6 and slaac are not for the addresses of {which}"));
    }
    let others = Options { auto: Automatic::default(), ..options.clone() };
    if !on_managed && attachment.is_some() && others != Options::default() {
        let kind = driver.map_or("", |d| if on_parent { d.text() } else { "unmanaged bridge" });
        node.wrong(format!(
            "options netpath.… but for dhcp4, dhcp6 and slaac have no effect on a network of kind {kind}, which the datapath does not serve"
        ));
    }
    // Netfilter looks routes up in the VRF.
    if driver_options.vrf.is_some() && options.path == TranslationPath::Auto {
        options.path = TranslationPath::Kernel;
    }
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
        vlan: driver_options.vlan,
        vrf: driver_options.vrf,
        dhcp: ipam(node) == "dhcp" && options.auto.dhcp4,
        dhcp6: options.auto.dhcp6,
        slaac: options.auto.slaac,
        // The gateway of such a network is another machine, so no DNS server of netpath can listen on it.
        dns: *dns?.value && !on_parent,
        dns_addresses: None,
        dns_port: crate::model::network::DNS_PORT,
        dns_servers,
        dns_ttl: options.dns_ttl,
    };
    if has_addresses {
        network.routes = routes(node, &network);
    }
    Some(Described { network, allow: options.allow })
}

/// The name of the network under `key` of `network_info`, by which answers, DNS and records know it: usually both are equal.
pub(super) fn name<'a>(info: Option<&Node<'a, wire::Network>>, key: &'a str) -> &'a str {
    match info.map(|n| &n.value.name) {
        Some(Field::Is(name)) if !name.is_empty() => name,
        _ => key,
    }
}

/// The bridge of the network. Records a mistake if it has none.
fn bridge(node: &Node<'_, wire::Network>) -> Option<IfName> {
    let field = node.below("network_interface", &node.value.network_interface);
    let named = field.value.is_given().then(|| field.clone().get()).flatten();
    match named {
        Some(name) if !name.text().is_empty() => name.checked(),
        None if field.value.is_given() => None,
        _ => {
            field.wrong("no bridge interface name given");
            None
        }
    }
}

/// Whether the container gets its addresses from Podman. Otherwise it has no gateways and routes of the network either, as in netavark.
pub(super) fn has_addresses(node: &Node<'_, wire::Network>) -> bool {
    !matches!(ipam(node), "none" | "dhcp")
}

fn ipam<'a>(node: &Node<'a, wire::Network>) -> &'a str {
    match &node.value.ipam_options {
        Field::Is(map) => match map.get("driver") {
            Some(Field::Is(driver)) => driver,
            _ => "",
        },
        _ => "",
    }
}

fn check_ipam(node: &Node<'_, wire::Network>) {
    let Some(driver) = node.ipam_options().and_then(|o| o.find("driver")?.get()) else { return };
    let mode = node.options().and_then(|o| o.find("mode")?.get()).map_or("", |m| m.text());
    let kind = node.driver();
    match (driver.text(), kind.as_ref().map_or("", Node::text)) {
        ("dhcp", "bridge") if mode != "unmanaged" => {
            driver.wrong("cannot use dhcp ipam driver without using the option mode=unmanaged");
        }
        // Servers answer by broadcast, which such a link does not pass on.
        ("dhcp", "ipvlan") if !matches!(mode, "" | "l2") => {
            driver.wrong(format!("ipam driver dhcp is not supported with ipvlan in mode {mode}; expected mode l2"));
        }
        ("" | "host-local" | "none" | "dhcp", _) => {}
        (other, _) => driver.wrong(format!("unsupported ipam driver {other}; expected host-local, dhcp or none")),
    }
}

/// How the endpoints of a network are attached. Records mistakes; an unknown driver has no attachment.
pub(super) fn attachment(node: &Node<'_, wire::Network>) -> Option<Attachment> {
    let text_option = |key| node.options().and_then(|o| o.find(key)?.get());
    let mode = text_option("mode");
    let parent = || {
        // Without a parent, the link of the default route is used.
        let given = Some(node.below("network_interface", &node.value.network_interface)).filter(|n| n.value.is_given());
        given.and_then(Node::get).filter(|n| !n.text().is_empty()).and_then(|n| n.checked::<IfName>())
    };
    match node.driver()?.text() {
        "bridge" => match mode.as_ref().map_or("", Node::text) {
            "" | "managed" => bridge(node).map(Attachment::Bridge),
            "unmanaged" => bridge(node).map(Attachment::Unmanaged),
            other => {
                mode?.wrong(format!("invalid bridge mode {other:?}: expected managed or unmanaged"));
                None
            }
        },
        "macvlan" => Some(Attachment::Macvlan(Macvlan {
            parent: parent(),
            mode: mode.and_then(|n| n.checked()).unwrap_or_default(),
            bclim: text_option("bclim").and_then(|n| option(&n, "bclim")),
        })),
        "ipvlan" => Some(Attachment::Ipvlan(Ipvlan {
            parent: parent(),
            mode: mode.and_then(|n| n.checked()).unwrap_or_default(),
        })),
        _ => None,
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
    vlan: Option<u16>,
    vrf: Option<IfName>,
}

impl DriverOptions {
    /// Ignores options that netavark ignores. [`Options`] has those of netpath, and [`attachment`] reads `mode` and `bclim`.
    fn read(network: &Node<'_, wire::Network>, isolation: Isolation, v6: bool, on_parent: bool) -> Self {
        let metric = if on_parent { PARENT_METRIC } else { METRIC };
        let mut options = Self { isolation, metric, ..Self::default() };
        for (key, node) in entries(network.options()).filter(|(key, _)| !is_netpaths(key)) {
            let Some(node) = node.get() else { continue };
            let text = node.text();
            match key {
                "mode" | "bclim" => {}
                "isolate" | "outbound_addr4" | "outbound_addr6" | "vlan" | "vrf" if on_parent => {}
                "mtu" => options.mtu = mtu(&node, text, v6),
                "isolate" => match isolation_of(text) {
                    Some(isolation) => options.isolation = isolation,
                    None => node.wrong(format!("invalid isolate option {text:?}: expected true, false or strict")),
                },
                "metric" => options.metric = option(&node, key).unwrap_or(metric),
                "no_default_route" => options.no_default_route = flag(&node, key).unwrap_or_default(),
                "outbound_addr4" => options.outbound4 = option(&node, key),
                "outbound_addr6" => options.outbound6 = option(&node, key),
                "vlan" => match option::<u16>(&node, key) {
                    Some(vlan) if vlan > 4094 => node.wrong(format!("{vlan}: vlan must be between 0 and 4094")),
                    // 0 is no VLAN (IEEE 802.1Q §9.6).
                    vlan => options.vlan = vlan.filter(|v| *v != 0),
                },
                "vrf" if text.is_empty() => {}
                "vrf" => options.vrf = node.checked(),
                _ => tracing::debug!(option = key, "not an option of bridge networks; ignored"),
            }
        }
        options
    }
}

/// Mistakes have netavark's text.
fn option<T: FromStr<Err: Display>>(node: &Node<'_, String>, key: &str) -> Option<T> {
    let parsed = node.text().parse().map_err(|e| node.wrong(format!("unable to parse {key:?}: {e}")));
    parsed.ok()
}

/// A boolean as Go and Rust write it: Podman before 6 translated `1`, later versions pass it on.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "True" | "TRUE" => Some(true),
        "0" | "f" | "F" | "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

/// `-o isolate` without a value means `true`.
pub(super) fn isolation_of(text: &str) -> Option<Isolation> {
    match (text, boolean(text)) {
        ("strict", _) => Some(Isolation::Strict),
        ("", _) | (_, Some(true)) => Some(Isolation::Isolated),
        (_, Some(false)) => Some(Isolation::Open),
        _ => None,
    }
}

fn flag(node: &Node<'_, String>, key: &str) -> Option<bool> {
    let flag = boolean(node.text());
    if flag.is_none() {
        // The text is netavark's.
        node.wrong(format!("unable to parse {key:?}: provided string was not `true` or `false`"));
    }
    flag
}

/// 0 and an empty text count as absent.
fn mtu(node: &Node<'_, String>, text: &str, v6: bool) -> Option<Mtu> {
    if text.is_empty() || text == "0" {
        return None;
    }
    let bytes: u32 = option(node, "mtu")?;
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
        if let Some(Subnet { net: other, .. }) = subnets.iter().find(|o| overlap(&o.net, &net)) {
            field.wrong(if *other == net {
                format!("duplicate subnet defined: {net}")
            } else {
                format!("overlapping subnets: {other} and {net}")
            });
            continue;
        }
        if let (Some(gateway), Some(field)) = (gateway, gateway_field)
            && !net.contains(&gateway)
        {
            field.wrong(format!("gateway {gateway} not in subnet {net}"));
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
        (IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 96)), "it holds loopback addresses (::/96)"),
        (
            IpNet::V6(Ipv6Net::new_assert(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(), 96)),
            "it holds mapped addresses (::ffff:0:0/96)",
        ),
        (v6(0xfe80, 10), "it holds link-local addresses (fe80::/10)"),
        (v6(0xff00, 8), "it holds multicast addresses (ff00::/8)"),
    ];
    reserved.iter().find(|(range, _)| overlap(range, net)).map(|(_, why)| *why)
}

fn routes(node: &Node<'_, wire::Network>, network: &Network) -> Vec<Route> {
    let mut routes: Vec<Route> = crate::plan::build::default_routes(network);
    let default = routes.len();
    for node in items(node.routes()) {
        let Some(route) = route(&node) else { continue };
        let same = |r: &&Route| r.destination == route.destination && r.metric == route.metric;
        match routes.iter().find(same) {
            Some(other) if *other == route => continue,
            Some(other) => tracing::warn!("route {route} has no effect beside {other}: the kernel takes the first"),
            None => {}
        }
        routes.push(route);
    }
    routes.split_off(default)
}

fn route(node: &Node<'_, wire::Route>) -> Option<Route> {
    let destination = node.destination()?.parsed::<IpNet>("a destination with its prefix length")?.trunc();
    let field = node.gateway();
    let gateway = field.as_ref().and_then(|n| n.parsed::<IpAddr>("an IP address"));
    let metric = node.metric().map_or(METRIC, |n| *n.value);
    let kind = match node.route_type() {
        None if node.value.route_type.is_given() => return None,
        None => RouteKind::Unicast,
        Some(n) => match n.text() {
            "" | "unicast" => RouteKind::Unicast,
            "blackhole" => RouteKind::Blackhole,
            "unreachable" => RouteKind::Unreachable,
            "prohibit" => RouteKind::Prohibit,
            other => {
                n.wrong(format!("invalid route type {other:?}: expected unicast, blackhole, unreachable or prohibit"));
                return None;
            }
        },
    };
    let given = node.below("gateway", node.value);
    match (kind == RouteKind::Unicast, node.value.gateway.is_given()) {
        (true, false) => {
            given.wrong(format!("route {destination} requires a gateway for type unicast"));
            return None;
        }
        (false, true) => {
            given.wrong(format!("route {destination} must not have a gateway for type {kind}"));
            return None;
        }
        (false, false) => {}
        // The container may reach the gateway by another interface.
        (true, true) => {
            let v6 = |a: IpAddr| if a.is_ipv6() { "ipv6" } else { "ipv4" };
            let (to, via) = (v6(destination.addr()), v6(gateway?));
            if to != via {
                given.wrong(format!(
                    "route with {to} destination and {via} gateway ({destination} via {})",
                    field?.text()
                ));
                return None;
            }
        }
    }
    Some(Route { destination, gateway, metric, kind })
}
