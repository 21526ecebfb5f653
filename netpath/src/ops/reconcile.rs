//! The steps on records and the datapath, and those of a teardown.

use super::request::Leaving;
use super::serving::{read_route_mtus, refuse, see_sources, serve_sockets};
use super::session::{Session, unlocked};
use super::{agent, sysctls};
use crate::datapath::{Context, firewalld, keep_loaded, ladder};
use crate::driver::{self, Driver, Site};
use crate::link::{Netns, Rtnl, netns};
use crate::model::error::{Error, Result};
use crate::model::{Attachment, Departed, Departures, Desired, HostView, IfName, Links, Record, Rung};
use crate::plan::{Done, Undo};
use crate::state::ProcessId;
use crate::state::{Key, Phase, StoredEndpoint};
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// How long connections wait for their container: an engine that reloads a network tears it down and sets it up again.
const RELOAD_LIMIT: Duration = Duration::from_secs(5);

/// The result of [`Session::reconcile`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Reconciled {
    /// Records of endpoints that no longer exist.
    pub forgotten: usize,
    /// Kernel objects written or removed.
    pub changed: usize,
}

impl Session {
    /// Writes a record with the results of the steps, unless a teardown of the same endpoint has run in the meantime.
    pub(super) fn write_links(&mut self, at: usize) -> Result<Done> {
        self.refuse_torn_down(&self.site.keys[at])?;
        let (record, made) = (&mut self.records[at], &self.made[at]);
        record.links.clone_from(&made.links);
        record.endpoint.addresses.clone_from(&made.addresses);
        self.put(&self.records[at], Phase::Creating)?;
        Ok(Done::ChangedCovered)
    }

    pub(super) fn reconcile_or_withdraw(&mut self) -> Result<Done> {
        match self.reconcile() {
            Ok(_) => Ok(Done::Changed(Undo::Withdraw)),
            Err(e) => {
                if let Err(worse) = self.withdraw() {
                    tracing::error!(error = %worse, "the datapath cannot be repaired");
                }
                Err(e)
            }
        }
    }

    /// Makes the datapath serve the records of the store.
    pub(super) fn reconcile(&mut self) -> Result<Reconciled> {
        if let Err(e) = agent::stop_others(&self.site.store) {
            tracing::warn!("{e}");
        }
        let mut view = self.site.rtnl.host_view(self.cookie)?;
        let (alive, forgotten) = self.alive_records(&view)?;
        let mut served = Reconciled { forgotten, changed: 0 };
        let desired = Desired { records: alive.into_iter().map(|k| k.record).collect() };
        let (chosen, kept) = (self.datapath.as_ref().map(|d| d.rung()), self.site.store.rung()?);
        match (chosen, kept) {
            (None, None) => return Ok(served),
            // Another command or the agent has changed over since this command chose.
            (_, Some(rung)) if chosen != kept => {
                self.datapath = Some(ladder::open(rung, self.cookie)?);
                self.may_step_down = false;
            }
            _ => {}
        }
        // The agent compares the host with this and not with its own last look: the host may have changed before the datapath was made,
        // and may have changed back before the next look.
        self.site.store.keep_served(self.lock()?, None)?;
        self.finish_change(&desired)?;
        // A command that has chosen a datapath has looked at the rules of others then.
        let changed_over = chosen.is_none() && self.follow_foreign_rules(&desired)?;
        served.changed = usize::from(changed_over)
            + match self.reconcile_datapath(&desired, &mut view) {
                Err(e) if self.may_step_down => self.step_down(e, &desired, &mut view)?,
                done => done?,
            };
        // The agent's next look completes what is not.
        self.site.store.keep_served(self.lock()?, self.is_complete.then(|| view.digest()))?;
        Ok(served)
    }

