//! An ipvlan: the container's interface is on the wire of a link of the host and shares its hardware address.
//!
//! As with a macvlan, it exists only inside the container, and the datapath does not serve it. In the modes l3 and l3s the parent
//! routes: a default route leads into the host's routing, and neighbours are never asked.

use super::parent::OnParent;
use super::{Driver, Found, Made, Site};
use crate::link::IpvlanSpec;
use crate::model::attachment::Ipvlan as Attachment;
use crate::model::error::Result;
use crate::model::network::Mtu;
use crate::model::{HostView, IfName, Links, Record};
use crate::plan::{Steps, connect};
use crate::state::StoredEndpoint;

pub struct Ipvlan(Attachment);

impl Ipvlan {
    pub fn new(attachment: Attachment) -> Self {
        Self(attachment)
    }

    fn links(&self) -> OnParent<'_> {
        OnParent { kind: "ipvlan", parent: self.0.parent.as_ref() }
    }
}

impl Driver for Ipvlan {
    fn validate(&mut self, site: &Site, record: &Record, _stored: &[StoredEndpoint]) -> Result<()> {
        self.links().usable(&site.rtnl, record).map(drop)
    }

    fn steps(&self, at: usize, record: &Record) -> Steps {
        Steps { own: connect(at, record, self.links().label()), ..Steps::default() }
    }

    fn connect(&mut self, site: &Site, record: &Record) -> Result<Made> {
        self.links().make(site, record, |name, parent, container| {
            let mtu = record.network.mtu.map(Mtu::bytes);
            site.rtnl.add_ipvlan(&IpvlanSpec { name, parent: parent.index, mode: self.0.mode, mtu }, container)
        })
    }

    fn configure(&self, site: &Site, record: &Record) -> Result<()> {
        let interface = record.endpoint.interface.as_str();
        site.inside()?.run(|| super::advertisements(interface, &record.network))
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
