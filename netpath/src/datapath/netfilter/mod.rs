//! What netpath makes of netfilter: the rules of a rung as typed values, and the rungs that print them.
//!
//! `rules.rs` has the types, `policy.rs` compiles the desired state into them, and a directory for each rung prints them
//! for its backend. `conntrack.rs` ends connections that new rules would decide otherwise, `settings.rs` makes the
//! settings of the host that rules depend on, `nfnetlink.rs` speaks to the kernel.

pub(crate) mod adopt;
mod conntrack;
pub(crate) mod hold;
pub(crate) mod iptables;
pub(crate) mod nfnetlink;
pub(crate) mod nftables;
mod policy;
mod rules;
mod settings;
