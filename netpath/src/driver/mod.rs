//! Drivers: how an endpoint is attached to its network, one file for each way.
//!
//! `ops` runs the plan and keeps the records; a driver lists the steps that attach an endpoint, performs its own ones, and finds the
//! links of a record again. It changes links, addresses and sysctls, never a record or the datapath.

pub mod bridge;
pub mod ipvlan;
mod limited;
pub mod macvlan;
mod parent;
pub mod plugin;

use crate::link::{Inside, Rtnl, sysctl};
use crate::model::error::{Error, Result};
use crate::model::{Attachment, HostView, IfName, Leased, Links, Network, Record};
use crate::plan::{Done, Steps};
use crate::state::{Key, Store, StoredEndpoint};
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

/// The namespaces and the store that one command works on.
pub struct Site {
    /// Of the host.
    pub rtnl: Rtnl,
    /// `None`: the container's namespace is gone, or the command is about no container.
    pub inside: Option<Inside>,
    pub store: Store,
    /// Of all endpoints that the command attaches or detaches.
    pub keys: Vec<Key>,
}

impl Site {
    /// # Errors
    /// The container has no network namespace.
    pub fn inside(&self) -> Result<&Inside> {
        self.inside.as_ref().ok_or_else(|| Error::new("the container has no network namespace"))
    }

    /// The records of all other endpoints.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn others(&self) -> Result<Vec<Record>> {
        let others = self.store.all()?.into_iter().filter(|k| !self.keys.contains(&k.key()));
        Ok(others.map(|k| k.record).collect())
    }
}

/// The results of an endpoint's steps so far.
#[derive(Clone, Default)]
pub struct Made {
    /// Of the interface inside the container.
    pub index: u32,
    pub links: Option<Links>,
    /// Those that the interface has been given.
    pub addresses: Vec<IpNet>,
    /// What came with an address by DHCP.
    pub lease: Option<Leased>,
    /// The answer of a plugin, which replaces all of the above.
    pub status: Option<String>,
}

/// A link that is deleted with its endpoint, by its ifindex in the host's namespace or in the container's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Found {
    Host(u32),
    Inside(u32),
}

/// One endpoint's driver during one command.
pub trait Driver {
    /// Checks that the host can take the endpoint beside the `stored` ones. Called with the lock; changes nothing.
    ///
    /// # Errors
    /// It cannot.
    fn validate(&mut self, site: &Site, record: &Record, stored: &[StoredEndpoint]) -> Result<()>;

    /// The steps that attach the endpoint; `at` is its position in the command.
    fn steps(&self, at: usize, record: &Record) -> Steps;

    /// The link of the host that all endpoints of the network share, and that is deleted with the last one.
    fn shared(&self) -> Option<&IfName> {
        None
    }

    /// The addresses that the network's DNS server listens on, if they are not the gateways.
    ///
    /// # Errors
    /// It has DNS, and there is none.
    fn dns_addresses(&self, _site: &Site, _record: &Record) -> Result<Option<Vec<IpAddr>>> {
        Ok(None)
    }

    /// [`Step::Share`](crate::plan::Step::Share): creates the shared link, or completes it.
    ///
    /// # Errors
    /// It cannot be created; nothing is left of it.
    fn share(&mut self, _site: &Site, _at: usize, _record: &Record) -> Result<Done> {
        Ok(Done::AlreadySo)
    }

    /// Gives up the shared link unless one of `others` needs it: removes the files that belong to it, and returns its ifindex if it
    /// can be deleted, that is, if it exists and has no ports but `deleted` ones.
    ///
    /// # Errors
    /// The kernel's.
    fn release(&self, _site: &Site, _others: &BTreeSet<IfName>, _deleted: &[u32]) -> Result<Option<u32>> {
        Ok(None)
    }

    /// [`Step::Connect`](crate::plan::Step::Connect): creates the interface inside the container, down.
    ///
    /// # Errors
    /// It cannot be created; nothing is left of it.
    fn connect(&mut self, site: &Site, record: &Record) -> Result<Made>;

    /// Undoes what [`Driver::connect`] has made besides links, for a container that had its network namespace at `netns`. Called without
    /// the lock, before the links are deleted.
    ///
    /// # Errors
    /// It cannot be undone.
    fn disconnect(&self, _netns: &Path) -> Result<()> {
        Ok(())
    }

    /// [`Step::Settings`](crate::plan::Step::Settings): the sysctls of the interface.
    ///
    /// # Errors
    /// One cannot be set.
    fn configure(&self, site: &Site, record: &Record) -> Result<()>;

