//! A veth between the container and a bridge of the host, which netpath creates and deletes, or which is there (`unmanaged`).

use super::{Driver, Found, Made, Site};
use crate::link::query::Link;
use crate::link::{BridgeSpec, Inside, RequestError, Rtnl, VethSpec, sysctl, sysctl_conf};
use crate::model::error::{Error, Result};
use crate::model::network::Mtu;
use crate::model::{BridgeLinks, HostView, IfName, LinkKind, Links, Network, Record};
use crate::plan::{Done, Step, Steps, Undo, connect};
use crate::state::{Phase, StoredEndpoint};
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;

pub struct Bridge {
    name: IfName,
    /// netpath creates, configures and deletes the bridge.
    managed: bool,
    /// This or another command is creating the bridge, whose MTU is not the network's until it has a port.
    is_portless: bool,
}

impl Bridge {
    pub fn managed(name: IfName) -> Self {
        Self { name, managed: true, is_portless: false }
    }

    /// A bridge to which only veths are added.
    pub fn unmanaged(name: IfName) -> Self {
        Self { name, managed: false, is_portless: false }
    }

    /// # Errors
    /// It does not exist, or is no bridge.
    fn find(&self, rtnl: &Rtnl, network: &Network) -> Result<Link> {
        let name = &self.name;
        let what = || Error::new(format!("cannot use {name} as the bridge of network {}", network.name));
        let link = rtnl.link_named(name)?.ok_or_else(|| match self.managed {
            true => what().because("another process has just removed it").next("try again"),
            // The cause is netavark's.
            false => what()
                .because(
                    "in unmanaged mode, the bridge must already exist on the host: Netlink error: No such device (os error 19)",
                )
                .next(format!("ip link add {name} type bridge")),
        })?;
        if link.kind != LinkKind::Bridge {
            return Err(what()
                .because("an interface of that name exists and is not a bridge")
                .next("rename that interface, or recreate the network with another bridge name"));
        }
        Ok(link)
    }

    /// The VRF that a new bridge of the network belongs to.
    ///
    /// # Errors
    /// It does not exist, or is no VRF.
    fn vrf(rtnl: &Rtnl, network: &Network) -> Result<Option<Link>> {
        let Some(name) = &network.vrf else { return Ok(None) };
        // The text is netavark's.
        let what = || Error::new("get vrf to set up bridge interface");
        match rtnl.link_named(name)? {
            Some(link) if link.kind == LinkKind::Vrf => Ok(Some(link)),
            Some(_) => Err(what()
                .because(format!("vrf {name} already exists but is another interface"))
                .next("set the network's vrf option to a VRF of this host")),
            None => Err(what()
                .because(format!("Netlink error: No such device (os error 19): {name}"))
                .next(format!("ip link add {name} type vrf table NUMBER"))),
        }
    }

    /// Of the bridge itself.
    fn sysctls(&self, network: &Network) -> Vec<(String, String)> {
        let name = self.name.as_str();
        let mut sysctls = vec![(sysctl::of_interface("ipv4", name, "rp_filter"), "2".to_owned())];
        if network.has_v6() {
            sysctls.extend(
                ["accept_dad", "accept_ra"].map(|key| (sysctl::of_interface("ipv6", name, key), "0".to_owned())),
            );
        }
        if network.internal {
            sysctls.extend(no_forwarding(name, network.has_v6()));
        }
        sysctls
    }

    fn complete(&self, rtnl: &Rtnl, network: &Network) -> Result<bool> {
        let link = self.find(rtnl, network)?;
        let name = self.name.as_str();
        // Before the addresses: else each of them, and the link-local one, waits a second for duplicate address detection.
        self.sysctls(network).iter().try_for_each(|(path, value)| sysctl::ensure(path, value).map(drop))?;
        let mut changed = false;
        for (address, prefix) in network.gateways() {
            let address = IpNet::new(address, prefix).map_err(|e| Error::new("cannot name a gateway").because(e))?;
            changed |= rtnl.add_address(link.index, address).map_err(|e| e.within(format!("bridge {name}")))?;
        }
        if !link.up {
            rtnl.set_up(link.index)?;
            changed = true;
        }
        Ok(changed)
    }

