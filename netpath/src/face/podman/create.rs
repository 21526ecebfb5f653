//! `create` (2.0): completes a network that Podman is about to save, or says why there cannot be one.
//!
//! Texts of errors are netavark's; Podman recognises `network already exists`. What setup would reject is rejected here.

use super::json_reader::{Mistakes, Node, Required, entries, items};
use super::network::{self, boolean, isolation_of};
use super::options::is_netpaths;
use super::plugin::BUILT_IN;
use super::wire::{self, Create};
use crate::model::clock::rfc3339;
use crate::model::{IfName, Isolation};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{SystemTime, UNIX_EPOCH};

type Result<T> = std::result::Result<T, String>;

/// Options that only netavark's `create` rejects, although its `setup` knows them, are accepted.
const BRIDGE_OPTIONS: [&str; 9] =
    ["mode", "mtu", "isolate", "metric", "no_default_route", "vrf", "vlan", "outbound_addr4", "outbound_addr6"];
const LINK_OPTIONS: [&str; 5] = ["mode", "mtu", "metric", "no_default_route", "bclim"];

/// What the host contributes.
pub(super) struct Host {
    /// The names of all links; `None`: unknown.
    pub links: Option<Vec<String>>,
    /// For the subnet of an IPv6 network.
    pub random: [u8; 7],
}

/// The JSON of the network, in one line. `plugin` completes the network of a driver that is not netavark's.
///
/// # Errors
/// The document has mistakes, or the network is impossible.
pub(super) fn complete(text: &str, host: &Host, plugin: impl FnOnce(&str, &Value) -> Result<Value>) -> Result<String> {
    let failed = |e: String| format!("failed to load network create: {e}");
    let value: Value = serde_json::from_str(text).map_err(|e| failed(format!("it is not JSON: {e}")))?;
    let document = Required::<Create>::deserialize(value.clone()).map_err(|e| failed(e.to_string()))?;
    let mistakes = Mistakes::default();
    let read = Node::root(&document, &mistakes).get().and_then(|create| Draft::read(&create));
    let (Some(mut draft), true) = (read, mistakes.is_empty()) else { return Err(failed(mistakes.report())) };
    let mut whole = value.get("network").cloned().unwrap_or_default();
    draft.check_names()?;
    match draft.driver.as_str() {
        "bridge" => draft.bridge(host)?,
        "macvlan" | "ipvlan" => draft.link(host)?,
        driver => {
            whole = plugin(driver, &whole)?;
            draft.take_from_plugin(&whole)?;
        }
    }
    draft.finish()?;
    draft.write(&mut whole)?;
    if BUILT_IN.contains(&draft.driver.as_str()) && draft.ipam != "dhcp" {
        check(&whole, &draft.name)?;
    }
    serde_json::to_string(&whole).map(|line| line + "\n").map_err(|e| e.to_string())
}

/// What setup would say of the network.
fn check(network: &Value, name: &str) -> Result<()> {
    let network = Required::<wire::Network>::deserialize(network).map_err(|e| e.to_string())?;
    let mistakes = Mistakes::default();
    Node::root(&network, &mistakes).get().and_then(|n| network::read(&n, name, Isolation::Strict));
    if mistakes.is_empty() { Ok(()) } else { Err(mistakes.report()) }
}

/// The network so far.
struct Draft {
    name: String,
    id: String,
    driver: String,
    interface: Option<String>,
    internal: bool,
    v6: bool,
    dns: bool,
    has_dns_servers: bool,
    options: Map<String, Value>,
    /// Empty: not chosen.
    ipam: String,
    subnets: Vec<Subnet>,
    routes: Vec<(IpNet, bool, String)>,
    used: Used,
    /// Free IPv4 subnets, each with the length of its parts.
    pools: Vec<(IpNet, u32)>,
    prefix: Option<String>,
    check_used: bool,
}

struct Used {
    interfaces: HashSet<String>,
    names: HashSet<String>,
    subnets: Vec<IpNet>,
}

struct Subnet {
    net: IpNet,
    gateway: Option<IpAddr>,
    /// First and last address that Podman assigns, as far as they are given.
    lease: [Option<IpAddr>; 2],
    /// As it was in the document.
    whole: Value,
}

