//! Requests of a client: pages and answers, each with a deadline, from the namespace of the calling thread.

use crate::traffic::again;
use anyhow::{Context, Result, bail, ensure};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// A first packet may wait for neighbour resolution, and a loaded machine is slow.
const PATIENCE: Duration = Duration::from_secs(3);

/// The body of `http://to/`.
///
/// # Errors
/// No connection, or an answer that is not a page.
pub fn page(to: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).with_context(|| format!("connect to {to}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET / HTTP/1.0\r\nHost: {to}\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("answer of {to}"))?;
    ensure!(stream.peer_addr()? == to, "dialled {to}, but the socket says {}", stream.peer_addr()?);
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("{to} answered {answer:?}"))?;
    ensure!(head.starts_with("HTTP/1.") && head.contains(" 200 "), "{to} answered {head:?}");
    Ok(body.to_owned())
}

/// One line from the `peer` at `to`, by TCP.
///
/// # Errors
/// No connection, or no answer.
pub fn tcp(to: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).with_context(|| format!("connect to {to}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"who\n")?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("answer of {to}"))?;
    Ok(answer.trim_end().to_owned())
}

/// One answer from the `peer` at `to` to an unconnected socket; it must come from the address dialled.
///
/// # Errors
/// No answer, or one from another address.
pub fn udp(to: SocketAddr) -> Result<String> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send_to(b"who\n", to)?;
    let mut buffer = [0; 512];
    let (len, from) = again(|| socket.recv_from(&mut buffer)).with_context(|| format!("answer of {to}"))?;
    ensure!(from == to, "sent to {to}, answered by {from}");
    Ok(String::from_utf8_lossy(&buffer[..len]).trim_end().to_owned())
}

/// As [`udp`], from a connected socket.
///
/// # Errors
/// No answer.
pub fn udp_connected(to: SocketAddr) -> Result<String> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(b"who\n")?;
    let mut buffer = [0; 512];
    let len = again(|| socket.recv(&mut buffer)).with_context(|| format!("answer of {to}"))?;
    Ok(String::from_utf8_lossy(&buffer[..len]).trim_end().to_owned())
}

/// Expects no answer at `to`: refused, unreachable, or silent for a second.
///
/// # Errors
/// There is an answer.
pub fn silent(to: SocketAddr) -> Result<()> {
    // An accept alone proves nothing: Podman before 6 listens on published ports itself, and never answers.
    let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_secs(1)) else { return Ok(()) };
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = [0; 64];
    match again(|| stream.read(&mut answer)) {
        Ok(len) if len > 0 => bail!("{to} answered {:?}", String::from_utf8_lossy(&answer[..len])),
        _ => Ok(()),
    }
}

/// Repeats `f` until it succeeds or `limit` has passed.
///
/// # Errors
/// The last failure of `f`.
pub fn eventually<T>(limit: Duration, mut f: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match f() {
            Ok(value) => return Ok(value),
            Err(e) if Instant::now() > deadline => return Err(e),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}
