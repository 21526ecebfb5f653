//! The steps on records and the datapath, and those of a teardown.

use super::host::Live;
use super::{agent, sysctls, unlink};
use crate::datapath::{firewalld, ladder};
use crate::link::{Netns, Rtnl};
use crate::model::error::{Error, Result};
use crate::model::{Desired, HostView, IfName, LinkKind, Rung};
use crate::plan::{Done, Undo};
use crate::state::store::Writer;
use crate::state::{Kept, Key, Phase};
use std::collections::BTreeSet;

/// What [`Live::serve`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Served {
    /// Records of endpoints that are no more.
    pub forgotten: usize,
    /// Kernel objects written or removed.
    pub changed: usize,
}

/// What the iptables rung has to know of routes besides the links; says what could not be seen, and why.
pub(super) fn see_sources(rung: Rung, rtnl: &Rtnl, desired: &Desired, view: &mut HostView) -> Option<String> {
    // They may be there from the rung that was tried before.
    view.sources.clear();
    if rung != Rung::Iptables {
        return None;
    }
    match rtnl.sources(view, desired) {
        Ok((sources, left_out)) => {
            view.sources = sources;
            (!left_out.is_empty()).then(|| left_out.join("; "))
        }
        Err(e) => Some(e.to_string()),
    }
}

impl Live {
    /// Writes a record with its links. A teardown of the same endpoint may have been here in the meantime.
    pub(super) fn write_links(&mut self, at: usize) -> Result<Done> {
        self.refuse_torn_down(&self.keys[at])?;
        let links = self.made[at].links.clone();
        self.records[at].links = links;
        self.put(&self.records[at], Phase::Coming)?;
        Ok(Done::Within)
    }

    pub(super) fn serve_all(&mut self) -> Result<Done> {
        match self.serve() {
            Ok(_) => Ok(Done::Changed(Undo::Withdraw)),
            Err(e) => {
                if let Err(worse) = self.withdraw() {
                    tracing::error!(error = %worse, "the datapath cannot be put right");
                }
                Err(e)
            }
        }
    }

    /// Makes the datapath hold what the store says.
    pub(super) fn serve(&mut self) -> Result<Served> {
        if let Err(e) = agent::stop_others(&self.store) {
            tracing::warn!("{e}");
        }
        let mut view = self.rtnl.host_view(self.cookie)?;
        let (living, forgotten) = self.living(&view)?;
        let mut served = Served { forgotten, changed: 0 };
        let desired = Desired { records: living.into_iter().map(|k| k.record).collect() };
        if self.datapath.is_none() {
            let Some(rung) = self.store.rung()? else { return Ok(served) };
            self.datapath = Some(ladder::open(rung)?);
        }
        // The agent compares what it sees with this, not with what it saw itself: the host may have been another when it,
        // or a command, made the datapath, and may be as before when the agent looks again.
        self.store.keep_served(self.lock()?, None)?;
        served.changed = match self.reconcile(&desired, &mut view) {
            Err(e) if self.may_step_down => self.step_down(e, &desired, &mut view)?,
            done => done?,
        };
        self.store.keep_served(self.lock()?, Some(view.digest()))?;
        Ok(served)
    }

    /// The kernel has refused what its answers had promised: the first container of a host takes the next rung. From
    /// iptables that is eBPF, which foreign rules had put behind it.
    fn step_down(&mut self, refused: Error, desired: &Desired, view: &mut HostView) -> Result<usize> {
        let Some(failed) = self.datapath.as_mut() else { return Err(refused) };
        let from = failed.rung();
        let above = (from == Rung::Iptables && ladder::usable(Rung::Ebpf).is_ok()).then_some(Rung::Ebpf);
        let Some(rung) = above.or_else(|| ladder::below(from).ok()) else { return Err(refused) };
        let lower = ladder::open(rung)?;
        if self.records.iter().any(|r| super::rung::refuse(lower.as_ref(), r).is_err()) {
            return Err(refused);
        }
        tracing::warn!(error = %refused, "the {from} datapath cannot be used, {rung} is");
        failed
            .reconcile(&Desired::default(), view)
            .map_err(|e| e.within(format!("cannot empty the {from} datapath")))?;
        self.store.pass_over(self.lock()?, from, refused.to_string())?;
        self.store.keep_rung(self.lock()?, rung)?;
        self.datapath = Some(lower);
        self.reconcile(desired, view)
    }

