//! A macvlan: the container's interface is on the wire of a link of the host, with a hardware address of its own.
//!
//! It exists only inside the container. The datapath does not serve it: nothing is published, masqueraded or isolated, and the host
//! and the container do not reach each other over the parent.

use super::{Driver, Found, Made, Site};
use crate::link::query::Link;
use crate::link::{Inside, MacvlanSpec, Netns, Rtnl, sysctl};
use crate::model::attachment::Macvlan as Attachment;
use crate::model::error::{Error, Result};
use crate::model::network::Mtu;
use crate::model::{HostView, IfName, InsideLinks, LinkKind, Links, Record};
use crate::plan::{Steps, connect};
use crate::state::StoredEndpoint;

pub struct Macvlan(Attachment);

impl Macvlan {
    pub fn new(attachment: Attachment) -> Self {
        Self(attachment)
    }

    fn parent(&self, rtnl: &Rtnl) -> Result<Option<Link>> {
        match &self.0.parent {
            Some(name) => rtnl.link_named(name),
            None => rtnl.default_route_link(),
        }
    }

    /// # Errors
    /// There is none, or it is down.
    fn usable_parent(&self, rtnl: &Rtnl, record: &Record) -> Result<Link> {
        let what = || {
            let (interface, network) = (&record.endpoint.interface, &record.network.name);
            Error::new(format!("cannot create macvlan {interface} on network {network}"))
        };
        let link = match (self.parent(rtnl)?, &self.0.parent) {
            (Some(link), _) => link,
            (None, Some(name)) => {
                let mut links = rtnl.links()?;
                links.retain(|l| l.up && l.mac.is_some() && l.master.is_none() && l.kind != LinkKind::Bridge);
                let there: Vec<String> = links.into_iter().map(|l| l.name).collect();
                let there =
                    if there.is_empty() { String::new() } else { format!(" (this host has {})", there.join(", ")) };
                return Err(what()
                    .because(format!("parent {name} does not exist{there}"))
                    .next("set the network's parent option"));
            }
            (None, None) => {
                return Err(what()
                    .because("the network has no parent, and this host has no default route")
                    .next("set the network's parent option"));
            }
        };
        if !link.up {
            let name = &link.name;
            return Err(what().because(format!("parent {name} is down")).next(format!("ip link set {name} up")));
        }
        Ok(link)
    }

    /// The macvlan of this name inside the container, if it belongs to the parent.
    fn find(&self, rtnl: &Rtnl, inside: &Inside, name: &IfName) -> Result<Option<Link>> {
        let Some(link) = inside.rtnl().link_named(name)?.filter(is_macvlan) else { return Ok(None) };
        let parent = self.parent(rtnl)?;
        Ok(parent.is_none_or(|p| link.peer == Some(p.index)).then_some(link))
    }

    /// Creates it under a temporary name: the kernel creates it in the host's namespace, where its own name may exist.
    fn make(&self, site: &Site, record: &Record, parent: &Link) -> Result<Link> {
        let interface = &record.endpoint.interface;
        let what = || format!("create macvlan interface {interface} on parent {}", parent.name);
        let inside = site.inside()?;
        let name = temporary(interface)?;
        let spec = MacvlanSpec {
            name: &name,
            parent: parent.index,
            options: &self.0,
            mac: record.endpoint.mac,
            mtu: record.network.mtu.map(Mtu::bytes),
        };
        site.rtnl.add_macvlan(&spec, inside.raw_fd()).map_err(|e| Error::new(what()).because(e))?;
        let gone = || Error::new(what()).because("it has disappeared");
        let made = inside.rtnl().link_named(&name)?.ok_or_else(gone)?;
        if let Err(e) = inside.rtnl().rename(made.index, interface) {
            inside.rtnl().delete(&[made.index])?;
            return Err(if e.exists() {
                let text =
                    format!("create macvlan interface: interface {interface} already exists on container namespace");
                Error::new(text).because(e).next("choose another interface name")
            } else {
                Error::new(what()).because(e)
            });
        }
        Ok(made)
    }
}

