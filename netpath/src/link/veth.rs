//! Veth pairs: the host's end a port of the bridge, the other end made directly inside the container's namespace.

use super::rtnl::{Answer, Rtnl};
use crate::model::{IfName, Mac};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth};
use std::os::fd::RawFd;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VethSpec {
    /// Inside the container.
    pub interface: IfName,
    pub mac: Option<Mac>,
    /// On the host; the kernel chooses when it is absent.
    pub host_interface: Option<IfName>,
    /// ifindex of the bridge.
    pub bridge: u32,
    /// Of both ends, bytes; the kernel's default when it is absent.
    pub mtu: Option<u32>,
}

impl Rtnl {
    /// Makes the pair, both ends down.
    ///
    /// # Errors
    /// The kernel's; EEXIST when either name is taken.
    pub fn add_veth(&self, spec: &VethSpec, container: RawFd) -> Answer<()> {
        let mut peer = LinkMessageBuilder::<LinkUnspec>::default().name(spec.interface.as_str()).setns_by_fd(container);
        let mut host = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth).controller(spec.bridge);
        if let Some(name) = &spec.host_interface {
            host = host.name(name.as_str());
        }
        if let Some(mac) = spec.mac {
            peer = peer.address(mac.bytes().to_vec());
        }
        if let Some(mtu) = spec.mtu {
            peer = peer.mtu(mtu);
            host = host.mtu(mtu);
        }
        let host = host.set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())));
        self.change(RouteNetlinkMessage::NewLink(host.build()), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Tells the neighbours of an interface that its addresses are its own, as far as `arp_notify` and `ndisc_notify` ask
    /// for it. The kernel does so by itself when the interface comes up, but then no neighbour receives it: the other end of the
    /// pair is still down. Setting the address that it has is another reason (`net/ipv4/devinet.c, inetdev_event()`).
    ///
    /// # Errors
    /// The kernel's.
    pub fn announce(&self, index: u32, mac: Mac) -> Answer<()> {
        let message = LinkMessageBuilder::<LinkUnspec>::default().index(index).address(mac.bytes().to_vec()).build();
        self.change(RouteNetlinkMessage::SetLink(message), 0)
    }
}
