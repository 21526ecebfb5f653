//! Watch of the host: compares what the datapath was made for with the host now, and reconciles when they differ.

use super::expire;
use super::promotion::Promotion;
use super::reconcile::Reconciled;
use super::rung::asks_for_kernel;
use super::serving::{read_route_mtus, see_sources};
use super::session::Session;
use crate::datapath::filter::Foreign;
use crate::datapath::{IdleState, firewalld, keep_loaded, ladder, promote};
use crate::link::{self, Carriers, Rtnl, netns};
use crate::model::error::Result;
use crate::model::{Desired, HostLink, RouteMtus, Rung};
use crate::state::agent::holder;
use crate::state::{Store, StoredEndpoint};
use std::any::Any;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

/// How long rules of others must be absent before the programs take containers back: services that restart remove their
/// rules and add them again.
const HOLD_DOWN: Duration = Duration::from_secs(1);

/// The shortest time until a look at connections that wait for their container.
const RETRY: Duration = Duration::from_millis(200);

/// The state of the host that the datapath depends on, besides records and links.
#[derive(PartialEq)]
struct HostState {
    /// As text, also an error: only compared.
    filters: String,
    /// Of the rules among which the datapath's are.
    generation: Option<u32>,
    /// Changes when firewalld reloads.
    firewalld: Option<u64>,
    route_mtus: Option<RouteMtus>,
}

/// How much a look compares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Look {
    /// Only what has changed on the host.
    IfChanged,
    /// Also restores objects that other software has removed.
    Full,
}

/// Result of a look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LookResult {
    Same,
    /// Reconciled, with so many kernel objects written or removed.
    Changed(usize),
    /// A command holds the lock, and reconciles by itself; look again in a moment.
    Busy,
    /// No container is left, and what stays loaded has to be removed then.
    Idle(Instant),
    /// No container is left, but names of others are.
    Names,
    /// No container is left.
    NoContainer,
}

/// Netfilter serves without a rule of others that is a reason for it.
#[derive(Clone, Copy)]
struct Quiet {
    since: Instant,
    /// A look has tried to give the containers back; other looks leave that to the next full one.
    tried: bool,
}

pub struct HostWatch {
    cookie: u64,
    pub store: Store,
    seen: Option<HostState>,
    carriers: Carriers,
    quiet: Option<Quiet>,
    /// Of the rung that served at the last look.
    held: Option<(Rung, Box<dyn Any + Send>)>,
    /// While netfilter serves; an error is not tried again.
    promotion: Option<Result<Promotion>>,
}

impl HostWatch {
    /// # Errors
    /// The namespace cannot be identified.
    pub fn here() -> Result<Self> {
        let cookie = netns::cookie()?;
        Ok(Self {
            cookie,
            store: Store::of(cookie),
            seen: None,
            carriers: Carriers::default(),
            quiet: None,
            held: None,
            promotion: None,
        })
    }

    /// Never waits for a lock.
    ///
    /// # Errors
    /// What could not be read or written; the next look tries again.
    pub fn look(&mut self, look: Look) -> Result<LookResult> {
        if self.store.is_empty()? {
            (self.seen, self.quiet) = (None, None);
            let left = self.remove_state();
            if self.connections_end().is_none() {
                self.let_go();
            }
            return left;
        }
        let desired = self.store.desired()?;
        if desired.bridged().next().is_some() {
            self.hold()?;
        } else if self.connections_end().is_none() {
            self.let_go();
        }
        let links = self.links()?;
        let (state, foreign) = self.state()?;
        let is_same = self.seen.as_ref() == Some(&state) && self.store.served() == Some(links);
        let may_return = self.may_return(look, &foreign)?;
        if may_return && self.store.is_interim() {
            self.load(&desired);
        }
        let is_over = |when: SystemTime| when <= SystemTime::now();
        let is_due = self.connections_end().is_some_and(is_over);
        if look == Look::IfChanged && is_same && !may_return && !is_due {
            return Ok(LookResult::Same);
        }
        if may_return {
            // The programs that take over use the same hooks.
            self.promotion = None;
        }
        let mut session = Session::without_container(self.cookie)?;
        session.may_return = may_return;
        session.completes = true;
        // A reload takes a second or two, in which commands must not wait for this look.
        let firewall_answers = session.firewall.wait(&foreign);
        let Some(lock) = self.store.try_lock()? else { return Ok(LookResult::Busy) };
        session.lock = Some(lock);
        let stored = self.store.all()?;
        let serves = stored.iter().any(|k| k.record.bridged().is_some());
        // A first container in setup: its datapath must not be emptied.
        let is_in_setup = |k: &StoredEndpoint| k.record.network.bridge().is_some() && k.writer.is_alive();
        let reconciled = match serves || (is_due && !stored.iter().any(is_in_setup)) {
            true => session.reconcile(),
            false => Ok(Reconciled::default()),
        };
        session.release_lock()?;
        if let Some(quiet) = &mut self.quiet {
            quiet.tried |= may_return;
        }
        let changed = reconciled?.changed;
        if serves {
            self.hold()?;
        }
        // A change in the meantime may be reverted before the next look: then nothing is remembered.
        let after = self.state().ok().map(|(after, _)| after);
        self.seen = after.filter(|after| *after == state && firewall_answers);
        Ok(if changed == 0 { LookResult::Same } else { LookResult::Changed(changed) })
    }

