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
