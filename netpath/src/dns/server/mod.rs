//! The server: sockets at the gateways, over the table of one directory. It runs on one thread, inside a `LocalSet`.

mod batch;
mod core;
mod tcp;
mod udp;

use self::core::Core;
use super::answer::Settings;
use super::files::Files;
use super::inherited::Inherited;
use super::resolv;
use super::stats::Counts;
use super::table::Table;
use crate::model::network::DNS_PORT;
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tcp::Connections;
use tokio::io::Interest;
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::{JoinHandle, spawn_local};
use udp::Udp;

/// Batches of one socket before others have their turn.
const TURN: u32 = 8;
/// Descriptors that it may need, with some for everything else.
const DESCRIPTORS: rlim_t = 8192;
/// Bytes of queries that wait for the server.
const BUFFER: usize = 1024 * 1024;
/// Editors and services write in several steps.
const SETTLE: Duration = Duration::from_millis(20);

/// What a server needs to know.
pub struct Place {
    /// The directory of the network files.
    pub dir: PathBuf,
    pub port: u16,
    pub settings: Settings,
    pub led: Led,
}

/// Has queries to port 53 of an address reach a socket at another port, of UDP if that is so.
pub type Lead = dyn Fn(IpAddr, bool, BorrowedFd<'_>) -> io::Result<()> + Send + Sync;

/// Where port 53 stays free. Without `by`, nowhere.
#[derive(Clone, Default)]
pub struct Led {
    pub addresses: Vec<IpAddr>,
    pub by: Option<Arc<Lead>>,
}

/// Result of a start or reload.
#[derive(Debug, Default)]
pub struct Loaded {
    pub networks: usize,
    pub containers: usize,
    /// Addresses that should be listened on.
    pub listen: Vec<IpAddr>,
    /// Addresses that are not listened on, with the cause.
    pub failed: Vec<(IpAddr, String)>,
}

/// Serves until it is dropped.
pub struct Server {
    core: Rc<Core>,
    port: u16,
    files: Option<Files>,
    led: Led,
    listeners: HashMap<IpAddr, Listener>,
    connections: Rc<Connections>,
    inherited: Rc<Inherited>,
    _resolv: Task,
}

struct Listener {
    is_led: bool,
    _tasks: Vec<Task>,
}

/// Ends with its owner.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Server {
    /// Listens on nothing until it is told to reload. It takes the sockets of an earlier server where it was handed some.
    pub fn new(place: Place, inherited: Rc<Inherited>) -> Self {
        raise_limit();
        let core = Rc::new(Core::new(place.settings, place.port));
        let watch = Task(spawn_local(follow(Rc::clone(&core), resolv::path())));
        Self {
            core,
            port: place.port,
            files: Some(Files::new(&place.dir)),
            led: place.led,
            listeners: HashMap::new(),
            connections: Rc::default(),
            inherited,
            _resolv: watch,
        }
    }

    /// Reads the files again. Sockets that stay are not touched.
    ///
    /// # Errors
    /// The directory cannot be read; the server goes on with what it knows.
    pub async fn reload(&mut self) -> io::Result<Loaded> {
        let mut files = self.files.take().ok_or_else(|| io::Error::other("a reload was interrupted"))?;
        // Beside the answers.
        let read = tokio::task::spawn_blocking(move || {
            let table = files.read();
            (files, table)
        });
        let (files, table) = read.await?;
        self.files = Some(files);
        let table = Arc::new(table?);
        *self.core.table.borrow_mut() = Arc::clone(&table);
        let failed = self.listen(&table);
        self.listeners.retain(|address, _| table.listens_on(address));
        let containers = table.zones.iter().map(|z| z.containers().count()).sum();
        Ok(Loaded { networks: table.zones.len(), containers, listen: table.listen().collect(), failed })
    }

    /// Listens on addresses that could not be used at the last reload. Returns whether all are now.
    pub fn retry(&mut self) -> bool {
        let table = Arc::clone(&self.core.table.borrow());
        self.listen(&table).is_empty()
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Whether there is an address to listen on.
    pub fn is_needed(&self) -> bool {
        self.core.table.borrow().listen().next().is_some()
    }

    pub fn counts(&self) -> Counts {
        self.core.stats.counts()
    }

    /// From the next reload on.
    pub(super) fn lead(&mut self, led: Led) {
        self.led = led;
    }

    fn listen(&mut self, table: &Table) -> Vec<(IpAddr, String)> {
        let mut failed = Vec::new();
        for address in table.listen() {
            let is_led = self.led.by.is_some() && self.led.addresses.contains(&address);
            if self.listeners.get(&address).is_none_or(|listener| listener.is_led != is_led) {
                match self.tasks(address, is_led) {
                    Ok(tasks) => drop(self.listeners.insert(address, Listener { is_led, _tasks: tasks })),
                    Err(cause) => failed.push((address, cause)),
                }
            }
        }
        failed
    }

    fn tasks(&self, address: IpAddr, is_led: bool) -> Result<Vec<Task>, String> {
        let led = is_led.then(|| self.at_another_port(address).map(Vec::from));
        match led {
            // Netfilter leads queries to a port that was asked for.
            Some(Ok(mut tasks)) if self.port != DNS_PORT => {
                tasks.extend(self.at_own_port(address)?);
                Ok(tasks)
            }
            Some(Ok(tasks)) => Ok(tasks),
            Some(Err(e)) => {
                tracing::info!("port {} of {address} is not left free: {e}", self.port);
                self.at_own_port(address).map(Vec::from)
            }
            None => self.at_own_port(address).map(Vec::from),
        }
    }

    fn at_own_port(&self, address: IpAddr) -> Result<[Task; 2], String> {
        let at = SocketAddr::new(address, self.port);
        let socket = |is_udp| self.inherited.take(at, is_udp).map_or_else(|| bound(at, is_udp), Ok);
        // The texts are aardvark-dns's.
        let udp = socket(true).and_then(ready_udp).map_err(|e| format!("failed to bind udp listener on {at}: {e}"))?;
        let tcp = socket(false).and_then(ready_tcp).map_err(|e| format!("failed to bind tcp listener on {at}: {e}"))?;
        Ok(self.serve(address, Udp::new(udp), tcp))
    }

    /// At a port that the kernel chooses, with queries to port 53 led to it.
    fn at_another_port(&self, address: IpAddr) -> io::Result<[Task; 2]> {
        let lead = self.led.by.as_ref().ok_or_else(|| io::Error::other("there is no way to lead queries"))?;
        let any = SocketAddr::new(address, 0);
        let socket = |is_udp| {
            let taken = self.inherited.take_led(address, &[DNS_PORT, self.port], is_udp);
            taken.map_or_else(|| bound(any, is_udp), Ok)
        };
        let (udp, tcp) = (ready_udp(socket(true)?)?, ready_tcp(socket(false)?)?);
        let udp = Udp::answering_from(address, DNS_PORT, udp)?;
        lead(address, true, udp.as_fd())?;
        lead(address, false, tcp.as_fd())?;
        Ok(self.serve(address, udp, tcp))
    }

    fn serve(&self, address: IpAddr, udp: Udp, tcp: TcpListener) -> [Task; 2] {
        let (core, connections) = (Rc::clone(&self.core), Rc::clone(&self.connections));
        [
            Task(spawn_local(serve_udp(Rc::clone(&core), Rc::new(udp), address))),
            Task(spawn_local(tcp::accept(core, connections, tcp, address))),
        ]
    }
}

fn ready_udp(socket: Socket) -> io::Result<UdpSocket> {
    // Not permitted everywhere; a burst is lost sooner then.
    if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).is_err() {
        let _ = socket.set_recv_buffer_size(BUFFER);
    }
    UdpSocket::from_std(socket.into())
}