    /// Loads the programs of the best rung before the lock is taken: commands do not wait meanwhile.
    fn load(&self, desired: &Desired) {
        let Some(idle) = ladder::LADDER[0].idle else { return };
        let view = Rtnl::here().and_then(|rtnl| rtnl.host_view(self.cookie));
        let loaded =
            view.and_then(|view| (idle.load_for)(self.cookie, desired, &view, keep_loaded::seconds(&self.store)));
        if let Err(e) = loaded {
            // The reconcile meets it again, and rejects the rung.
            tracing::debug!("{e}");
        }
    }

    fn let_go(&mut self) {
        (self.held, self.promotion) = (None, None);
    }

    fn hold(&mut self) -> Result<()> {
        let rung = self.store.rung()?;
        if self.held.as_ref().map(|(rung, _)| *rung) != rung {
            self.held = rung.and_then(|rung| Some((rung, (ladder::backend(rung).hold)(self.cookie)?)));
        }
        let is_wanted = |rung| rung != Rung::None && ladder::backend(rung).through_netfilter;
        if !rung.is_some_and(is_wanted) || self.store.is_interim() {
            self.promotion = None;
        } else if self.promotion.is_none() {
            self.promotion = Some(Promotion::start(self.cookie).inspect_err(|e| {
                tracing::debug!("flows are not carried by programs: {e}");
                promote::failed(e.to_string());
            }));
        }
        Ok(())
    }

    /// Whether the programs may take containers back now.
    fn may_return(&mut self, look: Look, foreign: &Foreign) -> Result<bool> {
        let through_netfilter = self.store.rung()?.is_some_and(|rung| ladder::backend(rung).through_netfilter);
        let is_quiet = through_netfilter
            && self.store.has_given_way()
            && !self.store.is_forced()
            && foreign.bypassed().is_none()
            && !asks_for_kernel(&self.store.desired()?, &[]);
        let quiet = is_quiet.then(|| self.quiet.unwrap_or(Quiet { since: Instant::now(), tried: false }));
        self.quiet = quiet;
        if is_quiet && self.store.is_interim() {
            return Ok(true);
        }
        Ok(quiet.is_some_and(|q| q.since.elapsed() >= HOLD_DOWN && (!q.tried || look == Look::Full)))
    }

    /// Which messages about routes matter to the datapath; `None`: it does not depend on routes.
    pub fn follows_routes(&self) -> Option<fn(&[u8]) -> bool> {
        let backend = ladder::backend(self.store.rung().ok().flatten()?);
        match (backend.needs_sources, backend.needs_route_mtus) {
            (true, _) => Some(|_| true),
            (false, true) => Some(link::concerns_mtu),
            (false, false) => None,
        }
    }

    /// When to look even without a change: a link has got a carrier, and its neighbours may not have answered yet; or the
    /// last rule of others is gone.
    pub fn next_look(&self) -> Option<Instant> {
        let quiet = self.quiet.filter(|q| !q.tried).map(|q| q.since + HOLD_DOWN);
        // A first container in setup may keep them waiting.
        let departed = self.connections_end().map(|when| instant(when).max(Instant::now() + RETRY));
        self.carriers.due().into_iter().chain(quiet).chain(departed).min()
    }

