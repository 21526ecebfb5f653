//! Bridges.

use super::rtnl::{Answer, Rtnl, failed};
use crate::model::error::{Error, Result};
use crate::model::{IfName, Mac};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{BridgeVlanInfoFlags, InfoKind};
use rtnetlink::{LinkBridge, LinkBridgeVlan, LinkMessageBuilder};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BridgeSpec<'a> {
    pub name: &'a IfName,
    /// Bytes; `None`: that of its ports.
    pub mtu: Option<u32>,
    /// ifindex of the VRF.
    pub vrf: Option<u32>,
    /// Ports belong to VLANs.
    pub filters_vlans: bool,
}

impl<'a> BridgeSpec<'a> {
    /// Without options.
    pub fn named(name: &'a IfName) -> Self {
        Self { name, mtu: None, vrf: None, filters_vlans: false }
    }
}

impl Rtnl {
    /// Creates a bridge that is down. `false`: a link of that name exists, of whatever kind.
    ///
    /// An address set here is fixed. Otherwise a bridge takes the lowest address of its ports and changes it as ports
    /// come and go, which breaks its neighbours' ARP for minutes (`net/bridge/br_stp_if.c,
    /// br_stp_recalculate_bridge_id()`).
    ///
    /// # Errors
    /// The kernel's.
    pub fn add_bridge(&self, spec: BridgeSpec<'_>) -> Result<bool> {
        let name = spec.name;
        let mut link = LinkMessageBuilder::<LinkBridge>::new(name.as_str()).address(random_mac()?.bytes().to_vec());
        if let Some(mtu) = spec.mtu {
            link = link.mtu(mtu);
        }
        if let Some(vrf) = spec.vrf {
            link = link.controller(vrf);
        }
        if spec.filters_vlans {
            link = link.vlan_filtering(true);
        }
        match self.change(RouteNetlinkMessage::NewLink(link.build()), NLM_F_CREATE | NLM_F_EXCL) {
            Ok(()) => Ok(true),
            Err(e) if e.exists() => Ok(false),
            Err(e) => Err(Error::new(format!("cannot create bridge {name}")).because(e)),
        }
    }

    /// Lets the ports of an existing bridge belong to VLANs.
    ///
    /// # Errors
    /// The kernel's.
    pub fn filter_vlans(&self, index: u32) -> Answer<()> {
        // The kernel ignores it in a SETLINK.
        let message = LinkMessageBuilder::<LinkBridge>::new_with_info_kind(InfoKind::Bridge)
            .index(index)
            .vlan_filtering(true)
            .build();
        self.change(RouteNetlinkMessage::NewLink(message), 0)
    }

    /// Puts what a port receives without a tag into a VLAN, whose frames leave the port without one.
    ///
    /// # Errors
    /// The kernel's; EOPNOTSUPP without CONFIG_BRIDGE_VLAN_FILTERING.
    pub fn set_vlan(&self, port: u32, vlan: u16) -> Answer<()> {
        let flags = BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged;
        let message = LinkBridgeVlan::new(port).vlan(vlan, flags).build();
        self.change(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// # Errors
    /// The kernel's.
    pub fn set_up(&self, index: u32) -> Result<()> {
        let message = LinkMessageBuilder::<rtnetlink::LinkUnspec>::default().index(index).up().build();
        self.change(RouteNetlinkMessage::SetLink(message), 0)
            .map_err(failed(format!("cannot bring up interface {index}")))
    }
}

/// A unicast address of the locally administered range (IEEE 802 §8.2).
fn random_mac() -> Result<Mac> {
    let mut bytes: [u8; 6] = super::random()?;
    bytes[0] = bytes[0] & 0xfc | 2;
    Ok(Mac::from_kernel(bytes))
}
