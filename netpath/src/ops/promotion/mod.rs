//! Promotion: on a host whose netfilter translates, flows that last are carried by programs, past the host's stack.
//!
//! netfilter decides about a flow: the first packets pass every rule, and conntrack translates. A flow that has lasted is reported
//! by the programs. A thread of the agent asks conntrack for its translation, and the rules whether their answer depends on the flow
//! alone (`datapath/promote/rules/`); then the programs carry it (`datapath/ebpf/carry.rs`). Any change of rules, routes, addresses or links ends all
//! promotions by one write, the epoch, and the next packet of each flow meets the rules again.
//!
//! Without the thread nothing is carried: programs trust it for a second at a time.

mod flows;
mod watch;

use crate::datapath::ladder;
use crate::datapath::promote::rules::Ruleset;
use crate::datapath::promote::{self, Carry, Conntrack, Publisher, THRESHOLD};
use crate::link::Rtnl;
use crate::model::Desired;
use crate::model::error::{Context, Result};
use crate::state::Store;
use flows::Promoted;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use watch::Watch;

/// Between two messages to the programs.
const BEAT: Duration = Duration::from_millis(200);
/// Between two looks for entries that are gone from conntrack.
const CHECK: Duration = Duration::from_millis(400);
/// Between two looks for changes that send no notification.
const POLL: Duration = Duration::from_millis(250);
/// From the last change to the next promotion; it doubles if another change follows soon, so that rules that change all the time
/// do not make flows go to and fro.
const PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Between two publications of the promoted flows.
const PUBLISH: Duration = Duration::from_millis(100);
/// Between two looks for changes while reports are considered.
const TURN: Duration = Duration::from_millis(50);

