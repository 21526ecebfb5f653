//! Heavy traffic without loss: bulk transfers with checksums, and short connections by the hundred thousand.

use crate::host::{Netns, at_once};
use crate::traffic::{Proto, Server, again};
use anyhow::{Context, Result, ensure};
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Bytes that are generated, sent and summed at a time.
const BLOCK: usize = 256 * 1024;
/// Time-out without a byte.
const STALL: Duration = Duration::from_secs(20);

/// A non-repeating byte sequence, so that a lost, duplicated or misplaced block changes the sum.
struct Pattern {
    base: Vec<u64>,
    block: u64,
    bytes: Vec<u8>,
}

impl Pattern {
    fn new(seed: u64) -> Self {
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        Self { base: (0..BLOCK / 8).map(|_| next()).collect(), block: 0, bytes: vec![0; BLOCK] }
    }

    fn next(&mut self) -> &[u8] {
        self.block += 1;
        let salt = self.block.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for (bytes, word) in self.bytes.as_chunks_mut::<8>().0.iter_mut().zip(&self.base) {
            *bytes = (word ^ salt).to_le_bytes();
        }
        &self.bytes
    }
}

/// Depends on every byte and on its position.
fn sum(before: u64, block: &[u8]) -> u64 {
    block.as_chunks::<8>().0.iter().fold(before, |sum, bytes| {
        (sum ^ u64::from_le_bytes(*bytes)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23)
    })
}

fn send_blocks(stream: &mut TcpStream, seed: u64, blocks: u64) -> Result<u64> {
    let mut pattern = Pattern::new(seed);
    let mut total = 0;
    for _ in 0..blocks {
        let block = pattern.next();
        total = sum(total, block);
        stream.write_all(block).context("send")?;
    }
    Ok(total)
}

fn receive_blocks(stream: &mut TcpStream, blocks: u64) -> Result<u64> {
    let mut block = vec![0; BLOCK];
    let mut total = 0;
    for n in 0..blocks {
        stream.read_exact(&mut block).with_context(|| format!("receive, after {} MiB", (n * BLOCK as u64) >> 20))?;
        total = sum(total, &block);
    }
    Ok(total)
}

fn read_word(stream: &mut TcpStream) -> Result<u64> {
    let mut word = [0; 8];
    stream.read_exact(&mut word).context("receive")?;
    Ok(u64::from_be_bytes(word))
}

/// A server that receives a bulk transfer, returns its sum, and sends as much back with its sum.
///
/// # Errors
/// The address cannot be bound.
pub fn bulk_server(netns: &Netns, ip: IpAddr, port: u16) -> Result<Server> {
    Server::tcp(netns, SocketAddr::new(ip, port), 4, |stream, _, _| drop(serve_bulk(stream)))
}

fn serve_bulk(mut stream: TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(STALL))?;
    stream.set_write_timeout(Some(STALL))?;
    let (seed, blocks) = (read_word(&mut stream)?, read_word(&mut stream)?);
    let received = receive_blocks(&mut stream, blocks)?;
    stream.write_all(&received.to_be_bytes())?;
    let sent = send_blocks(&mut stream, seed ^ 0xffff, blocks)?;
    stream.write_all(&sent.to_be_bytes())?;
    Ok(())
}

/// Sends half of `bytes` to the server and half back, with equal sums at both ends; returns the time.
///
/// # Errors
/// The connection fails or stalls, or the sums differ.
pub fn bulk(netns: &Netns, to: SocketAddr, bytes: u64) -> Result<Duration> {
    let blocks = (bytes / 2).div_ceil(BLOCK as u64);
    let begun = Instant::now();
    netns.run(|| -> Result<()> {
        let mut stream = TcpStream::connect_timeout(&to, STALL).context("connect")?;
        stream.set_read_timeout(Some(STALL))?;
        stream.set_write_timeout(Some(STALL))?;
        stream.write_all(&[to.port().into(), blocks].map(u64::to_be_bytes).concat())?;
        let sent = send_blocks(&mut stream, to.port().into(), blocks)?;
        ensure!(read_word(&mut stream)? == sent, "the server received other bytes than were sent");
        let received = receive_blocks(&mut stream, blocks)?;
        ensure!(read_word(&mut stream)? == received, "other bytes were received than the server sent");
        Ok(())
    })?;
    Ok(begun.elapsed())
}