    fn inspect_veth(&self, site: &Site, record: &Record, bridge: &Link) -> Result<Made> {
        let gone = || Error::new(format!("the veth of {} has disappeared", record.endpoint.interface));
        let there = site.inside()?.rtnl().link_named(&record.endpoint.interface)?.ok_or_else(gone)?;
        let here = site.rtnl.link_at(there.peer.ok_or_else(gone)?)?.ok_or_else(gone)?;
        let host_name = IfName::try_from(here.name).map_err(|e| gone().because(e))?;
        if self.managed && record.network.has_v6() {
            sysctl::ensure(&sysctl::of_interface("ipv6", host_name.as_str(), "accept_dad"), "0")?;
        }
        let links = BridgeLinks {
            bridge_index: bridge.index,
            bridge_mac: bridge.mac.ok_or_else(|| Error::new(format!("bridge {} has no MAC address", bridge.name)))?,
            veth_index: here.index,
            veth_name: host_name,
            container_mac: there.mac.ok_or_else(gone)?,
            mtu: there.mtu,
            takes_xdp: false,
        };
        if let Some(vlan) = record.network.vlan {
            self.join(site, bridge, here.index, vlan)?;
        }
        Ok(Made { index: there.index, links: Some(Links::Bridge(links)), ..Made::default() })
    }

    /// Puts a port into a VLAN. That the bridge separates VLANs stays so: other ports may rely on it by now.
    fn join(&self, site: &Site, bridge: &Link, port: u32, vlan: u16) -> Result<()> {
        let what = || format!("cannot put a port of bridge {} into VLAN {vlan}", self.name);
        if !bridge.filters_vlans {
            site.rtnl.filter_vlans(bridge.index).map_err(|e| Error::new(what()).because(e).next(VLAN_HINT))?;
        }
        site.rtnl.set_vlan(port, vlan).map_err(|e| Error::new(what()).because(e).next(VLAN_HINT))
    }
}

const VLAN_HINT: &str = "use a kernel with CONFIG_BRIDGE_VLAN_FILTERING";

impl Driver for Bridge {
    fn validate(&mut self, site: &Site, record: &Record, stored: &[StoredEndpoint]) -> Result<()> {
        if !self.managed {
            return self.find(&site.rtnl, &record.network).map(drop);
        }
        if record.network.vrf.is_some() && site.rtnl.link_named(&self.name)?.is_none() {
            Self::vrf(&site.rtnl, &record.network)?;
        }
        let ours = || stored.iter().filter(|k| k.record.network.bridge() == Some(&self.name));
        let has_port = ours().any(|k| k.record.links.is_some());
        self.is_portless = !has_port && ours().any(|k| k.phase == Phase::Creating);
        Ok(())
    }

    fn steps(&self, at: usize, record: &Record) -> Steps {
        let what = format!("bridge {} of network {}", self.name, record.network.name);
        let shared = if self.managed { vec![Step::Share { at, what }] } else { Vec::new() };
        Steps { shared, own: connect(at, record, format!("bridge {}", self.name)) }
    }

    fn shared(&self) -> Option<&IfName> {
        self.managed.then_some(&self.name)
    }

    /// Those of an unmanaged bridge, whose gateway may be another machine.
    fn dns_addresses(&self, site: &Site, record: &Record) -> Result<Option<Vec<IpAddr>>> {
        if self.managed || !record.network.dns {
            return Ok(None);
        }
        let view = site.rtnl.host_view(0)?;
        let addresses = view.link_named(&self.name).map_or(&[][..], |l| &l.addresses);
        let usable = |a: &IpAddr| !matches!(a, IpAddr::V6(a) if a.is_unicast_link_local());
        let usable: Vec<IpAddr> = addresses.iter().map(IpNet::addr).filter(usable).collect();
        if usable.is_empty() {
            // The text is netavark's.
            return Err(Error::new(format!("cannot serve DNS on network {}", record.network.name)).because(format!(
                "bridge '{}' in unmanaged mode has no usable IP addresses. Aardvark-dns requires at least one address (should \
                 not be an IPv6 link-local address) to bind to. Please add an IP address or disable DNS for this network \
                 (--disable-dns).",
                self.name
            )));
        }
        Ok(Some(usable))
    }