    /// The kernel has refused what its probes had promised: the first container of a host takes another rung.
    fn step_down(&mut self, refused: Error, desired: &Desired, view: &mut HostView) -> Result<usize> {
        let Some(failed) = self.datapath.as_mut() else { return Err(refused) };
        let from = failed.rung();
        let Some(rung) = ladder::instead_of(from) else { return Err(refused) };
        let lower = ladder::open(rung, self.cookie)?;
        let mut served = self.records.iter().filter(|r| r.network.bridge().is_some());
        if served.any(|r| refuse(lower.as_ref(), r).is_err()) {
            return Err(refused);
        }
        tracing::warn!(error = %refused, "the {from} datapath cannot be used, {rung} is");
        let lock = self.lock.as_ref().ok_or_else(unlocked)?;
        let departures = Departures::default();
        let context = Context { host: view, foreign: &self.foreign, store: &self.site.store, lock, departures };
        failed
            .reconcile(&Desired::default(), &context)
            .map_err(|e| e.within(format!("cannot empty the {from} datapath")))?;
        self.site.store.reject_rung(self.lock()?, from, refused.to_string())?;
        self.site.store.keep_rung(self.lock()?, rung)?;
        self.datapath = Some(lower);
        self.reconcile_datapath(desired, view)
    }

    fn reconcile_datapath(&mut self, desired: &Desired, view: &mut HostView) -> Result<usize> {
        let Some(datapath) = &mut self.datapath else { return Ok(0) };
        let mut wanted = sysctls::forwarding(desired);
        wanted.extend(datapath.sysctls(desired).into_iter().map(|s| (s.path, s.value)));
        let lock = self.lock.as_ref().ok_or_else(unlocked)?;
        sysctls::ensure(&self.site.store, lock, &wanted)?;
        sysctls::stop_forwarding_of_internal(lock, desired)?;
        let trusted = if datapath.rung() == Rung::None { BTreeSet::new() } else { firewalld::subnets(desired) };
        let zoned = self.firewall.hold(&self.site.store, lock, &self.foreign, &trusted);
        // After forwarding is on: without it routes of forwarded packets cannot be resolved.
        if let Some(left_out) = see_sources(datapath.rung(), &self.site.rtnl, desired, view) {
            tracing::warn!("masquerade does not take the source (`src`) of every route: {left_out}");
        }
        if ladder::backend(datapath.rung()).needs_route_mtus && self.completes {
            view.route_mtus = read_route_mtus(&self.site.rtnl);
        }
        let mut departed = self.site.store.departed();
        let departures = Departures::sort(&mut departed, desired, SystemTime::now(), &netns::id);
        let is_same = departures.ended.is_empty() && departures.back.is_empty();
        let context = Context { host: view, foreign: &self.foreign, store: &self.site.store, lock, departures };
        let report = datapath.reconcile(desired, &context)?;
        if !is_same {
            self.site.store.keep_departed(lock, &departed)?;
        }
        let sockets = serve_sockets(datapath.as_ref(), self.cookie, desired, view, self.completes);
        self.is_complete &= sockets.is_some();
        let sockets = sockets.unwrap_or(0);
        tracing::debug!(rung = %datapath.rung(), endpoints = desired.records.len(), changed = report.changed, sockets, zoned, "reconciled");
        Ok(report.changed + sockets + zoned)
    }

    /// The records of endpoints that exist. Others are forgotten, and counted: the container's namespace is gone without a teardown,
    /// and they would keep their published ports and bridges for ever.
    fn alive_records(&self, view: &HostView) -> Result<(Vec<StoredEndpoint>, usize)> {
        let mut alive = Vec::new();
        let mut forgotten = 0;
        let mut orphans: Vec<Attachment> = Vec::new();
        for kept in self.site.store.all()? {
            if self.site.keys.contains(&kept.key()) || self.is_alive(&kept, view)? {
                alive.push(kept);
                continue;
            }
            tracing::warn!(endpoint = %kept.record.container.label(), network = %kept.record.network.name,
                "its interface is gone; its record is removed");
            self.site.store.forget(self.lock()?, &kept.key())?;
            forgotten += 1;
            orphans.push(kept.record.network.attachment);
        }
        if !orphans.is_empty() {
            let used = driver::shared(alive.iter().map(|k| &k.record));
            let drivers: Vec<_> = orphans.iter().map(driver::of).collect();
            let unused = unused(&self.site, drivers.iter().map(AsRef::as_ref), &used, &[])?;
            self.site.rtnl.delete(&unused)?;
        }
        Ok((alive, forgotten))
    }

    /// Whether an endpoint has its links or, before they are created, a running command or an existing namespace.
    fn is_alive(&self, kept: &StoredEndpoint, view: &HostView) -> Result<bool> {
        match &kept.record.links {
            None => Ok(kept.writer.is_alive() || Netns::open(&kept.record.netns)?.is_some()),
            Some(links) => driver::of(&kept.record.network.attachment).is_alive(&self.site, &kept.record, links, view),
        }
    }

