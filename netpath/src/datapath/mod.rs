//! The packet work behind two traits: [`Datapath`] serves containers, [`Inspect`] reads what is in the kernel. Each rung
//! is a directory that implements both and describes itself by a [`Backend`]; `ladder` lists them. Neither a face nor the
//! model knows which rung runs, and no other room names one.

pub mod connection;
pub mod ebpf;
pub mod filter;
pub mod firewalld;
pub mod incumbent;
pub mod inspect;
pub mod keep_loaded;
pub mod ladder;
pub(crate) mod netfilter;
pub mod none;
pub mod probe;
pub mod promote;

pub use inspect::Inspect;
pub use ladder::{inspect, open};

use crate::model::error::Result;
use crate::model::{Departures, Desired, HostView, Network, Record, Rung};
use crate::state::{Lock, Store};
use connection::Connection;
use filter::Foreign;
use promote::Carry;
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::time::{Instant, SystemTime};

/// Tells builds of the programs apart.
pub const BUILD: &str = ebpf::loader::DIGEST;

/// What a rung says about itself, before it is opened and on hosts where it cannot be used.
pub struct Backend {
    pub rung: Rung,
    /// Packets of containers meet the rules that other software has in netfilter.
    pub through_netfilter: bool,
    /// It starts in milliseconds, hands its connections on, and can serve a first container until programs are loaded.
    pub is_interim: bool,
    /// By which queries to a gateway's DNS server reach it; otherwise they come at port 53, or by a rule.
    pub lead_dns: Option<OpenDns>,
    /// Programs at sockets that can serve beside a rung of netfilter.
    pub sockets: Option<ServeSockets>,
    /// Programs that carry promoted flows on a host whose netfilter translates.
    pub carry: Option<LoadCarrier>,
    /// It masquerades by [`HostView::sources`], which are read for it alone.
    pub needs_sources: bool,
    /// Its programs need [`HostView::route_mtus`].
    pub needs_route_mtus: bool,
    /// Its flows are in tables of its own, which [`Datapath::expire`] ages.
    pub ages_flows: bool,
    /// What it asks of a kernel, in the order in which it matters.
    pub probes: &'static [probe::Probe],
    /// Whether it can be used here, asked of the kernel; otherwise why not.
    pub usable: fn() -> std::result::Result<(), String>,
    /// For the host whose network namespace has this cookie. Changes nothing yet.
    pub open: fn(host: u64) -> Result<Box<dyn Datapath>>,
    pub inspect: fn(host: u64) -> Box<dyn Inspect>,
    /// Hosts whose network namespace is gone, and of which kernel objects are left ([`Datapath::forget_host`]).
    pub gone_hosts: fn() -> Vec<u64>,
    /// What the agent keeps while this rung serves the host: for a moment without rules, or an interface without programs.
    /// `None`: not yet, the next look asks again.
    pub hold: fn(host: u64) -> Option<Box<dyn Any + Send>>,
    /// Kernel objects that are kept without containers, if it has such.
    pub idle: Option<&'static Idle>,
}

/// Makes programs at sockets serve the published ports of these records, for the host with this cookie. Returns the number of changes, 0
/// where the host or kernel does not permit them; `None`: they would have to be loaded, and the last argument forbids it.
pub type ServeSockets = fn(u64, &Desired, &HostView, bool) -> Result<Option<usize>>;

/// For the network namespace of the calling thread.
pub type OpenDns = fn() -> Result<Box<dyn LeadDns>>;
/// For the host with this cookie and these containers, attached to nothing.
pub type LoadCarrier = fn(u64, &Desired) -> Result<Box<dyn Carry>>;

/// Sockets of the DNS server that get the queries to port 53 of a network's gateways, although they are at another port. Ends when it
/// is dropped. Beside any rung: netfilter sees a query before the sockets of the host are looked up.
pub trait LeadDns: Send {
    /// Queries to port 53 of `server` reach this socket, which is bound, and listens if it is of TCP. Until it is closed.
    ///
    /// # Errors
    /// The kernel refuses the socket.
    fn lead(&mut self, server: IpAddr, is_udp: bool, socket: BorrowedFd<'_>) -> Result<()>;
}

/// What a rung keeps loaded without containers, so that the next first one starts sooner. It touches no packet.
pub struct Idle {
    /// Loads it for the host with this cookie; it stays until it is unloaded. False: it was loaded already.
    pub load: fn(lock: &Lock, host: u64, view: &HostView) -> Result<bool>,
    /// Loads what these containers need, without the host's lock; it stays for so many seconds if it is not put to use.
    pub load_for: fn(host: u64, desired: &Desired, view: &HostView, seconds: u64) -> Result<()>,
    pub state: fn(host: u64) -> Option<IdleState>,
    /// Removes it, and returns the number of kernel objects. Objects in use are removed with the last container then.
    pub unload: fn(lock: &Lock, host: u64) -> Result<usize>,
    /// The same for what has outlived its time, of all hosts.
    pub unload_expired: fn() -> Result<usize>,
}

/// How long idle kernel objects stay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IdleState {
    /// Until they are unloaded.
    Preloaded,
    /// Removed by the agent then, and by any command if there is none.
    Until(SystemTime),
}