    /// When the first connections end that wait for their container.
    fn connections_end(&self) -> Option<SystemTime> {
        self.store.departed().iter().map(|d| d.until).min()
    }

    /// Removes expired flows.
    ///
    /// # Errors
    /// The maps cannot be read or written.
    pub fn expire(&self) -> Result<usize> {
        Ok(expire::expire_flows(&self.store, self.cookie)?.flows)
    }

    /// Removes the state that a killed teardown has left, and what stays loaded when its time is over.
    fn remove_state(&self) -> Result<LookResult> {
        let lock = self.store.try_lock()?;
        let last = self.store.departed().iter().map(|d| d.until).max();
        let waits = last.filter(|when| *when > SystemTime::now());
        if lock.is_some()
            && let Some(when) = waits
        {
            return Ok(LookResult::Idle(instant(when)));
        }
        if lock.is_some()
            && self.connections_end().is_none()
            && let Some(IdleState::Until(when)) = ladder::idle(self.cookie)
            && when > SystemTime::now()
        {
            return Ok(LookResult::Idle(instant(when)));
        }
        match lock {
            Some(lock) => {
                let mut session = Session::without_container(self.cookie)?;
                session.lock = Some(lock);
                session.ends_connections = true;
                session.release_lock()?;
                // What stays loaded has begun to wait now.
                Ok(match ladder::idle(self.cookie) {
                    Some(IdleState::Until(when)) if when > SystemTime::now() => LookResult::Idle(instant(when)),
                    // The session has decided: it removes the agent's lock, unless it leaves the agent.
                    _ if holder(self.store.dir()).is_some() => LookResult::Names,
                    _ => LookResult::NoContainer,
                })
            }
            None if self.store.dir().exists() => Ok(LookResult::Busy),
            None => Ok(LookResult::NoContainer),
        }
    }

    /// Without those of containers, which only commands create and delete.
    fn links(&mut self) -> Result<u64> {
        let rtnl = Rtnl::here()?;
        let links = rtnl.links()?;
        let gained = self.carriers.gained(&links, Instant::now());
        let mut view = rtnl.view_of(links, self.cookie)?;
        for link in view.links.iter().filter(|l| gained.contains(&l.index)) {
            if let Err(e) = resolve_neighbours(&rtnl, link) {
                tracing::debug!("{e}");
            }
        }
        if let Some(rung) = self.store.rung()? {
            // The reconcile warns of those that cannot be read.
            see_sources(rung, &rtnl, &self.store.desired()?, &mut view);
        }
        Ok(view.digest())
    }

    fn state(&self) -> Result<(HostState, Foreign)> {
        let rung = self.store.rung()?;
        let generation = rung.and_then(|rung| ladder::inspect(rung, self.cookie).generation(&self.store));
        let foreign = Foreign::default();
        let filters = format!("{:?}", foreign.chains().as_ref().map_err(ToString::to_string));
        let needs_mtus = rung.is_some_and(|rung| ladder::backend(rung).needs_route_mtus);
        let route_mtus = if needs_mtus { read_route_mtus(&Rtnl::here()?) } else { None };
        Ok((HostState { filters, generation, firewalld: firewalld::generation(), route_mtus }, foreign))
    }
}

fn instant(when: SystemTime) -> Instant {
    Instant::now() + when.duration_since(SystemTime::now()).unwrap_or_default()
}

/// Repeats the neighbour requests of a link that gained a carrier: earlier ones are lost, and some the kernel cannot send yet.
fn resolve_neighbours(rtnl: &Rtnl, link: &HostLink) -> Result<()> {
    let pending = rtnl.resolve_now(link.index)?;
    let v6: Vec<_> = pending.iter().filter_map(|ip| if let IpAddr::V6(ip) = ip { Some(*ip) } else { None }).collect();
    let solicited = if v6.is_empty() { 0 } else { link::solicit(link, &rtnl.usable_addresses(link.index)?, &v6)? };
    if !pending.is_empty() {
        let (name, neighbours) = (&link.name, pending.len());
        tracing::debug!(%name, neighbours, solicited, "a link has gained a carrier: its neighbours are requested again");
    }
    Ok(())
}
