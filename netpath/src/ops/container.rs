//! The steps on a container's links and inside its namespace.

use super::session::Session;
use crate::driver::{self, Driver, Found};
use crate::link::ethtool;
use crate::model::error::{Error, Result};
use crate::model::network::Route;
use crate::model::{IfName, Links, Record};
use crate::plan::{Done, Undo};
use crate::state::ProcessId;
use crate::state::{Phase, StoredEndpoint};
use ipnet::IpNet;
use std::collections::BTreeSet;

impl Session {
    /// Removes the links and routes of an endpoint whose setup or teardown was interrupted, or whose namespace is gone.
    ///
    /// # Errors
    /// The endpoint is in use, or another command is setting it up or tearing it down.
    pub(super) fn clear(&self, at: usize, old: &StoredEndpoint) -> Result<()> {
        let record = &self.records[at];
        let what = || format!("{} on network {}", record.container.label(), record.network.name);
        if old.phase != Phase::Up && old.writer.is_alive() && old.writer != ProcessId::this_process() {
            return Err(Error::new(format!("cannot attach {}", what()))
                .because(format!("process {} is setting it up or tearing it down", old.writer.pid))
                .next("try again"));
        }
        let driver = driver::of(&old.record.network.attachment);
        let interface = &old.record.endpoint.interface;
        let recorded = self.recorded(driver.as_ref(), &old.record)?;
        let there = driver.inside(&self.site, interface)?;
        if old.phase == Phase::Up && (driver.has_no_links() || recorded.is_some() && there == recorded) {
            return Err(Error::new(format!("cannot attach {}", what()))
                .because(format!("interface {interface} already exists on container namespace"))
                .next("tear it down first"));
        }
        tracing::info!(endpoint = %what(), phase = ?old.phase, "removing the leftovers of an interrupted command");
        self.give_back(&old.record, old.record.links.as_ref());
        driver.disconnect(&old.record.netns)?;
        self.remove_routes(&old.record)?;
        driver::remove(&self.site, [recorded, there].into_iter().flatten().collect::<BTreeSet<_>>())
    }

    pub(super) fn recorded(&self, driver: &dyn Driver, record: &Record) -> Result<Option<Found>> {
        let Some(links) = &record.links else { return Ok(None) };
        driver.recorded(&self.site, &record.endpoint.interface, links)
    }

    pub(super) fn loopback(&self) -> Result<Done> {
        let lo: IfName = "lo".parse().map_err(|e: String| Error::new(e))?;
        let rtnl = self.site.inside()?.rtnl();
        match rtnl.link_named(&lo)? {
            Some(link) if link.up => Ok(Done::AlreadySo),
            Some(link) => rtnl.set_up(link.index).map(|()| Done::ChangedCovered),
            None => Err(Error::new("the container's network namespace has no lo")),
        }
    }

    pub(super) fn connect(&mut self, at: usize) -> Result<Done> {
        self.made[at] = self.drivers[at].connect(&self.site, &self.records[at])?;
        Ok(Done::Changed(Undo::Disconnect { at }))
    }

    pub(super) fn disconnect(&self, at: usize) -> Result<()> {
        let (driver, interface) = (self.drivers[at].as_ref(), &self.records[at].endpoint.interface);
        self.give_back(&self.records[at], self.made[at].links.as_ref());
        driver.disconnect(&self.records[at].netns)?;
        let made = match &self.made[at].links {
            Some(links) => driver.recorded(&self.site, interface, links)?,
            None => None,
        };
        driver::remove(&self.site, made.map_or_else(|| driver.inside(&self.site, interface), |m| Ok(Some(m)))?)
    }

    pub(super) fn settings(&mut self, at: usize) -> Result<Done> {
        let record = &self.records[at];
        let view = || self.site.rtnl.host_view(self.cookie);
        if let Some(Links::Bridge(links)) = &mut self.made[at].links
            && let Some(datapath) = &self.datapath
            && datapath.needs_gro(&record.network, &view)?
        {
            // Without GRO the container's packets take the usual path.
            let switched = self.site.inside()?.run(|| ethtool::switch_on_gro(&record.endpoint.interface));
            if let Err(e) = &switched {
                tracing::warn!("{e}; XDP redirects nothing to it");
            }
            links.takes_xdp = switched.is_ok();
        }
        self.drivers[at].configure(&self.site, record).map(|()| Done::ChangedCovered)
    }

    pub(super) fn address(&mut self, at: usize, address: IpNet) -> Result<Done> {
        let new = self.site.inside()?.rtnl().add_address(self.made[at].index, address)?;
        self.made[at].addresses.push(address);
        Ok(if new { Done::ChangedCovered } else { Done::AlreadySo })
    }

    pub(super) fn up(&self, at: usize) -> Result<Done> {
        self.drivers[at].up(&self.site, &self.records[at], &self.made[at]).map(|()| Done::ChangedCovered)
    }

    pub(super) fn announce(&self) {
        for (driver, made) in self.drivers.iter().zip(&self.made) {
            driver.announce(&self.site, made);
        }
    }

    pub(super) fn route(&self, at: usize, route: &Route) -> Result<Done> {
        let new = self.site.inside()?.rtnl().add_route(route)?;
        Ok(match new {
            false => Done::AlreadySo,
            true if self.records[at].endpoint.covers(route) => Done::ChangedCovered,
            true => Done::Changed(Undo::RemoveRoute(route.clone())),
        })
    }

    /// Deletes the routes of an endpoint that are not deleted with its interface, unless another network of the container has the
    /// same ones.
    ///
    /// # Errors
    /// The kernel's, or the store cannot be read.
    pub(super) fn remove_routes(&self, record: &Record) -> Result<()> {
        let mut routes = record.network.routes.iter().filter(|r| !record.endpoint.covers(r)).peekable();
        let (Some(inside), true) = (&self.site.inside, routes.peek().is_some()) else { return Ok(()) };
        let all = self.site.store.all()?;
        let others =
            all.iter().filter(|k| k.record.container == record.container && !self.site.keys.contains(&k.key()));
        let kept: Vec<&Route> = others.flat_map(|k| &k.record.network.routes).collect();
        routes.filter(|r| !kept.contains(r)).try_for_each(|r| inside.rtnl().delete_route(r))
    }
}
