//! Ipvlans, created directly in the container's namespace.

use super::rtnl::{Answer, Rtnl};
use crate::model::IfName;
use crate::model::attachment::IpvlanMode;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::IpVlanMode;
use rtnetlink::{LinkIpVlan, LinkMessageBuilder};
use std::os::fd::RawFd;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IpvlanSpec<'a> {
    /// Must be unused in the host's namespace too.
    pub name: &'a IfName,
    /// ifindex of the parent.
    pub parent: u32,
    pub mode: IpvlanMode,
    /// Bytes; `None`: that of the parent.
    pub mtu: Option<u32>,
}

impl Rtnl {
    /// Creates an ipvlan that is down.
    ///
    /// # Errors
    /// The kernel's; EINVAL if the parent has ipvlans of another mode.
    pub fn add_ipvlan(&self, spec: &IpvlanSpec<'_>, container: RawFd) -> Answer<()> {
        let mode = match spec.mode {
            IpvlanMode::L2 => IpVlanMode::L2,
            IpvlanMode::L3 => IpVlanMode::L3,
            IpvlanMode::L3S => IpVlanMode::L3S,
        };
        let mut link = LinkMessageBuilder::<LinkIpVlan>::new(spec.name.as_str()).link(spec.parent).mode(mode);
        link = link.setns_by_fd(container);
        if let Some(mtu) = spec.mtu {
            link = link.mtu(mtu);
        }
        self.change(RouteNetlinkMessage::NewLink(link.build()), NLM_F_CREATE | NLM_F_EXCL)
    }
}
