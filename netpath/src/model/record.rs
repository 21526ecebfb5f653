//! The stored state of an endpoint, and the desired state of a host.

use super::{Container, Endpoint, IfName, Mac, Network, Publish};
use ipnet::IpNet;
use netpath_common::layout::TRAFFICS;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The links of an endpoint, known once they exist.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Links {
    Bridge(BridgeLinks),
    Inside(InsideLinks),
}

impl Links {
    pub fn bridge(&self) -> Option<&BridgeLinks> {
        match self {
            Links::Bridge(links) => Some(links),
            Links::Inside(_) => None,
        }
    }

    /// MAC address of the interface inside the container.
    pub fn container_mac(&self) -> Mac {
        match self {
            Links::Bridge(links) => links.container_mac,
            Links::Inside(links) => links.container_mac,
        }
    }
}

/// A veth between a bridge and the container.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BridgeLinks {
    pub bridge_index: u32,
    pub bridge_mac: Mac,
    /// The host's end of the veth.
    pub veth_index: u32,
    pub veth_name: IfName,
    /// MAC address of the interface inside the container.
    pub container_mac: Mac,
    /// MTU of the interface inside the container, bytes.
    pub mtu: u32,
    /// GRO is on inside the container, so the veth accepts frames that XDP redirects. Missing in records of earlier versions.
    #[serde(default)]
    pub takes_xdp: bool,
}

/// A link with no end in the host's namespace.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InsideLinks {
    /// ifindex of its parent on the host.
    pub parent_index: u32,
    /// ifindex in the container's namespace.
    pub inside_index: u32,
    pub container_mac: Mac,
}

/// The traffic counters assigned to an endpoint until its record is removed; 0: no counter.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TrafficIds {
    /// Counter of the endpoint's other flows.
    pub own: u16,
    /// Counters of [`Record::publishes`], in their order; missing ones count as 0.
    pub publishes: Vec<u16>,
}

impl TrafficIds {
    fn all(&self) -> impl Iterator<Item = u16> + '_ {
        std::iter::once(self.own).chain(self.publishes.iter().copied())
    }

    /// Assigns `record` the lowest ids that `others` do not use; none where all are in use.
    #[must_use]
    pub fn for_record<'a>(record: &Record, others: impl Iterator<Item = &'a TrafficIds>) -> Self {
        let mut taken = vec![false; TRAFFICS as usize];
        taken[0] = true;
        for id in others.flat_map(TrafficIds::all) {
            if let Some(taken) = taken.get_mut(usize::from(id)) {
                *taken = true;
            }
        }
        // The map has fewer than 65,536 counters.
        let mut free = taken.iter().enumerate().filter(|(_, t)| !**t).map(|(id, _)| id as u16);
        Self { own: free.next().unwrap_or(0), publishes: free.take(record.publishes.len()).collect() }
    }
}

/// The desired state of one endpoint. Written before its links are created, removed after they are deleted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Grows with every record of the host: of two records with the same published port, the lower one owns the port.
    pub order: u64,
    pub container: Container,
    pub netns: PathBuf,
    pub network: Network,
    pub endpoint: Endpoint,
    pub publishes: Vec<Publish>,
    /// The allow list of published ports without one; empty: all clients. The host itself is always allowed.
    #[serde(default)]
    pub allow: Vec<IpNet>,
    /// Traffic counters of the eBPF datapath.
    #[serde(default)]
    pub traffic: TrafficIds,
    /// `None` until the links exist; datapaths ignore such a record.
    pub links: Option<Links>,
}

impl Record {
    /// As [`Record::bridged`].
    pub fn bridged_mut(&mut self) -> Option<&mut BridgeLinks> {
        self.network.bridge()?;
        match self.links.as_mut()? {
            Links::Bridge(links) => Some(links),
            Links::Inside(_) => None,
        }
    }

    /// The links of an endpoint on a managed bridge, once they exist.
    pub fn bridged(&self) -> Option<&BridgeLinks> {
        self.network.bridge()?;
        self.links.as_ref()?.bridge()
    }

    /// The allow list of this publish; empty: all clients.
    pub fn allow_of<'a>(&'a self, publish: &'a Publish) -> &'a [IpNet] {
        publish.allow.as_ref().unwrap_or(&self.allow)
    }
}

/// All records of a host, oldest first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Desired {
    pub records: Vec<Record>,
}

impl Desired {
    /// The records that a datapath serves: those on a bridge whose links exist.
    pub fn bridged(&self) -> impl Iterator<Item = (&Record, &BridgeLinks)> + Clone {
        self.records.iter().filter_map(|r| Some((r, r.bridged()?)))
    }

    /// The bridges of all records, including those without links.
    pub fn bridges(&self) -> impl Iterator<Item = &IfName> {
        self.records.iter().filter_map(|r| r.network.bridge())
    }
}
