//! Servers and clients as threads inside namespaces: each answer names the server, and the source address and port that it saw,
//! so that a test asserts both.
//!
//! Request: the client's bytes, for TCP preceded by their length. Answer: `<server's name> <peer>
//! ` and the same bytes.

use crate::host::{Netns, SOON, patient, wait_for};
use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proto {
    Tcp,
    Udp,
}

impl Proto {
    pub const BOTH: [Proto; 2] = [Proto::Tcp, Proto::Udp];

    /// As documents spell it.
    pub fn name(self) -> &'static str {
        match self {
            Proto::Tcp => "tcp",
            Proto::Udp => "udp",
        }
    }
}

/// Every address, of both families.
pub const ANY: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
pub const ANY4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// The answer that a client got.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// The name of the server that answered.
    pub server: String,
    /// The client as the server saw it.
    pub client: SocketAddr,
    /// The server as the client's socket reports it: getpeername, or the source of the answer.
    pub peer: SocketAddr,
    /// The client's own address as its socket reports it.
    pub own: SocketAddr,
}

/// The work of a server's thread until it is told to stop.
type Work = Box<dyn FnOnce(&EventFd) + Send>;

/// Threads that serve until dropped.
pub struct Server {
    stop: Arc<EventFd>,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// True when `socket` is readable; false when the server is to stop.
fn readable(socket: &impl AsFd, stop: &EventFd) -> bool {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return false,
            Ok(_) => {
                let stopped = fds[1].revents().is_none_or(|r| !r.is_empty());
                return !stopped;
            }
        }
    }
}

/// An IPv4 peer of a dual-stack socket, without the mapping.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl Server {
    fn start(netns: &Netns, threads: Vec<Work>) -> Result<Self> {
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let mut server = Self { stop, threads: Vec::new() };
        for thread in threads {
            let stop = Arc::clone(&server.stop);
            server.threads.push(netns.spawn(move || thread(&stop))?);
        }
        Ok(server)
    }

    /// An echo server for `proto` on `ip`:`port` with the name `name`.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub fn echo(netns: &Netns, proto: Proto, ip: IpAddr, port: u16, name: &str) -> Result<Self> {
        let at = SocketAddr::new(ip, port);
        match proto {
            Proto::Tcp => {
                let name = name.to_owned();
                Self::tcp(netns, at, 4, move |stream, peer, stop| drop(echo_stream(stream, peer, stop, &name)))
            }
            Proto::Udp => {
                let socket =
                    netns.run(|| free(|| UdpSocket::bind(at))).with_context(|| format!("cannot bind udp {at}"))?;
                socket.set_nonblocking(true)?;
                let name = name.to_owned();
                Self::start(netns, vec![Box::new(move |stop| echo_datagrams(&socket, stop, &name))])
            }
        }
    }

    /// A TCP echo server for up to `connections` at a time.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub fn echo_for(netns: &Netns, connections: usize, ip: IpAddr, port: u16, name: &str) -> Result<Self> {
        let name = name.to_owned();
        Self::tcp(netns, SocketAddr::new(ip, port), connections, move |stream, peer, stop| {
            drop(echo_stream(stream, peer, stop, &name));
        })
    }

    /// `workers` threads that accept on `at` and hand each connection to `serve`.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub fn tcp(
        netns: &Netns,
        at: SocketAddr,
        workers: usize,
        serve: impl Fn(TcpStream, SocketAddr, &EventFd) + Clone + Send + 'static,
    ) -> Result<Self> {
        let listener = netns.run(|| listen(at)).with_context(|| format!("cannot listen on tcp {at}"))?;
        listener.set_nonblocking(true)?;
        let mut threads: Vec<Work> = Vec::new();
        for _ in 0..workers {
            let (listener, serve) = (listener.try_clone()?, serve.clone());
            threads.push(Box::new(move |stop| {
                while readable(&listener, stop) {
                    // Another worker may have accepted it.
                    if let Ok((stream, peer)) = listener.accept() {
                        serve(stream, plain(peer), stop);
                    }
                }
            }));
        }
        Self::start(netns, threads)
    }
}

/// With a long queue, as a hammer fills the 128 entries of the standard library's.
fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    use nix::sys::socket::{Backlog, listen};
    let listener = free(|| TcpListener::bind(at))?;
    listen(&listener, Backlog::new(4096).unwrap_or(Backlog::MAXCONN))?;
    Ok(listener)
}

fn echo_stream(mut stream: TcpStream, peer: SocketAddr, stop: &EventFd, name: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patient(SOON)))?;
    stream.set_write_timeout(Some(patient(SOON)))?;
    while readable(&stream, stop) {
        let mut len = [0; 4];
        stream.read_exact(&mut len)?;
        let mut data = vec![0; u32::from_be_bytes(len) as usize];
        stream.read_exact(&mut data)?;
        let mut answer = format!("{name} {peer}\n").into_bytes();
        answer.append(&mut data);
        stream.write_all(&(answer.len() as u32).to_be_bytes())?;
        stream.write_all(&answer)?;
    }
    Ok(())
}

