//! A macvlan: the container's interface is on the wire of a link of the host, with a hardware address of its own.
//!
//! It exists only inside the container. The datapath does not serve it: nothing is published, masqueraded or isolated, and the host
//! and the container do not reach each other over the parent.

use super::parent::OnParent;
use super::{Driver, Found, Made, Site};
use crate::link::{MacvlanSpec, sysctl};
use crate::model::attachment::Macvlan as Attachment;
use crate::model::error::Result;
use crate::model::network::Mtu;
use crate::model::{HostView, IfName, Links, Record};
use crate::plan::{Steps, connect};
use crate::state::StoredEndpoint;

pub struct Macvlan(Attachment);

impl Macvlan {
    pub fn new(attachment: Attachment) -> Self {
        Self(attachment)
    }

    fn links(&self) -> OnParent<'_> {
        OnParent { kind: "macvlan", parent: self.0.parent.as_ref() }
    }
}

impl Driver for Macvlan {
    fn validate(&mut self, site: &Site, record: &Record, _stored: &[StoredEndpoint]) -> Result<()> {
        self.links().usable(&site.rtnl, record).map(drop)
    }

    fn steps(&self, at: usize, record: &Record) -> Steps {
        Steps { own: connect(at, record, self.links().label()), ..Steps::default() }
    }

    fn connect(&mut self, site: &Site, record: &Record) -> Result<Made> {
        self.links().make(site, record, |name, parent, container| {
            let spec = MacvlanSpec {
                name,
                parent: parent.index,
                options: &self.0,
                mac: record.endpoint.mac,
                mtu: record.network.mtu.map(Mtu::bytes),
            };
            site.rtnl.add_macvlan(&spec, container)
        })
    }

    fn configure(&self, site: &Site, record: &Record) -> Result<()> {
        let (interface, v6) = (&record.endpoint.interface, record.network.has_v6());
        site.inside()?.run(|| {
            let of = |family, key| sysctl::of_interface(family, interface.as_str(), key);
            super::advertisements(interface.as_str(), &record.network)?;
            // Neighbours may have cached another container's hardware address for these addresses.
            sysctl::ensure(&of("ipv4", "arp_notify"), "1")?;
            if v6 { sysctl::ensure(&of("ipv6", "ndisc_notify"), "1").map(drop) } else { Ok(()) }
        })
    }

    fn up(&self, site: &Site, _record: &Record, made: &Made) -> Result<()> {
        site.inside()?.rtnl().set_up(made.index)
    }

    fn wire(&self, site: &Site, links: Option<&Links>) -> Result<String> {
        self.links().wire(site, links)
    }

    fn is_alive(&self, _site: &Site, record: &Record, links: &Links, _view: &HostView) -> Result<bool> {
        self.links().is_alive(record, links)
    }

    fn recorded(&self, site: &Site, _interface: &IfName, links: &Links) -> Result<Option<Found>> {
        self.links().recorded(site, links)
    }

    fn inside(&self, site: &Site, interface: &IfName) -> Result<Option<Found>> {
        self.links().inside(site, interface)
    }
}
