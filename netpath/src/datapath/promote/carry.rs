//! Programs that carry promoted flows, behind a trait: a rung brings them along (`Backend::carry`).

use crate::datapath::connection::{Connection, Direction};
use crate::model::error::Result;
use crate::model::{Desired, HostView};
use netpath_common::layout::{FlowKey4, FlowKey6};
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

/// Promoted flows at once; each has two entries, and the kernel evicts from tables that are full.
pub const MOST_CARRIED: usize = 1_024;

/// Both keys of a promoted flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keys {
    V4([FlowKey4; 2]),
    V6([FlowKey6; 2]),
}

/// Where a flow enters and leaves the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ends {
    pub uplink: u32,
    pub veth: u32,
    pub bridge: u32,
    pub is_begun_inside: bool,
}

/// The neighbour by which packets of a flow leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NextHop {
    pub ifindex: u32,
    pub mac: [u8; 6],
    pub mtu: Option<u16>,
}

/// They end with this value.
pub trait Carry: Send {
    /// Whether they handle the families of these networks.
    fn is_for(&self, desired: &Desired) -> bool;

    /// Becomes readable with a report.
    fn reports(&self) -> BorrowedFd<'_>;

    /// The next reported flow: its protocol, the tuple of the direction that was seen, and the interface.
    fn report(&mut self) -> Option<(u8, Direction, u32)>;

    /// The programs' clock, in ticks.
    ///
    /// # Errors
    /// The kernel's.
    fn now(&self) -> Result<u32>;

    /// Programs carry flows of this epoch until a second after `since`, in ticks.
    ///
    /// # Errors
    /// The kernel's.
    fn trust(&mut self, since: u32, epoch: u32, threshold: u32) -> Result<()>;

    /// Programs carry nothing, and only report.
    ///
    /// # Errors
    /// The kernel's.
    fn doubt(&mut self, epoch: u32, threshold: u32) -> Result<()>;

    /// Attaches the programs of uplinks for these containers, by which flows are planned from now on, and detaches them where nothing is
    /// any more.
    ///
    /// # Errors
    /// The kernel's.
    fn attach(&mut self, desired: &Desired, host: &HostView) -> Result<()>;

    /// The interfaces of a flow. `None`: it is not between a container and an uplink with Ethernet.
    /// `route`: as [`Predecessor::route`](crate::datapath::Predecessor::route).
    fn ends(&self, connection: &Connection, route: &dyn Fn(u32, IpAddr, IpAddr) -> Option<u32>) -> Option<Ends>;

    /// The first interface of these with a program of others, which redirected packets might pass by: whether it runs before this one may
    /// change without notice.
    fn beside_others<'a>(&self, names: [&'a str; 3]) -> Option<&'a str>;

    /// Writes both entries of a flow; `None`: the programs cannot carry it.
    ///
    /// # Errors
    /// The kernel's.
    fn promote(&mut self, connection: &Connection, hop: NextHop, ends: &Ends, epoch: u32) -> Result<Option<Keys>>;

    /// Ticks since the last packet of a flow that took the stack, about one a second; `None`: an entry was evicted.
    fn idle(&self, keys: &Keys) -> Option<u32>;

    /// Removes both entries. Those that are evicted are no error.
    fn demote(&mut self, keys: &Keys);
}
