//! Links on a parent of the host that are inside the container alone: macvlan and ipvlan.

use super::{Found, Made, Site};
use crate::link::query::Link;
use crate::link::rtnl::Answer;
use crate::link::{Inside, Netns, Rtnl};
use crate::model::error::{Error, Result};
use crate::model::{IfName, InsideLinks, LinkKind, Links, Record};
use std::os::fd::RawFd;

/// The links of one kind on one parent.
pub(super) struct OnParent<'a> {
    /// As [`Link::driver`]: macvlan, ipvlan.
    pub kind: &'static str,
    /// `None`: the link of the default route.
    pub parent: Option<&'a IfName>,
}

impl OnParent<'_> {
    /// For [`Step::Connect`](crate::plan::Step::Connect).
    pub(super) fn label(&self) -> String {
        self.parent.map_or("the link of the default route".to_owned(), |p| format!("parent {p}"))
    }

    fn parent(&self, rtnl: &Rtnl) -> Result<Option<Link>> {
        match self.parent {
            Some(name) => rtnl.link_named(name),
            None => rtnl.default_route_link(None),
        }
    }

    /// Warns if it is down: the link works once it is up.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn usable(&self, rtnl: &Rtnl, record: &Record) -> Result<Link> {
        let kind = self.kind;
        let what = || {
            let (interface, network) = (&record.endpoint.interface, &record.network.name);
            Error::new(format!("cannot create {kind} {interface} on network {network}"))
        };
        let next = "set the network's parent option";
        match (self.parent(rtnl)?, self.parent) {
            (Some(link), _) => {
                if !link.up {
                    let name = &link.name;
                    tracing::warn!("parent {name} of network {} is down: ip link set {name} up", record.network.name);
                }
                Ok(link)
            }
            (None, Some(name)) => {
                let mut links = rtnl.links()?;
                links.retain(|l| l.up && l.mac.is_some() && l.master.is_none() && l.kind != LinkKind::Bridge);
                let there: Vec<String> = links.into_iter().map(|l| l.name).collect();
                let there =
                    if there.is_empty() { String::new() } else { format!(" (this host has {})", there.join(", ")) };
                // The words in the middle are those of netavark's `create`.
                Err(what().because(format!("parent interface {name} does not exist{there}")).next(next))
            }
            (None, None) => {
                Err(what().because("the network has no parent, and this host has no default route").next(next))
            }
        }
    }

    /// Creates the link under a temporary name by `add`: the kernel creates it in the host's namespace, where its own name may exist.
    ///
    /// # Errors
    /// The kernel's; nothing is left.
    pub(super) fn make(
        &self,
        site: &Site,
        record: &Record,
        add: impl FnOnce(&IfName, &Link, RawFd) -> Answer<()>,
    ) -> Result<Made> {
        let parent = self.usable(&site.rtnl, record)?;
        let (kind, interface) = (self.kind, &record.endpoint.interface);
        let what = || format!("create {kind} interface {interface} on parent {}", parent.name);
        let inside = site.inside()?;
        let name = temporary(interface)?;
        add(&name, &parent, inside.raw_fd()).map_err(|e| Error::new(what()).because(e))?;
        let gone = || Error::new(what()).because("it has disappeared");
        let made = inside.rtnl().link_named(&name)?.ok_or_else(gone)?;
        if let Err(e) = inside.rtnl().rename(made.index, interface) {
            inside.rtnl().delete(&[made.index])?;
            return Err(if e.exists() {
                let text =
                    format!("create {kind} interface: interface {interface} already exists on container namespace");
                Error::new(text).because(e).next("choose another interface name")
            } else {
                Error::new(what()).because(e)
            });
        }
        let mac = made.mac.ok_or_else(|| Error::new(format!("{kind} {} has no MAC address", made.name)))?;
        let links = InsideLinks { parent_index: parent.index, inside_index: made.index, container_mac: mac };
        Ok(Made { index: made.index, links: Some(Links::Inside(links)), ..Made::default() })
    }

    /// Whether the links of a record still exist. A namespace that cannot be entered counts as one where they do.
    pub(super) fn is_alive(&self, record: &Record, links: &Links) -> Result<bool> {
        let Some(netns) = Netns::open(&record.netns)? else { return Ok(false) };
        match netns.enter().and_then(|inside| self.find_recorded(&inside, links)) {
            Ok(found) => Ok(found.is_some()),
            Err(e) => {
                tracing::warn!("{e}");
                Ok(true)
            }
        }
    }

    /// As [`Driver::wire`](super::Driver::wire): the parent may have another name since.
    pub(super) fn wire(&self, site: &Site, links: Option<&Links>) -> Result<String> {
        let Some(Links::Inside(links)) = links else { return Ok(String::new()) };
        Ok(site.rtnl.link_at(links.parent_index)?.map(|l| l.name).unwrap_or_default())
    }

    /// As [`Driver::recorded`](super::Driver::recorded).
    pub(super) fn recorded(&self, site: &Site, links: &Links) -> Result<Option<Found>> {
        let Some(inside) = &site.inside else { return Ok(None) };
        Ok(self.find_recorded(inside, links)?.map(Found::Inside))
    }

    /// As [`Driver::inside`](super::Driver::inside).
    pub(super) fn inside(&self, site: &Site, interface: &IfName) -> Result<Option<Found>> {
        let Some(inside) = &site.inside else { return Ok(None) };
        let found = match self.find(&site.rtnl, inside, interface)? {
            Some(link) => Some(link),
            None => self.find(&site.rtnl, inside, &temporary(interface)?)?,
        };
        Ok(found.map(|l| Found::Inside(l.index)))
    }

    fn is_own(&self, link: &Link) -> bool {
        link.driver.as_deref() == Some(self.kind)
    }

    /// The link of this name inside the container, if it belongs to the parent.
    fn find(&self, rtnl: &Rtnl, inside: &Inside, name: &IfName) -> Result<Option<Link>> {
        let Some(link) = inside.rtnl().link_named(name)?.filter(|l| self.is_own(l)) else { return Ok(None) };
        let parent = self.parent(rtnl)?;
        Ok(parent.is_none_or(|p| link.peer == Some(p.index)).then_some(link))
    }

    /// By index and parent: its name and hardware address may have changed.
    fn find_recorded(&self, inside: &Inside, links: &Links) -> Result<Option<u32>> {
        let Links::Inside(links) = links else { return Ok(None) };
        let found = inside.rtnl().link_at(links.inside_index)?;
        Ok(found.filter(|l| self.is_own(l) && l.peer == Some(links.parent_index)).map(|l| l.index))
    }
}

/// A name that no other interface of the host or the container has, and that a later command can compute again.
fn temporary(interface: &IfName) -> Result<IfName> {
    let hash = interface.as_str().bytes().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    format!("npmv-{hash:08x}").parse().map_err(|e: String| Error::new(e))
}
