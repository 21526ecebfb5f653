//! The steps, and the undo of each.

use crate::model::error::Result;
use crate::model::network::Route;
use crate::model::{IfName, Record};
use ipnet::IpNet;
use std::fmt;

/// One change to the host. `at` counts the endpoints of one command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Wait for the host's state lock, which is held until [`Step::Unlock`].
    Lock,
    Unlock,
    /// Write the record before anything of the endpoint is created.
    Keep(Box<Record>),
    /// Create the link that endpoints of a network share, or complete the existing one.
    Share {
        at: usize,
        what: String,
    },
    /// `lo` of the container.
    Loopback,
    /// Create the interface inside the container. Yields its links.
    Connect {
        at: usize,
        interface: IfName,
        to: String,
    },
    /// The sysctls of the interface.
    Settings {
        at: usize,
        interface: IfName,
    },
    /// Yields the address.
    Address {
        at: usize,
        interface: IfName,
        address: IpNet,
    },
    Up {
        at: usize,
        interface: IfName,
    },
    /// By DHCP, with the default route. Yields the address.
    Lease {
        at: usize,
        interface: IfName,
    },
    Route {
        at: usize,
        interface: IfName,
        route: Route,
    },
    /// Write the record again, with the results of the steps before.
    Link {
        at: usize,
    },
    /// Serve all records that have links.
    Datapath,
    /// Add the container's names to DNS.
    Names,
    /// Record that setup has succeeded.
    Commit,

    /// Remove the container's names from DNS.
    Unname,
    /// Let the drivers undo what they have made besides links.
    Disconnect,
    /// Record that the endpoints are being removed, and serve the host without them.
    Withdraw,
    /// Delete the links of the endpoints, and with `shared` also the shared ones that no other endpoint needs.
    LinkCleanup {
        shared: bool,
    },
    /// Remove the records, and the host's state with the last.
    Forget,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Lock => f.write_str("lock the host's state"),
            Step::Unlock => f.write_str("unlock the host's state"),
            Step::Keep(r) => write!(f, "record the endpoint on network {}", r.network.name),
            Step::Share { what, .. } => write!(f, "make {what}"),
            Step::Loopback => f.write_str("bring up the container's lo"),
            Step::Connect { interface, to, .. } => write!(f, "connect {interface} to {to}"),
            Step::Settings { interface, .. } => write!(f, "set the sysctls of {interface}"),
            Step::Address { interface, address, .. } => write!(f, "give {interface} address {address}"),
            Step::Up { interface, .. } => write!(f, "bring up {interface}"),
            Step::Lease { interface, .. } => write!(f, "get an address for {interface} by DHCP"),
            Step::Route { interface, route, .. } => write!(f, "add route {route} of {interface}"),
            Step::Link { .. } => f.write_str("record the links"),
            Step::Datapath => f.write_str("publish and masquerade"),
            Step::Names => f.write_str("make the container known to DNS"),
            Step::Commit => f.write_str("record that setup is complete"),
            Step::Unname => f.write_str("remove the container from DNS"),
            Step::Disconnect => f.write_str("disconnect the container"),
            Step::Withdraw => f.write_str("withdraw what the container publishes"),
            Step::LinkCleanup { shared: false } => f.write_str("delete the container's links"),
            Step::LinkCleanup { shared: true } => f.write_str("delete the container's links and unused bridges"),
            Step::Forget => f.write_str("remove the records"),
        }
    }
}

/// Reverses one step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Undo {
    /// Of [`Step::Unlock`]: the undo of the steps before it needs the lock.
    Lock,
    Unlock,
    Forget(Box<Record>),
    Unshare {
        at: usize,
    },
    Disconnect {
        at: usize,
    },
    /// A route that is not deleted with the endpoint's interface.
    RemoveRoute(Route),
    Withdraw,
    Unname,
}

/// The result of a step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Done {
    AlreadySo,
    Changed(Undo),
    /// Changed, and reversed by the undo of an earlier step: an address is deleted with its interface.
    ChangedCovered,
}

/// Performs the steps: the real host, or a recorder in tests. It keeps the results of steps by the `at` of their endpoint, for
/// later steps and for the answer.
pub trait Host {
    /// # Errors
    /// The step failed, and has cleaned up after itself.
    fn apply(&mut self, step: &Step) -> Result<Done>;

    /// # Errors
    /// Something of the step is left behind.
    fn undo(&mut self, undo: &Undo) -> Result<()>;

    /// Whether a signal asks this command to end; checked between steps.
    fn interrupted(&self) -> bool {
        false
    }
}
