//! Which datapath serves this host: what was asked for, what is in use, and the change from one to another.

use super::agent;
use super::serving::{refuse, see_sources, serve_sockets};
use super::session::Session;
use crate::datapath::ladder::{self, Choice, LADDER};
use crate::datapath::{Context, Datapath, Predecessor, Refusal, filter, keep_loaded};
use crate::link::netns;
use crate::model::error::{Error, Result};
use crate::model::{Departures, Desired, Record, Rung, TranslationPath, Xdp};
use std::time::SystemTime;

/// What `NETPATH_DATAPATH` asks for; `None` = nothing.
///
/// # Errors
/// A word that names no datapath, or one that this version does not have.
pub fn wish(word: &str) -> Result<Option<Choice>> {
    let refuse = |why: &str| {
        Err(Error::new(format!("cannot use datapath {word:?}"))
            .because(why.to_owned())
            .next(format!("set NETPATH_DATAPATH to {}, or unset it", ladder::names())))
    };
    let word = word.to_ascii_lowercase();
    if let Some(named) = LADDER.into_iter().find(|b| b.rung.to_string() == word) {
        return Ok(Some(Choice::Only(named.rung)));
    }
    match word.as_str() {
        "" | "auto" => Ok(None),
        _ => refuse("there is none of that name"),
    }
}

impl Session {
    /// The datapath for `coming` beside what is `there` already, which changes over to it if it must.
    ///
    /// # Errors
    /// It cannot be used, or it cannot do what a record asks for. Nothing was changed then, except that a change-over that
    /// fails in the middle leaves both, which the next command puts right.
    pub(super) fn choose_datapath(
        &self,
        choice: Choice,
        there: &Desired,
        coming: &[Record],
    ) -> Result<Box<dyn Datapath>> {
        let kept = if there.records.is_empty() { None } else { self.site.store.rung()? };
        let kept = match kept {
            Some(rung) if choice == Choice::Auto => {
                Some(self.take_back(rung, there, coming)?.map_or(rung, |d| d.rung()))
            }
            kept => kept,
        };
        let rung = match (choice, kept) {
            (Choice::Only(asked), Some(kept)) if asked != kept => ladder::choose(choice, None)?.rung,
            (Choice::Only(_), _) => ladder::choose(choice, kept)?.rung,
            (Choice::Auto, Some(kept)) if self.site.store.is_forced() => kept,
            (Choice::Auto, Some(kept)) => self.translating_rung(kept, there, coming)?,
            (Choice::Auto, None) => {
                // Rules of others decide first: probing a rung that is not taken costs 25 ms.
                let best = LADDER[0].rung;
                match self.translating_rung(best, there, coming)? {
                    rung if rung != best => rung,
                    _ => self.interim(ladder::choose(choice, kept)?.rung, coming)?,
                }
            }
        };
        let is_forced = choice != Choice::Auto || (kept.is_some() && self.site.store.is_forced());
        if is_forced
            && !ladder::backend(rung).through_netfilter
            && let Some(network) = network_asking(TranslationPath::Kernel, there, coming)
        {
            tracing::warn!("netpath.path=kernel of network {network} has no effect: {rung} is forced");
        }
        // A command without a wish leaves the rung that an earlier one has forced.
        match choice {
            Choice::Only(_) => self.site.store.keep_forced(self.lock()?, true)?,
            Choice::Auto if kept.is_none() => self.site.store.keep_forced(self.lock()?, false)?,
            Choice::Auto => {}
        }
        if kept.is_none() && rung != Rung::None {
            self.warn_of_closed_chains();
        }
        let mut datapath = ladder::open(rung, self.cookie)?;
        for record in coming {
            refuse(datapath.as_ref(), record)?;
        }
        if let Some(Refusal { feature, why, next }) = datapath.limits(&there.records, coming) {
            return Err(Error::new(format!("cannot {feature}")).because(why).next(next));
        }
        if let Some(old) = kept.filter(|old| *old != rung) {
            for record in &there.records {
                refuse(datapath.as_ref(), record)?;
            }
            self.change_over(old, datapath.as_mut(), there)?;
        }
        Ok(datapath)
    }