/// Result of a hammer.
#[derive(Debug)]
pub struct Hammered {
    pub took: Duration,
    /// Connections that took a second or more, probably with a retransmission.
    pub slow: usize,
    /// The first few errors, and their number.
    pub errors: Vec<String>,
    pub failed: usize,
}

/// A server that answers each connection's one request with the same bytes, and closes after the client: TIME-WAIT is then on
/// the client's side (RFC 9293 §3.6.1). Behind one address there are 64,512 ports for all clients, and a server in TIME-WAIT
/// would refuse each for a minute.
///
/// # Errors
/// The address cannot be bound.
pub fn hammer_server(netns: &Netns, ip: IpAddr, port: u16) -> Result<Server> {
    Server::tcp(netns, SocketAddr::new(ip, port), 4, |mut stream, _, _| {
        let _ = stream.set_read_timeout(Some(STALL));
        let mut request = [0; 64];
        if stream.read_exact(&mut request).is_ok() {
            let _ = stream.write_all(&request);
            let _ = stream.read(&mut request);
        }
    })
}

/// `connections` of one request each, by four clients; every answer must equal its request.
///
/// # Errors
/// The namespace rejects the settings for so many connections.
pub fn hammer(netns: &Netns, to: SocketAddr, connections: u64) -> Result<Hammered> {
    hammer_as(netns, 0, Proto::Tcp, to, connections)
}

/// The same over either protocol, with requests that name their `owner`. A datagram has to return too, at the first attempt,
/// from [`Server::echo`].
///
/// # Errors
/// As [`hammer`].
pub fn hammer_as(netns: &Netns, owner: u16, proto: Proto, to: SocketAddr, connections: u64) -> Result<Hammered> {
    // More ports, reused after a second: one client of one service would run out of them.
    netns.set_sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
    netns.set_sysctl("net/ipv4/tcp_tw_reuse", "1")?;
    let (next, slow, failed) = (AtomicU64::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let errors = std::sync::Mutex::new(Vec::new());
    let begun = Instant::now();
    at_once(4, &[(); 4], |()| {
        netns.run(|| {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= connections {
                    return;
                }
                let start = Instant::now();
                if let Err(e) = request(proto, to, u64::from(owner) << 48 | n) {
                    failed.fetch_add(1, Ordering::Relaxed);
                    let mut errors = errors.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    if errors.len() < 5 {
                        errors.push(format!("connection {n}: {e:#}"));
                    }
                }
                if start.elapsed() >= Duration::from_secs(1) {
                    slow.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Ok(())
    })?;
    let errors = errors.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(Hammered { took: begun.elapsed(), slow: slow.into_inner(), errors, failed: failed.into_inner() })
}

fn request(proto: Proto, to: SocketAddr, n: u64) -> Result<()> {
    let request = [n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes(); 8].concat();
    let mut answer = Vec::with_capacity(64);
    match proto {
        Proto::Tcp => {
            let mut stream = TcpStream::connect(to).context("connect")?;
            stream.set_read_timeout(Some(STALL))?;
            stream.write_all(&request).context("send")?;
            answer.resize(request.len(), 0);
            stream.read_exact(&mut answer).context("receive")?;
            stream.shutdown(Shutdown::Write).context("close")?;
            stream.read_to_end(&mut answer).context("receive the end")?;
        }
        Proto::Udp => {
            let any: IpAddr = if to.is_ipv4() { "0.0.0.0" } else { "::" }.parse()?;
            let socket = UdpSocket::bind((any, 0))?;
            socket.set_read_timeout(Some(STALL))?;
            socket.connect(to)?;
            socket.send(&request).context("send")?;
            answer.resize(1_024, 0);
            let own = socket.local_addr()?;
            let len = again(|| socket.recv(&mut answer)).with_context(|| format!("receive at {own}"))?;
            answer.truncate(len);
            // After the line with the client's address.
            answer.drain(..=answer.iter().position(|b| *b == b'\n').context("an answer of one line")?);
        }
    }
    ensure!(answer == request, "the answer is not the request: {} bytes", answer.len());
    Ok(())
}
