//! netpath's own options, all named `netpath.…`.
//!
//! Podman rejects unknown options of the bridge driver but passes labels through. So both are read, and an option
//! overrides a label of the same name.

use super::json_reader::{Node, entries};
use super::wire;
use crate::model::{Proto, Publish, TranslationPath, Xdp};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

const PREFIX: &str = "netpath.";

/// Options of a network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Options {
    pub path: TranslationPath,
    pub direct: bool,
    pub masquerade: bool,
    pub xdp: Xdp,
    /// Seconds.
    pub dns_ttl: u32,
    pub allow: Allow,
    pub auto: Automatic,
}

/// How containers get addresses on a network whose addresses are not netpath's. `dhcp` as IPAM driver means the first, unless it is off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Automatic {
    pub dhcp4: bool,
    pub dhcp6: bool,
    pub slaac: bool,
}

impl Default for Automatic {
    fn default() -> Self {
        Self { dhcp4: true, dhcp6: false, slaac: false }
    }
}

/// The allow lists of published ports.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Allow {
    /// For ports without a list in `by_port`; `None`: not set.
    pub all: Option<Vec<IpNet>>,
    by_port: BTreeMap<Ports, Vec<IpNet>>,
}

/// Host ports, of one protocol or of all.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Ports {
    first: u16,
    last: u16,
    proto: Option<Proto>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            path: TranslationPath::Auto,
            direct: false,
            masquerade: true,
            xdp: Xdp::Auto,
            dns_ttl: 0,
            allow: Allow::default(),
            auto: Automatic::default(),
        }
    }
}

pub(super) fn is_netpaths(key: &str) -> bool {
    key.starts_with(PREFIX)
}

impl Options {
    pub(super) fn of_network(network: &Node<'_, wire::Network>) -> Self {
        let mut options = Self::default();
        for (key, node) in entries(network.labels()).chain(entries(network.options())) {
            if let Some(name) = key.strip_prefix(PREFIX)
                && let Some(node) = node.get()
            {
                options.take(name, &node);
            }
        }
        options
    }

    fn take(&mut self, name: &str, node: &Node<'_, String>) {
        let text = node.text();
        match name {
            "path" => match text {
                "auto" => self.path = TranslationPath::Auto,
                "offload" => self.path = TranslationPath::Offload,
                "kernel" => self.path = TranslationPath::Kernel,
                "edge" => {
                    tracing::warn!("netpath.path=edge is gone and means kernel: netfilter translates");
                    self.path = TranslationPath::Kernel;
                }
                _ => node.wrong(format!("{text:?}: expected auto, kernel or offload")),
            },
            "dhcp4" => self.auto.dhcp4 = switch(node).unwrap_or(true),
            "dhcp6" => self.auto.dhcp6 = switch(node).unwrap_or(false),
            "slaac" => self.auto.slaac = switch(node).unwrap_or(false),
            "direct" => self.direct = flag(node).unwrap_or(self.direct),
            "masquerade" => self.masquerade = flag(node).unwrap_or(self.masquerade),
            "xdp" => match text {
                "auto" => self.xdp = Xdp::Auto,
                "on" => self.xdp = Xdp::On,
                "off" => self.xdp = Xdp::Off,
                _ => node.wrong(format!("{text:?}: expected auto, on or off")),
            },
            // RFC 2181 §8: 31 bits.
            "dns_ttl" => match text.parse().ok().filter(|ttl| *ttl <= i32::MAX as u32) {
                Some(ttl) => self.dns_ttl = ttl,
                None => node.wrong(format!("{text:?}: expected seconds, 0 to 2147483647")),
            },
            _ if self.allow.take(name, node) => {}
            _ => unknown(node),
        }
    }
}

impl Allow {
    /// The options of one container on one network.
    pub(super) fn of_endpoint(endpoint: &Node<'_, wire::PerNetworkOptions>, publishes: &[Publish]) -> Self {
        let mut allow = Self::default();
        for (key, node) in entries(endpoint.options()) {
            let Some(name) = key.strip_prefix(PREFIX) else { continue };
            if matches!(name, "path" | "direct" | "masquerade" | "xdp" | "dns_ttl" | "dhcp4" | "dhcp6" | "slaac") {
                node.wrong("this is an option of the network, not of a container");
                continue;
            }
            let Some(node) = node.get() else { continue };
            if !allow.take(name, &node) {
                unknown(&node);
                continue;
            }
            // A typo would leave the intended port unrestricted.
            let ports = name.strip_prefix("allow.").and_then(Ports::parse);
            if ports.is_some_and(|p| !p.are_in(publishes)) {
                node.wrong("the container publishes no such port");
            }
        }
        allow
    }

    /// The lists of `more` replace those of the same ports.
    #[must_use]
    pub(super) fn overridden_by(mut self, more: Self) -> Self {
        self.by_port.extend(more.by_port);
        Self { all: more.all.or(self.all), by_port: self.by_port }
    }

