//! What is there and what it does, for people: reads only. Nothing is made, mounted or repaired to answer a question;
//! `monitor` alone puts other programs in place, and takes them back.

pub mod doctor;
pub mod flows;
pub mod monitor;
pub mod ports;
pub mod status;
pub mod traffic;

use crate::datapath::ebpf::pins::Pins;
use crate::link::{Rtnl, netns};
use crate::model::HostView;
use crate::model::error::Result;
use crate::state::Store;

/// The namespace that this process is in.
pub struct Host {
    pub cookie: u64,
    pub store: Store,
    pub pins: Pins,
}

impl Host {
    /// # Errors
    /// The namespace cannot be told from others.
    pub fn here() -> Result<Self> {
        let cookie = netns::cookie()?;
        Ok(Self { cookie, store: Store::of(cookie), pins: Pins::of(cookie) })
    }

    /// # Errors
    /// The kernel's.
    pub fn view(&self) -> Result<HostView> {
        Rtnl::here()?.host_view(self.cookie)
    }
}

/// `eth0`, or `#7` for an interface that is gone.
pub fn interface(view: &HostView, index: u32) -> String {
    view.link(index).map_or_else(|| format!("#{index}"), |l| l.name.to_string())
}