    /// Where forwarded packets can meet rules of others, or a network asks for it, a rung goes first that translates in
    /// netfilter. Without one that can serve, the best does all the same, and each container that starts warns of what is
    /// bypassed.
    fn translating_rung(&self, rung: Rung, there: &Desired, coming: &[Record]) -> Result<Rung> {
        let kernel = network_asking(TranslationPath::Kernel, there, coming);
        let offload = network_asking(TranslationPath::Offload, there, coming);
        let through_netfilter = ladder::backend(rung).through_netfilter;
        match (kernel, offload) {
            (Some(kernel), Some(offload)) if rung != Rung::None => tracing::warn!(
                "netpath.path=offload of network {offload} has no effect: network {kernel} has netpath.path=kernel, which \
                 holds for the host"
            ),
            (None, Some(network)) if through_netfilter && rung != Rung::None => {
                let next = "stop all containers of this host and start this one first";
                tracing::warn!(next, "netpath.path=offload of network {network} has no effect on the {rung} datapath");
            }
            _ => {}
        }
        if through_netfilter {
            if self.site.store.is_interim() {
                self.end_interim(kernel)?;
            }
            return Ok(rung);
        }
        let (why, rejection, bypassed) = match (kernel, offload) {
            (Some(network), _) => {
                let why = format!("network {network} has netpath.path=kernel");
                (why.clone(), why, "netpath.path=kernel has no effect")
            }
            (None, Some(_)) => return Ok(rung),
            (None, None) => {
                let Some(rule) = self.foreign.bypassed() else { return Ok(rung) };
                let rejection = filter::rejection(rung, &rule);
                (rule, rejection, "packets of containers bypass rules of this host, in whole or in part")
            }
        };
        let mut reasons = Vec::new();
        for lower in ladder::through_netfilter() {
            let serves = ladder::usable(lower)
                .map_err(Error::new)
                .and_then(|()| ladder::open(lower, self.cookie))
                .and_then(|d| there.records.iter().chain(coming).try_for_each(|r| refuse(d.as_ref(), r)));
            match serves {
                Ok(()) => {
                    tracing::info!("the datapath of this host is {lower}: {why}");
                    self.site.store.reject_rung(self.lock()?, rung, rejection)?;
                    self.site.store.keep_given_way(self.lock()?, true)?;
                    return Ok(lower);
                }
                Err(e) => reasons.push(format!("{lower}: {e}")),
            }
        }
        let (next, reasons) = ("netpath doctor", reasons.join("; "));
        tracing::warn!(next, "{bypassed}: {why}; {reasons}");
        Ok(rung)
    }

    /// Netfilter serves for another reason by now than that the programs are not loaded: rules of others, or network `kernel`.
    fn end_interim(&self, kernel: Option<&str>) -> Result<()> {
        let best = LADDER[0].rung;
        let rejection = match (kernel, self.foreign.bypassed()) {
            (Some(network), _) => format!("network {network} has netpath.path=kernel"),
            (None, Some(rule)) => filter::rejection(best, &rule),
            (None, None) => return Ok(()),
        };
        self.site.store.reject_rung(self.lock()?, best, rejection)?;
        self.site.store.keep_given_way(self.lock()?, true)
    }

    /// The rung for the first container of a host whose best rung has no programs attached yet: one that starts at once, from
    /// which the agent takes the containers over when it has loaded them. Attaching waits for all processors, loading for the
    /// verifier.
    fn interim(&self, best: Rung, coming: &[Record]) -> Result<Rung> {
        let backend = ladder::backend(best);
        let is_attached = || (backend.inspect)(self.cookie).exists();
        if backend.idle.is_none()
            || agent::is_off()
            || keep_loaded::seconds(&self.site.store) == 0
            || network_asking(TranslationPath::Offload, &Desired::default(), coming).is_some()
            || coming.iter().any(|r| r.network.xdp == Xdp::On)
            || is_attached()
        {
            return Ok(best);
        }
        let serves = |rung: &Rung| {
            let datapath = ladder::open(*rung, self.cookie);
            datapath.is_ok_and(|d| coming.iter().all(|record| refuse(d.as_ref(), record).is_ok()))
        };
        let Some(rung) = LADDER.into_iter().filter(|b| b.is_interim).map(|b| b.rung).find(serves) else {
            return Ok(best);
        };
        tracing::debug!("{rung} serves until the programs of the {best} datapath are loaded");
        self.site.store.keep_interim(self.lock()?)?;
        Ok(rung)
    }

