//! `np_traffic`: packets and bytes to and from each endpoint and publish. The records assign the counters.

use super::maps::{self, PinnedMap};
use super::pins::Pins;
use crate::datapath::inspect::Volume;
use crate::model::error::{Context, Result};
use aya::maps::{MapData, PerCpuArray};
use netpath_common::layout::{Traffic, name};
use std::ops::Add;

/// Resets newly assigned counters. Returns their number.
pub(super) fn zero(pins: &Pins, ids: &[u32]) -> Result<usize> {
    if !ids.is_empty() {
        PinnedMap::open(pins, &maps::TRAFFIC)?.zero(ids)?;
    }
    Ok(ids.len())
}

/// All counters, open for reading.
pub(super) struct Counters(PerCpuArray<MapData, Traffic>);

impl Counters {
    /// # Errors
    /// The map cannot be opened.
    pub(super) fn open(pins: &Pins) -> Result<Self> {
        PinnedMap::open(pins, &maps::TRAFFIC)?.into_values().map(Self)
    }

    /// A counter, summed over all processors; 0 is unassigned and empty.
    ///
    /// # Errors
    /// The map cannot be read.
    pub(super) fn read(&self, id: u16) -> Result<Volume> {
        if id == 0 {
            return Ok(Volume::default());
        }
        let each = self.0.get(&u32::from(id), 0).context(|| format!("cannot read {}", name::TRAFFIC))?;
        let volume = |t: &Traffic| Volume {
            packets_in: t.packets_in,
            bytes_in: t.bytes_in,
            packets_out: t.packets_out,
            bytes_out: t.bytes_out,
        };
        Ok(each.iter().map(volume).fold(Volume::default(), Volume::add))
    }
}