    fn reconcile(&mut self, desired: &Desired, view: &mut HostView) -> Result<usize> {
        let Some(datapath) = &mut self.datapath else { return Ok(0) };
        let mut wanted = sysctls::forwarding(desired);
        wanted.extend(datapath.sysctls(desired).into_iter().map(|s| (s.path, s.value)));
        let lock = self.lock.as_ref().ok_or_else(|| Error::new("the host's state is not locked"))?;
        sysctls::ensure(&self.store, lock, &wanted)?;
        sysctls::keep_internal(desired)?;
        let trusted = if datapath.rung() == Rung::None { BTreeSet::new() } else { firewalld::subnets(desired) };
        let zoned = self.firewall.hold(&self.store, lock, &trusted);
        // After the switch for forwarding: without it no route leads anywhere.
        if let Some(left_out) = see_sources(datapath.rung(), &self.rtnl, desired, view) {
            tracing::warn!("masquerade does not take the source (`src`) of every route: {left_out}");
        }
        let report = datapath.reconcile(desired, view)?;
        tracing::debug!(rung = %datapath.rung(), endpoints = desired.records.len(), changed = report.changed, zoned, "reconciled");
        Ok(report.changed + zoned)
    }

    /// All records but those of endpoints that are no more: the container was killed and its namespace with it, and no
    /// teardown came. They would keep their published ports and bridges for ever. Also how many those were.
    fn living(&self, view: &HostView) -> Result<(Vec<Kept>, usize)> {
        let mut living = Vec::new();
        let mut forgotten = 0;
        let mut orphans = BTreeSet::new();
        for kept in self.store.all()? {
            if self.keys.contains(&kept.key()) || self.lives(&kept, view)? {
                living.push(kept);
                continue;
            }
            tracing::warn!(endpoint = %kept.record.container.label(), network = %kept.record.network.name,
                "its interface is gone; it is forgotten");
            self.store.forget(self.lock()?, &kept.key())?;
            forgotten += 1;
            orphans.insert(kept.record.network.bridge);
        }
        if !orphans.is_empty() {
            let used: BTreeSet<IfName> = living.iter().map(|k| k.record.network.bridge.clone()).collect();
            self.rtnl.delete(&unlink::unused_bridges(&self.rtnl, &orphans, &used, &[])?)?;
        }
        Ok((living, forgotten))
    }

    /// Whether an endpoint has its veth, or before it has one, somebody who works on it or a namespace to work in.
    fn lives(&self, kept: &Kept, view: &HostView) -> Result<bool> {
        let Some(links) = &kept.record.links else {
            return Ok(kept.writer.is_alive() || Netns::open(&kept.record.netns)?.is_some());
        };
        let seen = view.link(links.veth_index);
        let seen = seen.is_some_and(|l| l.kind == LinkKind::Veth && l.name == links.veth_name);
        // A dump may miss a link while others come and go.
        Ok(seen || unlink::recorded_veth(&self.rtnl, &kept.record)?.is_some())
    }

    /// Writes that setup has ended well, unless a teardown has come in the meantime.
    pub(super) fn settle(&self) -> Result<Done> {
        self.announce();
        let lock = self.store.lock(&|| false)?;
        for (record, key) in self.records.iter().zip(&self.keys) {
            self.refuse_torn_down(key)?;
            self.store
                .put(&lock, &Kept { record: record.clone(), phase: Phase::Up, writer: Writer::this_process() })?;
        }
        Ok(Done::Within)
    }

    /// # Errors
    /// The record of this command is gone, or another command works on it.
    fn refuse_torn_down(&self, key: &Key) -> Result<()> {
        let own = self.store.get(key)?.is_some_and(|k| k.writer == Writer::this_process());
        let gone = || Error::new(format!("the endpoint on network {} was torn down at this moment", key.network));
        if own { Ok(()) } else { Err(gone()) }
    }

    pub(super) fn unname(&self) -> Result<()> {
        self.names.remove(&self.records.iter().collect::<Vec<_>>())
    }