impl Draft {
    fn read(create: &Node<'_, Create>) -> Option<Self> {
        let network = create.network();
        let network = network.as_ref()?;
        let texts = |map: Option<Node<'_, _>>| -> Map<String, Value> {
            entries(map).filter_map(|(k, n)| Some((k.to_owned(), json!(n.get()?.text())))).collect()
        };
        let subnets = items(network.subnets()).filter_map(|n| Subnet::read(&n)).collect();
        let routes = items(network.routes()).filter_map(|n| {
            let destination = n.destination()?.parsed::<IpNet>("a destination with its prefix length")?;
            let gateway = n.gateway().map(|g| g.parsed::<IpAddr>("an IP address"));
            let kind = n.route_type().map_or("unicast", |t| if t.text().is_empty() { "unicast" } else { t.text() });
            Some((destination, gateway.is_some(), kind.to_owned()))
        });
        let routes = routes.collect();
        let servers = network.network_dns_servers();
        let has_dns_servers = servers.is_some();
        for server in items(servers) {
            let _ = server.parsed::<IpAddr>("an IP address");
        }
        let (used, options) = (create.used(), create.options());
        let (used, options) = (used.as_ref()?, options.as_ref()?);
        let pools = items(options.subnet_pools())
            .filter_map(|n| Some((n.base()?.parsed::<IpNet>("a subnet with its prefix length")?, *n.size()?.value)))
            .collect();
        let ipam = texts(network.ipam_options()).get("driver").and_then(Value::as_str).unwrap_or("").to_owned();
        Some(Self {
            name: network.name()?.text().to_owned(),
            id: network.id()?.text().to_owned(),
            driver: network.driver()?.text().to_owned(),
            interface: network.network_interface().map(|n| n.text().to_owned()).filter(|t| !t.is_empty()),
            internal: *network.internal()?.value,
            v6: *network.ipv6_enabled()?.value,
            dns: *network.dns_enabled()?.value,
            has_dns_servers,
            options: texts(network.options()),
            ipam,
            subnets,
            routes,
            used: Used {
                interfaces: items(used.interfaces()).map(|n| n.text().to_owned()).collect(),
                names: entries(used.names()).map(|(name, _)| name.to_owned()).collect(),
                subnets: items(used.subnets()).filter_map(|n| n.parsed("a subnet with its prefix length")).collect(),
            },
            pools,
            prefix: options.default_interface_name().map(|n| n.text().to_owned()),
            check_used: *options.check_used_subnets()?.value,
        })
    }

    fn check_names(&self) -> Result<()> {
        let (name, id) = (&self.name, &self.id);
        if name.is_empty() {
            return Err("Network name must be supplied".into());
        }
        if !is_name(name) {
            return Err(format!("Invalid characters in network name {name:?}: must match [a-zA-Z0-9][a-zA-Z0-9_.-]*"));
        }
        if self.used.names.contains(name) {
            return Err(format!("network already exists {name}"));
        }
        if id.is_empty() {
            return Err("Network id must be supplied".into());
        }
        if !id.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(format!("Network id must be a hexadecimal string {id:?}"));
        }
        if id.len() != 64 {
            return Err(format!("Network id must be exactly 64 characters long, got {}: {id}", id.len()));
        }
        if let Some(interface) = &self.interface {
            check_interface(interface)?;
        }
        match self.ipam.as_str() {
            "" | "host-local" | "dhcp" => Ok(()),
            "none" if self.subnets.is_empty() => Ok(()),
            "none" => Err("None ipam driver is set but subnets are given".into()),
            other => Err(format!("Unsupported ipam driver: {other}")),
        }
    }

    fn option(&self, key: &str) -> Option<&str> {
        self.options.get(key)?.as_str()
    }

    fn refuse_unknown_options(&self, known: &[&str], kind: &str) -> Result<()> {
        match self.options.keys().find(|k| !known.contains(&k.as_str()) && !is_netpaths(k)) {
            Some(key) => Err(format!("unsupported {kind} network option: {key}")),
            None => Ok(()),
        }
    }

    fn bridge(&mut self, host: &Host) -> Result<()> {
        // Docker's names.
        if let Some(mtu) = self.options.remove("com.docker.network.driver.mtu") {
            self.options.insert("mtu".into(), mtu);
        }
        if let Some(Value::String(name)) = self.options.remove("com.docker.network.bridge.name") {
            check_interface(&name)?;
            self.interface = Some(name);
        }
        self.refuse_unknown_options(&BRIDGE_OPTIONS, "bridge")?;
        let managed = matches!(self.option("mode"), None | Some("" | "managed"));
        // Several such networks can be on one bridge, and its subnet is then in use.
        let shares_bridge = !managed || self.option("vlan").is_some();
        self.check_used &= !shares_bridge;
        match &self.interface {
            Some(name) if !shares_bridge && self.used.interfaces.contains(name) => {
                return Err(format!("bridge name {name} already in use"));
            }
            Some(name) if !is_name(name) => return Err(format!("bridge name {name} is invalid")),
            Some(_) => {}
            None => self.interface = Some(self.free_interface(host)?),
        }
        match self.ipam.as_str() {
            "" | "host-local" => {
                self.ipam = "host-local".into();
                let has = |draft: &Self, v6: bool| draft.subnets.iter().any(|s| s.net.addr().is_ipv6() == v6);
                if self.subnets.is_empty() || self.v6 && !has(self, false) {
                    self.subnets.push(Subnet::new(self.free_v4()?));
                }
                if self.v6 && !has(self, true) {
                    self.subnets.push(Subnet::new(self.random_v6(host.random)));
                }
                Ok(())
            }
            "dhcp" if managed => Err("cannot use dhcp ipam driver without using the option mode=unmanaged".into()),
            _ => Ok(()),
        }
    }

    /// A macvlan or ipvlan.
    fn link(&mut self, host: &Host) -> Result<()> {
        let driver = &self.driver;
        if let (Some(parent), Some(links)) = (&self.interface, &host.links)
            && !links.contains(parent)
        {
            return Err(format!("parent interface {parent} does not exist"));
        }
        // Its gateway is another machine, on which no DNS server of netpath can listen.
        self.dns = false;
        let has_subnets = !self.subnets.is_empty();
        let ipam = match (self.ipam.as_str(), has_subnets) {
            ("", true) => "host-local",
            ("", false) => "dhcp",
            ("host-local", false) => {
                return Err(format!(
                    "{driver} driver needs at least one subnet specified when the host-local ipam driver is set"
                ));
            }
            (other, _) => other,
        };
        if ipam == "dhcp" && driver == "ipvlan" {
            return Err("ipam driver dhcp is not supported with ipvlan".into());
        }
        if ipam == "dhcp" && has_subnets {
            return Err("ipam driver dhcp set but subnets are set".into());
        }
        self.refuse_unknown_options(&LINK_OPTIONS, "vlan")?;
        if self.options.contains_key("bclim") && driver == "ipvlan" {
            return Err("unsupported ipvlan network option bclim".into());
        }
        self.ipam = ipam.to_owned();
        Ok(())
    }

    /// A plugin may change everything but the identity of the network.
    fn take_from_plugin(&mut self, whole: &Value) -> Result<()> {
        let driver = &self.driver;
        for (key, before, what) in
            [("name", &self.name, "name"), ("id", &self.id, "ID"), ("driver", &self.driver, "driver")]
        {
            if whole.get(key).and_then(Value::as_str) != Some(before) {
                return Err(format!("{driver} plugin invalid result: changed network {what}"));
            }
        }
        let network = Required::<wire::Network>::deserialize(whole).map_err(|e| e.to_string())?;
        let mistakes = Mistakes::default();
        if let Some(node) = Node::root(&network, &mistakes).get() {
            self.subnets = items(node.subnets()).filter_map(|n| Subnet::read(&n)).collect();
            self.interface = node.network_interface().map(|n| n.text().to_owned());
            self.internal = node.internal().is_some_and(|n| *n.value);
            self.v6 = node.ipv6_enabled().is_some_and(|n| *n.value);
            self.dns = node.dns_enabled().is_some_and(|n| *n.value);
            self.has_dns_servers = node.network_dns_servers().is_some();
            let option = node.ipam_options().and_then(|o| o.find("driver")?.get());
            self.ipam = option.map_or(String::new(), |n| n.text().to_owned());
            self.options =
                entries(node.options()).filter_map(|(k, n)| Some((k.into(), json!(n.get()?.text())))).collect();
        }
        if mistakes.is_empty() { Ok(()) } else { Err(format!("{driver} plugin invalid result: {}", mistakes.report())) }
    }

    /// The checks that all drivers have in common.
    fn finish(&mut self) -> Result<()> {
        self.dns &= self.ipam != "none";
        if self.has_dns_servers && !self.dns {
            return Err("cannot set NetworkDNSServers if DNS is not enabled for the network".into());
        }
        for (at, a) in self.subnets.iter().enumerate() {
            for b in &self.subnets[at + 1..] {
                if a.net == b.net {
                    return Err(format!("duplicate subnet defined: {}", a.net));
                }
                if overlap(&a.net, &b.net) {
                    return Err(format!("overlapping subnets: {} and {}", a.net, b.net));
                }
            }
        }
        let add_gateway = !self.internal || self.dns;
        for subnet in &mut self.subnets {
            let net = subnet.net;
            if self.check_used && self.used.subnets.iter().any(|used| overlap(used, &net)) {
                return Err(format!("subnet {net} is already used on the host or by another config"));
            }
            match subnet.gateway {
                Some(gateway) if !net.contains(&gateway) => {
                    return Err(format!("gateway {gateway} not in subnet {net}"));
                }
                None if add_gateway => subnet.gateway = Some(first_address(&net)?),
                _ => {}
            }
            subnet.check_lease()?;
            self.v6 |= net.addr().is_ipv6();
        }
        for (destination, has_gateway, kind) in &self.routes {
            if destination.addr() != destination.network() {
                return Err("route destination invalid".into());
            }
            match (kind.as_str(), has_gateway) {
                ("unicast", false) => return Err(format!("route {destination} requires a gateway for type unicast")),
                ("blackhole" | "unreachable" | "prohibit", true) => {
                    return Err(format!("route {destination} must not have a gateway for type {kind}"));
                }
                ("unicast" | "blackhole" | "unreachable" | "prohibit", _) => {}
                _ => return Err(format!("invalid route type {kind:?}")),
            }
        }
        Ok(())
    }

    /// Writes what was decided into the network, and leaves out what is `null`.
    fn write(&self, whole: &mut Value) -> Result<()> {
        let network = whole.as_object_mut().ok_or("the network is not an object")?;
        network.insert("dns_enabled".into(), self.dns.into());
        network.insert("ipv6_enabled".into(), self.v6.into());
        if let Some(interface) = &self.interface {
            network.insert("network_interface".into(), json!(interface));
        }
        if network.contains_key("options") {
            let normal = self.options.iter().map(|(key, value)| (key.clone(), normal(&self.driver, key, value)));
            network.insert("options".into(), Value::Object(normal.collect()));
        }
        if !self.ipam.is_empty() {
            let ipam = network.entry("ipam_options").or_insert_with(|| json!({}));
            if ipam.is_null() {
                *ipam = json!({});
            }
            ipam["driver"] = json!(self.ipam);
        }
        if !self.subnets.is_empty() {
            let subnets: Vec<Value> = self.subnets.iter().map(Subnet::write).collect();
            network.insert("subnets".into(), subnets.into());
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        network.insert("created".into(), json!(rfc3339(now)));
        without_nulls(whole);
        Ok(())
    }

    fn free_interface(&self, host: &Host) -> Result<String> {
        let prefix = self.prefix.as_ref().ok_or("default interface name is not set")?;
        let links: HashSet<&String> = host.links.iter().flatten().collect();
        let is_free = |name: &String| {
            !links.contains(name) && !self.used.interfaces.contains(name) && !self.used.names.contains(name)
        };
        let free = (1..1_000_000).map(|n| format!("{prefix}{n}")).find(is_free);
        let free = free.ok_or("Could not find a free device name after 1,000,000 attempts")?;
        check_interface(&free)?;
        Ok(free)
    }

    /// The first free subnet of the pools.
    fn free_v4(&self) -> Result<IpNet> {
        let used: Vec<&Ipv4Net> = self.used.subnets.iter().filter_map(|u| as_v4(u)).collect();
        for (pool, length) in &self.pools {
            let (Some(pool), Ok(length)) = (as_v4(pool), u8::try_from(*length)) else { continue };
            // A part of the pool; `Ipv4Net::new` rejects a length beyond 32.
            if length < pool.prefix_len() {
                continue;
            }
            let Ok(first) = Ipv4Net::new(pool.network(), length) else { continue };
            let (mut at, end, size) =
                (u64::from(u32::from(first.network())), u64::from(u32::from(pool.broadcast())), 1_u64 << (32 - length));
            while let Some(net) =
                u32::try_from(at).ok().filter(|_| at <= end).and_then(|at| Ipv4Net::new(at.into(), length).ok())
            {
                let overlaps = |u: &&&Ipv4Net| u.contains(&net.network()) || net.contains(&u.network());
                let Some(taken) = used.iter().find(overlaps).filter(|_| self.check_used) else { return Ok(net.into()) };
                // Past a larger one in one step.
                let past = u64::from(u32::from(taken.broadcast())) + 1;
                at = (at + size).max(past.next_multiple_of(size));
            }
        }
        Err("could not find free subnet from subnet pools".into())
    }

    /// Of the range of RFC 4193, with a random global id and subnet id; the next one if that is used.
    fn random_v6(&self, random: [u8; 7]) -> IpNet {
        let mut prefix = random.iter().fold(0xfd_u64, |prefix, byte| prefix << 8 | u64::from(*byte));
        loop {
            let net = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from(u128::from(prefix) << 64), 64));
            if !self.used.subnets.iter().any(|used| overlap(used, &net)) {
                return net;
            }
            prefix = 0xfd << 56 | prefix.wrapping_add(1) & (u64::MAX >> 8);
        }
    }
}

