//! Validated values that the rooms above exchange, independent of any engine. No I/O, no netlink, no aya.

pub mod attachment;
pub mod clock;
pub mod departed;
pub mod endpoint;
pub mod error;
#[cfg(test)]
pub mod fixtures;
pub mod host;
pub mod network;
pub mod port_conflicts;
pub mod publish;
pub mod record;

pub use attachment::Attachment;
pub use departed::{Departed, Departures, NetnsId};
pub use endpoint::{Container, Endpoint, IfName, Leased, Mac};
pub use error::Error;
pub use host::{HostLink, HostView, LinkKind, RouteMtus, RouteSource};
pub use network::{Isolation, Mtu, Network, Route, Subnet, TranslationPath, Xdp};
pub use publish::{HostBind, Proto, Publish};
pub use record::{BridgeLinks, Desired, InsideLinks, Links, Record, TrafficIds};

/// A datapath, best first. Chosen by probing, kept while a container of the host uses it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rung {
    Ebpf,
    Nftables,
    Iptables,
    None,
}

impl std::fmt::Display for Rung {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Rung::Ebpf => "ebpf",
            Rung::Nftables => "nftables",
            Rung::Iptables => "iptables",
            Rung::None => "none",
        })
    }
}
