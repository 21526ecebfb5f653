//! What a rung can tell about itself: reads only. `status`, `flows`, `doctor`, the log of drops and every other reader
//! print these answers, and know no rung.

use crate::model::error::Result;
use crate::model::{Desired, HostView};
use crate::state::Store;
use serde::Serialize;
use serde_json::{Map, Value};
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

/// The kernel objects of one rung on one host. A rung without a given kind of object has the empty answer.
pub trait Inspect {
    /// Whether there are any.
    fn exists(&self) -> bool;

    /// Programs that are attached.
    ///
    /// # Errors
    /// The kernel's.
    fn hooks(&self) -> Result<Vec<Hook>> {
        Ok(Vec::new())
    }

    /// Where a program was asked for and refused by the kernel, without which containers are served all the same.
    fn refused_hooks(&self) -> Vec<RefusedHook> {
        Vec::new()
    }

    /// Packets by what became of them: all reasons that were counted at least once.
    ///
    /// # Errors
    /// They cannot be read.
    fn counters(&self) -> Result<Vec<Counter>> {
        Ok(Vec::new())
    }

    /// Flows of the containers in `desired` that are alive, the most recently used first; `None`: this rung has no list of them.
    ///
    /// # Errors
    /// They cannot be read.
    fn flows(&self, _desired: &Desired) -> Result<Option<Vec<Flow>>> {
        Ok(None)
    }

    /// What each record has sent and received, in the order of `desired`; `None`: it is not served.
    ///
    /// # Errors
    /// The counters cannot be read.
    fn traffic(&self, _desired: &Desired) -> Result<Vec<Option<EndpointTraffic>>> {
        Ok(Vec::new())
    }

    /// How full the kernel's tables are.
    ///
    /// # Errors
    /// They cannot be read.
    fn usage(&self) -> Result<Usage> {
        Ok(Usage::default())
    }

    /// A number that changes with every change of the rules among which this rung's are; `None`: it has no rules there.
    fn generation(&self, _store: &Store) -> Option<u32> {
        None
    }

    /// What is not as it should be while this rung serves `desired`.
    ///
    /// # Errors
    /// The kernel's.
    fn findings(&self, _desired: &Desired, _host: &HostView) -> Result<Vec<Finding>> {
        Ok(Vec::new())
    }

    /// Starts to report packets to `sink`; `None`: this rung cannot, or has nothing in the kernel.
    ///
    /// # Errors
    /// Another monitor runs, or reporting cannot be switched on.
    fn monitor(&self, _level: Level, _sink: Sink) -> Result<Option<Box<dyn Monitor>>> {
        Ok(None)
    }
}

/// How much is reported.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// Drops.
    Drops,
    /// Drops and new flows.
    Flows,
    /// All that can be reported.
    All,
}

/// One event: its kind under `event`, addresses under `src` and `dst`, an interface under `ifindex`, and so on.
pub type Event = Map<String, Value>;
pub type Sink = Box<dyn Fn(Event) + Send + Sync>;

/// Reporting that is switched on.
pub trait Monitor {
    /// Readable when there are events.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Hands the events so far to the sink.
    fn deliver(&mut self);

    /// Switches reporting on for what was attached since the last call; false: nothing is left to report on.
    ///
    /// # Errors
    /// The kernel's.
    fn extend(&mut self) -> Result<bool>;

    /// Switches reporting off.
    ///
    /// # Errors
    /// The kernel's.
    fn end(self: Box<Self>) -> Result<()>;
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hook {
    pub program: String,
    /// `None`: not at an interface but at sockets.
    pub ifindex: Option<u32>,
    pub egress: bool,
    /// The kernel's mechanism: `tcx`, `clsact`, `cgroup`, `xdp`.
    pub by: &'static str,
    /// Another program than the installed one runs there: a monitor's, or that of an older build.
    pub replaced: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RefusedHook {
    pub ifindex: u32,
    pub why: String,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Counter {
    /// `drop_isolated`, `flow_published`
    pub reason: &'static str,
    pub packets: u64,
    pub bytes: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Flow {
    pub protocol: &'static str,
    /// The kind of its first packet: `published`, `masqueraded`, `hairpin`, `loopback`, `direct`.
    pub origin: &'static str,
    /// Of its first packet, before translation.
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// And after translation.
    pub translated_source: SocketAddr,
    pub translated_destination: SocketAddr,
    pub state: &'static str,
    /// Seconds since its last packet; `None`: conntrack does not tell.
    pub idle_s: Option<u32>,
    /// Seconds until it expires if no packet comes.
    pub expires_s: u32,
    /// False: one of its halves was evicted; the next packet makes it again.
    pub whole: bool,
    /// What carries its packets: `programs`, or `kernel`, where they pass netfilter.
    pub carrier: &'static str,
    /// Why not programs.
    pub why: Option<String>,
}

/// To the container and from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Volume {
    pub packets_in: u64,
    pub bytes_in: u64,
    pub packets_out: u64,
    pub bytes_out: u64,
}

impl std::ops::Add for Volume {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            packets_in: self.packets_in + other.packets_in,
            bytes_in: self.bytes_in + other.bytes_in,
            packets_out: self.packets_out + other.packets_out,
            bytes_out: self.bytes_out + other.bytes_out,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EndpointTraffic {
    /// False: there was no counter left for it, or a version without counters has attached it.
    pub counted: bool,
    /// Without that of published ports.
    pub own: Volume,
    /// In the order of the record's publishes.
    pub publishes: Vec<Volume>,
}

#[derive(Default)]
pub struct Usage {
    /// `None`: flows are not in tables of this rung.
    pub flows: Option<FlowUse>,
    pub maps: Vec<MapUse>,
    /// Of all maps, including those that `maps` leaves out.
    pub memory_bytes: u64,
}

/// Of both families together.
#[derive(Serialize)]
pub struct FlowUse {
    /// Including expired flows that are not removed yet.
    pub used: usize,
    /// Beyond it the least recently used flow is evicted.
    pub limit: usize,
    /// Constant: the tables are allocated in full.
    pub memory_bytes: u64,
}

#[derive(Serialize)]
pub struct MapUse {
    pub name: &'static str,
    pub entries: usize,
    pub max_entries: u32,
    pub memory_bytes: u64,
}

/// A fault, and its remedy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    pub what: String,
    pub next: String,
}