    /// Marks this command's records as going and takes them out of the datapath.
    pub(super) fn withdraw(&mut self) -> Result<()> {
        let withdrawn = self.withdraw_all();
        self.failed |= withdrawn.is_err();
        withdrawn
    }

    fn withdraw_all(&mut self) -> Result<()> {
        self.read_records()?;
        let mut known = false;
        for key in &self.keys {
            let Some(mut kept) = self.store.get(key)? else { continue };
            known = true;
            kept.record.links = None;
            self.put(&kept.record, Phase::Going)?;
        }
        if known { self.serve().map(drop) } else { Ok(()) }
    }

    /// Whether no other container needs the bridges of this one.
    pub(super) fn is_alone(&self) -> bool {
        self.others_bridges().is_ok_and(|others| self.bridges().is_disjoint(&others))
    }

    fn bridges(&self) -> BTreeSet<IfName> {
        let recorded = self.records.iter().map(|r| r.network.bridge.clone());
        recorded.chain(self.leaving.iter().filter_map(|l| l.bridge.clone())).collect()
    }

    /// Deletes the veths, and if asked the bridges that nobody needs any more. One failure keeps the records.
    pub(super) fn unlink(&mut self, bridges: bool) -> Result<()> {
        let routes = self.records.iter().try_for_each(|r| self.remove_routes(r));
        let links = self.links_to_delete(bridges).and_then(|going| self.rtnl.delete_and_leave(&going));
        let deleted = routes.and(links);
        self.failed |= deleted.is_err();
        deleted
    }

    fn links_to_delete(&self, bridges: bool) -> Result<Vec<u32>> {
        let mut going = BTreeSet::new();
        for record in &self.records {
            going.extend(unlink::recorded_veth(&self.rtnl, record)?);
        }
        let recorded = self.records.iter().map(|r| (&r.endpoint.interface, &r.network.bridge));
        let described = self.leaving.iter().filter_map(|l| Some((l.interface.as_ref()?, l.bridge.as_ref()?)));
        for (interface, bridge) in recorded.chain(described).collect::<BTreeSet<_>>() {
            going.extend(self.veth_inside(interface, bridge)?);
        }
        let mut going: Vec<u32> = going.into_iter().collect();
        if bridges {
            going.extend(unlink::unused_bridges(&self.rtnl, &self.bridges(), &self.others_bridges()?, &going)?);
        }
        Ok(going)
    }

    /// Removes the records, unless something of their endpoints is still there.
    pub(super) fn forget_all(&self) -> Result<()> {
        if self.failed {
            return Ok(());
        }
        self.keys.iter().try_for_each(|key| self.store.forget(self.lock()?, key).map(drop))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::ebpf::compile::tests::record;
    use crate::dns::aardvark::Aardvark;
    use crate::link::netns;
    use nix::sched::{CloneFlags, unshare};
    use std::path::Path;

    /// Its engine tears a container down while the setup of it is still announcing names.
    #[test]
    fn a_setup_that_was_torn_down_meanwhile_leaves_no_record() {
        if !nix::unistd::geteuid().is_root() {
            println!("skip a_setup_that_was_torn_down_meanwhile_leaves_no_record: needs root");
            return;
        }
        unshare(CloneFlags::CLONE_NEWNET).expect("own network namespace");
        let cookie = netns::cookie().expect("a cookie");
        let names = Aardvark::new(Path::new(""), Path::new(""), 0, false);
        let record = record(1, &["10.88.0.2/16"], vec![]);
        let live = Live::coming(cookie, None, vec![record.clone()], names).expect("a host");
        let gone = live.settle().map(drop).expect_err("there is no record");
        assert!(gone.to_string().contains("torn down"), "{gone}");
        assert!(live.store.all().expect("records").is_empty());

        let lock = live.store.lock(&|| false).expect("the lock");
        let coming = Kept { record, phase: Phase::Coming, writer: Writer::this_process() };
        live.store.put(&lock, &coming).expect("written");
        drop(lock);
        live.settle().expect("its own record");
        assert_eq!(Phase::Up, live.store.all().expect("records")[0].phase);
        let lock = live.store.lock(&|| false).expect("the lock");
        live.store.forget(&lock, &coming.key()).expect("removed");
        live.store.close(lock).expect("closed");
    }
}
