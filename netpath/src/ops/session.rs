//! The state that the steps of one command share, and their implementation on the real host.

use super::request::{self, Attached, Leaving};
use super::{agent, expire, names, signal, sysctls};
use crate::datapath::filter::Foreign;
use crate::datapath::firewalld::Firewall;
use crate::datapath::ladder::{self, Choice};
use crate::datapath::{Datapath, IdleState, incumbent, keep_loaded};
use crate::dns::aardvark::Names;
use crate::driver::{self, Driver, Made, Site};
use crate::link::{Netns, Rtnl};
use crate::model::error::{Error, Result};
use crate::model::network::DNS_PORT;
use crate::model::{Desired, Endpoint, Network, Record, Rung, TrafficIds, TranslationPath};
use crate::plan::{self, Done, Host, Step, Undo};
use crate::state::{self, ProcessId};
use crate::state::{Key, Lock, Phase, Store, StoredEndpoint};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

pub(super) struct Session {
    pub cookie: u64,
    pub site: Site,
    pub lock: Option<Lock>,
    /// Of a command that concerns a container.
    pub names: Option<Box<dyn Names>>,
    pub datapath: Option<Box<dyn Datapath>>,
    pub firewall: Firewall,
    /// Rules of other software: one command lists them once.
    pub foreign: Foreign,
    /// Whether another rung may be taken if this one fails: it was not requested, and no container uses it yet.
    pub may_step_down: bool,
    /// Whether a better rung may take containers back from netfilter. The agent does so, and without one any command.
    pub may_return: bool,
    /// Whether it also does what no container waits for: it loads programs beside a rung of netfilter, and reads the MTUs of
    /// routes. The agent does so, and where there is to be none, any command.
    pub completes: bool,
    /// Whether nothing was left to the agent.
    pub is_complete: bool,
    /// Whether connections that wait for their container end with this session, if no container is left. The agent does so.
    pub ends_connections: bool,
    /// Of setup: with their final order. Of teardown: from the store, else as the engine describes them.
    pub records: Vec<Record>,
    pub leaving: Vec<Leaving>,
    /// Of a teardown: where the container had its namespace.
    pub netns: PathBuf,
    /// One per record of a setup, as in `made`.
    pub drivers: Vec<Box<dyn Driver>>,
    pub made: Vec<Made>,
    /// A part of the endpoints could not be removed, so that their records are kept.
    pub failed: bool,
}

