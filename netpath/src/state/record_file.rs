//! A record on disk: its content, the version of its format, and how earlier versions are read.
//!
//! A record says by `schema` in which version of the format it is written. Version 0.1 of netpath wrote no `schema`: that is
//! schema 0. An earlier schema is migrated when it is read, and written as [`SCHEMA`] with the next change of the record. A later one
//! belongs to a later netpath: it is refused, and neither changed, removed nor counted as absent, so that a downgrade destroys
//! nothing. A change of the format that an earlier netpath would misread gets the next number, and a step in [`migrate`].

use super::process::ProcessId;
use crate::model::error::{Error, Result};
use crate::model::{IfName, Record};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io::ErrorKind;
use std::path::Path;

/// Identifies a record.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Key {
    pub container: String,
    pub network: String,
    /// Inside the container.
    pub interface: IfName,
}

impl Key {
    pub fn of(record: &Record) -> Self {
        let (container, network) = (record.container.id.clone(), record.network.name.clone());
        Self { container, network, interface: record.endpoint.interface.clone() }
    }
}

/// The progress of an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Its setup has begun and has not ended.
    Creating,
    /// Its setup has succeeded.
    Up,
    /// Its teardown has begun.
    Removing,
}

/// A record and its phase.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoredEndpoint {
    pub record: Record,
    pub phase: Phase,
    /// The command that creates or removes the endpoint.
    pub writer: ProcessId,
}

impl StoredEndpoint {
    pub fn key(&self) -> Key {
        Key::of(&self.record)
    }
}

/// The version of the format that is written.
const SCHEMA: u64 = 1;

#[derive(Serialize)]
pub(super) struct Versioned<'a> {
    schema: u64,
    #[serde(flatten)]
    stored: &'a StoredEndpoint,
}

impl<'a> Versioned<'a> {
    pub(super) fn of(stored: &'a StoredEndpoint) -> Self {
        Self { schema: SCHEMA, stored }
    }
}

#[derive(Deserialize)]
struct Header {
    #[serde(default)]
    schema: u64,
}

/// A record that is there, but cannot be used.
#[derive(Debug)]
pub(super) enum Unusable {
    /// The file cannot be read.
    Unreadable(Error),
    /// Its content is no record of any version.
    Damaged(Error),
    /// A later version of netpath has written it.
    Newer(Error),
}

impl Unusable {
    pub(super) fn into_error(self) -> Error {
        let (Self::Unreadable(e) | Self::Damaged(e) | Self::Newer(e)) = self;
        e
    }
}

/// `None`: there is no such file.
pub(super) fn read(path: &Path) -> std::result::Result<Option<StoredEndpoint>, Unusable> {
    match std::fs::read(path) {
        Ok(bytes) => decode(&bytes, path).map(Some),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Unusable::Unreadable(Error::new(format!("cannot read {}", path.display())).because(e))),
    }
}

/// # Errors
/// The file holds a record of a later version of netpath.
pub(super) fn refuse_newer(path: &Path) -> Result<()> {
    match read(path) {
        Err(Unusable::Newer(e)) => Err(e),
        _ => Ok(()),
    }
}

fn decode(bytes: &[u8], path: &Path) -> std::result::Result<StoredEndpoint, Unusable> {
    let damaged =
        |e: serde_json::Error| Unusable::Damaged(Error::new(format!("cannot read {}", path.display())).because(e));
    match serde_json::from_slice::<Header>(bytes).map_err(damaged)?.schema {
        SCHEMA => serde_json::from_slice(bytes).map_err(damaged),
        older @ ..SCHEMA => {
            serde_json::from_slice(bytes).and_then(|value| serde_json::from_value(migrate(value, older))).map_err(damaged)
        }
        newer => Err(Unusable::Newer(
            Error::new(format!("cannot read {}", path.display()))
                .because(format!(
                    "it is a record of schema {newer}, written by a later version of netpath; version {} reads up to schema \
                     {SCHEMA}",
                    env!("CARGO_PKG_VERSION")
                ))
                .next("install the later version again; to go back to this one, stop all containers of this host first"),
        )),
    }
}

/// From the schema `from` to [`SCHEMA`], one step for each version in between.
fn migrate(mut value: Value, from: u64) -> Value {
    if from < 1
        && let Some(phase) = value.get_mut("phase")
    {
        match phase.as_str() {
            Some("coming") => *phase = "creating".into(),
            Some("going") => *phase = "removing".into(),
            _ => {}
        }
    }
    value
}
