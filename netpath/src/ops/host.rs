//! The real host: the state that the steps of one command share, and the dispatch to them.

use super::{Leaving, agent, gc, key, rung, signal, sysctls};
use crate::datapath::Datapath;
use crate::datapath::firewalld::Firewall;
use crate::datapath::ladder::Choice;
use crate::dns::aardvark::Aardvark;
use crate::link::{Inside, Netns, Rtnl};
use crate::model::error::{Error, Result};
use crate::model::{Desired, IfName, Links, Record, Rung, TrafficIds};
use crate::plan::{Done, Host, Step, Undo};
use crate::state::store::Writer;
use crate::state::{Kept, Key, Lock, Phase, Store};
use std::collections::BTreeSet;

/// What setup has made of one endpoint so far.
#[derive(Clone, Default)]
pub(super) struct Made {
    /// Inside the container.
    pub index: u32,
    pub links: Option<Links>,
}

pub(super) struct Live {
    pub cookie: u64,
    pub store: Store,
    pub rtnl: Rtnl,
    pub netns: Option<Netns>,
    pub inside: Option<Inside>,
    pub lock: Option<Lock>,
    pub names: Aardvark,
    pub datapath: Option<Box<dyn Datapath>>,
    pub firewall: Firewall,
    /// Whether another rung may be taken should this one fail: nobody asked for it, and no container uses it yet.
    pub may_step_down: bool,
    /// Of setup, with their final order; of teardown, what the store and the engine know of them.
    pub records: Vec<Record>,
    pub leaving: Vec<Leaving>,
    /// Of all endpoints that this command is about.
    pub keys: Vec<Key>,
    pub made: Vec<Made>,
    pub made_bridges: BTreeSet<IfName>,
    /// Bridges that another command is making at this moment: without a port their MTU says nothing yet.
    pub portless_bridges: BTreeSet<IfName>,
    /// Something of the endpoints could not be removed, so that their records must stay.
    pub failed: bool,
}

impl Live {
    /// For a setup of `records`.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn coming(cookie: u64, netns: Option<Netns>, records: Vec<Record>, names: Aardvark) -> Result<Self> {
        let inside = match &netns {
            Some(netns) => Some(netns.enter()?),
            None => None,
        };
        Ok(Self {
            cookie,
            store: Store::of(cookie),
            rtnl: Rtnl::here()?,
            netns,
            inside,
            lock: None,
            names,
            datapath: None,
            firewall: Firewall::default(),
            may_step_down: false,
            keys: records.iter().map(Key::of).collect(),
            made: vec![Made::default(); records.len()],
            records,
            leaving: Vec::new(),
            made_bridges: BTreeSet::new(),
            portless_bridges: BTreeSet::new(),
            failed: false,
        })
    }

    /// For a teardown. `described`: what the engine says of the endpoints; netpath's own records come first.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn going(
        cookie: u64,
        netns: Option<Netns>,
        container: &str,
        leaving: Vec<Leaving>,
        described: Vec<Record>,
        names: Aardvark,
    ) -> Result<Self> {
        let netns = netns.and_then(|n| match n.enter() {
            Ok(inside) => Some((n, inside)),
            Err(e) => {
                tracing::warn!(error = %e, "only the host's side is cleaned up");
                None
            }
        });
        let (netns, inside) = netns.map_or((None, None), |(n, i)| (Some(n), Some(i)));
        let mut live = Self::coming(cookie, None, Vec::new(), names)?;
        live.netns = netns;
        live.inside = inside;
        live.keys = leaving.iter().map(|l| key(container, &l.network)).collect();
        live.leaving = leaving;
        live.records = described;
        live.read_records()?;
        Ok(live)
    }

    /// Takes the store's own records for those that the engine described.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn read_records(&mut self) -> Result<()> {
        for key in &self.keys {
            let Some(kept) = self.store.get(key)? else { continue };
            // In its place: steps count the endpoints.
            match self.records.iter_mut().find(|r| Key::of(r) == *key) {
                Some(record) => *record = kept.record,
                None => self.records.push(kept.record),
            }
        }
        Ok(())
    }

    pub fn into_links(self) -> Vec<Links> {
        self.made.iter().filter_map(|m| m.links.clone()).collect()
    }

    /// Takes the lock, and looks whether the host can take the endpoints: they are not there already, the datapath can
    /// serve them. What an earlier command on the same endpoints has left behind when it was killed is removed.
    ///
    /// # Errors
    /// It cannot; nothing was changed.
    pub fn admit(&mut self, choice: Choice) -> Result<()> {
        self.take_lock()?;
        let admitted = self.admit_locked(choice);
        if admitted.is_err() {
            self.let_go()?;
        }
        admitted
    }

    fn admit_locked(&mut self, choice: Choice) -> Result<()> {
        let there = self.store.all()?;
        self.refuse_taken_ports(&there)?;
        let kept = if there.is_empty() { None } else { self.store.rung()? };
        if choice != Choice::Only(Rung::None) && kept != Some(Rung::None) {
            self.firewall.admit(&self.records)?;
        }
        for at in 0..self.records.len() {
            if let Some(old) = there.iter().find(|k| k.key() == self.keys[at]) {
                self.clear(at, old)?;
            }
        }
        self.portless_bridges = portless(&there);
        let last = there.iter().map(|k| k.record.order).max().unwrap_or(0);
        for at in 0..self.records.len() {
            let others = there.iter().map(|k| &k.record).chain(&self.records[..at]);
            let traffic = TrafficIds::for_record(&self.records[at], others.map(|r| &r.traffic));
            let record = &mut self.records[at];
            (record.traffic, record.order) = (traffic, last + 1 + at as u64);
        }
        self.may_step_down = choice == Choice::Auto && there.is_empty();
        let there = Desired { records: there.into_iter().map(|k| k.record).collect() };
        let (lock, coming) = (self.lock()?, &self.records);
        self.datapath = Some(rung::decide(choice, &self.store, lock, &self.rtnl, self.cookie, &there, coming)?);
        Ok(())
    }

    /// The lock, which the plan holds whenever a step needs it.
    pub fn lock(&self) -> Result<&Lock> {
        self.lock.as_ref().ok_or_else(|| Error::new("the host's state is not locked"))
    }

    pub fn inside(&self) -> Result<&Inside> {
        self.inside.as_ref().ok_or_else(|| Error::new("the container has no network namespace"))
    }

    fn take_lock(&mut self) -> Result<()> {
        if self.lock.is_none() {
            self.lock = Some(self.store.lock(&signal::seen)?);
        }
        Ok(())
    }

    /// Lets go of the lock, and with the last record of everything that netpath keeps of this host. Without the lock it
    /// does nothing.
    ///
    /// # Errors
    /// Something of it cannot be removed.
    pub fn let_go(&mut self) -> Result<()> {
        let Some(lock) = self.lock.take() else { return Ok(()) };
        if self.store.is_empty()? {
            // It would go by itself, only later; and what is its own must not be made again after it was removed.
            if let Err(e) = agent::stop(&self.store) {
                tracing::warn!("{e}");
            }
            self.firewall.hold(&self.store, &lock, &BTreeSet::new());
            sysctls::put_back(&self.store)?;
            self.store.close(lock)?;
        } else {
            gc::sweep_some(&self.store, self.cookie);
        }
        Ok(())
    }

    pub fn put(&self, record: &Record, phase: Phase) -> Result<()> {
        let kept = Kept { record: record.clone(), phase, writer: Writer::this_process() };
        self.store.put(self.lock()?, &kept)
    }

    fn keep(&self, record: &Record) -> Result<Done> {
        self.put(record, Phase::Coming)?;
        if let Some(datapath) = &self.datapath
            && let Err(e) = self.store.keep_rung(self.lock()?, datapath.rung())
        {
            self.store.forget(self.lock()?, &Key::of(record))?;
            return Err(e);
        }
        Ok(Done::Changed(Undo::Forget(Box::new(record.clone()))))
    }

    /// The bridges of every endpoint that this command is not about.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn others_bridges(&self) -> Result<BTreeSet<IfName>> {
        let all = self.store.all()?;
        Ok(all.into_iter().filter(|k| !self.keys.contains(&k.key())).map(|k| k.record.network.bridge).collect())
    }
}

