//! The state of this host and its containers, for people and for metrics: reads only. Nothing is made, mounted or repaired to
//! answer a question; `monitor` alone replaces programs while it runs.

pub mod doctor;
mod installed;
pub mod monitor;
pub mod names;
pub mod ports;
pub mod promotion;
pub mod status;
pub mod traffic;

use crate::datapath::inspect::Hook;
use crate::datapath::ladder::LADDER;
use crate::datapath::{self, Inspect};
use crate::link::{Rtnl, netns};
use crate::model::HostView;
use crate::model::error::Result;
use crate::state::Store;

/// The namespace that this process is in.
pub struct Host {
    pub cookie: u64,
    pub store: Store,
}

impl Host {
    /// # Errors
    /// The namespace cannot be identified.
    pub fn here() -> Result<Self> {
        let cookie = netns::cookie()?;
        Ok(Self { cookie, store: Store::of(cookie) })
    }

    /// # Errors
    /// The kernel's.
    pub fn view(&self) -> Result<HostView> {
        Rtnl::here()?.host_view(self.cookie)
    }

    /// What the rung in use has in the kernel; without one, what the best has left there.
    ///
    /// # Errors
    /// The state cannot be read.
    pub fn inspect(&self) -> Result<Box<dyn Inspect>> {
        Ok(datapath::inspect(self.store.rung()?.unwrap_or(LADDER[0].rung), self.cookie))
    }

    /// Programs that are attached, also beside the rung in use.
    ///
    /// # Errors
    /// The kernel's.
    pub fn hooks(&self) -> Result<Vec<Hook>> {
        let of = |rung| datapath::inspect(rung, self.cookie).hooks();
        LADDER.into_iter().map(|backend| of(backend.rung)).try_fold(Vec::new(), |mut all, hooks| {
            all.extend(hooks?);
            Ok(all)
        })
    }
}
