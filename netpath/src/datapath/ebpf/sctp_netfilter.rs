//! SCTP published on another port than the container's, which is left to netfilter: the checksum covers the port and
//! the whole packet (RFC 9260 section 6.8), and a program may see only a part of it.
//!
//! The rules translate just these ports, in and out of the host's stack; programs let their packets pass
//! ([`ENDPOINT_MOVED_SCTP`](netpath_common::layout::ENDPOINT_MOVED_SCTP)). Without such a port netfilter is not used.

use crate::datapath::netfilter::{moved_sctp, nfnetlink};
use crate::datapath::{Context, Refusal};
use crate::model::error::Result;
use crate::model::{Desired, Publish, Record};
use crate::state::Store;

fn is_wanted(desired: &Desired) -> bool {
    desired.bridged().any(|(record, _)| has_some(record))
}

fn has_some(record: &Record) -> bool {
    !record.network.internal && record.publishes.iter().any(Publish::is_moved_sctp)
}

/// Refused if the host has no iptables.
pub(super) fn refusals(record: &Record) -> Vec<Refusal> {
    let Some(publish) = record.publishes.iter().find(|p| p.is_moved_sctp()).filter(|_| has_some(record)) else {
        return Vec::new();
    };
    let own = format!("publish it as {}/sctp, which eBPF can", publish.container_port());
    match moved_sctp() {
        Ok(beside) => beside.refusals(record),
        Err(e) => vec![Refusal {
            feature: format!("publish {}/sctp as {}/sctp", publish.container_port(), publish.host_port()),
            why: format!("eBPF cannot change an SCTP port, since the checksum is over the whole packet, and {e}"),
            next: e.next_step().map_or_else(|| own.clone(), |next| format!("{next}; or {own}")),
        }],
    }
}

/// Of the rules in nf_tables, while some are for this.
pub(super) fn generation(store: &Store) -> Option<u32> {
    if store.uses_netfilter() { nfnetlink::generation().ok() } else { None }
}

/// Makes the rules those that `desired` needs. Returns the number of changes.
///
/// # Errors
/// They cannot be read or written.
pub(super) fn reconcile(desired: &Desired, context: &Context<'_>) -> Result<usize> {
    let store = context.store;
    let wanted = is_wanted(desired);
    if !wanted && !store.uses_netfilter() {
        return Ok(0);
    }
    // Recorded before the first rule: after a crash the next command knows that rules may exist.
    store.keep_netfilter(context.lock, true)?;
    let changed = moved_sctp()?.reconcile(desired, context)?.changed;
    if !wanted {
        store.keep_netfilter(context.lock, false)?;
    }
    Ok(changed)
}
