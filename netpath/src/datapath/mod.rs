//! The packet work behind one trait: publish, masquerade, isolation. Neither a face nor the model knows which rung runs.

pub mod ebpf;
pub mod filter;
pub mod iptables;
pub mod ladder;
pub mod none;
pub mod probe;

use crate::model::error::Result;
use crate::model::{Desired, HostView, Record, Rung};

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

pub trait Datapath {
    fn rung(&self) -> Rung;

    /// What this rung cannot do for `record`; empty = everything it asks for. Changes nothing.
    fn refusals(&self, record: &Record) -> Vec<Refusal>;

    /// Settings of the host's namespace that must hold while this rung serves `desired`.
    fn sysctls(&self, desired: &Desired) -> Vec<Sysctl>;

    /// Makes the kernel hold exactly `desired`: whatever is missing is added, whatever is there without being desired
    /// is removed, and nothing that is right is touched. Harmless twice; with no record at all, every trace goes.
    /// The caller holds the host's state lock.
    ///
    /// # Errors
    /// What could not be read or written. The kernel then holds a mixture that the next call puts right.
    fn reconcile(&mut self, desired: &Desired, host: &HostView) -> Result<Report>;
}
