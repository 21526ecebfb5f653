//! Short connections and round trips over TCP.

use super::{GLANCE, Latency, MESSAGE, PATIENCE, Servers, WARM_UP, join, latency, spawn, spoken, stay_together};
use crate::host::Netns;
use anyhow::{Context, Result, ensure};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, connect, listen, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Concurrent clients, and accepting threads.
const CLIENTS: usize = 4;
/// A connection this slow has probably had a retransmission.
const SLOW: Duration = Duration::from_millis(900);

/// Result of a second of short connections.
#[derive(Clone, Debug, Default)]
pub struct Rate {
    pub per_second: f64,
    pub connections: u64,
    pub failed: u64,
    pub slow: u64,
    pub error: Option<String>,
}

impl Servers {
    /// Answers one request per connection and closes first, as HTTP/1.0 does: the client's port is free at once.
    ///
    /// # Errors
    /// The port is taken.
    pub fn connections(&mut self, netns: &Netns, port: u16) -> Result<()> {
        let listener = listener(netns, port)?;
        for _ in 0..CLIENTS {
            let listener = listener.try_clone()?;
            self.add(netns, move |stop| {
                while !stop.load(Ordering::Relaxed) {
                    let Ok((mut stream, _)) = listener.accept() else { continue };
                    let _ = request(&mut stream, stop).and_then(|request| stream.write_all(&request));
                }
            })?;
        }
        Ok(())
    }

    /// Answers every request of one connection at a time.
    ///
    /// # Errors
    /// The port is taken.
    pub fn round_trips(&mut self, netns: &Netns, port: u16) -> Result<()> {
        let listener = listener(netns, port)?;
        self.add(netns, move |stop| {
            stay_together();
            while !stop.load(Ordering::Relaxed) {
                if let Ok((stream, _)) = listener.accept() {
                    let _ = answer_all(stream, stop);
                }
            }
        })
    }
}

fn listener(netns: &Netns, port: u16) -> Result<TcpListener> {
    let listener = netns.run(|| TcpListener::bind(("0.0.0.0", port))).with_context(|| format!("listen on {port}"))?;
    listen(&listener, Backlog::new(4096).unwrap_or(Backlog::MAXCONN))?;
    // Also how long accept() waits, and what accepted sockets inherit.
    setsockopt(&listener, sockopt::ReceiveTimeout, &time_value(GLANCE))?;
    Ok(listener)
}

fn time_value(time: Duration) -> TimeVal {
    TimeVal::new(time.as_secs() as i64, i64::from(time.subsec_micros()))
}

/// Also where it takes longer than a glance: in emulation, or behind a loss.
fn request(stream: &mut TcpStream, stop: &AtomicBool) -> io::Result<[u8; MESSAGE]> {
    let (mut request, mut len) = ([0; MESSAGE], 0);
    while len < MESSAGE {
        match stream.read(&mut request[len..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(more) => len += more,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && !stop.load(Ordering::Relaxed) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(request)
}

fn answer_all(mut stream: TcpStream, stop: &AtomicBool) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut request = [0; MESSAGE];
    loop {
        match stream.read(&mut request) {
            Ok(0) => return Ok(()),
            Ok(len) => stream.write_all(&request[..len])?,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && !stop.load(Ordering::Relaxed) => {}
            Err(e) => return Err(e),
        }
    }
}

/// connect, request, answer, close: by four clients for `time` after a warm-up.
///
/// # Errors
/// The first connection fails.
pub fn connections(netns: &Netns, to: SocketAddr, time: Duration) -> Result<Rate> {
    netns.run(|| once(to)).with_context(|| format!("the first connection to {to}"))?;
    let begin = Instant::now() + WARM_UP;
    let clients: Vec<_> =
        (0..CLIENTS).map(|_| spawn(netns, move || one_client(to, begin, time))).collect::<Result<_>>()?;
    let mut all = Rate::default();
    for client in clients {
        let one = join(client)?;
        all.per_second += one.per_second;
        all.connections += one.connections;
        all.failed += one.failed;
        all.slow += one.slow;
        all.error = all.error.or(one.error);
    }
    Ok(all)
}

fn one_client(to: SocketAddr, begin: Instant, time: Duration) -> Rate {
    let mut rate = Rate::default();
    let mut counted = 0_u64;
    loop {
        let start = Instant::now();
        let done = once(to);
        let end = Instant::now();
        rate.connections += 1;
        match done {
            Ok(()) if end > begin => counted += 1,
            Ok(()) => {}
            Err(e) => {
                rate.failed += 1;
                rate.error.get_or_insert(format!("{e:#}"));
            }
        }
        rate.slow += u64::from(end - start > SLOW);
        if end > begin + time {
            rate.per_second = counted as f64 / (end - begin).as_secs_f64();
            return rate;
        }
    }
}

fn once(to: SocketAddr) -> Result<()> {
    let mut stream = dial(to)?;
    stream.write_all(&[7; MESSAGE]).context("send")?;
    let mut answer = [0; 2 * MESSAGE];
    let mut len = 0;
    loop {
        match stream.read(&mut answer[len..]).map_err(spoken).context("receive")? {
            0 => break,
            more => len += more,
        }
    }
    ensure!(len == MESSAGE, "an answer of {len} bytes instead of {MESSAGE}");
    Ok(())
}

/// Blocking, with a time-out: a non-blocking connect would add system calls to the measurement.
fn dial(to: SocketAddr) -> Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).context("socket")?;
    setsockopt(&fd, sockopt::SendTimeout, &time_value(PATIENCE))?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &time_value(PATIENCE))?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(to)).map_err(|e| spoken(e.into())).context("connect")?;
    Ok(TcpStream::from(fd))
}

/// One request at a time over one connection.
///
/// # Errors
/// It breaks.
pub fn round_trips(netns: &Netns, to: SocketAddr, time: Duration) -> Result<Latency> {
    join(spawn(netns, move || -> Result<Latency> {
        let mut stream = dial(to)?;
        stream.set_nodelay(true)?;
        let mut message = [7; MESSAGE];
        latency(to, time, || {
            stream.write_all(&message)?;
            stream.read_exact(&mut message)
        })
    })?)?
}
