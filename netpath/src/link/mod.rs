//! Links, addresses, routes, neighbours and sysctls of the kernel, behind typed calls.
//!
//! Netlink messages do not leave this room, it runs no program, and every call can be repeated.

pub mod bridge;
mod carrier;
mod delete;
pub mod ethtool;
pub mod ipvlan;
pub mod macvlan;
mod ndisc;
mod neighbour;
pub mod netns;
pub mod query;
pub mod route;
pub mod rtnl;
mod source;
pub mod sysctl;
pub mod sysctl_conf;
pub mod veth;
mod watch;

use crate::model::error::{Context, Result};
use std::io::Read;

pub use bridge::BridgeSpec;
pub use carrier::Carriers;
pub use ipvlan::IpvlanSpec;
pub use macvlan::MacvlanSpec;
pub use ndisc::solicit;
pub use netns::{Inside, Netns};
pub use rtnl::{RequestError, Rtnl};
pub use source::Way;
pub use veth::VethSpec;
pub use watch::{concerns_mtu, neighbour, watch, watch_neighbours, watch_routes, watch_ways};

/// # Errors
/// The kernel gives none.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(&mut bytes))
        .context(|| "cannot read /dev/urandom".to_owned())?;
    Ok(bytes)
}
