//! ICMP and ICMPv6 echo: a sender on a ping socket, and a watcher that records the sources of a host's echo requests.

use crate::host::{Netns, SOON, patient};
use crate::topology::Family;
use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, recvfrom, sendto, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

fn open(netns: &Netns, family: Family, kind: SockType) -> Result<OwnedFd> {
    let (domain, protocol) = match family {
        Family::V4 => (AddressFamily::Inet, SockProtocol::Icmp),
        Family::V6 => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    netns.run(|| socket(domain, kind, SockFlag::SOCK_CLOEXEC, protocol)).context("cannot open an ICMP socket")
}

fn address(storage: Option<SockaddrStorage>) -> Option<IpAddr> {
    let storage = storage?;
    let v4 = storage.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
    v4.or_else(|| storage.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
}

/// Echo requests with one identifier, as the `ping` program sends them.
pub struct Pinger {
    socket: OwnedFd,
    family: Family,
}

impl Pinger {
    /// # Errors
    /// The namespace rejects ping sockets, or the identifier is in use.
    pub fn new(netns: &Netns, family: Family, identifier: u16) -> Result<Self> {
        netns.set_sysctl("net/ipv4/ping_group_range", "0 0")?;
        let socket = open(netns, family, SockType::Datagram)?;
        let any = match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        // The port of a ping socket is its identifier.
        bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any, identifier))).context("bind")?;
        Ok(Self { socket, family })
    }

    /// Sends one request and receives its reply, which must come from `target` with the same sequence number and bytes.
    ///
    /// # Errors
    /// No reply, or a different one.
    pub fn ping(&self, target: IpAddr, sequence: u16, bytes: usize) -> Result<()> {
        self.ping_within(patient(SOON), target, sequence, bytes)
    }

    /// The same with another time-out.
    ///
    /// # Errors
    /// As [`Pinger::ping`].
    pub fn ping_within(&self, patience: Duration, target: IpAddr, sequence: u16, bytes: usize) -> Result<()> {
        setsockopt(&self.socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(patience.as_millis() as i64))?;
        let (request, reply) = if self.family == Family::V4 { (8, 0) } else { (128, 129) };
        // The kernel fills in checksum and identifier.
        let mut packet = vec![request, 0, 0, 0, 0, 0];
        packet.extend(sequence.to_be_bytes());
        packet.extend((0..bytes).map(|i| i as u8));
        let to = SockaddrStorage::from(SocketAddr::new(target, 0));
        sendto(self.socket.as_raw_fd(), &packet, &to, MsgFlags::empty()).context("send")?;
        let mut answer = vec![0; 65_536];
        let deadline = Instant::now() + patience;
        // With a time-out set, the kernel does not restart a receive that a signal interrupts (signal(7)).
        let (len, from) = loop {
            match recvfrom::<SockaddrStorage>(self.socket.as_raw_fd(), &mut answer) {
                Err(Errno::EINTR) if Instant::now() < deadline => {}
                received => break received.context("receive")?,
            }
        };
        ensure!(address(from) == Some(target), "the reply came from {:?}", address(from));
        ensure!(answer[0] == reply, "expected type {reply}, got {}", answer[0]);
        ensure!(answer[6..len] == packet[6..], "the reply has other bytes or another sequence number");
        Ok(())
    }
}

/// Receives all ICMP of a namespace.
pub struct Watcher {
    socket: OwnedFd,
    family: Family,
}

impl Watcher {
    /// # Errors
    /// Not root.
    pub fn new(netns: &Netns, family: Family) -> Result<Self> {
        let socket = open(netns, family, SockType::Raw)?;
        // The shortest time-out: packets sent so far have arrived.
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 1))?;
        Ok(Self { socket, family })
    }

    /// The sources of the echo requests received so far.
    pub fn sources(&self) -> BTreeSet<IpAddr> {
        let mut sources = BTreeSet::new();
        let mut packet = vec![0; 65_536];
        loop {
            let (len, from) = match recvfrom::<SockaddrStorage>(self.socket.as_raw_fd(), &mut packet) {
                Ok(received) => received,
                Err(Errno::EINTR) => continue,
                Err(_) => return sources,
            };
            // A raw IPv4 socket receives the IP header too.
            let body = match self.family {
                Family::V4 => packet.get(usize::from(packet[0] & 0xf) * 4..len),
                Family::V6 => packet.get(..len),
            };
            let request = if self.family == Family::V4 { 8 } else { 128 };
            if body.and_then(|b| b.first()) == Some(&request)
                && let Some(source) = address(from)
            {
                sources.insert(source);
            }
        }
    }
}