/// The thread, for as long as netfilter serves the host.
pub(super) struct Promotion {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Promotion {
    /// # Errors
    /// The kernel's. Hosts are served without it.
    pub(super) fn start(host: u64) -> Result<Self> {
        let what = || "cannot start the promotion of flows".to_owned();
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).context(what)?);
        let mut promoter = Promoter::new(host)?;
        let stopped = Arc::clone(&stop);
        let work = move || {
            if let Err(e) = promoter.run(&stopped) {
                tracing::warn!("flows are not carried by programs any more: {e}");
            }
        };
        let thread = std::thread::Builder::new().name("netpath-promote".into()).spawn(work).context(what)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Promotion {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Promoter {
    host: u64,
    store: Store,
    rtnl: Rtnl,
    carrier: Box<dyn Carry>,
    watch: Watch,
    promoted: Promoted,
    epoch: u32,
    /// The host as of the last change; `None`: it is not known, and nothing is promoted.
    known: Option<Known>,
    changed: Option<Instant>,
    pause: Duration,
    publisher: Publisher,
    published: Instant,
    /// Why nothing is promoted while nothing is known.
    why_not: String,
}

/// What decides whether a flow is promoted.
struct Known {
    ruleset: Ruleset,
    names: HashMap<u32, String>,
    since: Instant,
}

impl Promoter {
    fn new(host: u64) -> Result<Self> {
        let store = Store::of(host);
        let what = || "cannot ask connection tracking".to_owned();
        let desired = wanted(&store)?;
        Ok(Self {
            host,
            rtnl: Rtnl::here()?,
            carrier: ladder::load_carrier(host, &desired)?,
            watch: Watch::start().context(|| "cannot watch the rules of this host".to_owned())?,
            promoted: Promoted::new(Conntrack::open().context(what)?),
            epoch: 1,
            known: None,
            changed: Some(Instant::now()),
            pause: PAUSE,
            publisher: Publisher::new(),
            published: Instant::now(),
            why_not: promote::STARTED.to_owned(),
            store,
        })
    }

    /// Until it is told to stop.
    ///
    /// # Errors
    /// The kernel's, without which nothing can be carried.
    fn run(&mut self, stop: &EventFd) -> Result<()> {
        let (mut checked, mut polled) = (Instant::now(), Instant::now());
        loop {
            // Programs are trusted from before the look for changes, so that one that follows it ends what they carry in time,
            // however long this thread waits for a processor.
            let looked = self.carrier.now()?;
            let is_polled = !self.promoted.is_empty() && polled.elapsed() >= POLL;
            if self.watch.has_changed(&self.promoted)
                || (is_polled && self.watch.has_changed_silently().unwrap_or(true))
            {
                self.end_all()?;
            }
            if is_polled {
                polled = Instant::now();
            }
            if checked.elapsed() >= CHECK {
                checked = Instant::now();
                self.promoted.check(self.carrier.as_mut());
            }
            if self.changed.is_some_and(|when| when.elapsed() >= self.pause) {
                self.look_again();
            }
            self.promote_reported()?;
            if !self.promoted.is_empty() {
                self.carrier.trust(looked, self.epoch, THRESHOLD)?;
            }
            self.publish();
            if self.wait(stop).context(|| "cannot wait for changes of this host".to_owned())? {
                return Ok(());
            }
        }
    }

    /// Returns whether to stop.
    fn wait(&self, stop: &EventFd) -> nix::Result<bool> {
        let mut sources =
            vec![PollFd::new(stop.as_fd(), PollFlags::POLLIN), PollFd::new(self.carrier.reports(), PollFlags::POLLIN)];
        sources.extend(self.watch.sockets().map(|socket| PollFd::new(socket, PollFlags::POLLIN)));
        let idle = if self.promoted.is_empty() { Duration::from_secs(1) } else { BEAT };
        let pause = self.changed.map(|when| (when + self.pause).saturating_duration_since(Instant::now()));
        let limit = pause.map_or(idle, |pause| pause.min(idle)).as_millis() as u16;
        match poll(&mut sources, PollTimeout::from(limit)) {
            Err(nix::errno::Errno::EINTR) | Ok(0) => Ok(false),
            Ok(_) => Ok(sources[0].any().unwrap_or(false)),
            Err(e) => Err(e),
        }
    }

    /// The next packet of each flow meets the rules again.
    fn end_all(&mut self) -> Result<()> {
        self.epoch = self.epoch.wrapping_add(1).max(1);
        self.carrier.doubt(self.epoch, THRESHOLD)?;
        // Changes come in groups, and only one that follows a look is another one.
        if let Some(known) = self.known.take() {
            let is_soon = known.since.elapsed() < self.pause * 4;
            self.pause = if is_soon { (self.pause * 2).min(LONGEST_PAUSE) } else { PAUSE };
        }
        self.changed = Some(Instant::now());
        self.why_not = promote::CHANGED.to_owned();
        self.promoted.end_all(self.carrier.as_mut());
        Ok(())
    }

    /// Reads the host again, and attaches the programs where its containers are now.
    fn look_again(&mut self) {
        match self.read() {
            Ok(known) => (self.known, self.changed) = (Some(known), None),
            Err(e) => {
                tracing::debug!("this host cannot be read, so no flow is carried by programs until the next try: {e}");
                self.why_not = e.to_string();
                (self.changed, self.pause) = (Some(Instant::now()), (self.pause * 2).min(LONGEST_PAUSE));
            }
        }
        self.promoted.is_shown = false;
    }

    /// For commands, if something has changed.
    fn publish(&mut self) {
        if self.promoted.is_shown || self.published.elapsed() < PUBLISH {
            return;
        }
        let why_not = self.known.is_none().then(|| self.why_not.clone());
        self.publisher.publish(self.promoted.show(why_not));
        self.published = Instant::now();
    }

    fn read(&mut self) -> Result<Known> {
        let desired = wanted(&self.store)?;
        let view = self.rtnl.host_view(self.host)?;
        if !self.carrier.is_for(&desired) {
            self.carrier = ladder::load_carrier(self.host, &desired)?;
        }
        self.carrier.attach(&desired, &view)?;
        // The threshold. Nothing of this epoch is promoted yet.
        self.carrier.doubt(self.epoch, THRESHOLD)?;
        // Before the rules: a change in between is seen by the next poll.
        self.watch.has_changed_silently().context(|| "cannot read the rules of this host".to_owned())?;
        let ruleset = Ruleset::read().context(|| "cannot read the rules of this host".to_owned())?;
        let names = self.rtnl.links()?.into_iter().map(|link| (link.index, link.name)).collect();
        Ok(Known { ruleset, names, since: Instant::now() })
    }

    fn promote_reported(&mut self) -> Result<()> {
        let begun = Instant::now();
        // Without promoted flows, changes that send no notification are looked for here.
        let mut is_current = !self.promoted.is_empty();
        while begun.elapsed() < TURN
            && let Some((protocol, direction, interface)) = self.carrier.report()
        {
            if !is_current && self.known.is_some() && self.watch.has_changed_silently().unwrap_or(true) {
                self.end_all()?;
            }
            is_current = true;
            let (Some(known), seen) = (&self.known, (direction, interface)) else { continue };
            self.promoted.consider(protocol, seen, known, &self.rtnl, self.carrier.as_mut(), self.epoch);
        }
        Ok(())
    }
}

/// The records of networks with a bridge.
fn wanted(store: &Store) -> Result<Desired> {
    let mut desired = store.desired()?;
    desired.records.retain(|r| r.network.bridge().is_some());
    Ok(desired)
}