fn echo_datagrams(socket: &UdpSocket, stop: &EventFd, name: &str) {
    let mut data = vec![0; 65_536];
    while readable(socket, stop) {
        if let Ok((len, peer)) = socket.recv_from(&mut data) {
            let mut answer = format!("{name} {}\n", plain(peer)).into_bytes();
            answer.extend_from_slice(&data[..len]);
            let _ = socket.send_to(&answer, peer);
        }
    }
}

/// The server's name and the peer it saw, if the rest equals `sent`.
fn parse(answer: &[u8], sent: &[u8]) -> Result<(String, SocketAddr)> {
    let end = answer.iter().position(|b| *b == b'\n').context("an answer without its first line")?;
    let line = String::from_utf8_lossy(&answer[..end]);
    let (server, client) = line.split_once(' ').context("an answer without a peer")?;
    ensure!(
        &answer[end + 1..] == sent,
        "the data came back changed: {} bytes of {}",
        answer.len() - end - 1,
        sent.len()
    );
    Ok((server.to_owned(), client.parse().with_context(|| format!("peer {client}"))?))
}

/// Repeats `call` while it is interrupted: with a time-out set, the kernel does not restart a receive after a signal or its own
/// work on the thread (signal(7)).
///
/// # Errors
/// The other errors of `call`.
pub fn again<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// Repeats `bind` until the port is free: a closed socket stays open for a moment in children that another thread is starting,
/// until they call exec.
///
/// # Errors
/// An error of `bind`; also if the port is still taken after a while.
pub fn free<T>(mut bind: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let start = Instant::now();
    loop {
        match bind() {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && start.elapsed() < patient(SOON) => {
                thread::sleep(Duration::from_millis(5));
            }
            done => return done,
        }
    }
}

/// Sends `data` to an echo server and receives the answer.
///
/// # Errors
/// No answer, or not the same bytes.
pub fn exchange(stream: &mut TcpStream, data: &[u8]) -> Result<(String, SocketAddr)> {
    stream.write_all(&(data.len() as u32).to_be_bytes())?;
    stream.write_all(data).context("send")?;
    let mut len = [0; 4];
    stream.read_exact(&mut len).context("receive")?;
    let mut answer = vec![0; u32::from_be_bytes(len) as usize];
    stream.read_exact(&mut answer).context("receive")?;
    parse(&answer, data)
}

/// Unusual properties of a socket's packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Dress {
    #[default]
    Plain,
    /// UDP without a checksum.
    Unsummed,
    /// An IPv4 header with options, an IPv6 header with destination options; they have no effect.
    Options,
}

impl Dress {
    fn put_on(self, socket: &impl AsFd, v4: bool) -> Result<()> {
        const UDP_NO_CHECK6_TX: i32 = 101;
        match (self, v4) {
            (Dress::Plain, _) => Ok(()),
            (Dress::Unsummed, true) => set_option(socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, &1_i32.to_ne_bytes()),
            (Dress::Unsummed, false) => set_option(socket, libc::IPPROTO_UDP, UDP_NO_CHECK6_TX, &1_i32.to_ne_bytes()),
            // Four "no operation" options (RFC 791 section 3.1); a header with one PadN (RFC 8200 section 4.2).
            (Dress::Options, true) => set_option(socket, libc::IPPROTO_IP, libc::IP_OPTIONS, &[1; 4]),
            (Dress::Options, false) => {
                set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS, &[0, 0, 1, 4, 0, 0, 0, 0])
            }
        }
    }
}

/// # Errors
/// The kernel rejects it.
pub fn set_option(socket: &impl AsFd, level: i32, name: i32, value: &[u8]) -> Result<()> {
    let (fd, len) = (socket.as_fd().as_raw_fd(), value.len() as libc::socklen_t);
    // SAFETY: the socket is open, and the value has the given length.
    let set = unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), len) };
    ensure!(set == 0, "setsockopt {level}/{name}: {}", io::Error::last_os_error());
    Ok(())
}

/// One dial: destination, and source unless left to the kernel.
#[derive(Clone, Debug)]
pub struct Dial {
    pub proto: Proto,
    pub to: SocketAddr,
    /// Address to bind the socket to first.
    pub from: Option<SocketAddr>,
    /// UDP with connect() and send(), else sendto() and recvfrom().
    pub connected: bool,
    pub dress: Dress,
    pub bytes: usize,
    pub patience: Duration,
}

impl Dial {
    pub fn new(proto: Proto, ip: IpAddr, port: u16) -> Self {
        let to = SocketAddr::new(ip, port);
        Self { proto, to, from: None, connected: true, dress: Dress::Plain, bytes: 1_000, patience: patient(SOON) }
    }