impl Subnet {
    fn new(net: IpNet) -> Self {
        Self { net, gateway: None, lease: [None; 2], whole: json!({}) }
    }

    fn read(node: &Node<'_, wire::Subnet>) -> Option<Self> {
        let address = |n: Option<Node<'_, String>>| {
            n.filter(|n| !n.text().is_empty()).and_then(|n| n.parsed::<IpAddr>("an IP address"))
        };
        let lease = node.lease_range();
        let lease = lease.as_ref();
        Some(Self {
            net: node.subnet()?.parsed::<IpNet>("a subnet with its prefix length")?.trunc(),
            gateway: address(node.gateway()),
            lease: [lease.and_then(|l| address(l.start_ip())), lease.and_then(|l| address(l.end_ip()))],
            whole: serde_json::to_value(node.value).unwrap_or_default(),
        })
    }

    fn check_lease(&self) -> Result<()> {
        for (ip, field) in self.lease.iter().zip(["start_ip", "end_ip"]) {
            if let Some(ip) = ip.filter(|ip| !self.net.contains(ip)) {
                return Err(format!("lease range {field} {ip} not in subnet {}", self.net));
            }
        }
        match self.lease {
            [Some(start), Some(end)] if start > end => {
                Err(format!("lease range start_ip {start} must be less than or equal to end_ip {end}"))
            }
            _ => Ok(()),
        }
    }

    fn write(&self) -> Value {
        let mut whole = self.whole.clone();
        whole["subnet"] = json!(self.net);
        if let Some(gateway) = self.gateway {
            whole["gateway"] = json!(gateway);
        }
        whole
    }
}

