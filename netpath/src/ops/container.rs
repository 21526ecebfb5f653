//! The steps on a container's links, and on what is inside its namespace.

use super::host::{Live, Made};
use super::unlink;
use crate::link::view::Link;
use crate::link::{Refused, VethSpec, offload, sysctl};
use crate::model::error::{Error, Result};
use crate::model::network::Route;
use crate::model::{IfName, Links, Record};
use crate::plan::{Done, Undo};
use crate::state::store::Writer;
use crate::state::{Kept, Phase};
use ipnet::IpNet;

impl Live {
    /// Removes what is left of an endpoint whose setup or teardown was cut off, or whose namespace is gone.
    ///
    /// # Errors
    /// The endpoint is in use, or somebody is working on it.
    pub(super) fn clear(&self, at: usize, old: &Kept) -> Result<()> {
        let record = &self.records[at];
        let what = || format!("{} on network {}", record.container.label(), record.network.name);
        if old.phase != Phase::Up && old.writer.is_alive() && old.writer != Writer::this_process() {
            return Err(Error::new(format!("cannot attach {}", what()))
                .because(format!("process {} is working on it at this moment", old.writer.pid))
                .next("try again"));
        }
        let recorded = unlink::recorded_veth(&self.rtnl, &old.record)?;
        let there = self.veth_inside(&old.record.endpoint.interface, &old.record.network.bridge)?;
        if old.phase == Phase::Up && recorded.is_some() && there == recorded {
            return Err(Error::new(format!("cannot attach {}", what()))
                .because(format!("interface {} already exists on container namespace", old.record.endpoint.interface))
                .next("tear it down first"));
        }
        tracing::info!(endpoint = %what(), phase = ?old.phase, "removing what an interrupted command has left");
        self.remove_routes(&old.record)?;
        let mut going: Vec<u32> = [recorded, there].into_iter().flatten().collect();
        going.dedup();
        self.rtnl.delete(&going)
    }

    /// What an endpoint of this command has left on the host, seen from inside the container.
    ///
    /// # Errors
    /// The kernel's, or the store cannot be read.
    pub(super) fn veth_inside(&self, interface: &IfName, bridge: &IfName) -> Result<Option<u32>> {
        let Some(inside) = &self.inside else { return Ok(None) };
        let all = self.store.all()?;
        let others = all.iter().filter(|k| !self.keys.contains(&k.key()));
        let others = others.filter_map(|k| k.record.links.as_ref().map(|l| l.veth_index)).collect();
        unlink::veth_from_inside(&self.rtnl, inside, interface, bridge, &others)
    }

    pub(super) fn loopback(&self) -> Result<Done> {
        let lo: IfName = "lo".parse().map_err(|e: String| Error::new(e))?;
        let rtnl = self.inside()?.rtnl();
        match rtnl.link_named(&lo)? {
            Some(link) if link.up => Ok(Done::AlreadySo),
            Some(link) => rtnl.set_up(link.index).map(|()| Done::Within),
            None => Err(Error::new("the container's network namespace has no lo")),
        }
    }

    pub(super) fn veth(&mut self, at: usize) -> Result<Done> {
        let record = &self.records[at];
        let network = &record.network;
        let bridge = self.find_bridge(network)?;
        let mtu = match network.mtu {
            Some(mtu) => Some(mtu.bytes()),
            // As the command that has made the bridge does, or the first port would decide by when it came.
            None if [&self.made_bridges, &self.portless_bridges].iter().any(|b| b.contains(&network.bridge)) => {
                self.rtnl.default_route_mtu()?
            }
            None => Some(bridge.mtu),
        };
        let spec = VethSpec {
            interface: record.endpoint.interface.clone(),
            mac: record.endpoint.mac,
            host_interface: record.endpoint.host_interface.clone(),
            bridge: bridge.index,
            mtu,
        };
        let container = self.netns.as_ref().ok_or_else(|| Error::new("the container has no network namespace"))?;
        if let Err(e) = self.rtnl.add_veth(&spec, container.raw_fd()) {
            return Err(self.veth_refused(&spec, e));
        }
        match self.look_at_veth(record, &bridge) {
            Ok(made) => {
                self.made[at] = made;
                Ok(Done::Changed(Undo::RemoveVeth { at }))
            }
            Err(e) => {
                self.remove_veth(at)?;
                Err(e)
            }
        }
    }

    /// Which of the two names is taken is not in the kernel's answer.
    fn veth_refused(&self, spec: &VethSpec, cause: Refused) -> Error {
        let interface = &spec.interface;
        let taken = |name: &IfName, place: &str, next: &str| {
            Error::new(format!("create veth pair: interface {name} already exists on {place}")).next(next)
        };
        if cause.exists() {
            if let Some(name) = &spec.host_interface
                && self.rtnl.link_named(name).is_ok_and(|l| l.is_some())
            {
                return taken(name, "the host", "choose another host_interface_name").because(cause);
            }
            return taken(interface, "container namespace", "choose another interface name").because(cause);
        }
        Error::new(format!("cannot create veth pair for {interface}")).because(cause)
    }

