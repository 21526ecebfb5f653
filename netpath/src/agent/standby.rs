//! A process that takes the agent's place when the agent has been killed, for a service manager that keeps it running.

use crate::link::netns;
use crate::model::error::{Error, Result};
use crate::ops::agent::wait_end;
use crate::state::agent::{AgentLock, holder};
use crate::state::{Store, dns_places};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// In which a command that replaces the agent starts the next one itself.
const GRACE: Duration = Duration::from_millis(200);
/// Without names: the service manager may start it again at once, because another network namespace has some.
const PAUSE: Duration = Duration::from_secs(5);

/// Returns when no name is left to answer. As the agent it does not return.
///
/// # Errors
/// The agent cannot be waited for, or not started.
pub fn run() -> Result<()> {
    let store = Store::of(netns::cookie()?);
    let has_names = || !dns_places::read(store.dir()).is_empty();
    if !has_names() {
        sleep(PAUSE);
    }
    while has_names() {
        if let Some(holder) = holder(store.dir()) {
            wait_end(holder.process)?;
        }
        sleep(GRACE);
        if holder(store.dir()).is_none()
            && has_names()
            && let Some(lock) = AgentLock::take(store.dir())?
        {
            return Err(become_agent(&lock));
        }
    }
    Ok(())
}

/// By the path of this program, where an upgrade may have put another one.
fn become_agent(lock: &AgentLock) -> Error {
    let own = std::env::args_os().next().map(PathBuf::from).filter(|own| own.is_absolute() && own.is_file());
    let mut command = Command::new(own.unwrap_or_else(|| PathBuf::from("/proc/self/exe")));
    let what = || "cannot take the agent's place".to_owned();
    match lock.clear().and_then(|()| lock.hand_over()) {
        Ok(lock) => Error::new(what()).because(command.arg("agent").stdin(Stdio::from(lock)).exec()),
        Err(e) => e,
    }
}
