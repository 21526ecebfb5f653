//! The interface of a container that gets its address by DHCP.

use crate::dhcp::wire::NetworkConfig;
use crate::dhcp::{Identity, Lease};
use crate::link::{Inside, Netns, Rtnl};
use crate::model::error::{Error, Result};
use crate::model::network::{Route, RouteKind};
use crate::model::{IfName, Mac};
use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// [`NetworkConfig::version`] of DHCPv6.
pub(super) const V6: i32 = 1;
/// Netavark's.
const METRIC: u32 = 100;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Interface {
    pub netns: PathBuf,
    /// Of the namespace: another one may take its path.
    pub inode: u64,
    pub name: IfName,
    /// Its parent, or its bridge.
    pub host: String,
    /// Of its default route; `None`: it has none.
    pub metric: Option<u32>,
}

/// An interface in its namespace.
pub(super) struct Entered {
    pub inside: Inside,
    pub index: u32,
    pub mac: Option<Mac>,
}

impl Interface {
    /// With what a server is told of it.
    ///
    /// # Errors
    /// There is no such interface.
    pub(super) fn of(config: &NetworkConfig) -> Result<(Self, Identity)> {
        let what = || format!("cannot use interface {} of {}", config.container_iface, config.ns_path);
        let wrong = |e: String| Error::new(what()).because(e);
        // The texts are netavark's.
        const ABSENT: &str = "No such device (os error 19)";
        let name: IfName = config.container_iface.parse().map_err(|e| wrong(format!("{ABSENT}: {e}")))?;
        let mac = &config.container_mac_addr;
        let no_mac = |e: String| {
            let why = if mac.is_empty() { "cannot parse integer from empty string" } else { e.as_str() };
            wrong(format!("unable to parse mac address {mac}: {why}"))
        };
        let mac: Mac = mac.parse().map_err(no_mac)?;
        let netns = PathBuf::from(&config.ns_path);
        let gone = || Error::new(what()).because("there is no such network namespace");
        let open = Netns::open(&netns)?.ok_or_else(gone)?;
        let v6 = config.version == V6;
        // Routers advertise themselves by IPv6.
        let metric = (!v6 && !config.no_default_route).then(|| config.metric.unwrap_or(METRIC));
        let own = Self { netns, inode: open.inode()?, name, host: config.host_iface.clone(), metric };
        let gone = || Error::new(what()).because(ABSENT);
        let link = open.enter()?.rtnl().link_named(&own.name)?.ok_or_else(gone)?;
        let client_id = match config.container_id.as_str() {
            id if v6 => duid(if id.is_empty() { &config.container_mac_addr } else { id }),
            "" => Vec::new(),
            // Type 0: no hardware address.
            id => [&[0], id.as_bytes()].concat(),
        };
        let by_broadcast = link.driver.as_deref() == Some("ipvlan");
        // One DUID for the container, and another association for each interface (RFC 8415 §4.2).
        let iaid = v6.then(|| fnv(own.name.as_str()) as u32);
        Ok((own, Identity { mac: mac.bytes(), client_id, iaid, host_name: config.host_name.clone(), by_broadcast }))
    }

    /// `None`: the namespace or the interface is gone.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub(super) fn enter(&self) -> Result<Option<Entered>> {
        let Some(open) = Netns::open(&self.netns)? else { return Ok(None) };
        if open.inode()? != self.inode {
            return Ok(None);
        }
        let inside = open.enter()?;
        let link = inside.rtnl().link_named(&self.name)?;
        Ok(link.map(|link| Entered { inside, index: link.index, mac: link.mac }))
    }

    /// The host's interface on the same network.
    pub(super) fn host_index(&self) -> Result<Option<u32>> {
        let Ok(name) = self.host.parse::<IfName>() else { return Ok(None) };
        Ok(Rtnl::here()?.link_named(&name)?.map(|link| link.index))
    }

    /// Gives the interface the address and the default route of `new`, and takes those of `old` away.
    ///
    /// # Errors
    /// The kernel's; what was done stays.
    pub(super) fn configure(&self, at: &Entered, old: Option<&Lease>, new: Option<&Lease>) -> Result<()> {
        let rtnl = at.inside.rtnl();
        let address = |lease: Option<&Lease>| lease.map(Lease::address);
        let route = |lease: Option<&Lease>| Some(self.default_route(lease?.gateway()?, self.metric?));
        if let Some(address) = address(new).filter(|_| address(old) != address(new)) {
            rtnl.add_address(at.index, address)?;
            // Neighbours may have cached another container's hardware address for it.
            if let Some(Err(e)) = at.mac.map(|mac| rtnl.announce(at.index, mac)) {
                tracing::debug!(error = %e, "the address is not announced");
            }
        }
        // A route goes with an address that goes, whatever the kernel does.
        let is_same = address(old) == address(new) && route(old) == route(new);
        if let Some(route) = route(old).filter(|_| !is_same) {
            rtnl.delete_route(&route)?;
        }
        if let Some(address) = address(old).filter(|_| address(old) != address(new)) {
            rtnl.delete_address(at.index, address)?;
        }
        if let Some(route) = route(new).filter(|_| !is_same) {
            rtnl.add_route(&route)?;
        }
        Ok(())
    }

    fn default_route(&self, gateway: Ipv4Addr, metric: u32) -> Route {
        let destination = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0));
        Route { destination, gateway: Some(gateway.into()), metric, kind: RouteKind::Unicast }
    }
}

/// DUID-UUID (RFC 6355): the same whenever the container starts.
fn duid(id: &str) -> Vec<u8> {
    [&[0, 4], fnv(id).to_be_bytes().as_slice()].concat()
}

/// FNV-1a with 128 bits.
fn fnv(text: &str) -> u128 {
    let step = |h: u128, b: u8| (h ^ u128::from(b)).wrapping_mul(0x0100_0000_0000_0000_0000_013b);
    text.bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, step)
}
