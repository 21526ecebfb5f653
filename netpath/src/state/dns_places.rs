//! The directories of engines whose names the agent serves, so that the next agent serves them at once.

use super::agent::AgentLock;
use super::files::{self, File};
use crate::model::error::Result;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DnsPlace {
    /// Has a file for each network.
    pub dir: PathBuf,
    pub port: u16,
    /// Whether names that are not known are looked up elsewhere.
    pub forwards: bool,
    /// Gateways of bridges that netpath manages: port 53 stays free there for a published port and the host's own server.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub led: Vec<IpAddr>,
}

/// None if there is no such file, or it is damaged: the next setup writes it.
pub fn read(dir: &Path) -> Vec<DnsPlace> {
    files::read(&File::Dns.path(dir)).ok().flatten().unwrap_or_default()
}

/// # Errors
/// It cannot be written.
pub fn write(_lock: &AgentLock, dir: &Path, places: &[DnsPlace]) -> Result<()> {
    let path = File::Dns.path(dir);
    if places.is_empty() { files::remove(&path).map(drop) } else { files::write(&path, &places) }
}