    /// With the first container of a host: chains that drop by policy, and for which netpath cannot accept.
    fn warn_of_closed_chains(&self) {
        let chains = self.foreign.chains().as_deref().unwrap_or_default();
        for chain in chains.iter().filter(|c| c.closes_forwarding() && !c.is_of_iptables()) {
            tracing::warn!(next = chain.remedy(), "{chain}, and netpath cannot accept for it");
        }
    }

    /// Rules of others have appeared while containers run: netfilter takes the containers over with their connections,
    /// unless a rung was forced or a network asks for offload. The last one is gone: the programs take them back. Returns
    /// whether the rung is another one now.
    ///
    /// # Errors
    /// The change-over failed in the middle; the next reconcile tries again.
    pub(super) fn follow_foreign_rules(&mut self, desired: &Desired) -> Result<bool> {
        let Some(rung) = self.datapath.as_ref().map(|d| d.rung()) else { return Ok(false) };
        let there = served(desired);
        if self.site.store.is_forced() || there.records.is_empty() {
            return Ok(false);
        }
        if let Some(datapath) = self.take_back(rung, &there, &[])? {
            self.datapath = Some(datapath);
            return Ok(true);
        }
        let lower = self.translating_rung(rung, &there, &[])?;
        if lower == rung {
            return Ok(false);
        }
        let mut datapath = ladder::open(lower, self.cookie)?;
        self.change_over(rung, datapath.as_mut(), &there)?;
        self.datapath = Some(datapath);
        Ok(true)
    }

    /// The best rung takes `there` back from one that serves because of rules of others, once there are none and it can serve
    /// `coming` too. `None`: the rung in use stays.
    ///
    /// # Errors
    /// The change-over failed after the best one began to serve. Where it cannot serve at all, the other one stays.
    fn take_back(&self, kept: Rung, there: &Desired, coming: &[Record]) -> Result<Option<Box<dyn Datapath>>> {
        let (store, best) = (&self.site.store, LADDER[0].rung);
        let is_waiting = self.may_return && store.has_given_way() && !store.is_forced();
        if !is_waiting
            || !ladder::backend(kept).through_netfilter
            || asks_for_kernel(there, coming)
            || self.foreign.bypassed().is_some()
        {
            return Ok(None);
        }
        let serves = ladder::usable(best).map_err(Error::new).and_then(|()| {
            let datapath = ladder::open(best, self.cookie)?;
            there.records.iter().chain(coming).try_for_each(|r| refuse(datapath.as_ref(), r))?;
            match datapath.limits(&there.records, coming) {
                Some(Refusal { feature, why, .. }) => Err(Error::new(format!("cannot {feature}")).because(why)),
                None => Ok(datapath),
            }
        });
        let taken = serves.and_then(|mut datapath| {
            self.change_over(kept, datapath.as_mut(), there)?;
            Ok(datapath)
        });
        let refused = match taken {
            Ok(datapath) => {
                store.keep_given_way(self.lock()?, false)?;
                return Ok(Some(datapath));
            }
            Err(e) if store.rung()? != Some(kept) => return Err(e),
            Err(e) => e,
        };
        tracing::warn!(error = %refused, "no rule of others is left, but the {best} datapath cannot be used; {kept} stays");
        store.reject_rung(self.lock()?, best, refused.to_string())?;
        store.keep_given_way(self.lock()?, false)?;
        self.finish_change(there)?;
        Ok(None)
    }

