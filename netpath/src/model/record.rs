//! What netpath keeps of an endpoint, and the sum of it that a datapath makes true.

use super::{Container, Endpoint, IfName, Mac, Network, Publish};
use ipnet::IpNet;
use netpath_common::layout::TRAFFICS;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The kernel objects of an endpoint, known once its links exist.
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

    /// Of the interface inside the container.
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
    /// Host side of the veth.
    pub veth_index: u32,
    pub veth_name: IfName,
    /// Of the interface inside the container.
    pub container_mac: Mac,
    /// Of the interface inside the container, bytes.
    pub mtu: u32,
    /// The interface inside the container takes frames that XDP sends it (GRO is on). Records of earlier versions do not
    /// have it.
    #[serde(default)]
    pub takes_xdp: bool,
}

/// A link that is inside the container alone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InsideLinks {
    /// Of the host's link that it stands on.
    pub parent_index: u32,
    /// In the container's namespace.
    pub inside_index: u32,
    pub container_mac: Mac,
}

/// Which of the datapath's traffic counters are an endpoint's, as long as its record lives; 0 = not counted apart.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TrafficIds {
    /// Of flows that no publish began.
    pub own: u16,
    /// In the order of [`Record::publishes`]; what is missing at the end has none.
    pub publishes: Vec<u16>,
}

impl TrafficIds {
    fn all(&self) -> impl Iterator<Item = u16> + '_ {
        std::iter::once(self.own).chain(self.publishes.iter().copied())
    }

    /// As many as `record` needs of those that none of `others` has, the lowest first; it goes without where none is left.
    #[must_use]
    pub fn for_record<'a>(record: &Record, others: impl Iterator<Item = &'a TrafficIds>) -> Self {
        let mut taken = vec![false; TRAFFICS as usize];
        taken[0] = true;
        for id in others.flat_map(TrafficIds::all) {
            if let Some(place) = taken.get_mut(usize::from(id)) {
                *place = true;
            }
        }
        // The map has fewer than 65,536.
        let mut free = taken.iter().enumerate().filter(|(_, t)| !**t).map(|(id, _)| id as u16);
        Self { own: free.next().unwrap_or(0), publishes: free.take(record.publishes.len()).collect() }
    }
}

/// One endpoint as it should be. Written before anything is made, removed after everything is gone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Grows with every record of the host: of two that publish the same, the lower one owns it.
    pub order: u64,
    pub container: Container,
    pub netns: PathBuf,
    pub network: Network,
    pub endpoint: Endpoint,
    pub publishes: Vec<Publish>,
    /// The clients that published ports answer which have no list of their own; empty = everybody. The host itself is always
    /// answered.
    #[serde(default)]
    pub allow: Vec<IpNet>,
    /// Traffic counters of the eBPF datapath.
    #[serde(default)]
    pub traffic: TrafficIds,
    /// `None` until the links exist; a datapath leaves such a record alone.
    pub links: Option<Links>,
}

impl Record {
    /// As [`Record::bridged`].
    pub fn bridged_mut(&mut self) -> Option<&mut BridgeLinks> {
        match self.links.as_mut()? {
            Links::Bridge(links) => Some(links),
            Links::Inside(_) => None,
        }
    }

    /// Its links, where it is on a bridge and they exist.
    pub fn bridged(&self) -> Option<&BridgeLinks> {
        self.links.as_ref()?.bridge()
    }

    /// The clients that this port of it answers; empty = everybody.
    pub fn allow_of<'a>(&'a self, publish: &'a Publish) -> &'a [IpNet] {
        publish.allow.as_ref().unwrap_or(&self.allow)
    }
}

/// Everything that should be on this host, in the order in which it came.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Desired {
    pub records: Vec<Record>,
}

impl Desired {
    /// The records that a datapath serves: those on a bridge, once they have links.
    pub fn bridged(&self) -> impl Iterator<Item = (&Record, &BridgeLinks)> + Clone {
        self.records.iter().filter_map(|r| Some((r, r.bridged()?)))
    }

    /// The bridges of all records, whether their links exist yet or not.
    pub fn bridges(&self) -> impl Iterator<Item = &IfName> {
        self.records.iter().filter_map(|r| r.network.bridge())
    }
}
