//! Datagrams of 64 bytes: at full rate, and one at a time.

use super::{GLANCE, Latency, MESSAGE, PATIENCE, Servers, WARM_UP, join, latency, spawn, stay_together};
use crate::host::Netns;
use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

/// Datagrams per system call, so that the path dominates the measurement.
const BATCH: usize = 64;
const RECEIVE_BUFFER: usize = 8 << 20;

/// Datagrams that a sink has received.
pub type Counter = Arc<AtomicU64>;

impl Servers {
    /// Receives and counts. Answers now and then, as servers do: conntrack does not take a flow without an answer for one.
    ///
    /// # Errors
    /// The port is taken.
    pub fn sink(&mut self, netns: &Netns, port: u16) -> Result<Counter> {
        let socket = bind(netns, port)?;
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).context("cannot set a receive buffer")?;
        let counter = Counter::default();
        let counted = Arc::clone(&counter);
        self.add(netns, move |stop| {
            let (mut batch, mut answered, mut message) = (Batch::new(), Instant::now(), [0; MESSAGE]);
            while !stop.load(Ordering::Relaxed) {
                if answered.elapsed() > GLANCE
                    && let Ok((_, from)) = socket.peek_from(&mut message)
                {
                    let _ = socket.send_to(&message, from);
                    answered = Instant::now();
                }
                if let Ok(received) = batch.receive(&socket) {
                    counted.fetch_add(received as u64, Ordering::Relaxed);
                }
            }
        })?;
        Ok(counter)
    }

    /// Sends every datagram back.
    ///
    /// # Errors
    /// The port is taken.
    pub fn datagrams(&mut self, netns: &Netns, port: u16) -> Result<()> {
        let socket = bind(netns, port)?;
        self.add(netns, move |stop: &AtomicBool| {
            stay_together();
            let mut message = [0; MESSAGE];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((len, from)) = socket.recv_from(&mut message) {
                    let _ = socket.send_to(&message[..len], from);
                }
            }
        })
    }
}

fn bind(netns: &Netns, port: u16) -> Result<UdpSocket> {
    let socket = netns.run(|| UdpSocket::bind(("0.0.0.0", port))).with_context(|| format!("bind udp {port}"))?;
    socket.set_read_timeout(Some(GLANCE))?;
    Ok(socket)
}

fn dial(to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Datagrams per second, sent and received.
#[derive(Clone, Copy, Debug)]
pub struct Blast {
    pub sent: f64,
    pub received: f64,
}

/// One flow at full rate, for `time` after a warm-up; `counter` is that of the sink at `to`.
///
/// # Errors
/// Nothing can be sent, or nothing arrives.
pub fn blast(netns: &Netns, to: SocketAddr, counter: &Counter, time: Duration) -> Result<Blast> {
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Counter::default());
    let sender = sender(netns, to, Arc::clone(&stop), Arc::clone(&sent))?;
    sleep(WARM_UP);
    let read = || (Instant::now(), sent.load(Ordering::Relaxed), counter.load(Ordering::Relaxed));
    let before = read();
    sleep(time);
    let after = read();
    stop.store(true, Ordering::Relaxed);
    join(sender)??;
    // Datagrams still in the sink's buffer belong to this blast and not to the next.
    sleep(Duration::from_millis(20));
    ensure!(after.2 > before.2, "not one of {} datagrams has arrived at {to}", after.1 - before.1);
    let seconds = (after.0 - before.0).as_secs_f64();
    Ok(Blast { sent: (after.1 - before.1) as f64 / seconds, received: (after.2 - before.2) as f64 / seconds })
}

/// Datagrams sent by one flow.
#[derive(Clone, Copy, Debug)]
pub struct Flood {
    pub datagrams: u64,
    pub seconds: f64,
}

/// As [`blast`], with the sink on another machine: counts all sent datagrams; the sink's own count gives the received ones.
///
/// # Errors
/// Nothing can be sent.
pub fn flood(netns: &Netns, to: SocketAddr, time: Duration) -> Result<Flood> {
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Counter::default());
    let begun = Instant::now();
    let sender = sender(netns, to, Arc::clone(&stop), Arc::clone(&sent))?;
    sleep(time);
    stop.store(true, Ordering::Relaxed);
    join(sender)??;
    Ok(Flood { datagrams: sent.load(Ordering::Relaxed), seconds: begun.elapsed().as_secs_f64() })
}

/// Sends until `stop`, and counts.
fn sender(netns: &Netns, to: SocketAddr, stop: Arc<AtomicBool>, sent: Counter) -> Result<JoinHandle<Result<()>>> {
    spawn(netns, move || {
        let socket = dial(to)?;
        let mut batch = Batch::new();
        while !stop.load(Ordering::Relaxed) {
            match batch.send(&socket) {
                Ok(n) => drop(sent.fetch_add(n as u64, Ordering::Relaxed)),
                // The queue of the link is full, or an ICMP error for an earlier datagram.
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOBUFS | libc::ECONNREFUSED)) => {}
                Err(e) => return Err(e).with_context(|| format!("sendmmsg to {to}")),
            }
        }
        Ok(())
    })
}

/// One datagram at a time and its answer.
///
/// # Errors
/// A datagram is lost.
pub fn round_trips(netns: &Netns, to: SocketAddr, time: Duration) -> Result<Latency> {
    join(spawn(netns, move || -> Result<Latency> {
        let socket = dial(to)?;
        let mut message = [7; MESSAGE];
        latency(to, time, || {
            socket.send(&message)?;
            crate::traffic::again(|| socket.recv(&mut message)).map(drop)
        })
    })?)?
}

/// Buffers for [`BATCH`] datagrams, with the headers for sendmmsg(2) and recvmmsg(2).
struct Batch {
    data: Vec<[u8; MESSAGE]>,
    vectors: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

impl Batch {
    fn new() -> Self {
        let mut data = vec![[7; MESSAGE]; BATCH];
        let mut vectors: Vec<_> =
            data.iter_mut().map(|d| libc::iovec { iov_base: d.as_mut_ptr().cast(), iov_len: MESSAGE }).collect();
        let header = |vector: &mut libc::iovec| {
            // SAFETY: a structure of integers and pointers, for which all zeroes is a valid value.
            let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header
        };
        let headers = vectors.iter_mut().map(header).collect();
        Self { data, vectors, headers }
    }

    fn send(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        debug_assert!(self.data.len() == BATCH && self.vectors.len() == BATCH);
        // SAFETY: the headers point to vectors and data that `self` owns and never moves or resizes.
        let n = unsafe { libc::sendmmsg(socket.as_raw_fd(), self.headers.as_mut_ptr(), BATCH as u32, 0) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// Waits for one datagram and receives all that are queued.
    fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        let (fd, headers) = (socket.as_raw_fd(), self.headers.as_mut_ptr());
        // SAFETY: as in `send`; the kernel writes no more than each vector's length.
        let n = unsafe { libc::recvmmsg(fd, headers, BATCH as u32, libc::MSG_WAITFORONE, std::ptr::null_mut()) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }
}