    /// Fills the new one before it empties the old one: a packet always finds one of them.
    fn change_over(&self, old: Rung, new: &mut dyn Datapath, there: &Desired) -> Result<()> {
        tracing::info!(from = %old, to = %new.rung(), containers = there.records.len(), "changing the datapath of this host");
        let (store, lock, rtnl) = (&self.site.store, self.lock()?, &self.site.rtnl);
        store.keep_change(lock, Some([old, new.rung()]))?;
        let wanted: Vec<_> = new.sysctls(there).into_iter().map(|s| (s.path, s.value)).collect();
        super::sysctls::ensure(store, lock, &wanted)?;
        let mut view = rtnl.host_view(self.cookie)?;
        see_sources(new.rung(), rtnl, there, &mut view);
        let departures = Departures::default();
        let context = Context { host: &view, foreign: &self.foreign, store, lock, departures };
        let mut old_datapath = ladder::open(old, self.cookie)?;
        let predecessor = Predecessor {
            connections: &|| old_datapath.connections(),
            route: &|interface, from, to| rtnl.route_interface(interface, from, to),
        };
        new.take_over(there, &context, &predecessor)?;
        store.keep_rung(lock, new.rung())?;
        let emptied = old_datapath.hand_over(new, &context);
        emptied.map_err(|e| e.within(format!("cannot empty the {old} datapath")))?;
        store.keep_change(lock, None)
    }

    /// A change-over was interrupted or failed: the rung that does not serve hands over what it has, and is emptied. What
    /// cannot be removed is no reason to refuse containers; the next command tries again.
    ///
    /// # Errors
    /// The state cannot be read.
    pub(super) fn finish_change(&self, desired: &Desired) -> Result<()> {
        let (Some(rungs), Some(kept)) = (self.site.store.change()?, self.site.store.rung()?) else { return Ok(()) };
        let Some(left) = rungs.into_iter().find(|rung| *rung != kept) else { return Ok(()) };
        let finished = ladder::open(kept, self.cookie)
            .and_then(|mut kept| self.change_over(left, kept.as_mut(), &served(desired)));
        if let Err(e) = finished {
            tracing::warn!("the change from {} to {} is not complete: {e}", rungs[0], rungs[1]);
        }
        Ok(())
    }

    /// Empties the datapath of a host without records, and ends the connections that wait for their container. Returns the
    /// number of changes.
    ///
    /// # Errors
    /// What could not be removed.
    pub(super) fn empty(&self) -> Result<usize> {
        let (store, lock) = (&self.site.store, self.lock()?);
        let view = self.site.rtnl.host_view(self.cookie)?;
        let left = || LADDER.into_iter().find(|b| (b.inspect)(self.cookie).exists());
        let rung = store.rung()?.unwrap_or_else(|| left().unwrap_or(LADDER[0]).rung);
        let nothing = Desired::default();
        let mut departed = store.departed();
        departed.iter_mut().for_each(|d| d.until = SystemTime::UNIX_EPOCH);
        let departures = Departures::sort(&mut departed, &nothing, SystemTime::now(), &netns::id);
        let context = Context { host: &view, foreign: &self.foreign, store, lock, departures };
        let mut datapath = ladder::open(rung, self.cookie)?;
        let changed = datapath.reconcile(&nothing, &context)?.changed;
        store.keep_departed(lock, &[])?;
        let sockets = serve_sockets(datapath.as_ref(), self.cookie, &nothing, &view, false);
        Ok(changed + sockets.unwrap_or(0))
    }
}

/// The records that a datapath serves.
fn served(desired: &Desired) -> Desired {
    Desired { records: desired.records.iter().filter(|r| r.network.bridge().is_some()).cloned().collect() }
}

/// Whether a network asks for netfilter.
pub(super) fn asks_for_kernel(there: &Desired, coming: &[Record]) -> bool {
    network_asking(TranslationPath::Kernel, there, coming).is_some()
}

/// The first network that asks for this path.
fn network_asking<'a>(path: TranslationPath, there: &'a Desired, coming: &'a [Record]) -> Option<&'a str> {
    let mut networks = there.records.iter().chain(coming).map(|r| &r.network);
    networks.find(|n| n.path == path && n.bridge().is_some()).map(|n| n.name.as_ref())
}
