//! Bridges.

use super::rtnl::{Rtnl, failed};
use crate::model::error::{Context, Error, Result};
use crate::model::{IfName, Mac};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::{LinkBridge, LinkMessageBuilder};
use std::io::Read;

impl Rtnl {
    /// Makes a bridge that is down. `false` = a link of that name was there already, of whatever kind.
    ///
    /// Its address is given here and thereby pinned: else a bridge takes the lowest address of its ports, and changes
    /// it as they come and go, which breaks its neighbours' ARP for minutes
    /// (`net/bridge/br_stp_if.c, br_stp_recalculate_bridge_id()`).
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

    /// Deletes links together. The kernel waits for all readers of a link that it deletes, several times; in one
    /// request it waits once for all of them (`net/core/rtnetlink.c, rtnl_group_dellink()`). Missing ones are no error.
    ///
    /// # Errors
    /// The kernel's.
    pub fn delete(&self, indexes: &[u32]) -> Result<()> {
        match indexes {
            [] => Ok(()),
            [index] => self.delete_one(*index),
            _ => self.delete_many(indexes),
        }
    }

    fn delete_one(&self, index: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        match self.change(RouteNetlinkMessage::DelLink(message), 0) {
            Err(e) if !e.is_missing() => Err(Error::new(format!("cannot delete interface {index}")).because(e)),
            _ => Ok(()),
        }
    }

    fn delete_many(&self, indexes: &[u32]) -> Result<()> {
        // A group that nobody else has; 0 is everybody's.
        let group = u32::from_ne_bytes(random()?) | 1;
        for &index in indexes {
            let mut message = LinkMessage::default();
            message.header.index = index;
            message.attributes.push(LinkAttribute::Group(group));
            match self.change(RouteNetlinkMessage::SetLink(message), 0) {
                Err(e) if !e.is_missing() => {
                    return Err(Error::new(format!("cannot delete interface {index}")).because(e));
                }
                _ => {}
            }
        }
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::Group(group));
        match self.change(RouteNetlinkMessage::DelLink(message), 0) {
            Err(e) if !e.is_missing() => Err(Error::new(format!("cannot delete interfaces {indexes:?}")).because(e)),
            _ => Ok(()),
        }
    }
}

/// A unicast address of the locally administered range (IEEE 802 §8.2).
fn random_mac() -> Result<Mac> {
    let mut bytes: [u8; 6] = random()?;
    bytes[0] = bytes[0] & 0xfc | 2;
    Ok(Mac::from_kernel(bytes))
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(&mut bytes))
        .context(|| "cannot read /dev/urandom".to_owned())?;
    Ok(bytes)
}
