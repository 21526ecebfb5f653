//! netpath's agent on the host of a topology, by what the kernel shows.

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

/// The one that the last command has started, which may take a moment to have its name.
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
/// They do not go.
pub fn kill_all(topology: &Topology) -> Result<()> {
    for pid in agents(topology) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    wait_for("no agent", SOON, || agents(topology).is_empty().then_some(()))
}

/// The same, once it has said who it is, and watches.
///
/// # Errors
/// There is none, or it does not.
pub fn watching(topology: &Topology) -> Result<i32> {
    let pid = the_agent(topology)?;
    wait_for("an agent that watches", SOON, || {
        let log = std::fs::read_to_string(format!("/run/netpath/{:x}/agent.log", topology.host.cookie())).ok()?;
        log.contains(&format!("pid={pid}")).then_some(())
    })?;
    // What it looks at first.
    std::thread::sleep(Duration::from_millis(200) * patience());
    Ok(pid)
}