    #[must_use]
    pub fn from(mut self, ip: IpAddr, port: u16) -> Self {
        self.from = Some(SocketAddr::new(ip, port));
        self
    }

    /// With sendto() on a socket that is not connected.
    #[must_use]
    pub fn unconnected(mut self) -> Self {
        self.connected = false;
        self
    }

    /// A dressed stream needs a source.
    #[must_use]
    pub fn dressed(mut self, dress: Dress) -> Self {
        self.dress = dress;
        self
    }

    #[must_use]
    pub fn bytes(mut self, bytes: usize) -> Self {
        self.bytes = bytes;
        self
    }

    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Dials inside `netns`, sends a payload and receives the answer.
    ///
    /// # Errors
    /// No answer, or not the same bytes.
    pub fn ask(&self, netns: &Netns) -> Result<Seen> {
        let asked = netns.run(|| match self.proto {
            Proto::Tcp => self.ask_stream(),
            Proto::Udp => self.ask_datagram(),
        });
        asked.with_context(|| self.to_string())
    }

    /// Dials inside `netns` and must get no answer: refused, unreachable or silence.
    ///
    /// # Errors
    /// There was one.
    pub fn must_fail(&self, netns: &Netns) -> Result<()> {
        match self.clone().patience(self.patience.min(Duration::from_millis(400))).ask(netns) {
            Ok(seen) => bail!("{self}: expected no answer, got one: {seen:?}"),
            Err(_) => Ok(()),
        }
    }

    fn payload(&self) -> Vec<u8> {
        (0..self.bytes).map(|i| (i.wrapping_mul(31) >> 3) as u8).collect()
    }

    fn ask_stream(&self) -> Result<Seen> {
        let mut stream = self.connect_stream()?;
        let (server, client) = exchange(&mut stream, &self.payload())?;
        Ok(Seen { server, client, peer: plain(stream.peer_addr()?), own: plain(stream.local_addr()?) })
    }

    /// A TCP connection inside the calling thread's namespace.
    ///
    /// # Errors
    /// Refused, or not made in time.
    pub fn connect_stream(&self) -> Result<TcpStream> {
        let stream = match self.from {
            None => TcpStream::connect_timeout(&self.to, self.patience).context("connect")?,
            Some(from) => self.connect_from(from)?,
        };
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(self.patience))?;
        stream.set_write_timeout(Some(self.patience))?;
        Ok(stream)
    }

    fn connect_from(&self, from: SocketAddr) -> Result<TcpStream> {
        use nix::sys::socket::{
            AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
        };
        let family = if self.to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        self.dress.put_on(&fd, self.to.is_ipv4())?;
        // Also the time-out of connect().
        let seconds = self.patience.as_secs() as i64;
        let patience = nix::sys::time::TimeVal::new(seconds, i64::from(self.patience.subsec_micros()));
        setsockopt(&fd, sockopt::SendTimeout, &patience)?;
        bind(fd.as_raw_fd(), &SockaddrStorage::from(from)).with_context(|| format!("bind {from}"))?;
        connect(fd.as_raw_fd(), &SockaddrStorage::from(self.to)).context("connect")?;
        Ok(TcpStream::from(fd))
    }

    fn ask_datagram(&self) -> Result<Seen> {
        let any = if self.to.is_ipv4() { ANY4 } else { ANY };
        let from = self.from.unwrap_or(SocketAddr::new(any, 0));
        let socket = free(|| UdpSocket::bind(from)).with_context(|| format!("bind {from}"))?;
        socket.set_read_timeout(Some(self.patience))?;
        self.dress.put_on(&socket, self.to.is_ipv4())?;
        let data = self.payload();
        let mut answer = vec![0; 65_536];
        let (len, peer) = if self.connected {
            socket.connect(self.to).context("connect")?;
            socket.send(&data).context("send")?;
            (again(|| socket.recv(&mut answer)).context("receive")?, socket.peer_addr()?)
        } else {
            socket.send_to(&data, self.to).context("sendto")?;
            again(|| socket.recv_from(&mut answer)).context("recvfrom")?
        };
        let (server, client) = parse(&answer[..len], &data)?;
        Ok(Seen { server, client, peer: plain(peer), own: plain(socket.local_addr()?) })
    }
}

impl std::fmt::Display for Dial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} to {}", self.proto.name(), self.to)?;
        if let Some(from) = self.from {
            write!(f, " from {from}")?;
        }
        if self.proto == Proto::Udp && !self.connected { f.write_str(" by sendto") } else { Ok(()) }
    }
}

/// Waits until `dial` is answered: for a path that becomes ready by itself, such as a tentative address.
///
/// # Errors
/// Not in time; the error is that of the last attempt.
pub fn wait_until_answered(netns: &Netns, dial: &Dial) -> Result<Seen> {
    let quick = dial.clone().patience(Duration::from_millis(300));
    wait_for(&format!("an answer to {dial}"), SOON, || quick.ask(netns).ok())
}
