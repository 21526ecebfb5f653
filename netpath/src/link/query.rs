//! Queries: all links of a namespace with their addresses, or one link.

use super::rtnl::{Answer, Rtnl, failed};
use crate::model::error::Result;
use crate::model::{HostLink, HostView, IfName, LinkKind, Mac};
use ipnet::{IpNet, Ipv6Net};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoBridge, InfoData, InfoKind, InfoVrf, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkLayerType,
    LinkMessage, State,
};
use std::collections::HashMap;
use std::net::IpAddr;

/// One link as the kernel describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub kind: LinkKind,
    pub master: Option<u32>,
    pub mtu: u32,
    pub mac: Option<Mac>,
    /// As [`HostLink::driver`].
    pub driver: Option<String>,
    pub up: bool,
    /// It is up, has a carrier, and its queues run (IF_OPER_UP).
    pub sends: bool,
    /// How many times the link has gained a carrier.
    pub carriers: u32,
    pub group: u32,
    /// The other end of a veth: its ifindex in its namespace.
    pub peer: Option<u32>,
    /// The routing table of a VRF.
    pub table: Option<u32>,
    /// Of a bridge: its ports belong to VLANs.
    pub filters_vlans: bool,
}

impl Link {
    fn of(message: &LinkMessage) -> Self {
        let mut link = Link {
            index: message.header.index,
            name: String::new(),
            kind: if message.header.link_layer_type == LinkLayerType::Loopback {
                LinkKind::Loopback
            } else {
                LinkKind::Other
            },
            master: None,
            mtu: 0,
            mac: None,
            driver: None,
            up: message.header.flags.contains(LinkFlags::Up),
            sends: false,
            carriers: 0,
            group: 0,
            peer: None,
            table: None,
            filters_vlans: false,
        };
        let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
        let (mut bus, mut device) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Controller(index) => link.master = Some(*index),
                LinkAttribute::Link(index) => link.peer = Some(*index),
                LinkAttribute::OperState(state) => link.sends = *state == State::Up,
                LinkAttribute::CarrierUpCount(times) => link.carriers = *times,
                LinkAttribute::Group(group) => link.group = *group,
                LinkAttribute::ParentDevBusName(name) => bus = Some(name),
                LinkAttribute::ParentDevName(name) => device = Some(name),
                LinkAttribute::Address(bytes) if ethernet => {
                    link.mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac::from_kernel);
                }
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        if let LinkInfo::Kind(kind) = info {
                            link.driver = Some(kind.to_string());
                        }
                        match info {
                            LinkInfo::Kind(InfoKind::Bridge) => link.kind = LinkKind::Bridge,
                            LinkInfo::Kind(InfoKind::Veth) => link.kind = LinkKind::Veth,
                            LinkInfo::Kind(InfoKind::Vrf) => link.kind = LinkKind::Vrf,
                            LinkInfo::Data(InfoData::Vrf(data)) => {
                                let table = |i: &_| if let InfoVrf::TableId(id) = i { Some(*id) } else { None };
                                link.table = data.iter().find_map(table);
                            }
                            LinkInfo::Data(InfoData::Bridge(data)) => {
                                link.filters_vlans = data.contains(&InfoBridge::VlanFiltering(true));
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        if let (None, Some(bus), Some(device)) = (&link.driver, bus, device) {
            link.driver = driver(bus, device);
        }
        link
    }
}

/// The driver of a device, from sysfs. `/sys/bus` is the same in every network namespace.
fn driver(bus: &str, device: &str) -> Option<String> {
    let link = std::fs::read_link(format!("/sys/bus/{bus}/devices/{device}/driver")).ok()?;
    Some(link.file_name()?.to_string_lossy().into_owned())
}

impl Rtnl {
    /// All links and addresses of the namespace, in two dumps; [`Rtnl::sources`] reads the routes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn host_view(&self, cookie: u64) -> Result<HostView> {
        self.view_of(self.links()?, cookie)
    }