    fn share(&mut self, site: &Site, at: usize, record: &Record) -> Result<Done> {
        let network = &record.network;
        sysctl_conf::keep(&self.name, &self.sysctls(network));
        let mut made = false;
        // An existing bridge stays where it is.
        let vrf = match site.rtnl.link_named(&self.name)? {
            Some(_) => None,
            None => Self::vrf(&site.rtnl, network)?.map(|l| l.index),
        };
        let mtu = network.mtu.map(Mtu::bytes);
        let spec = BridgeSpec { name: &self.name, mtu, vrf, filters_vlans: network.vlan.is_some() };
        let completed = site.rtnl.add_bridge(spec).and_then(|new| {
            made = new;
            self.is_portless |= new;
            self.complete(&site.rtnl, network)
        });
        match completed {
            Ok(_) if made => Ok(Done::Changed(Undo::Unshare { at })),
            Ok(false) => Ok(Done::AlreadySo),
            // Not undone: every container of this network needs what was added.
            Ok(true) => Ok(Done::ChangedCovered),
            Err(e) => {
                let unused = self.release(site, &super::shared(&site.others()?), &[])?;
                // A bridge that existed before is kept.
                if made {
                    site.rtnl.delete(unused.as_slice())?;
                }
                Err(e)
            }
        }
    }

    fn release(&self, site: &Site, others: &BTreeSet<IfName>, deleted: &[u32]) -> Result<Option<u32>> {
        if !self.managed || others.contains(&self.name) {
            return Ok(None);
        }
        // Also where there is no bridge: setup may have been killed before it created one.
        sysctl_conf::remove(&self.name);
        let links = site.rtnl.links()?;
        let own = links.iter().find(|l| l.name == self.name.as_str() && l.kind == LinkKind::Bridge);
        let Some(bridge) = own else { return Ok(None) };
        let foreign: Vec<&str> = links
            .iter()
            .filter(|l| l.master == Some(bridge.index) && !deleted.contains(&l.index))
            .map(|l| l.name.as_str())
            .collect();
        if foreign.is_empty() {
            return Ok(Some(bridge.index));
        }
        tracing::info!(bridge = %self.name, ports = ?foreign, "the bridge is kept: it has ports that are not netpath's");
        Ok(None)
    }

