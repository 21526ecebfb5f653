//! The host as `link` reads it from the kernel; input of the datapath's decisions.

use super::{IfName, Mac};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LinkKind {
    Loopback,
    Bridge,
    Veth,
    /// A VRF: its members keep their addresses and use a separate routing table.
    Vrf,
    /// Anything else, Ethernet or not.
    Other,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct HostLink {
    pub index: u32,
    pub name: IfName,
    pub kind: LinkKind,
    /// ifindex of the bridge, bond or VRF it is enslaved to.
    pub master: Option<u32>,
    pub mtu: u32,
    /// `None` on links without an Ethernet header.
    pub mac: Option<Mac>,
    /// The kind of a virtual link as in `ip -details` ("veth") or the driver of a device ("virtio_net"); `None` if unknown.
    pub driver: Option<String>,
    pub up: bool,
    pub addresses: Vec<IpNet>,
}

/// The route of connections from containers to a destination.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct RouteSource {
    /// A container subnet, or a part of it that a routing rule matches.
    pub from: IpNet,
    pub to: IpNet,
    /// The outgoing interfaces of the route; empty if unknown.
    pub by: Vec<IfName>,
    /// The route's preferred source, if netfilter's masquerade would choose another one.
    pub source: Option<IpAddr>,
}

/// The MTUs of routes, bytes; 0: of a route inside such a one without an MTU.
pub type RouteMtus = BTreeMap<IpNet, u32>;

/// All links of the host namespace at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostView {
    /// SO_NETNS_COOKIE (5.14), or the namespace's inode where the kernel has none.
    pub cookie: u64,
    pub links: Vec<HostLink>,
    /// Read only for the netfilter rungs. For each `from` the most specific `to` comes first, and entries equal to their
    /// enclosing one are left out; a part of a subnet comes before the subnet.
    pub sources: Vec<RouteSource>,
    /// `None`: not read. Only the agent reads them, and where there is to be none, any command.
    pub route_mtus: Option<RouteMtus>,
}

impl HostView {
    /// Equal for two views that differ only in links of containers. Comparable only within the same build.
    pub fn digest(&self) -> u64 {
        let mut digest = DefaultHasher::new();
        let is_of_container = |l: &&HostLink| l.kind == LinkKind::Veth && l.master.is_some();
        self.links.iter().filter(|l| !is_of_container(l)).for_each(|l| l.hash(&mut digest));
        self.sources.hash(&mut digest);
        digest.finish()
    }

    pub fn link(&self, index: u32) -> Option<&HostLink> {
        self.links.iter().find(|l| l.index == index)
    }

    /// `eth0`, or `#7` for an interface that is gone.
    pub fn interface(&self, index: u32) -> String {
        self.link(index).map_or_else(|| format!("#{index}"), |l| l.name.to_string())
    }

    pub fn has_address(&self, address: IpAddr) -> bool {
        self.links.iter().flat_map(|l| &l.addresses).any(|a| a.addr() == address)
    }

    pub fn link_named(&self, name: &IfName) -> Option<&HostLink> {
        self.links.iter().find(|l| &l.name == name)
    }
}
