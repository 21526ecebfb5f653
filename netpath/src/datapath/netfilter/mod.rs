//! The netfilter rungs: one compiler from the desired state to typed rules, and one printer for each backend.
//!
//! `rules.rs` has the types, `policy.rs` compiles the desired state into them, and a directory for each rung prints them.
//! `conntrack.rs` deletes connections that contradict new rules, `adopt.rs` adds connections of another rung, `flow_list.rs` lists
//! those of containers, `hold.rs` keeps connection tracking active, `settings.rs` makes the settings of the host that rules
//! depend on, `nfnetlink.rs` has the netlink requests.

pub(crate) mod adopt;
mod conntrack;
mod flow_list;
pub(crate) mod hold;
pub(crate) mod iptables;
pub(crate) mod nfnetlink;
pub(crate) mod nftables;
mod policy;
mod rules;
mod settings;

use super::{Datapath, Sysctl};
use crate::model::Desired;
use crate::model::error::Result;

/// The rules for the ports that programs cannot serve: [`Publish::is_moved_sctp`](crate::model::Publish::is_moved_sctp).
///
/// # Errors
/// The host has no iptables.
pub(super) fn moved_sctp() -> Result<Box<dyn Datapath>> {
    Ok(Box::new(iptables::Iptables::for_moved_sctp()?))
}

/// What those rules need, also on a host without the tools.
pub(super) fn sysctls_for_moved_sctp(desired: &Desired) -> Vec<Sysctl> {
    settings::sysctls(&policy::moved_sctp(desired))
}