impl Session {
    /// For a setup of `records`.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub(super) fn for_setup(
        cookie: u64,
        netns: Option<Netns>,
        records: Vec<Record>,
        names: Option<Box<dyn Names>>,
    ) -> Result<Self> {
        let inside = netns.map(|n| n.enter()).transpose()?;
        let keys = records.iter().map(Key::of).collect();
        let store = Store::of(cookie);
        Ok(Self {
            cookie,
            completes: agent::is_off(),
            is_complete: true,
            ends_connections: false,
            may_return: state::agent::holder(store.dir()).is_none(),
            site: Site { rtnl: Rtnl::here()?, inside, store, keys },
            lock: None,
            names,
            datapath: None,
            firewall: Firewall::default(),
            foreign: Foreign::default(),
            may_step_down: false,
            drivers: records.iter().map(|r| driver::of(&r.network.attachment)).collect(),
            made: vec![Made::default(); records.len()],
            records,
            leaving: Vec::new(),
            netns: PathBuf::new(),
            failed: false,
        })
    }

    /// Of a command that concerns no container.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn without_container(cookie: u64) -> Result<Self> {
        Self::for_setup(cookie, None, Vec::new(), None)
    }

    /// For a teardown. `described`: the endpoints as the engine describes them; netpath's own records take precedence.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(super) fn for_teardown(
        cookie: u64,
        netns: Option<Netns>,
        container: &str,
        leaving: Vec<Leaving>,
        described: Vec<Record>,
        names: Box<dyn Names>,
    ) -> Result<Self> {
        let mut session = Self::for_setup(cookie, None, Vec::new(), Some(names))?;
        session.site.inside = netns.and_then(|n| match n.enter() {
            Ok(inside) => Some(inside),
            Err(e) => {
                tracing::warn!(error = %e, "only the host's side is cleaned up");
                None
            }
        });
        let is_named = leaving.iter().all(|l| l.interface.is_some());
        let known = if is_named { Vec::new() } else { session.site.store.all()? };
        session.site.keys = leaving.iter().flat_map(|l| l.keys(container, &known)).collect();
        session.leaving = leaving;
        session.records = described;
        session.read_records()?;
        Ok(session)
    }

    /// Replaces the endpoints that the engine described by the records of the store.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(super) fn read_records(&mut self) -> Result<()> {
        for key in &self.site.keys {
            let Some(kept) = self.site.store.get(key)? else { continue };
            // At the same position, by which steps refer to it.
            match self.records.iter_mut().find(|r| Key::of(r) == *key) {
                Some(record) => *record = kept.record,
                None => self.records.push(kept.record),
            }
        }
        Ok(())
    }

    /// The endpoints that netpath has not set up, as the engine describes them.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(super) fn unrecorded(&self) -> Result<Vec<Record>> {
        let is_recorded = |r: &&Record| self.site.store.get(&Key::of(r)).map(|kept| kept.is_some());
        let mut found = Vec::new();
        for record in &self.records {
            if !is_recorded(&record)? {
                found.push(record.clone());
            }
        }
        Ok(found)
    }

    /// A bridge that an early Netavark made has the hardware address of a port, and another one when that port goes. The other containers
    /// would keep the old one in their neighbour caches. Once it is set it stays.
    pub(super) fn pin_bridge(&self, record: &Record) {
        let Some(name) = record.network.bridge() else { return };
        if let Ok(Some(bridge)) = self.site.rtnl.link_named(name)
            && let Some(Err(e)) = bridge.mac.map(|mac| self.site.rtnl.announce(bridge.index, mac))
        {
            tracing::warn!("bridge {name} may change its hardware address: {e}");
        }
    }

    /// Removes what Netavark has made of an endpoint besides links: its firewall's state first, from which its services make rules again.
    ///
    /// # Errors
    /// What could not be removed.
    pub(super) fn forget_incumbents(&self, record: &Record, config: &Path) -> Result<()> {
        let Some(bridge) = record.network.bridge() else { return Ok(()) };
        let left = state::incumbent::forget(config, &record.network.id, &record.container.id)?;
        let links = self.site.rtnl.links()?;
        let index = links.iter().find(|l| l.name == bridge.as_str()).map(|l| l.index);
        let stored = self.site.store.all()?;
        let is_own = |port: u32| stored.iter().any(|k| k.record.bridged().is_some_and(|own| own.veth_index == port));
        let is_last_of_network = !links.iter().any(|l| index.is_some() && l.master == index && !is_own(l.index));
        // Until the rules are gone: other teardowns of the same engine read and write them at once.
        let is_last = left.as_ref().is_some_and(|left| !left.others);
        if incumbent::forget(record, is_last_of_network, is_last)? {
            let (name, network) = (record.container.label(), &record.network.name);
            tracing::info!("Netavark's rules of {name} on network {network} are removed");
        }
        Ok(())
    }

    /// The plan that attaches the records.
    pub(super) fn plan(&self) -> Vec<Step> {
        let endpoints = self.drivers.iter().zip(&self.records).enumerate();
        plan::attach(&self.records, endpoints.map(|(at, (driver, record))| driver.steps(at, record)).collect())
    }

    /// The results of the steps.
    pub(super) fn into_attached(self) -> Result<Vec<Attached>> {
        let attached = self.records.into_iter().zip(self.made).map(|(record, made)| {
            let result = match (made.status, made.links) {
                (Some(status), _) => request::Made::Plugin(status),
                (None, Some(links)) => request::Made::Interface(links.container_mac()),
                (None, None) => return Err(Error::new("an endpoint has no links")),
            };
            let endpoint = Endpoint { addresses: made.addresses, ..record.endpoint };
            Ok(Attached { network: record.network, endpoint, result, lease: made.lease })
        });
        attached.collect()
    }

    /// Takes the lock, and checks that the host can take the endpoints: they do not exist already, and the datapath can serve them.
    /// Removes the leftovers of a killed command on the same endpoints.
    ///
    /// # Errors
    /// It cannot take them; nothing was changed.
    pub(super) fn preflight(&mut self, choice: Choice) -> Result<()> {
        self.take_lock()?;
        let checked = self.preflight_locked(choice);
        if checked.is_err() {
            self.release_lock()?;
        }
        checked
    }

    fn preflight_locked(&mut self, choice: Choice) -> Result<()> {
        let there = self.stored_records()?;
        self.refuse_taken_ports(&there)?;
        let kept = if there.is_empty() { None } else { self.site.store.rung()? };
        if choice != Choice::Only(Rung::None) && kept != Some(Rung::None) {
            self.firewall.preflight(&self.foreign, &self.records)?;
        }
        for at in 0..self.records.len() {
            if let Some(old) = there.iter().find(|k| k.key() == self.site.keys[at]) {
                self.clear(at, old)?;
            }
        }
        for (driver, record) in self.drivers.iter_mut().zip(&mut self.records) {
            driver.validate(&self.site, record, &there)?;
            record.network.dns_addresses = driver.dns_addresses(&self.site, record)?;
            record.network.dns_port = self.names.as_ref().map_or(DNS_PORT, |names| names.port());
            // Without an agent only netfilter leads queries to another port.
            if agent::is_off()
                && record.network.dns
                && record.network.dns_port != DNS_PORT
                && record.network.path == TranslationPath::Auto
            {
                record.network.path = TranslationPath::Kernel;
            }
        }
        let last = there.iter().map(|k| k.record.order).max().unwrap_or(0);
        let is_served = |r: &Record| r.network.bridge().is_some();
        for at in 0..self.records.len() {
            let others = there.iter().map(|k| &k.record).chain(&self.records[..at]);
            if is_served(&self.records[at]) {
                self.records[at].traffic = TrafficIds::for_record(&self.records[at], others.map(|r| &r.traffic));
            }
            self.records[at].order = last + 1 + at as u64;
        }
        let coming: Vec<Record> = self.records.iter().filter(|r| is_served(r)).cloned().collect();
        if coming.is_empty() {
            return Ok(());
        }
        let there = Desired { records: there.into_iter().map(|k| k.record).filter(is_served).collect() };
        keep_loaded::remember(&self.site.store, self.lock()?)?;
        self.may_step_down = choice == Choice::Auto && there.records.is_empty();
        let datapath = self.choose_datapath(choice, &there, &coming)?;
        // Connections of the last containers wait there.
        if there.records.is_empty() && self.site.store.rung()?.is_some_and(|left| left != datapath.rung()) {
            self.empty()?;
        }
        self.datapath = Some(datapath);
        Ok(())
    }

    /// The lock. The plan holds it in every step that needs it.
    pub(super) fn lock(&self) -> Result<&Lock> {
        self.lock.as_ref().ok_or_else(unlocked)
    }

    pub(super) fn take_lock(&mut self) -> Result<()> {
        if self.lock.is_none() {
            self.lock = Some(self.site.store.lock(&signal::seen)?);
        }
        Ok(())
    }

    /// Releases the lock. Without any record left it first removes all other state of this host, except what the agent keeps
    /// loaded. Without the lock it does nothing.
    ///
    /// # Errors
    /// A part of the state cannot be removed.
    pub(super) fn release_lock(&mut self) -> Result<()> {
        if self.lock.is_none() {
            return Ok(());
        }
        let is_empty = self.site.store.is_empty()?;
        if is_empty && !self.site.store.departed().is_empty() {
            if self.leaves_the_end_to_the_agent() {
                self.lock = None;
                return Ok(());
            }
            self.empty()?;
        }
        let Some(lock) = self.lock.take() else { return Ok(()) };
        if !is_empty {
            expire::expire_some(&self.site.store, &lock, self.cookie);
            return Ok(());
        }
        self.firewall.hold(&self.site.store, &lock, &self.foreign, &BTreeSet::new());
        sysctls::restore(&self.site.store, &lock)?;
        if agent::keeps_idle(&self.site.store, self.cookie) {
            return self.site.store.clear(&lock);
        }
        if !matches!(ladder::idle(self.cookie), None | Some(IdleState::Preloaded)) {
            ladder::unload(&lock, self.cookie)?;
        }
        if agent::serves_names(&self.site.store) {
            return self.site.store.clear(&lock);
        }
        // It would end by itself, but only later, and must not create its files again after they were removed.
        if let Err(e) = agent::stop(&self.site.store) {
            tracing::warn!("{e}");
        }
        self.site.store.close(lock)
    }

    /// Whether connections of the last containers wait, and an agent lives that ends them and then does the rest.
    pub(super) fn leaves_the_end_to_the_agent(&self) -> bool {
        !self.ends_connections && !self.site.store.departed().is_empty() && agent::is_own(&self.site.store)
    }

    /// The gateways whose port 53 stays free: where netpath's programs serve the bridge, or will.
    fn led_addresses(&self) -> Result<Vec<IpAddr>> {
        let store = &self.site.store;
        if store.rung()?.is_none_or(|rung| ladder::backend(rung).lead_dns.is_none()) && !store.has_given_way() {
            return Ok(Vec::new());
        }
        let networks = self.records.iter().map(|r| &r.network).filter(|n| n.dns && n.bridge().is_some());
        Ok(networks.flat_map(Network::dns_addresses).collect())
    }

    pub(super) fn put(&self, record: &Record, phase: Phase) -> Result<()> {
        let kept = StoredEndpoint { record: record.clone(), phase, writer: ProcessId::this_process() };
        self.site.store.put(self.lock()?, &kept)
    }

    fn keep(&self, record: &Record) -> Result<Done> {
        self.put(record, Phase::Creating)?;
        if let Some(datapath) = &self.datapath
            && let Err(e) = self.site.store.keep_rung(self.lock()?, datapath.rung())
        {
            self.site.store.forget(self.lock()?, &Key::of(record))?;
            return Err(e);
        }
        Ok(Done::Changed(Undo::Forget(Box::new(record.clone()))))
    }
}