    /// [`Step::Up`](crate::plan::Step::Up).
    ///
    /// # Errors
    /// The kernel's.
    fn up(&self, site: &Site, record: &Record, made: &Made) -> Result<()>;

    /// After all steps: announces the addresses to neighbours, in case the kernel has not.
    fn announce(&self, _site: &Site, _made: &Made) {}

    /// The link of the host to whose wire the endpoint with these `links` belongs, which the DHCP proxy is told. Empty if there is none.
    ///
    /// # Errors
    /// The kernel's.
    fn wire(&self, _site: &Site, _links: Option<&Links>) -> Result<String> {
        Ok(String::new())
    }

    /// Whether the record alone says that the endpoint is attached, because the driver knows of no links.
    fn has_no_links(&self) -> bool {
        false
    }

    /// Whether the links of a record still exist. The record may be another container's.
    ///
    /// # Errors
    /// It cannot be determined.
    fn is_alive(&self, site: &Site, record: &Record, links: &Links, view: &HostView) -> Result<bool>;

    /// The link that a record of this container names, if it is still the same one: indexes are reused.
    ///
    /// # Errors
    /// The kernel's.
    fn recorded(&self, site: &Site, interface: &IfName, links: &Links) -> Result<Option<Found>>;

    /// The link named `interface` inside the container, if a driver of this kind has created it. It finds the links of a setup that was
    /// killed before it recorded them.
    ///
    /// # Errors
    /// The kernel's.
    fn inside(&self, site: &Site, interface: &IfName) -> Result<Option<Found>>;
}

/// The shared links of `records`.
pub fn shared<'a>(records: impl IntoIterator<Item = &'a Record>) -> BTreeSet<IfName> {
    records.into_iter().filter_map(|r| of(&r.network.attachment).shared().cloned()).collect()
}

/// Deletes the shared link, unless another endpoint has begun to use it.
///
/// # Errors
/// The kernel's, or the store cannot be read.
pub fn remove_unused(driver: &dyn Driver, site: &Site) -> Result<()> {
    site.rtnl.delete(driver.release(site, &shared(&site.others()?), &[])?.as_slice())
}

/// # Errors
/// The kernel's.
pub fn remove(site: &Site, found: impl IntoIterator<Item = Found>) -> Result<()> {
    let (host, inside) = apart(found);
    if let Some(container) = &site.inside {
        container.rtnl().delete(&inside)?;
    }
    site.rtnl.delete(&host)
}

/// By ifindex, those of the host and those inside the container.
pub fn apart(found: impl IntoIterator<Item = Found>) -> (Vec<u32>, Vec<u32>) {
    let (mut host, mut inside) = (Vec::new(), Vec::new());
    for found in found {
        match found {
            Found::Host(index) => host.push(index),
            Found::Inside(index) => inside.push(index),
        }
    }
    (host, inside)
}

/// What the interface takes from routers' advertisements, in the calling thread's namespace and before it is up: with DHCPv6 prefixes and
/// default routes, with SLAAC addresses as well.
fn advertisements(interface: &str, network: &Network) -> Result<()> {
    let of = |key| sysctl::of_interface("ipv6", interface, key);
    let bit = |is: bool| if is { "1" } else { "0" };
    sysctl::ensure_if_possible(&of("autoconf"), bit(network.slaac))?;
    if !network.slaac && !network.dhcp6 {
        return Ok(());
    }
    sysctl::ensure(&of("accept_ra"), "1")?;
    sysctl::ensure(&of("accept_ra_defrtr"), bit(network.default_route && !network.internal))?;
    // From Linux 5.12 on. The kernel takes no metric of 0.
    sysctl::ensure_if_possible(&of("ra_defrtr_metric"), &network.metric.max(1).to_string())
}

/// The driver of a network's endpoints. Names of drivers are in `face/podman/plugin.rs`.
pub fn of(attachment: &Attachment) -> Box<dyn Driver> {
    match attachment {
        Attachment::Bridge(name) => Box::new(bridge::Bridge::managed(name.clone())),
        Attachment::Unmanaged(name) => Box::new(bridge::Bridge::unmanaged(name.clone())),
        Attachment::Macvlan(macvlan) => Box::new(macvlan::Macvlan::new(macvlan.clone())),
        Attachment::Ipvlan(ipvlan) => Box::new(ipvlan::Ipvlan::new(ipvlan.clone())),
        Attachment::Plugin(plugin) => Box::new(plugin::Plugin::new(plugin.clone())),
    }
}
