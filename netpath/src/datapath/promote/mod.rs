//! What the promotion of flows asks of the kernel (`ops/promotion/`): the programs that carry them, entries of conntrack, and the
//! judge over the rules of the host.

mod passed_by;
pub mod rules;
mod shown;

pub use passed_by::passed_by;
pub(crate) use shown::{CHANGED, MOST_SHOWN, Publisher, STARTED, failed};
pub use shown::{FlowId, MOST_CARRIED, Promotions, shown};

pub(crate) use super::ebpf::carry::{Carrier, Ends, Keys, MOST, NextHop, Scene};
pub(crate) use super::netfilter::adopt::{Entry, entry, make_liberal};
pub(crate) use super::netfilter::nfnetlink::open as conntrack;

/// Packets of a flow within a second, after which it is promoted: fewer gain nothing.
pub const THRESHOLD: u32 = 64;