    fn connect(&mut self, site: &Site, record: &Record) -> Result<Made> {
        let bridge = self.find(&site.rtnl, &record.network)?;
        let mtu = match record.network.mtu {
            Some(mtu) => Some(mtu.bytes()),
            // As the command that creates the bridge does: the MTU must not depend on the order of the two.
            None if self.is_portless => {
                let table = Self::vrf(&site.rtnl, &record.network)?.and_then(|l| l.table);
                site.rtnl.default_route_link(table)?.map(|l| l.mtu)
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
        if let Err(e) = site.rtnl.add_veth(&spec, site.inside()?.raw_fd()) {
            return Err(refused(&site.rtnl, &spec, e));
        }
        match self.inspect_veth(site, record, &bridge) {
            Ok(made) => Ok(made),
            Err(e) => {
                super::remove(site, self.inside(site, &record.endpoint.interface)?)?;
                Err(e)
            }
        }
    }

    fn configure(&self, site: &Site, record: &Record) -> Result<()> {
        // On an unmanaged bridge the container may configure itself, by router advertisements for example.
        if !self.managed {
            return match record.network.dhcp6 || record.network.slaac {
                true => {
                    site.inside()?.run(|| super::advertisements(record.endpoint.interface.as_str(), &record.network))
                }
                false => Ok(()),
            };
        }
        let (interface, v6) = (&record.endpoint.interface, record.network.has_v6());
        site.inside()?.run(|| {
            let of = |family, key| sysctl::of_interface(family, interface.as_str(), key);
            sysctl::ensure_if_possible(&of("ipv6", "autoconf"), "0")?;
            if v6 {
                sysctl::ensure(&of("ipv6", "accept_dad"), "0")?;
                sysctl::ensure(&of("ipv6", "ndisc_notify"), "1")?;
            }
            sysctl::ensure(&of("ipv4", "arp_notify"), "1")?;
            sysctl::ensure(&of("ipv4", "rp_filter"), "2").map(drop)
        })
    }

    /// The container's end first: then the host's end comes up with a carrier, and forwards at once.
    fn up(&self, site: &Site, record: &Record, made: &Made) -> Result<()> {
        site.inside()?.rtnl().set_up(made.index)?;
        let Some(links) = made.links.as_ref().and_then(Links::bridge) else { return Ok(()) };
        site.rtnl.set_up(links.veth_index)?;
        let mut addresses = record.endpoint.addresses.iter();
        addresses.try_for_each(|a| site.rtnl.delete_neighbour(links.bridge_index, a.addr()))
    }

    /// Neighbours may have cached another container's hardware address for these addresses. By now the kernel knows that both ends
    /// are up; if not, their caches expire later.
    fn announce(&self, site: &Site, made: &Made) {
        let (Ok(inside), Some(links)) = (site.inside(), &made.links) else { return };
        if let Err(e) = inside.rtnl().announce(made.index, links.container_mac()) {
            tracing::debug!(error = %e, "the container's addresses are not announced");
        }
    }

    fn wire(&self, _site: &Site, _links: Option<&Links>) -> Result<String> {
        Ok(self.name.to_string())
    }

    fn is_alive(&self, site: &Site, record: &Record, links: &Links, view: &HostView) -> Result<bool> {
        let Some(veth) = links.bridge() else { return Ok(false) };
        let seen = view.link(veth.veth_index);
        let seen = seen.is_some_and(|l| l.kind == LinkKind::Veth && l.name == veth.veth_name);
        // A dump may miss a link while others come and go.
        Ok(seen || self.recorded(site, &record.endpoint.interface, links)?.is_some())
    }

    /// The host's end of the veth.
    fn recorded(&self, site: &Site, _interface: &IfName, links: &Links) -> Result<Option<Found>> {
        let Some(links) = links.bridge() else { return Ok(None) };
        let found = site.rtnl.link_at(links.veth_index)?;
        let found = found.filter(|l| l.kind == LinkKind::Veth && l.name == links.veth_name.as_str());
        Ok(found.map(|l| Found::Host(l.index)))
    }

    /// The host's end of the veth, if it is a port of the bridge. Veths of other endpoints are left out: an interface that other
    /// software has put into the container may happen to have the same indexes.
    fn inside(&self, site: &Site, interface: &IfName) -> Result<Option<Found>> {
        let Some(inside) = &site.inside else { return Ok(None) };
        let Some(here) = host_end(&site.rtnl, inside, interface)? else { return Ok(None) };
        let bridge = site.rtnl.link_named(&self.name)?;
        let is_port = bridge.is_some_and(|b| here.master == Some(b.index));
        let is_others =
            |r: &Record| r.links.as_ref().and_then(Links::bridge).is_some_and(|l| l.veth_index == here.index);
        Ok((is_port && !site.others()?.iter().any(is_others)).then_some(Found::Host(here.index)))
    }
}

/// The kernel's answer does not say which of the two names exists already.
fn refused(rtnl: &Rtnl, spec: &VethSpec, cause: RequestError) -> Error {
    let interface = &spec.interface;
    if !cause.exists() {
        return Error::new(format!("cannot create veth pair for {interface}")).because(cause);
    }
    // The texts are netavark's.
    let mut what = format!("create veth pair: interface {interface} already exists on container namespace");
    let mut next = "choose another interface name";
    if let Some(name) = &spec.host_interface {
        what += &format!(" or {name} exists on host namespace");
        if rtnl.link_named(name).is_ok_and(|l| l.is_some()) {
            next = "choose another host_interface_name";
        }
    }
    Error::new(what).because(cause).next(next)
}

/// The host's end of a veth inside the container. Both ends must name each other: an index alone could belong to a link in a third
/// namespace.
fn host_end(rtnl: &Rtnl, inside: &Inside, interface: &IfName) -> Result<Option<Link>> {
    let Some(there) = inside.rtnl().link_named(interface)? else { return Ok(None) };
    let (LinkKind::Veth, Some(peer)) = (there.kind, there.peer) else { return Ok(None) };
    Ok(rtnl.link_at(peer)?.filter(|l| l.kind == LinkKind::Veth && l.peer == Some(there.index)))
}

/// A bridge with these sysctls forwards nothing, as that of an internal network.
pub fn no_forwarding(bridge: &str, v6: bool) -> Vec<(String, String)> {
    let families = if v6 { &["ipv4", "ipv6"][..] } else { &["ipv4"] };
    families.iter().map(|family| (sysctl::of_interface(family, bridge, "forwarding"), "0".to_owned())).collect()
}