/// What a rung is handed for one reconcile: read or taken once by the command, for whichever rungs take part.
pub struct Context<'a> {
    pub host: &'a HostView,
    pub foreign: &'a Foreign,
    pub store: &'a Store,
    /// Of the store.
    pub lock: &'a Lock,
    /// Connections of the endpoints that wait are kept, those of the ended ones are removed.
    pub departures: Departures,
}

/// The rung whose containers another one takes over: it serves until it is emptied.
pub struct Predecessor<'a> {
    /// Its live connections, as of now.
    pub connections: &'a dyn Fn() -> Result<Vec<Connection>>,
    /// The interface by which the host sends a packet from this source to this destination, which came from the
    /// interface given first; 0 = the host's own.
    pub route: &'a dyn Fn(u32, IpAddr, IpAddr) -> Option<u32>,
}

/// A feature that a rung cannot give, known before anything is changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// "publish 5000/sctp as 6000/sctp"
    pub feature: String,
    pub why: String,
    /// What the user can do instead.
    pub next: String,
}

/// A value below /proc/sys that a rung needs in the host's namespace, and that is put back when the last endpoint goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sysctl {
    /// Below /proc/sys, with slashes: `net/ipv4/conf/lo/route_localnet`.
    pub path: String,
    pub value: String,
}

/// What a reconcile did, for logs and tests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Kernel objects written or removed; 0 = everything was so already.
    pub changed: usize,
}

/// What [`Datapath::expire`] has removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Expired {
    /// Halves of flows that had expired.
    pub flows: usize,
    /// Ports marked as used by flows that are gone.
    pub marks: usize,
}

/// How many flows one call of [`Datapath::expire`] looks at.
pub enum Effort<'a> {
    All,
    /// Those that there is time for, from the given position on.
    Until {
        until: Instant,
        progress: &'a mut Progress,
    },
}

/// Where the next call of [`Datapath::expire`] goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Progress {
    pub v6: bool,
    pub next: Option<u32>,
}

/// Serves the containers of one host.
pub trait Datapath {
    fn rung(&self) -> Rung;

    /// What this rung cannot do for `record`; empty = everything it asks for. Changes nothing.
    fn refusals(&self, record: &Record) -> Vec<Refusal>;

    /// The first limit of this rung that `coming` would exceed beside `there`. Changes nothing.
    fn limits(&self, _there: &[Record], _coming: &[Record]) -> Option<Refusal> {
        None
    }

    /// Whether programs at sockets serve clients on the host beside it, where they can be used ([`ladder::serve_sockets`]).
    fn has_sockets_beside(&self) -> bool {
        false
    }

    /// Settings of the host's namespace that must hold while this rung serves `desired`.
    fn sysctls(&self, desired: &Desired) -> Vec<Sysctl>;

    /// Whether interfaces of containers on this network must have GRO for the way their packets take.
    ///
    /// # Errors
    /// `host` cannot be read; it is read only if necessary.
    fn needs_gro(&self, _network: &Network, _host: &dyn Fn() -> Result<HostView>) -> Result<bool> {
        Ok(false)
    }

    /// Makes the kernel hold exactly `desired`: adds what is missing, removes what is not desired, and leaves the rest
    /// alone. A second call changes nothing; with no record at all, only what [`Idle`] keeps stays.
    ///
    /// # Errors
    /// What could not be read or written. The kernel then holds a mixture that the next call puts right.
    fn reconcile(&mut self, desired: &Desired, context: &Context<'_>) -> Result<Report>;

    /// Removes what this rung has in the kernel after `to` has taken over, except what serves beside that one
    /// ([`ladder::serve_sockets`]).
    ///
    /// # Errors
    /// As [`reconcile`](Self::reconcile).
    fn hand_over(&mut self, _to: &mut dyn Datapath, context: &Context<'_>) -> Result<Report> {
        self.reconcile(&Desired::default(), context)
    }

    /// The live connections in the tables by which this rung translates, for a rung that takes over. Those of others may be
    /// among them.
    ///
    /// # Errors
    /// They cannot be read.
    fn connections(&self) -> Result<Vec<Connection>> {
        Ok(Vec::new())
    }

    /// As [`reconcile`](Self::reconcile) for the containers of another rung, while that one serves: a packet always finds one
    /// of them. Connections go on with their addresses and ports.
    ///
    /// # Errors
    /// As `reconcile`. Connections that cannot be taken over begin again; that is no reason to keep two rungs.
    fn take_over(&mut self, desired: &Desired, context: &Context<'_>, from: &Predecessor<'_>) -> Result<Report> {
        let report = self.reconcile(desired, context)?;
        match (from.connections)().and_then(|connections| self.adopt(&connections)) {
            Ok(adopted) => tracing::info!(adopted, "connections go on"),
            Err(e) => tracing::warn!("connections begin again: {e}"),
        }
        Ok(report)
    }

    /// Takes over connections that another rung has translated. Returns how many were not known yet.
    ///
    /// # Errors
    /// None can be taken over.
    fn adopt(&mut self, _connections: &[Connection]) -> Result<usize> {
        Ok(0)
    }

    /// Removes expired flows and what gone flows have left. Needs no lock.
    ///
    /// # Errors
    /// What could not be read or written.
    fn expire(&mut self, _effort: Effort<'_>) -> Result<Expired> {
        Ok(Expired::default())
    }

    /// Removes the kernel objects of this host after its namespace is gone. Returns their number.
    ///
    /// # Errors
    /// What could not be removed.
    fn forget_host(&mut self) -> Result<usize> {
        Ok(0)
    }
}