/// The bridges of endpoints that are all still on their way.
fn portless(there: &[Kept]) -> BTreeSet<IfName> {
    let bridges = |is_so: fn(&Kept) -> bool| {
        there.iter().filter(|k| is_so(k)).map(|k| k.record.network.bridge.clone()).collect::<BTreeSet<_>>()
    };
    let coming = bridges(|k| k.phase == Phase::Coming && k.record.links.is_none());
    coming.difference(&bridges(|k| k.record.links.is_some())).cloned().collect()
}

impl Host for Live {
    fn apply(&mut self, step: &Step) -> Result<Done> {
        match step {
            Step::Lock => self.take_lock().map(|()| Done::Changed(Undo::Unlock)),
            Step::Unlock => self.let_go().map(|()| Done::Changed(Undo::Lock)),
            Step::Keep(record) => self.keep(record),
            Step::Bridge(network) => self.bridge(network),
            Step::Loopback => self.loopback(),
            Step::Veth { at, .. } => self.veth(*at),
            Step::Settings { at, .. } => self.settings(*at),
            Step::Address { at, address, .. } => self.address(*at, *address),
            Step::Up { at, .. } => self.up(*at),
            Step::Route { route, .. } => self.route(route),
            Step::Link { at } => self.write_links(*at),
            Step::Datapath => self.serve_all(),
            Step::Names => {
                self.names.add(&self.records.iter().collect::<Vec<_>>())?;
                Ok(Done::Changed(Undo::Unname))
            }
            Step::Settle => self.settle(),
            Step::Unname => self.unname().map(|()| Done::Within),
            Step::Withdraw => self.withdraw().map(|()| Done::Within),
            Step::Unlink { bridges } => self.unlink(*bridges).map(|()| Done::Within),
            Step::Forget => self.forget_all().map(|()| Done::Within),
        }
    }

    fn undo(&mut self, undo: &Undo) -> Result<()> {
        match undo {
            // An undo is not interrupted.
            Undo::Lock => {
                if self.lock.is_none() {
                    self.lock = Some(self.store.lock(&|| false)?);
                }
                Ok(())
            }
            Undo::Unlock => self.let_go(),
            Undo::Forget(record) => self.store.forget(self.lock()?, &Key::of(record)).map(drop),
            Undo::RemoveBridge(name) => self.remove_bridge(name),
            Undo::RemoveVeth { at } => self.remove_veth(*at),
            Undo::RemoveRoute(route) => self.inside()?.rtnl().delete_route(route),
            Undo::Withdraw => self.withdraw(),
            Undo::Unname => self.unname(),
        }
    }

    fn interrupted(&self) -> bool {
        signal::seen()
    }
}