    fn look_at_veth(&self, record: &Record, bridge: &Link) -> Result<Made> {
        let gone = || Error::new(format!("the veth of {} has vanished", record.endpoint.interface));
        let there = self.inside()?.rtnl().link_named(&record.endpoint.interface)?.ok_or_else(gone)?;
        let here = self.rtnl.link_at(there.peer.ok_or_else(gone)?)?.ok_or_else(gone)?;
        let host_name = IfName::try_from(here.name).map_err(|e| gone().because(e))?;
        if record.network.has_v6() {
            sysctl::ensure(&sysctl::of_interface("ipv6", host_name.as_str(), "accept_dad"), "0")?;
        }
        let links = Links {
            bridge_index: bridge.index,
            bridge_mac: bridge.mac.ok_or_else(|| Error::new(format!("bridge {} has no MAC address", bridge.name)))?,
            veth_index: here.index,
            veth_name: host_name,
            container_mac: there.mac.ok_or_else(gone)?,
            mtu: there.mtu,
            takes_xdp: false,
        };
        Ok(Made { index: there.index, links: Some(links) })
    }

    pub(super) fn remove_veth(&self, at: usize) -> Result<()> {
        let mut record = self.records[at].clone();
        record.links.clone_from(&self.made[at].links);
        let found = match unlink::recorded_veth(&self.rtnl, &record)? {
            Some(index) => Some(index),
            None => self.veth_inside(&record.endpoint.interface, &record.network.bridge)?,
        };
        self.rtnl.delete(found.as_slice())
    }

    pub(super) fn settings(&mut self, at: usize) -> Result<Done> {
        let network = &self.records[at].network;
        let interface = &self.records[at].endpoint.interface;
        let v6 = network.has_v6();
        let view = || self.rtnl.host_view(self.cookie);
        if let Some(datapath) = &self.datapath
            && datapath.redirects_early(network, &view)?
        {
            // Without it the container's packets take the usual way.
            let switched = self.inside()?.run(|| offload::switch_on_gro(interface));
            if let Err(e) = &switched {
                tracing::warn!("{e}; XDP redirects nothing to it");
            }
            if let Some(links) = &mut self.made[at].links {
                links.takes_xdp = switched.is_ok();
            }
        }
        self.inside()?.run(|| {
            let of = |family, key| sysctl::of_interface(family, interface.as_str(), key);
            sysctl::ensure_if_possible(&of("ipv6", "autoconf"), "0")?;
            if v6 {
                sysctl::ensure(&of("ipv6", "accept_dad"), "0")?;
                sysctl::ensure(&of("ipv6", "ndisc_notify"), "1")?;
            }
            sysctl::ensure(&of("ipv4", "arp_notify"), "1")?;
            sysctl::ensure(&of("ipv4", "rp_filter"), "2")?;
            Ok(Done::Within)
        })
    }

    pub(super) fn address(&self, at: usize, address: IpNet) -> Result<Done> {
        let new = self.inside()?.rtnl().add_address(self.made[at].index, address)?;
        Ok(if new { Done::Within } else { Done::AlreadySo })
    }

    /// The container's end first: the host's end then comes up with a carrier, and is a forwarding port at once.
    pub(super) fn up(&self, at: usize) -> Result<Done> {
        let made = &self.made[at];
        self.inside()?.rtnl().set_up(made.index)?;
        if let Some(links) = &made.links {
            self.rtnl.set_up(links.veth_index)?;
            for address in &self.records[at].endpoint.addresses {
                self.rtnl.forget_neighbour(links.bridge_index, address.addr())?;
            }
        }
        Ok(Done::Within)
    }

    /// Containers beside it may remember another one with its addresses. By now the kernel has noticed that both ends are
    /// up; where it has not, they find out by themselves, only later.
    pub(super) fn announce(&self) {
        let Ok(inside) = self.inside() else { return };
        for made in &self.made {
            let told = made.links.as_ref().map(|links| inside.rtnl().announce(made.index, links.container_mac));
            if let Some(Err(e)) = told {
                tracing::debug!(error = %e, "the container's addresses are not announced");
            }
        }
    }

    pub(super) fn route(&self, route: &Route) -> Result<Done> {
        let new = self.inside()?.rtnl().add_route(route)?;
        Ok(match new {
            false => Done::AlreadySo,
            true if route.kind.leads_somewhere() => Done::Within,
            true => Done::Changed(Undo::RemoveRoute(route.clone())),
        })
    }

    /// Deletes the routes of an endpoint that do not go with its interface, unless another network of the container has
    /// the same.
    ///
    /// # Errors
    /// The kernel's, or the store cannot be read.
    pub(super) fn remove_routes(&self, record: &Record) -> Result<()> {
        let mut routes = record.network.routes.iter().filter(|r| !r.kind.leads_somewhere()).peekable();
        let (Some(inside), true) = (&self.inside, routes.peek().is_some()) else { return Ok(()) };
        let all = self.store.all()?;
        let others = all.iter().filter(|k| k.record.container == record.container && !self.keys.contains(&k.key()));
        let kept: Vec<&Route> = others.flat_map(|k| &k.record.network.routes).collect();
        routes.filter(|r| !kept.contains(r)).try_for_each(|r| inside.rtnl().delete_route(r))
    }
}
