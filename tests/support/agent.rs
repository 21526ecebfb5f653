//! netpath's agent on the host of a topology, as seen in /proc.

use crate::host::{SOON, patience, wait_for};
use crate::topology::Topology;
use anyhow::Result;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::Duration;

/// Process ids.
pub fn agents(topology: &Topology) -> Vec<i32> {
    topology.host.processes().into_iter().filter(|(_, name)| name == "netpath-agent").map(|(pid, _)| pid).collect()
}

/// The agent that the last command has started, which may take a moment to get its name.
///
/// # Errors
/// There is none, or several.
pub fn the_agent(topology: &Topology) -> Result<i32> {
    wait_for("one agent", SOON, || match agents(topology)[..] {
        [one] => Some(one),
        _ => None,
    })
}

/// # Errors
/// A process does not end.
pub fn kill_all(topology: &Topology) -> Result<()> {
    for pid in agents(topology) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    wait_for("no agent", SOON, || agents(topology).is_empty().then_some(()))
}

/// The same, once it has registered, and follows the host.
///
/// # Errors
/// There is none, or it does not register.
pub fn watching(topology: &Topology) -> Result<i32> {
    let pid = the_agent(topology)?;
    wait_for("an agent that watches", SOON, || {
        let log = std::fs::read_to_string(format!("/run/netpath/{:x}/agent.log", topology.host.cookie())).ok()?;
        log.contains(&format!("pid={pid}")).then_some(())
    })?;
    // Time for its first look.
    std::thread::sleep(Duration::from_millis(200) * patience());
    Ok(pid)
}
