//! netpath's own options, all named `netpath.…`.
//!
//! Podman refuses options of the bridge driver that it does not know, but hands labels through as they are: so both are
//! read, and an option comes before a label of the same name.

use super::read::Node;
use crate::model::{Way, Xdp};
use ipnet::IpNet;
use std::net::IpAddr;

const PREFIX: &str = "netpath.";

/// What a network says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Own {
    pub path: Way,
    pub direct: bool,
    pub masquerade: bool,
    pub xdp: Xdp,
    /// Of published ports; empty = everybody.
    pub allow: Vec<IpNet>,
}

impl Default for Own {
    fn default() -> Self {
        Self { path: Way::Auto, direct: false, masquerade: true, xdp: Xdp::Auto, allow: Vec::new() }
    }
}

pub fn is_own(key: &str) -> bool {
    key.starts_with(PREFIX)
}

impl Own {
    pub fn of_network(network: &Node<'_>) -> Self {
        let mut own = Self::default();
        for map in ["labels", "options"] {
            for (key, node) in network.opt(map).map(|n| n.entries()).unwrap_or_default() {
                if let Some(name) = key.strip_prefix(PREFIX) {
                    own.take(name, &node);
                }
            }
        }
        own
    }

    fn take(&mut self, name: &str, node: &Node<'_>) {
        let Some(text) = node.text() else { return };
        match name {
            "path" => match text {
                "auto" => self.path = Way::Auto,
                "offload" => self.path = Way::Offload,
                "edge" => self.path = Way::Edge,
                _ => node.wrong(format!("{text:?}: expected auto, offload or edge")),
            },
            "direct" => self.direct = flag(node, text).unwrap_or(self.direct),
            "masquerade" => self.masquerade = flag(node, text).unwrap_or(self.masquerade),
            "xdp" => match text {
                "auto" => self.xdp = Xdp::Auto,
                "on" => self.xdp = Xdp::On,
                "off" => self.xdp = Xdp::Off,
                _ => node.wrong(format!("{text:?}: expected auto, on or off")),
            },
            "allow" => self.allow = list(node, text),
            _ => unknown(node),
        }
    }
}

/// The allow list of one container on one network, where it has one of its own.
pub fn allow_of_endpoint(endpoint: &Node<'_>) -> Option<Vec<IpNet>> {
    let mut allow = None;
    for (key, node) in endpoint.opt("options").map(|n| n.entries()).unwrap_or_default() {
        match key.strip_prefix(PREFIX) {
            Some("allow") => allow = node.text().map(|text| list(&node, text)),
            Some("path" | "direct" | "masquerade" | "xdp") => {
                node.wrong("this is an option of the network, not of one container")
            }
            Some(_) => unknown(&node),
            None => {}
        }
    }
    allow
}

fn unknown(node: &Node<'_>) {
    node.wrong("netpath has no option of that name; it has path, direct, masquerade, xdp and allow");
}

fn flag(node: &Node<'_>, text: &str) -> Option<bool> {
    match text {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => {
            node.wrong(format!("{text:?}: expected true or false"));
            None
        }
    }
}

/// `192.0.2.0/24,2001:db8::7`: networks, and addresses, which stand for themselves.
fn list(node: &Node<'_>, text: &str) -> Vec<IpNet> {
    let mut nets: Vec<IpNet> = Vec::new();
    for word in text.split(',').map(str::trim) {
        let net = word.parse::<IpNet>().or_else(|_| word.parse::<IpAddr>().map(|a| IpNet::from(a.to_canonical())));
        match net {
            Ok(net) if !nets.contains(&net.trunc()) => nets.push(net.trunc()),
            Ok(_) => {}
            Err(_) => node.wrong(format!("{word:?} is neither a network nor an address")),
        }
    }
    nets
}