    /// These links with their addresses.
    ///
    /// # Errors
    /// The kernel's.
    pub fn view_of(&self, links: Vec<Link>, cookie: u64) -> Result<HostView> {
        let mut addresses: HashMap<u32, Vec<IpNet>> = HashMap::new();
        for message in self
            .dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))
            .map_err(failed("cannot list addresses".into()))?
        {
            if let RouteNetlinkMessage::NewAddress(message) = message
                && let Some(net) = address_of(&message)
            {
                addresses.entry(message.header.index).or_default().push(net);
            }
        }
        let links = links
            .into_iter()
            .filter_map(|l| {
                // Links with a name that today's kernels reject are skipped.
                let name = IfName::try_from(l.name).ok()?;
                Some(HostLink {
                    index: l.index,
                    name,
                    kind: l.kind,
                    master: l.master,
                    mtu: l.mtu,
                    mac: l.mac,
                    driver: l.driver,
                    up: l.up,
                    addresses: addresses.remove(&l.index).unwrap_or_default(),
                })
            })
            .collect();
        Ok(HostView { cookie, links, ..HostView::default() })
    }

    /// IPv6 addresses of a link that can be used as a source: not those that duplicate address detection still checks, or
    /// has found to be duplicates.
    ///
    /// # Errors
    /// The kernel's.
    pub fn usable_addresses(&self, index: u32) -> Result<Vec<Ipv6Net>> {
        let answer = self
            .dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))
            .map_err(failed("cannot list addresses".into()))?;
        let of = |message: &RouteNetlinkMessage| match message {
            RouteNetlinkMessage::NewAddress(m) if m.header.index == index && is_usable(m) => match address_of(m) {
                Some(IpNet::V6(net)) => Some(net),
                _ => None,
            },
            _ => None,
        };
        Ok(answer.iter().filter_map(of).collect())
    }

    /// # Errors
    /// The kernel's.
    pub fn links(&self) -> Result<Vec<Link>> {
        let answer = self.dump(RouteNetlinkMessage::GetLink(request())).map_err(failed("cannot list links".into()))?;
        Ok(answer.iter().filter_map(as_link).collect())
    }

    /// `None`: there is no link of that name.
    ///
    /// # Errors
    /// The kernel's.
    pub fn link_named(&self, name: &IfName) -> Result<Option<Link>> {
        let mut message = request();
        message.attributes.push(LinkAttribute::IfName(name.to_string()));
        one(self.read(RouteNetlinkMessage::GetLink(message))).map_err(failed(format!("cannot query interface {name}")))
    }

    /// `None`: there is no link of that index.
    ///
    /// # Errors
    /// The kernel's.
    pub fn link_at(&self, index: u32) -> Result<Option<Link>> {
        let mut message = request();
        message.header.index = index;
        one(self.read(RouteNetlinkMessage::GetLink(message))).map_err(failed(format!("cannot query interface {index}")))
    }
}

/// A request for links without their counters, which would be most of the answer.
fn request() -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    message
}

fn as_link(message: &RouteNetlinkMessage) -> Option<Link> {
    if let RouteNetlinkMessage::NewLink(m) = message { Some(Link::of(m)) } else { None }
}

fn one(answer: Answer<Vec<RouteNetlinkMessage>>) -> Answer<Option<Link>> {
    match answer {
        Ok(messages) => Ok(messages.first().and_then(as_link)),
        Err(e) if e.is_missing() => Ok(None),
        Err(e) => Err(e),
    }
}

fn is_usable(message: &AddressMessage) -> bool {
    let unusable = AddressFlags::Tentative | AddressFlags::Optimistic | AddressFlags::Dadfailed;
    let flags =
        message.attributes.iter().find_map(|a| if let AddressAttribute::Flags(f) = a { Some(*f) } else { None });
    !flags.unwrap_or(AddressFlags::empty()).intersects(unusable)
}

fn address_of(message: &AddressMessage) -> Option<IpNet> {
    // On a point-to-point link `Address` is the remote end and `Local` is this one.
    let mut address: Option<IpAddr> = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => address = Some(*ip),
            AddressAttribute::Address(ip) => address = address.or(Some(*ip)),
            _ => {}
        }
    }
    IpNet::new(address?, message.header.prefix_len).ok()
}