fn ready_tcp(socket: Socket) -> io::Result<TcpListener> {
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}

/// Of open descriptors, to what is permitted: the usual 1,024 are less than the connections and forwarded queries that are served.
fn raise_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard.min(DESCRIPTORS).max(soft), hard);
    }
}

fn bound(at: SocketAddr, is_udp: bool) -> io::Result<Socket> {
    let kind = if is_udp { Type::DGRAM } else { Type::STREAM };
    let socket = Socket::new(Domain::for_address(at), kind, None)?;
    socket.set_nonblocking(true)?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if !is_udp {
        // Connections of an earlier server may be in TIME_WAIT.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&at.into())?;
    Ok(socket)
}

async fn serve_udp(core: Rc<Core>, socket: Rc<Udp>, address: IpAddr) {
    let mut turn = 0_u32;
    while socket.readable().await.is_ok() {
        loop {
            match socket.try_io(Interest::READABLE, || core.batch.borrow_mut().receive(socket.as_fd())) {
                Ok(received) => core.answer_batch(received, &socket, address),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                // An earlier answer could not be delivered.
                Err(e) => tracing::trace!(error = %e, "receiving"),
            }
            turn += 1;
            if turn.is_multiple_of(TURN) {
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Keeps the servers of the host as resolv.conf says.
async fn follow(core: Rc<Core>, path: PathBuf) {
    loop {
        // Before reading, so that no change is missed.
        let watch = resolv::Watch::of(&path);
        read_host(&core, &path);
        match watch {
            Ok(watch) => watch.changed().await,
            Err(e) => {
                tracing::warn!("cannot watch {}: {e}; the servers of the host stay those of now", path.display());
                return;
            }
        }
        tokio::time::sleep(SETTLE).await;
    }
}

fn read_host(core: &Core, path: &Path) {
    let servers = resolv::read(path);
    if *core.host.borrow() != servers {
        tracing::info!(servers = ?servers.list(), "the DNS servers of the host");
        core.cache.borrow_mut().clear();
        *core.host.borrow_mut() = servers;
    }
}