    /// The publishes with their allow lists. Ranges are split where lists begin and end.
    pub(super) fn publishes(&self, publishes: &[Publish]) -> Vec<Publish> {
        publishes.iter().flat_map(|publish| self.parts(publish)).collect()
    }

    fn parts(&self, publish: &Publish) -> Vec<Publish> {
        let ports = ports_of(publish);
        let (first, last) = (u32::from(*ports.start()), u32::from(*ports.end()));
        let lists: Vec<_> = self.by_port.iter().filter(|(p, _)| p.is_for(publish.proto) && p.overlap(&ports)).collect();
        let ends = lists.iter().flat_map(|(p, _)| [u32::from(p.first), u32::from(p.last) + 1]);
        let mut cuts: Vec<u32> = ends.filter(|port| *port > first && *port <= last).chain([first, last + 1]).collect();
        cuts.sort_unstable();
        cuts.dedup();
        let parts = cuts.windows(2).filter_map(|w| {
            // Both lie within a range of ports.
            let mut part = publish.part((w[0] - first) as u16, (w[1] - w[0]) as u16)?;
            let matching = lists.iter().filter(|(p, _)| p.contain(w[0]));
            // The most specific list applies: the fewest ports, then one for a single protocol.
            let list = matching.min_by_key(|(p, _)| (p.last - p.first, p.proto.is_none()));
            part.allow = list.map(|(_, list)| (*list).clone());
            Some(part)
        });
        parts.collect()
    }

    /// Returns `false` if `name` is not an allow list.
    fn take(&mut self, name: &str, node: &Node<'_, String>) -> bool {
        let Some(suffix) = name.strip_prefix("allow") else { return false };
        if suffix.is_empty() {
            self.all = Some(list(node));
            return true;
        }
        let Some(ports) = suffix.strip_prefix('.') else { return false };
        match Ports::parse(ports) {
            Some(ports) => drop(self.by_port.insert(ports, list(node))),
            None => node.wrong(format!(
                "{ports:?}: expected a port or a range of ports, as in 8080, 8080/tcp or 20000-29999/udp"
            )),
        }
        true
    }
}

impl Ports {
    /// `8080`, `8080/tcp`, `20000-29999/udp`
    fn parse(text: &str) -> Option<Self> {
        let (ports, proto) = match text.split_once('/') {
            None => (text, None),
            Some((ports, proto)) => (ports, Some(proto.parse().ok()?)),
        };
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let port =
            |word: &str| word.parse::<u16>().ok().filter(|p| *p != 0 && word.bytes().all(|b| b.is_ascii_digit()));
        let (first, last) = (port(first)?, port(last)?);
        (first <= last).then_some(Self { first, last, proto })
    }

    fn is_for(&self, proto: Proto) -> bool {
        self.proto.is_none_or(|p| p == proto)
    }

    fn contain(&self, port: u32) -> bool {
        (u32::from(self.first)..=u32::from(self.last)).contains(&port)
    }

    fn overlap(&self, ports: &RangeInclusive<u16>) -> bool {
        self.first <= *ports.end() && self.last >= *ports.start()
    }

    fn are_in(&self, publishes: &[Publish]) -> bool {
        publishes.iter().any(|p| self.is_for(p.proto) && self.overlap(&ports_of(p)))
    }
}

fn ports_of(publish: &Publish) -> RangeInclusive<u16> {
    publish.host_port()..=publish.host_port() + (publish.count() - 1)
}

fn unknown(node: &Node<'_, String>) {
    node.wrong(
        "netpath has no option of that name; it has path, direct, masquerade, xdp, dns_ttl, dhcp4, dhcp6, slaac, allow \
         and allow.PORT",
    );
}

fn switch(node: &Node<'_, String>) -> Option<bool> {
    match node.text() {
        "on" => Some(true),
        "off" => Some(false),
        text => {
            node.wrong(format!("{text:?}: expected on or off"));
            None
        }
    }
}

fn flag(node: &Node<'_, String>) -> Option<bool> {
    match node.text() {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        text => {
            node.wrong(format!("{text:?}: expected true or false"));
            None
        }
    }
}

/// `192.0.2.0/24,2001:db8::7`: networks and single addresses.
fn list(node: &Node<'_, String>) -> Vec<IpNet> {
    let mut nets: Vec<IpNet> = Vec::new();
    for word in node.text().split(',').map(str::trim) {
        let net = word.parse::<IpNet>().or_else(|_| word.parse::<IpAddr>().map(|a| IpNet::from(a.to_canonical())));
        match net {
            Ok(net) if !nets.contains(&net.trunc()) => nets.push(net.trunc()),
            Ok(_) => {}
            Err(_) => node.wrong(format!("{word:?} is neither a network nor an address")),
        }
    }
    nets
}
