//! What netpath keeps of an endpoint, and the sum of it that a datapath makes true.

use super::{Container, Endpoint, IfName, Mac, Network, Publish};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The kernel objects of an endpoint, known once its links exist.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Links {
    pub bridge_index: u32,
    pub bridge_mac: Mac,
    /// Host side of the veth.
    pub veth_index: u32,
    pub veth_name: IfName,
    /// Of the interface inside the container.
    pub container_mac: Mac,
    /// Of the interface inside the container, bytes.
    pub mtu: u32,
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
    /// `None` until the links exist; a datapath leaves such a record alone.
    pub links: Option<Links>,
}

/// Everything that should be on this host, in the order in which it came.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Desired {
    pub records: Vec<Record>,
}

impl Desired {
    /// The records that have links, so that a datapath can serve them.
    pub fn ready(&self) -> impl Iterator<Item = (&Record, &Links)> {
        self.records.iter().filter_map(|r| r.links.as_ref().map(|l| (r, l)))
    }
}
