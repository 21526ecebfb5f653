//! Bridges.

use super::rtnl::{Rtnl, failed};
use crate::model::error::{Error, Result};
use crate::model::{IfName, Mac};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::{LinkBridge, LinkMessageBuilder};

impl Rtnl {
    /// Creates a bridge that is down. `false`: a link of that name exists, of whatever kind.
    ///
    /// An address set here is fixed. Otherwise a bridge takes the lowest address of its ports and changes it as ports
    /// come and go, which breaks its neighbours' ARP for minutes (`net/bridge/br_stp_if.c,
    /// br_stp_recalculate_bridge_id()`).
    ///
    /// # Errors
    /// The kernel's.
    pub fn add_bridge(&self, name: &IfName, mtu: Option<u32>) -> Result<bool> {
        let mut link = LinkMessageBuilder::<LinkBridge>::new(name.as_str()).address(random_mac()?.bytes().to_vec());
        if let Some(mtu) = mtu {
            link = link.mtu(mtu);
        }
        match self.change(RouteNetlinkMessage::NewLink(link.build()), NLM_F_CREATE | NLM_F_EXCL) {
            Ok(()) => Ok(true),
            Err(e) if e.exists() => Ok(false),
            Err(e) => Err(Error::new(format!("cannot create bridge {name}")).because(e)),
        }
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