    /// Records that setup has succeeded, unless a teardown has run in the meantime.
    pub(super) fn commit(&self) -> Result<Done> {
        self.announce();
        let lock = self.site.store.lock(&|| false)?;
        for (record, key) in self.records.iter().zip(&self.site.keys) {
            self.refuse_torn_down(key)?;
            self.site.store.put(
                &lock,
                &StoredEndpoint { record: record.clone(), phase: Phase::Up, writer: ProcessId::this_process() },
            )?;
        }
        Ok(Done::ChangedCovered)
    }

    /// # Errors
    /// The record of this command is gone, or is another command's.
    fn refuse_torn_down(&self, key: &Key) -> Result<()> {
        let own = self.site.store.get(key)?.is_some_and(|k| k.writer == ProcessId::this_process());
        let gone = || Error::new(format!("the endpoint on network {} was torn down meanwhile", key.network));
        if own { Ok(()) } else { Err(gone()) }
    }

    pub(super) fn unname(&self) -> Result<()> {
        let Some(names) = &self.names else { return Ok(()) };
        names.remove(&self.records.iter().collect::<Vec<_>>())
    }

    /// Marks the records of this command as being removed, and withdraws them from the datapath.
    pub(super) fn withdraw(&mut self) -> Result<()> {
        let withdrawn = self.withdraw_all();
        self.failed |= withdrawn.is_err();
        withdrawn
    }

    fn withdraw_all(&mut self) -> Result<()> {
        self.read_records()?;
        let mut going = Vec::new();
        for key in &self.site.keys {
            going.extend(self.site.store.get(key)?);
        }
        if going.is_empty() {
            return Ok(());
        }
        self.keep_connections(&going)?;
        for StoredEndpoint { mut record, .. } in going {
            record.links = None;
            self.put(&record, Phase::Removing)?;
        }
        self.reconcile().map(drop)
    }

    /// The connections of these endpoints stay for a while, if their namespace exists and an agent ends them later.
    fn keep_connections(&self, going: &[StoredEndpoint]) -> Result<()> {
        let store = &self.site.store;
        let wait = RELOAD_LIMIT.min(Duration::from_secs(keep_loaded::seconds(store)));
        if wait.is_zero() || !agent::is_own(store) {
            return Ok(());
        }
        let until = SystemTime::now() + wait;
        let departing = |kept: &StoredEndpoint| {
            let Record { container, network, endpoint, publishes, netns, .. } = &kept.record;
            if kept.phase != Phase::Up || network.bridge().is_none() {
                return None;
            }
            Some(Departed {
                container: container.id.clone(),
                netns: netns::id(netns)?,
                addresses: endpoint.addresses.iter().map(IpNet::addr).collect(),
                publishes: publishes.clone(),
                until,
            })
        };
        let departing: Vec<Departed> = going.iter().filter_map(departing).collect();
        if departing.is_empty() {
            return Ok(());
        }
        store.keep_departed(self.lock()?, &[store.departed(), departing].concat())
    }

    /// Whether no other container uses the links that this one shares.
    pub(super) fn is_alone(&self) -> bool {
        let leaving = self.detached();
        let shared: BTreeSet<&IfName> = leaving.iter().filter_map(|l| l.driver.shared()).collect();
        self.site.others().is_ok_and(|others| driver::shared(&others).iter().all(|name| !shared.contains(name)))
    }

    /// All endpoints to detach: those with a record, and those that only the engine knows.
    fn detached(&self) -> Vec<Detached> {
        let recorded = self.records.iter().map(|r| Detached {
            driver: driver::of(&r.network.attachment),
            interface: Some(r.endpoint.interface.clone()),
            links: r.links.clone(),
            netns: r.netns.clone(),
        });
        let is_recorded = |l: &Leaving| {
            let mut records = self.records.iter();
            records.any(|r| {
                Some(&r.network.attachment) == l.attachment.as_ref()
                    && Some(&r.endpoint.interface) == l.interface.as_ref()
            })
        };
        let described = self.leaving.iter().filter(|l| !is_recorded(l)).filter_map(|l| {
            let driver = driver::of(l.attachment.as_ref()?);
            Some(Detached { driver, interface: l.interface.clone(), links: None, netns: self.netns.clone() })
        });
        recorded.chain(described).collect()
    }

