//! Whether the ports that a container wants to publish are free.

use super::session::Session;
use super::signal;
use crate::driver;
use crate::link::Netns;
use crate::model::error::{Error, Result};
use crate::model::port_conflicts::{self, PortConflict};
use crate::state::{Phase, StoredEndpoint};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Limit of the wait for the kernel to remove the interfaces of a namespace that is gone. On a loaded machine it takes seconds.
const CLEANUP: Duration = Duration::from_secs(3);

impl Session {
    /// All records. A container that is gone without a teardown seems to use its ports until the kernel has removed its
    /// interfaces, which this waits for, without the lock.
    ///
    /// # Errors
    /// The store or an interface cannot be read, or the lock not be taken again.
    pub(super) fn stored_records(&mut self) -> Result<Vec<StoredEndpoint>> {
        let deadline = Instant::now() + CLEANUP;
        loop {
            let there = self.site.store.all()?;
            if Instant::now() >= deadline || signal::seen() || !self.is_owner_ending(&there)? {
                return Ok(there);
            }
            self.release_lock()?;
            sleep(Duration::from_millis(10));
            self.take_lock()?;
        }
    }

    /// Whether one of the ports belongs to an endpoint whose namespace is gone, but its interfaces are not.
    fn is_owner_ending(&self, there: &[StoredEndpoint]) -> Result<bool> {
        for (_, owner) in self.conflicts(there) {
            let has_links = owner.record.links.is_some();
            if has_links && Netns::open(&owner.record.netns)?.is_none() && self.is_in_use(owner)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The ports that records publish already, with the stored endpoints that do.
    fn conflicts<'a>(&self, there: &'a [StoredEndpoint]) -> Vec<(PortConflict<'a>, &'a StoredEndpoint)> {
        let all = port_conflicts::conflicts(&self.records, there.iter().map(|k| &k.record)).into_iter();
        let owner = |c: &PortConflict<'a>| there.iter().find(|k| std::ptr::eq(&raw const k.record, c.owner));
        all.filter_map(|conflict| owner(&conflict).map(|found| (conflict, found))).collect()
    }

    /// Engines bind the ports that they publish, and mostly report this first. An endpoint that is gone without a teardown owns no
    /// port: the datapath step removes it.
    ///
    /// # Errors
    /// A running container publishes one of the ports. Nothing was changed.
    pub(super) fn refuse_taken_ports(&self, there: &[StoredEndpoint]) -> Result<()> {
        for (conflict, owner) in self.conflicts(there) {
            if self.is_in_use(owner)? {
                let (label, network) = (conflict.owner.container.label(), &conflict.owner.network.name);
                return Err(Error::new(format!(
                    "cannot publish port {}/{} of {}",
                    conflict.port, conflict.proto, conflict.place
                ))
                .because(format!("container {label} on network {network} publishes it already"))
                .next("publish another port or host address, or stop that container first"));
            }
        }
        Ok(())
    }

    /// Whether packets reach this endpoint, or will when its setup ends.
    fn is_in_use(&self, kept: &StoredEndpoint) -> Result<bool> {
        match (kept.phase, &kept.record.links) {
            (Phase::Removing, _) => Ok(false),
            (Phase::Creating, None) => Ok(kept.writer.is_alive()),
            (Phase::Up, None) => Ok(false),
            (_, Some(_)) => {
                let driver = driver::of(&kept.record.network.attachment);
                Ok(self.recorded(driver.as_ref(), &kept.record)?.is_some())
            }
        }
    }
}
