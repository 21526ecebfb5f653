//! The state of firewalld, for readers.

use super::bus::{self, Firewalld};
use crate::model::Desired;
use crate::model::error::Result;
use ipnet::IpNet;
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Serialize)]
pub struct Report {
    /// It accepts only ports that it forwards itself.
    pub strict_forward_ports: bool,
    /// Each subnet that belongs into `trusted`, with the zone that has it as a source.
    pub zones: BTreeMap<IpNet, Option<String>>,
}

impl Report {
    /// The subnets that are in another zone than `trusted`, or in none.
    pub fn misplaced(&self) -> impl Iterator<Item = (&IpNet, Option<&str>)> {
        self.zones.iter().map(|(s, zone)| (s, zone.as_deref())).filter(|(_, zone)| *zone != Some(super::ZONE))
    }
}

/// `None`: firewalld does not run on this host. Changes nothing.
///
/// # Errors
/// It cannot be asked.
pub fn report(desired: &Desired) -> Result<Option<Report>> {
    if !bus::exists() {
        return Ok(None);
    }
    let Some(firewalld) = Firewalld::here()? else { return Ok(None) };
    let zones = super::subnets(desired).into_iter().map(|s| firewalld.zone_of(s).map(|zone| (s, zone)));
    Ok(Some(Report { zones: zones.collect::<Result<_>>()?, strict_forward_ports: firewalld.is_strict()? }))
}
