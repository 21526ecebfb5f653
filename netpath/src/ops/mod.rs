//! The verbs, and the one place that puts link, datapath, DNS and store together.

pub mod agent;
mod container;
mod dhcp;
mod expire;
pub mod gc;
pub mod host_watch;
pub mod install;
mod names;
mod port_conflicts;
pub mod preload;
mod promotion;
mod reconcile;
mod request;
mod rung;
mod serving;
mod session;
mod signal;
mod sysctls;

use crate::datapath::firewalld;
use crate::link::{Netns, Rtnl, netns};
use crate::model::error::{Error, Result};
use crate::plan::{self, Step};
use session::Session;
use std::path::Path;

pub use request::{Attach, Attached, Detach, EndpointRequest, Leaving, Made};
pub use rung::wish;

/// Attaches a container, completely or not at all. The answer is in the order of `attach.endpoints`.
///
/// # Errors
/// The step that failed, and what was undone.
pub fn setup(attach: Attach) -> Result<Vec<Attached>> {
    signal::catch();
    let what = format!("setup of {}", attach.container.label());
    let refused = |e: Error| {
        let refusal = Error::new(format!("{what}: {e}; nothing was changed"));
        if let Some(next) = e.next_step() { refusal.next(next) } else { refusal }
    };
    let netns = open_netns(&attach.netns).map_err(refused)?;
    warn_of_ports_without_effect(&attach.endpoints);
    let endpoints = attach.endpoints.into_iter();
    let records: Vec<_> = endpoints.map(|e| e.record(&attach.container, &attach.netns)).collect();
    attach.names.check(&records.iter().collect::<Vec<_>>()).map_err(refused)?;
    let cookie = netns::cookie()?;
    let mut session = Session::for_setup(cookie, Some(netns), records, Some(attach.names)).map_err(refused)?;
    session.preflight(attach.choice).map_err(refused)?;
    let plan = session.plan();
    let ran = plan::run(&plan, &mut session).map_err(|failed| failed.into_error(&what));
    // Still held only if the plan failed before its own lock step.
    session.release_lock()?;
    ran?;
    agent::ensure(&session.site.store);
    session.into_attached()
}

/// Detaches a container: removes what exists of it. What does not exist is no error.
///
/// # Errors
/// What could not be removed. The rest is gone, and the next call tries again.
pub fn teardown(detach: Detach) -> Result<()> {
    signal::ignore();
    let Detach { container, netns: path, leaving, endpoints, names, config } = detach;
    let records = endpoints.into_iter().map(|e| e.record(&container, &path)).collect();
    let what = format!("teardown of {}", container.label());
    let netns = Netns::open(&path).and_then(|n| match n {
        Some(n) if n.is_here()? => Ok(None),
        other => Ok(other),
    });
    let netns = netns.map_err(|e| e.within(&what))?;
    if netns.is_none() {
        tracing::warn!(netns = %path.display(), "container netns not found: only the host's side is cleaned up");
    }
    let cookie = netns::cookie()?;
    let mut session =
        Session::for_teardown(cookie, netns, &container.id, leaving, records, names).map_err(|e| e.within(&what))?;
    session.netns = path;
    let unrecorded = session.unrecorded()?;
    unrecorded.iter().for_each(|record| session.pin_bridge(record));
    let mut failures = plan::run_on(&[Step::Unname, Step::Disconnect, Step::Lock, Step::Withdraw], &mut session);
    if session.lock.is_some() {
        let alone = session.is_alone();
        failures.extend(plan::run_on(&plan::detach(alone), &mut session));
    }
    failures.extend(unrecorded.iter().filter_map(|record| session.forget_incumbents(record, &config).err()));
    agent::ensure(&session.site.store);
    plan::all_of(&what, failures)
}

/// Restores the kernel objects of all records, after other software has changed them.
///
/// # Errors
/// What could not be read or written.
pub fn reconcile() -> Result<()> {
    signal::ignore();
    let mut session = Session::without_container(netns::cookie()?)?;
    if session.site.store.is_empty()? {
        return Ok(());
    }
    let failures = plan::run_on(&[Step::Lock, Step::Datapath, Step::Unlock], &mut session);
    agent::ensure(&session.site.store);
    plan::all_of("cannot restore what containers need", failures)
}

/// Does so now and after each reload of firewalld, which removes the subnets of containers from its zone. Only a signal ends it.
///
/// # Errors
/// The system bus cannot be reached, or has ended.
pub fn follow_firewalld() -> Result<()> {
    let restore = || {
        match reconcile() {
            // Target and text are netavark's.
            Ok(()) => {
                tracing::info!(target: "netpath::commands::firewalld_reload", "Successfully reloaded firewall rules")
            }
            Err(e) => tracing::error!("failed to reload firewall rules: {e}"),
        }
        signal::obey();
    };
    restore();
    firewalld::follow_reloads(restore)
}

/// The names of all links of the host.
///
/// # Errors
/// The kernel's.
pub fn link_names() -> Result<Vec<String>> {
    Ok(Rtnl::here()?.links()?.into_iter().map(|l| l.name).collect())
}

/// # Errors
/// The kernel's random numbers cannot be read.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    crate::link::random()
}

fn open_netns(path: &Path) -> Result<Netns> {
    let netns = Netns::open(path)?.ok_or_else(|| {
        Error::new(format!("cannot open network namespace {}", path.display()))
            .because("invalid namespace path: IO error: No such file or directory (os error 2)")
            .next("start the container again, so that its engine makes a new one")
    })?;
    if netns.is_here()? {
        return Err(Error::new(format!("cannot attach network namespace {}", path.display()))
            .because("it is the host's own")
            .next("give the path of the container's network namespace"));
    }
    Ok(netns)
}

/// Ports are published only on networks that the datapath serves.
fn warn_of_ports_without_effect(endpoints: &[EndpointRequest]) {
    let published = |e: &&EndpointRequest| !e.publishes.is_empty();
    let mut publishing = endpoints.iter().filter(published);
    if let Some(first) = publishing.next()
        && !endpoints.iter().any(|e| e.network.bridge().is_some())
    {
        let next = "clients reach the container by its own address; or attach it to a bridge network too";
        tracing::warn!(
            next,
            "published ports have no effect on network {}: it is no bridge network",
            first.network.name
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::attachment::Macvlan;
    use crate::model::fixtures::{at, record, tcp};
    use crate::model::{Attachment, Network};

    #[test]
    fn nothing_is_published_on_a_network_that_no_datapath_serves() {
        let published = |change: fn(&mut Network)| {
            let mut of = record(1, &["10.88.0.2/16"], vec![tcp(at("192.0.2.1"), 8080, 80, 1)]);
            change(&mut of.network);
            let request = EndpointRequest {
                network: of.network,
                endpoint: of.endpoint,
                publishes: of.publishes,
                allow: Vec::new(),
            };
            request.record(&of.container, Path::new("/run/netns/x")).publishes.len()
        };
        assert_eq!(1, published(|_| ()));
        assert_eq!(0, published(|n| n.internal = true));
        assert_eq!(0, published(|n| n.attachment = Attachment::Macvlan(Macvlan::default())));
    }
}