/// `[a-zA-Z0-9][a-zA-Z0-9_.-]*`
fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

fn check_interface(name: &str) -> Result<()> {
    if name.len() > 15 {
        return Err(format!("Interface name is too long: interface names must be 15 characters or less: {name}"));
    }
    if name.is_empty() || name == "." || name == ".." {
        return Err("Interface name cannot be . or ..".into());
    }
    match name.chars().find(|c| "/:".contains(*c) || c.is_whitespace()) {
        Some(bad) => Err(format!("Interface name cannot contain\"{bad}\"")),
        None => name.parse::<IfName>().map(drop),
    }
}

/// `true` and `false` as netavark of every version reads them.
fn normal(driver: &str, key: &str, value: &Value) -> Value {
    let text = value.as_str().unwrap_or_default();
    let normal = match (driver, key) {
        ("bridge", "isolate") => match isolation_of(text) {
            Some(Isolation::Isolated) => Some("true"),
            Some(Isolation::Open) => Some("false"),
            _ => None,
        },
        ("bridge" | "macvlan" | "ipvlan", "no_default_route") => {
            boolean(text).map(|b| if b { "true" } else { "false" })
        }
        _ => None,
    };
    normal.map_or_else(|| value.clone(), |text| json!(text))
}

fn first_address(net: &IpNet) -> Result<IpAddr> {
    // The last address of IPv4 is the broadcast address.
    let longest = net.max_prefix_len() - u8::from(net.addr().is_ipv4());
    match net.network() {
        _ if net.prefix_len() >= longest => Err(format!(
            "could not create gateway for subnet {net} because it has a {longest} or greater subnet prefix"
        )),
        IpAddr::V4(a) => Ok(IpAddr::V4((u32::from(a) + 1).into())),
        IpAddr::V6(a) => Ok(IpAddr::V6((u128::from(a) + 1).into())),
    }
}

fn as_v4(net: &IpNet) -> Option<&Ipv4Net> {
    if let IpNet::V4(net) = net { Some(net) } else { None }
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

#[cfg(test)]
#[path = "create_tests.rs"]
mod tests;
