//! Veth pairs: one end is a port of the bridge, the other is created directly in the container's namespace.

use super::rtnl::{Answer, Rtnl};
use crate::model::{IfName, Mac};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth};
use std::os::fd::RawFd;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VethSpec {
    /// Name of the container's end.
    pub interface: IfName,
    pub mac: Option<Mac>,
    /// Name of the host's end; `None`: the kernel chooses.
    pub host_interface: Option<IfName>,
    /// ifindex of the bridge.
    pub bridge: u32,
    /// Bytes, for both ends; `None`: the kernel's default.
    pub mtu: Option<u32>,
}

impl Rtnl {
    /// Creates the pair, with both ends down.
    ///
    /// # Errors
    /// The kernel's; EEXIST if either name is taken.
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

    /// Announces the addresses of an interface to its neighbours, where `arp_notify` and `ndisc_notify` are set. When the
    /// interface comes up the announcement is lost, since the other end of the pair is still down. Setting the MAC
    /// address to its current value makes the kernel announce again (`net/ipv4/devinet.c, inetdev_event()`).
    ///
    /// # Errors
    /// The kernel's.
    pub fn announce(&self, index: u32, mac: Mac) -> Answer<()> {
        let message = LinkMessageBuilder::<LinkUnspec>::default().index(index).address(mac.bytes().to_vec()).build();
        self.change(RouteNetlinkMessage::SetLink(message), 0)
    }
}
