//! What the promotion of flows asks of the kernel (`ops/promotion/`): the programs that carry them, entries of conntrack, and the
//! judge over the rules of the host.

mod carry;
mod conntrack;
mod passed_by;
pub mod rules;
mod shown;

pub use carry::{Carry, Ends, Keys, MOST_CARRIED, NextHop};
pub(crate) use conntrack::Conntrack;
pub use passed_by::passed_by;
pub(crate) use shown::{CHANGED, MOST_SHOWN, Publisher, STARTED, failed};
pub use shown::{FlowId, Promotions, shown};

/// Packets of a flow within a second, after which it is promoted: fewer gain nothing.
pub const THRESHOLD: u32 = 64;
