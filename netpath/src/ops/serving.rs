//! What a rung is asked before it serves, what it is handed, and the programs beside it.

use crate::datapath::{Datapath, Refusal, ladder};
use crate::link::Rtnl;
use crate::model::error::{Error, Result};
use crate::model::{Desired, HostView, Record, RouteMtus, Rung};

/// # Errors
/// The rung cannot do what the record asks for.
pub(super) fn refuse(datapath: &dyn Datapath, record: &Record) -> Result<()> {
    match datapath.refusals(record).into_iter().next() {
        None => Ok(()),
        Some(Refusal { feature, why, next }) => Err(Error::new(format!(
            "cannot {feature} for {} on network {} with the {} datapath",
            record.container.label(),
            record.network.name,
            datapath.rung()
        ))
        .because(why)
        .next(next)),
    }
}

/// Reads the sources of routes into `view` for a rung that needs them; tells which could not be read, and why.
pub(super) fn see_sources(rung: Rung, rtnl: &Rtnl, desired: &Desired, view: &mut HostView) -> Option<String> {
    // They may be there from the rung that was tried before.
    view.sources.clear();
    if !ladder::backend(rung).needs_sources {
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

/// `None`, and a warning: they cannot be read.
pub(super) fn read_route_mtus(rtnl: &Rtnl) -> Option<RouteMtus> {
    rtnl.route_mtus().inspect_err(|e| tracing::warn!("the MTUs of routes are not known: {e}")).ok()
}

/// Keeps programs at sockets beside a rung of netfilter. A container is served without them too. `None`: they are not loaded
/// yet, and `may_load` is false.
pub(super) fn serve_sockets(
    beside: &dyn Datapath,
    cookie: u64,
    desired: &Desired,
    view: &HostView,
    may_load: bool,
) -> Option<usize> {
    if !beside.has_sockets_beside() {
        return Some(0);
    }
    ladder::serve_sockets(cookie, desired, view, may_load).unwrap_or_else(|e| {
        tracing::warn!(error = %e, "no programs serve clients on this host at connect(); rules do");
        Some(0)
    })
}
