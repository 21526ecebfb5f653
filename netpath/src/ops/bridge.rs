//! The steps on bridges.

use super::host::Live;
use super::{sysctls, unlink};
use crate::link::sysctl;
use crate::link::view::Link;
use crate::model::error::{Error, Result};
use crate::model::{IfName, LinkKind, Network};
use crate::plan::{Done, Undo};
use ipnet::IpNet;
use std::collections::BTreeSet;

impl Live {
    pub(super) fn bridge(&mut self, network: &Network) -> Result<Done> {
        let name = &network.bridge;
        let made = self.rtnl.add_bridge(name, network.mtu.map(|m| m.bytes()))?;
        if made {
            self.made_bridges.insert(name.clone());
        }
        match self.complete_bridge(network) {
            Ok(_) if made => Ok(Done::Changed(Undo::RemoveBridge(name.clone()))),
            Ok(false) => Ok(Done::AlreadySo),
            // An address that a bridge of this network must have: nobody is better off without it.
            Ok(true) => Ok(Done::Within),
            Err(e) => {
                if made {
                    self.remove_bridge(name)?;
                }
                Err(e)
            }
        }
    }

    /// # Errors
    /// It is not there, or it is something else.
    pub(super) fn find_bridge(&self, network: &Network) -> Result<Link> {
        let name = &network.bridge;
        let what = || Error::new(format!("cannot use {name} as the bridge of network {}", network.name));
        let link = self
            .rtnl
            .link_named(name)?
            .ok_or_else(|| what().because("somebody has removed it at this moment").next("try again"))?;
        if link.kind != LinkKind::Bridge {
            return Err(what()
                .because("an interface of that name exists and is not a bridge")
                .next("rename that interface, or recreate the network with another bridge name"));
        }
        Ok(link)
    }

    fn complete_bridge(&self, network: &Network) -> Result<bool> {
        let link = self.find_bridge(network)?;
        let name = network.bridge.as_str();
        let v6 = network.has_v6();
        // Before the addresses: they and the link-local one would else wait a second for duplicates.
        if v6 {
            sysctl::ensure(&sysctl::of_interface("ipv6", name, "accept_dad"), "0")?;
            sysctl::ensure(&sysctl::of_interface("ipv6", name, "accept_ra"), "0")?;
        }
        sysctl::ensure(&sysctl::of_interface("ipv4", name, "rp_filter"), "2")?;
        if network.internal {
            sysctls::close_bridge(name, v6)?;
        }
        let mut changed = false;
        for (address, prefix) in network.gateways() {
            let address = IpNet::new(address, prefix).map_err(|e| Error::new("cannot name a gateway").because(e))?;
            changed |= self.rtnl.add_address(link.index, address).map_err(|e| e.within(format!("bridge {name}")))?;
        }
        if !link.up {
            self.rtnl.set_up(link.index)?;
            changed = true;
        }
        Ok(changed)
    }

    /// Unless somebody else uses it by now.
    pub(super) fn remove_bridge(&self, name: &IfName) -> Result<()> {
        let bridges = BTreeSet::from([name.clone()]);
        let unused = unlink::unused_bridges(&self.rtnl, &bridges, &self.others_bridges()?, &[])?;
        self.rtnl.delete(&unused)
    }
}
