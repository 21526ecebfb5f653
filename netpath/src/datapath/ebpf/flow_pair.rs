//! The two entries of a flow.

use super::maps::{Flows, PinnedMap};
use crate::model::error::Result;
use netpath_common::nat_plan;

/// The key of the other entry of a flow, and that entry if it exists: its slot may belong to a flow that has taken
/// the port over.
pub(super) fn reverse_of<F: Flows>(
    map: &PinnedMap<F::Key, F::Flow>,
    key: &F::Key,
    half: &F::Flow,
) -> Result<(F::Key, Option<F::Flow>)> {
    let other = nat_plan::other_key::<F>(half, F::protocol_of(key));
    let found = map.get(&other)?;
    Ok((other, found.filter(|f| F::next(f).reverse_side == F::side_of(key) && nat_plan::leads_back::<F>(f, key))))
}
