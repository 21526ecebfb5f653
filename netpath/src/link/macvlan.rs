//! Macvlans, created directly in the container's namespace.

use super::rtnl::{Answer, Rtnl};
use crate::model::attachment::{Macvlan, MacvlanMode};
use crate::model::{IfName, Mac};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{InfoData, InfoMacVlan, MacVlanMode};
use rtnetlink::{LinkMacVlan, LinkMessageBuilder, LinkUnspec};
use std::os::fd::RawFd;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MacvlanSpec<'a> {
    /// Must be unused in the host's namespace too.
    pub name: &'a IfName,
    /// ifindex of the parent.
    pub parent: u32,
    pub options: &'a Macvlan,
    pub mac: Option<Mac>,
    /// Bytes; `None`: that of the parent.
    pub mtu: Option<u32>,
}

impl Rtnl {
    /// Creates a macvlan that is down.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add_macvlan(&self, spec: &MacvlanSpec<'_>, container: RawFd) -> Answer<()> {
        let mode = match spec.options.mode {
            MacvlanMode::Bridge => MacVlanMode::Bridge,
            MacvlanMode::Private => MacVlanMode::Private,
            MacvlanMode::Vepa => MacVlanMode::Vepa,
            MacvlanMode::Passthru => MacVlanMode::Passthrough,
            MacvlanMode::Source => MacVlanMode::Source,
        };
        let mut info = vec![InfoMacVlan::Mode(mode)];
        info.extend(spec.options.bclim.map(InfoMacVlan::BcCutoff));
        let mut link =
            LinkMessageBuilder::<LinkMacVlan>::new(spec.name.as_str()).link(spec.parent).setns_by_fd(container);
        link = link.set_info_data(InfoData::MacVlan(info));
        if let Some(mac) = spec.mac {
            link = link.address(mac.bytes().to_vec());
        }
        if let Some(mtu) = spec.mtu {
            link = link.mtu(mtu);
        }
        self.change(RouteNetlinkMessage::NewLink(link.build()), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Renames a link, which must be down.
    ///
    /// # Errors
    /// The kernel's; EEXIST if the name is taken.
    pub fn rename(&self, index: u32, name: &IfName) -> Answer<()> {
        let message = LinkMessageBuilder::<LinkUnspec>::default().index(index).name(name.as_str()).build();
        self.change(RouteNetlinkMessage::SetLink(message), 0)
    }
}
