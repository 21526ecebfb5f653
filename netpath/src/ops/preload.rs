//! Loads at boot what the first container needs.

use super::session::Session;
use super::signal;
use crate::datapath::ladder::{self, Choice};
use crate::link::netns;
use crate::model::error::Result;

/// Result of [`preload`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Preload {
    Loaded,
    /// They were loaded already, and stay.
    Kept,
    /// The datapath of this host loads nothing, with the reason.
    Nothing(String),
}

/// Loads the programs of this host's datapath, attached to nothing. They stay until [`gc`](super::gc::gc) removes them with
/// `all`.
///
/// # Errors
/// They cannot be loaded.
pub fn preload(choice: Choice) -> Result<Preload> {
    signal::ignore();
    let cookie = netns::cookie()?;
    let mut session = Session::without_container(cookie)?;
    session.lock = Some(session.site.store.lock(&signal::seen)?);
    let preloaded = session.load_idle(choice);
    session.release_lock()?;
    preloaded
}

impl Session {
    fn load_idle(&self, choice: Choice) -> Result<Preload> {
        let in_use = if self.site.store.is_empty()? { None } else { self.site.store.rung()? };
        if in_use.is_none()
            && choice == Choice::Auto
            && let Some(rule) = self.foreign.bypassed()
        {
            return Ok(Preload::Nothing(format!("packets of containers have to meet the rules of this host: {rule}")));
        }
        let rung = ladder::choose(choice, in_use)?.rung;
        let Some(idle) = ladder::backend(rung).idle else {
            return Ok(Preload::Nothing(format!("the datapath of this host is {rung}")));
        };
        let view = self.site.rtnl.host_view(self.cookie)?;
        Ok(if (idle.load)(self.lock()?, self.cookie, &view)? { Preload::Loaded } else { Preload::Kept })
    }
}
