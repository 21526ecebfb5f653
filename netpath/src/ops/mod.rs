//! The verbs, and the one place that puts link, datapath, DNS and store together.

pub mod agent;
mod container;
pub mod follow;
pub mod gc;
mod host;
mod owner;
mod rung;
mod serve;
mod signal;
mod sysctls;

use crate::datapath::ladder::Choice;
use crate::dns::aardvark::Aardvark;
use crate::link::{Netns, netns};
use crate::model::error::{Error, Result};
use crate::model::{Attachment, Container, IfName, Links, Record};
use crate::plan::{self, Step};
use crate::state::Key;
use host::Live;
use std::path::{Path, PathBuf};

pub use rung::wish;

/// A container and the networks it is to be attached to, in this order.
pub struct Attach {
    pub container: Container,
    pub netns: PathBuf,
    pub records: Vec<Record>,
    pub choice: Choice,
    pub names: Aardvark,
}

/// One endpoint that is to go, as the engine describes it. What netpath's own record says comes first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leaving {
    pub network: String,
    pub interface: Option<IfName>,
    /// `None`: the engine does not say how it is attached.
    pub attachment: Option<Attachment>,
}

pub struct Detach {
    pub container: Container,
    pub netns: PathBuf,
    pub leaving: Vec<Leaving>,
    /// The endpoints in full, where the engine's description could be read in full.
    pub records: Vec<Record>,
    pub names: Aardvark,
}

/// Attaches a container; all of it or nothing. The links come in the order of `attach.records`.
///
/// # Errors
/// What could not be done, at which step, and what became of the steps before.
pub fn setup(attach: Attach) -> Result<Vec<Links>> {
    signal::catch();
    let what = format!("setup of {}", attach.container.label());
    let refused = |e: Error| {
        let refusal = Error::new(format!("{what}: {e}; nothing was changed"));
        if let Some(next) = e.next_step() { refusal.next(next) } else { refusal }
    };
    let netns = open_netns(&attach.netns).map_err(refused)?;
    attach.names.check(&attach.records.iter().collect::<Vec<_>>()).map_err(refused)?;
    let cookie = netns::cookie()?;
    let mut live = Live::coming(cookie, Some(netns), attach.records, attach.names).map_err(refused)?;
    live.admit(attach.choice).map_err(refused)?;
    let plan = live.plan();
    let ran = plan::run(&plan, &mut live).map_err(|failed| failed.into_error(&what));
    // Still held only if the plan ended before it had taken the lock over.
    live.let_go()?;
    ran?;
    agent::ensure(&live.site.store);
    Ok(live.into_links())
}

/// Detaches a container: whatever is there of it goes, and what is not there is no error.
///
/// # Errors
/// What could not be removed; the rest is gone, and the next call tries again.
pub fn teardown(detach: Detach) -> Result<()> {
    signal::ignore();
    let Detach { container, netns: path, leaving, records, names } = detach;
    let what = format!("teardown of {}", container.label());
    let netns = Netns::open(&path).and_then(|n| match n {
        Some(n) if n.is_here()? => Ok(None),
        other => Ok(other),
    });
    let netns = netns.map_err(|e| e.within(&what))?;
    if netns.is_none() {
        tracing::warn!(netns = %path.display(), "the container's network namespace is gone; the host's side is cleaned up");
    }
    let cookie = netns::cookie()?;
    let mut live = Live::going(cookie, netns, &container.id, leaving, records, names).map_err(|e| e.within(&what))?;
    let mut failures = plan::run_on(&[Step::Unname, Step::Lock, Step::Withdraw], &mut live);
    if live.lock.is_some() {
        let alone = live.is_alone();
        failures.extend(plan::run_on(&plan::detach(alone), &mut live));
    }
    agent::ensure(&live.site.store);
    plan::all_of(&what, failures)
}

/// Makes the kernel hold what the records say, after somebody else has changed it.
///
/// # Errors
/// What could not be read or written.
pub fn reconcile() -> Result<()> {
    signal::ignore();
    let mut live = nobody(netns::cookie()?)?;
    if live.site.store.is_empty()? {
        return Ok(());
    }
    let failures = plan::run_on(&[Step::Lock, Step::Datapath, Step::Unlock], &mut live);
    agent::ensure(&live.site.store);
    plan::all_of("cannot put back what containers need", failures)
}

/// The host for a command that is about no container.
fn nobody(cookie: u64) -> Result<Live> {
    Live::coming(cookie, None, Vec::new(), Aardvark::new(Path::new(""), Path::new(""), 0, false))
}

fn open_netns(path: &Path) -> Result<Netns> {
    let netns = Netns::open(path)?.ok_or_else(|| {
        Error::new(format!("cannot open network namespace {}", path.display()))
            .because("there is none at this path")
            .next("start the container again, so that its engine makes a new one")
    })?;
    if netns.is_here()? {
        return Err(Error::new(format!("cannot attach network namespace {}", path.display()))
            .because("it is the host's own")
            .next("give the path of the container's network namespace"));
    }
    Ok(netns)
}

fn key(container: &str, network: &str) -> Key {
    Key { container: container.to_owned(), network: network.to_owned() }
}
