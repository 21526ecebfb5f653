//! What a face asks for, and the answer.

use crate::datapath::ladder::Choice;
use crate::dns::aardvark::Names;
use crate::model::{Attachment, Container, Endpoint, IfName, Leased, Mac, Network, Publish, Record, TrafficIds};
use crate::state::{Key, StoredEndpoint};
use ipnet::IpNet;
use std::path::{Path, PathBuf};

/// One endpoint as its engine requests it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointRequest {
    pub network: Network,
    pub endpoint: Endpoint,
    pub publishes: Vec<Publish>,
    /// As [`Record::allow`].
    pub allow: Vec<IpNet>,
}

impl EndpointRequest {
    /// Its record, which gets its order later.
    pub(super) fn record(self, container: &Container, netns: &Path) -> Record {
        let Self { network, endpoint, publishes, allow } = self;
        // Ports are not published on an internal network, or on one that the datapath does not serve.
        let is_reached = !network.internal && network.bridge().is_some();
        Record {
            order: 0,
            container: container.clone(),
            netns: netns.to_owned(),
            publishes: if is_reached { publishes } else { Vec::new() },
            allow,
            traffic: TrafficIds::default(),
            network,
            endpoint,
            links: None,
        }
    }
}

/// One attached endpoint.
pub struct Attached {
    pub network: Network,
    /// With its addresses.
    pub endpoint: Endpoint,
    pub result: Made,
    /// What came with its address, if that came by DHCP.
    pub lease: Option<Leased>,
}

/// What setup has made of an endpoint.
pub enum Made {
    /// An interface with this MAC address.
    Interface(Mac),
    /// Whatever a plugin says.
    Plugin(String),
}

/// A container and the networks to attach it to, in this order.
pub struct Attach {
    pub container: Container,
    pub netns: PathBuf,
    pub endpoints: Vec<EndpointRequest>,
    pub choice: Choice,
    pub names: Box<dyn Names>,
}

/// One endpoint to detach, as the engine describes it. netpath's own record takes precedence.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leaving {
    pub network: String,
    pub interface: Option<IfName>,
    /// `None`: unknown to the engine.
    pub attachment: Option<Attachment>,
}

impl Leaving {
    /// The keys of its records. With an interface, its key even if there is no record.
    pub(super) fn keys(&self, container: &str, known: &[StoredEndpoint]) -> Vec<Key> {
        if let Some(interface) = &self.interface {
            let (container, network) = (container.to_owned(), self.network.clone());
            return vec![Key { container, network, interface: interface.clone() }];
        }
        let keys = known.iter().map(StoredEndpoint::key);
        keys.filter(|k| k.container == container && k.network == self.network).collect()
    }
}

pub struct Detach {
    pub container: Container,
    pub netns: PathBuf,
    pub leaving: Vec<Leaving>,
    /// The endpoints in full, as far as the engine's description is valid.
    pub endpoints: Vec<EndpointRequest>,
    pub names: Box<dyn Names>,
    /// The engine's run-time directory.
    pub config: PathBuf,
}