    /// Of those with a record, and of those that only the engine knows.
    pub(super) fn disconnect_all(&mut self) -> Result<()> {
        self.read_records()?;
        self.records.iter().for_each(|record| self.give_back(record, record.links.as_ref()));
        let mut result = Ok(());
        for Detached { driver, netns, .. } in self.detached() {
            if let Err(e) = driver.disconnect(&netns) {
                self.failed = true;
                result = result.and(Err(e));
            }
        }
        result
    }

    /// Deletes the links of the endpoints, and with `shared` also the shared ones that are no longer used. A failure keeps the
    /// records.
    pub(super) fn link_cleanup(&mut self, shared: bool) -> Result<()> {
        let routes = self.records.iter().try_for_each(|r| self.remove_routes(r));
        let links = self.links_to_delete(shared).and_then(|(host, inside)| {
            if let (Some(container), false) = (&self.site.inside, inside.is_empty()) {
                container.run(|| Rtnl::here()?.delete_and_leave(&inside))?;
            }
            self.site.rtnl.delete_and_leave(&host)
        });
        let deleted = routes.and(links);
        self.failed |= deleted.is_err();
        deleted
    }

    /// The ifindexes of those of the host and of those inside the container.
    fn links_to_delete(&self, shared: bool) -> Result<(Vec<u32>, Vec<u32>)> {
        let leaving = self.detached();
        let mut going = BTreeSet::new();
        for Detached { driver, interface, links, .. } in &leaving {
            let Some(interface) = interface else { continue };
            if let Some(links) = links {
                going.extend(driver.recorded(&self.site, interface, links)?);
            }
            going.extend(driver.inside(&self.site, interface)?);
        }
        let (mut going, inside) = driver::apart(going);
        if shared {
            let others = driver::shared(&self.site.others()?);
            let unused = unused(&self.site, leaving.iter().map(|l| l.driver.as_ref()), &others, &going)?;
            going.extend(unused);
        }
        Ok((going, inside))
    }

    /// Removes the records, unless a part of their endpoints could not be removed.
    pub(super) fn forget_all(&self) -> Result<()> {
        if self.failed {
            return Ok(());
        }
        self.site.keys.iter().try_for_each(|key| self.site.store.forget(self.lock()?, key).map(drop))
    }
}

/// An endpoint to detach.
struct Detached {
    driver: Box<dyn Driver>,
    interface: Option<IfName>,
    links: Option<Links>,
    netns: PathBuf,
}

/// The shared links of these drivers that only `going` links use.
fn unused<'a>(
    site: &Site,
    drivers: impl Iterator<Item = &'a dyn Driver>,
    others: &BTreeSet<IfName>,
    going: &[u32],
) -> Result<Vec<u32>> {
    let mut unused = BTreeSet::new();
    for driver in drivers {
        unused.extend(driver.release(site, others, going)?);
    }
    Ok(unused.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::netns;
    use crate::model::fixtures::record;
    use nix::sched::{CloneFlags, unshare};

    /// The engine tears a container down while its setup is still adding names to DNS.
    #[test]
    #[ignore = "needs root"]
    fn a_setup_that_is_torn_down_meanwhile_leaves_no_record() {
        if !nix::unistd::geteuid().is_root() {
            println!("skip a_setup_that_is_torn_down_meanwhile_leaves_no_record: needs root");
            return;
        }
        unshare(CloneFlags::CLONE_NEWNET).expect("own network namespace");
        let cookie = netns::cookie().expect("a cookie");
        let record = record(1, &["10.88.0.2/16"], vec![]);
        let session = Session::for_setup(cookie, None, vec![record.clone()], None).expect("a host");
        let gone = session.commit().map(drop).expect_err("there is no record");
        assert!(gone.to_string().contains("torn down"), "{gone}");
        assert!(session.site.store.all().expect("records").is_empty());

        let lock = session.site.store.lock(&|| false).expect("the lock");
        let coming = StoredEndpoint { record, phase: Phase::Creating, writer: ProcessId::this_process() };
        session.site.store.put(&lock, &coming).expect("written");
        drop(lock);
        session.commit().expect("its own record");
        assert_eq!(Phase::Up, session.site.store.all().expect("records")[0].phase);
        let lock = session.site.store.lock(&|| false).expect("the lock");
        session.site.store.forget(&lock, &coming.key()).expect("removed");
        session.site.store.close(lock).expect("closed");
    }
}