impl Driver for Macvlan {
    fn validate(&mut self, site: &Site, record: &Record, _stored: &[StoredEndpoint]) -> Result<()> {
        self.usable_parent(&site.rtnl, record).map(drop)
    }

    fn steps(&self, at: usize, record: &Record) -> Steps {
        let to = self.0.parent.as_ref().map_or("the link of the default route".to_owned(), |p| format!("parent {p}"));
        Steps { own: connect(at, record, to), ..Steps::default() }
    }

    fn connect(&mut self, site: &Site, record: &Record) -> Result<Made> {
        let parent = self.usable_parent(&site.rtnl, record)?;
        let made = self.make(site, record, &parent)?;
        let mac = made.mac.ok_or_else(|| Error::new(format!("macvlan {} has no MAC address", made.name)))?;
        let links = InsideLinks { parent_index: parent.index, inside_index: made.index, container_mac: mac };
        Ok(Made { index: made.index, links: Some(Links::Inside(links)), addresses: Vec::new() })
    }

    fn configure(&self, site: &Site, record: &Record) -> Result<()> {
        let (interface, v6) = (&record.endpoint.interface, record.network.has_v6());
        site.inside()?.run(|| {
            let of = |family, key| sysctl::of_interface(family, interface.as_str(), key);
            sysctl::ensure_if_possible(&of("ipv6", "autoconf"), "0")?;
            // Neighbours may have cached another container's hardware address for these addresses.
            sysctl::ensure(&of("ipv4", "arp_notify"), "1")?;
            if v6 { sysctl::ensure(&of("ipv6", "ndisc_notify"), "1").map(drop) } else { Ok(()) }
        })
    }

    fn up(&self, site: &Site, _record: &Record, made: &Made) -> Result<()> {
        site.inside()?.rtnl().set_up(made.index)
    }

    /// A namespace that cannot be entered counts as one where the links exist.
    fn is_alive(&self, _site: &Site, record: &Record, links: &Links, _view: &HostView) -> Result<bool> {
        let Some(netns) = Netns::open(&record.netns)? else { return Ok(false) };
        match netns.enter().and_then(|inside| recorded(&inside, links)) {
            Ok(found) => Ok(found.is_some()),
            Err(e) => {
                tracing::warn!("{e}");
                Ok(true)
            }
        }
    }

    fn recorded(&self, site: &Site, _interface: &IfName, links: &Links) -> Result<Option<Found>> {
        let Some(inside) = &site.inside else { return Ok(None) };
        Ok(recorded(inside, links)?.map(Found::Inside))
    }

    fn inside(&self, site: &Site, interface: &IfName) -> Result<Option<Found>> {
        let Some(inside) = &site.inside else { return Ok(None) };
        let found = match self.find(&site.rtnl, inside, interface)? {
            Some(link) => Some(link),
            None => self.find(&site.rtnl, inside, &temporary(interface)?)?,
        };
        Ok(found.map(|l| Found::Inside(l.index)))
    }
}

fn is_macvlan(link: &Link) -> bool {
    link.driver.as_deref() == Some("macvlan")
}

/// By index and parent: its name and hardware address may have changed.
fn recorded(inside: &Inside, links: &Links) -> Result<Option<u32>> {
    let Links::Inside(links) = links else { return Ok(None) };
    let found = inside.rtnl().link_at(links.inside_index)?;
    Ok(found.filter(|l| is_macvlan(l) && l.peer == Some(links.parent_index)).map(|l| l.index))
}

/// A name that no other interface of the host or the container has, and that a later command can compute again.
fn temporary(interface: &IfName) -> Result<IfName> {
    let hash = interface.as_str().bytes().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    format!("npmv-{hash:08x}").parse().map_err(|e: String| Error::new(e))
}
