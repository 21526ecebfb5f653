//! `np_traffic`: packets and bytes to and from each endpoint and publish. The records assign the counters.

use super::maps::{self, PinnedMap};
use super::pins::Pins;
use crate::model::error::{Context, Result};
use aya::maps::{MapData, PerCpuArray};
use netpath_common::layout::{Traffic, name};

/// Resets newly assigned counters. Returns their number.
pub fn zero(pins: &Pins, ids: &[u32]) -> Result<usize> {
    if !ids.is_empty() {
        PinnedMap::open(pins, &maps::TRAFFIC)?.zero(ids)?;
    }
    Ok(ids.len())
}

/// All counters, open for reading.
pub struct Counters(PerCpuArray<MapData, Traffic>);

impl Counters {
    /// # Errors
    /// The map cannot be opened.
    pub fn open(pins: &Pins) -> Result<Self> {
        PinnedMap::open(pins, &maps::TRAFFIC)?.into_values().map(Self)
    }

    /// A counter, summed over all processors; 0 is unassigned and empty.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn read(&self, id: u32) -> Result<Traffic> {
        if id == 0 {
            return Ok(Traffic::default());
        }
        let each = self.0.get(&id, 0).context(|| format!("cannot read {}", name::TRAFFIC))?;
        Ok(each.iter().fold(Traffic::default(), |sum, t| add(sum, *t)))
    }
}

pub fn add(a: Traffic, b: Traffic) -> Traffic {
    Traffic {
        packets_in: a.packets_in + b.packets_in,
        bytes_in: a.bytes_in + b.bytes_in,
        packets_out: a.packets_out + b.packets_out,
        bytes_out: a.bytes_out + b.bytes_out,
    }
}
