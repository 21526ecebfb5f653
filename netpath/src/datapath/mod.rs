//! The packet work behind one trait: publish, masquerade, isolation. Neither a face nor the model knows which rung runs.

pub(crate) mod connection;
pub mod ebpf;
pub mod filter;
pub mod firewalld;
pub mod ladder;
pub(crate) mod netfilter;
pub mod none;
pub mod probe;

use crate::model::error::Result;
use crate::model::{Desired, HostView, Network, Record, Rung};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Tells builds of the programs apart.
pub const BUILD: &str = ebpf::loader::DIGEST;

/// A feature that a rung cannot give an endpoint, said before anything is changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// "publish 5000/sctp as 6000/sctp"
    pub feature: String,
    pub why: String,
    /// What the user can do instead.
    pub next: String,
}

/// A value below /proc/sys that a rung needs in the host's namespace, and that is put back when the last endpoint goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sysctl {
    /// Below /proc/sys, with slashes: `net/ipv4/conf/lo/route_localnet`.
    pub path: String,
    pub value: String,
}

/// What a reconcile did, for logs and tests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Kernel objects written or removed; 0 = everything was so already.
    pub changed: usize,
}

/// What a sweep has removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Expired {
    /// Halves of flows that had expired.
    pub flows: usize,
    /// Ports marked as used by flows that are gone.
    pub marks: usize,
}

/// How much of a sweep is done now.
pub enum Effort<'a> {
    Whole,
    /// As much as there is time for, from where it was left.
    Some {
        until: Instant,
        progress: &'a mut Progress,
    },
}

/// Where a sweep goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Progress {
    pub v6: bool,
    pub next: Option<u32>,
}

pub trait Datapath {
    fn rung(&self) -> Rung;

    /// What this rung cannot do for `record`; empty = everything it asks for. Changes nothing.
    fn refusals(&self, record: &Record) -> Vec<Refusal>;

    /// What of `records` is more than this rung holds, and how much that is; `None` = it holds all. Changes nothing.
    fn exceeded(&self, _records: &[&Record]) -> Option<(&'static str, u32)> {
        None
    }

    /// On so many addresses of the host one port can be published; every address counts as two, one of each family.
    fn places_of_a_port(&self) -> usize {
        usize::MAX
    }

    /// Settings of the host's namespace that must hold while this rung serves `desired`.
    fn sysctls(&self, desired: &Desired) -> Vec<Sysctl>;

    /// Whether containers of this network may be sent frames by XDP: their interfaces need GRO for that.
    ///
    /// # Errors
    /// `host` cannot be read, where it has to be.
    fn redirects_early(&self, _network: &Network, _host: &dyn Fn() -> Result<HostView>) -> Result<bool> {
        Ok(false)
    }

    /// Makes the kernel hold exactly `desired`: whatever is missing is added, whatever is there without being desired
    /// is removed, and nothing that is right is touched. Harmless twice; with no record at all, every trace goes.
    /// The caller holds the host's state lock.
    ///
    /// # Errors
    /// What could not be read or written. The kernel then holds a mixture that the next call puts right.
    fn reconcile(&mut self, desired: &Desired, host: &HostView) -> Result<Report>;

    /// Removes flows that have expired, and what is left of those that have gone, of the host with this cookie. Needs no
    /// lock. Where the kernel keeps the flows there is nothing to do.
    ///
    /// # Errors
    /// What could not be read or written.
    fn expire(&mut self, _host: u64, _effort: Effort<'_>) -> Result<Expired> {
        Ok(Expired::default())
    }
}