pub(super) fn unlocked() -> Error {
    Error::new("the host's state is not locked")
}

impl Host for Session {
    fn apply(&mut self, step: &Step) -> Result<Done> {
        match step {
            Step::Lock => self.take_lock().map(|()| Done::Changed(Undo::Unlock)),
            Step::Unlock => self.release_lock().map(|()| Done::Changed(Undo::Lock)),
            Step::Keep(record) => self.keep(record),
            Step::Share { at, .. } => self.drivers[*at].share(&self.site, *at, &self.records[*at]),
            Step::Loopback => {
                // Records are there by now, without which it would end. It gets ready while the links are made.
                if self.records.iter().any(|r| r.network.dns) && !agent::is_off() {
                    agent::start_if_missing(&self.site.store)?;
                }
                self.loopback()
            }
            Step::Connect { at, .. } => self.connect(*at),
            Step::Settings { at, .. } => self.settings(*at),
            Step::Address { at, address, .. } => self.address(*at, *address),
            Step::Up { at, .. } => self.up(*at),
            Step::Lease { at, .. } => self.lease(*at),
            Step::Route { at, route, .. } => self.route(*at, route),
            Step::Link { at } => self.write_links(*at),
            Step::Datapath => self.reconcile_or_withdraw(),
            Step::Names => {
                let records: Vec<_> = self.records.iter().collect();
                if let Some(names) = &self.names {
                    names.add(&records, &|process, listen| {
                        names::serve(&self.site.store, process, listen, self.led_addresses()?)
                    })?;
                }
                Ok(Done::Changed(Undo::Unname))
            }
            Step::Commit => self.commit(),
            Step::Unname => self.unname().map(|()| Done::ChangedCovered),
            Step::Disconnect => self.disconnect_all().map(|()| Done::ChangedCovered),
            Step::Withdraw => self.withdraw().map(|()| Done::ChangedCovered),
            Step::LinkCleanup { shared } => self.link_cleanup(*shared).map(|()| Done::ChangedCovered),
            Step::Forget => self.forget_all().map(|()| Done::ChangedCovered),
        }
    }

    fn undo(&mut self, undo: &Undo) -> Result<()> {
        match undo {
            // Signals do not interrupt an undo.
            Undo::Lock => {
                if self.lock.is_none() {
                    self.lock = Some(self.site.store.lock(&|| false)?);
                }
                Ok(())
            }
            Undo::Unlock => self.release_lock(),
            Undo::Forget(record) => self.site.store.forget(self.lock()?, &Key::of(record)).map(drop),
            Undo::Unshare { at } => driver::remove_unused(self.drivers[*at].as_ref(), &self.site),
            Undo::Disconnect { at } => self.disconnect(*at),
            Undo::RemoveRoute(route) => self.site.inside()?.rtnl().delete_route(route),
            Undo::Withdraw => self.withdraw(),
            Undo::Unname => self.unname(),
        }
    }

    fn interrupted(&self) -> bool {
        signal::seen()
    }
}
