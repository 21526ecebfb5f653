//! Whether the ports that a container wants to publish are free.

use super::session::Session;
use crate::driver;
use crate::model::error::{Error, Result};
use crate::model::port_conflicts;
use crate::state::{Phase, StoredEndpoint};

impl Session {
    /// Engines bind the ports that they publish, and mostly report this first. An endpoint that is gone without a teardown owns no
    /// port: the datapath step removes it.
    ///
    /// # Errors
    /// A running container publishes one of the ports. Nothing was changed.
    pub(super) fn refuse_taken_ports(&self, there: &[StoredEndpoint]) -> Result<()> {
        for conflict in port_conflicts::conflicts(&self.records, there.iter().map(|k| &k.record)) {
            let Some(owner) = there.iter().find(|k| std::ptr::eq(&raw const k.record, conflict.owner)) else {
                continue;
            };
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
