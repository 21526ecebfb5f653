//! Packets that no ordinary socket sends, and the ICMP errors that sockets receive.

use crate::host::{Netns, SOON, wait_for};
use crate::topology::Family;
use crate::traffic::set_option;
use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage, recvfrom, recvmsg, sendto, setsockopt,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use std::io::IoSliceMut;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// A socket for packets of one protocol; for [`libc::IPPROTO_RAW`] one that sends whole IP packets and receives none.
pub struct Raw {
    socket: OwnedFd,
    family: Family,
}

impl Raw {
    /// # Errors
    /// Not root.
    pub fn new(netns: &Netns, family: Family, protocol: i32) -> Result<Self> {
        let domain = if family == Family::V4 { libc::AF_INET } else { libc::AF_INET6 };
        // SAFETY: three numbers.
        let fd = netns.run(|| match unsafe { libc::socket(domain, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) } {
            -1 => Err(std::io::Error::last_os_error()),
            fd => Ok(fd),
        });
        // SAFETY: the descriptor was just opened and has no other owner.
        let socket = unsafe { OwnedFd::from_raw_fd(fd.context("cannot open a raw socket")?) };
        Ok(Self { socket, family })
    }

    /// # Errors
    /// The kernel rejects the packet.
    pub fn send(&self, to: IpAddr, packet: &[u8]) -> Result<()> {
        let address = SockaddrStorage::from(SocketAddr::new(to, 0));
        let sent = sendto(self.socket.as_raw_fd(), packet, &address, MsgFlags::empty());
        ensure!(sent.with_context(|| format!("send to {to}"))? == packet.len(), "a part was sent");
        Ok(())
    }

    /// The next packet for which `is_wanted`, without its network header, and its source.
    ///
    /// # Errors
    /// None comes in time.
    pub fn receive(&self, patience: Duration, is_wanted: impl Fn(&[u8]) -> bool) -> Result<(IpAddr, Vec<u8>)> {
        let deadline = Instant::now() + patience;
        let mut packet = vec![0; 65_536];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "no packet within {} ms", patience.as_millis());
            let timeout = TimeVal::microseconds((left.as_micros() as i64).max(1));
            setsockopt(&self.socket, sockopt::ReceiveTimeout, &timeout)?;
            let (len, from) = match recvfrom::<SockaddrStorage>(self.socket.as_raw_fd(), &mut packet) {
                Err(Errno::EINTR | Errno::EAGAIN) => continue,
                received => received.context("receive")?,
            };
            // A raw IPv4 socket receives the IP header too.
            let header = if self.family == Family::V4 { usize::from(packet[0] & 0xf) * 4 } else { 0 };
            let from = from.and_then(|a| address(&a)).context("a packet without a sender")?;
            if let Some(body) = packet.get(header..len).filter(|b| is_wanted(b)) {
                return Ok((from, body.to_vec()));
            }
        }
    }
}

fn address(storage: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = storage.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
    v4.or_else(|| storage.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
}

/// An ICMP error as reported to the socket (`ip(7)`, IP_RECVERR). The report proves that the error quoted the socket's own
/// packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Told {
    pub errno: i32,
    /// The sender of the error.
    pub offender: IpAddr,
    /// The MTU, of "too big".
    pub info: u32,
    /// The destination of the packet in error.
    pub to: SocketAddr,
}

/// A connected datagram socket that receives errors.
pub struct Probe {
    socket: UdpSocket,
    family: Family,
}

impl Probe {
    /// # Errors
    /// No socket.
    pub fn new(netns: &Netns, to: SocketAddr) -> Result<Self> {
        let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
        let any: IpAddr = if to.is_ipv4() { "0.0.0.0" } else { "::" }.parse()?;
        let socket = netns.run(|| UdpSocket::bind((any, 0)))?;
        netns.run(|| socket.connect(to))?;
        let probe = Self { socket, family };
        probe.set((libc::IPPROTO_IP, libc::IP_RECVERR), (libc::IPPROTO_IPV6, libc::IPV6_RECVERR), 1)?;
        Ok(probe)
    }

    fn set(&self, v4: (i32, i32), v6: (i32, i32), value: i32) -> Result<()> {
        let (level, name) = if self.family == Family::V4 { v4 } else { v6 };
        set_number(&self.socket, level, name, value)
    }

    /// Sets the TTL or hop limit of sent packets.
    ///
    /// # Errors
    /// The kernel rejects it.
    pub fn hops(self, hops: i32) -> Result<Self> {
        self.set((libc::IPPROTO_IP, libc::IP_TTL), (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS), hops)?;
        Ok(self)
    }

    /// Disables fragmentation.
    ///
    /// # Errors
    /// The kernel rejects it.
    pub fn whole(self) -> Result<Self> {
        self.set(
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
            (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
            libc::IP_PMTUDISC_DO,
        )?;
        Ok(self)
    }

    /// Sends `bytes` bytes repeatedly until an error is reported, since routers limit the rate of errors.
    ///
    /// # Errors
    /// None is reported in time.
    pub fn error_of(&self, bytes: usize) -> Result<Told> {
        self.error_within(SOON, bytes)
    }

    /// The same with another time-out.
    ///
    /// # Errors
    /// As [`Probe::error_of`].
    pub fn error_within(&self, patience: Duration, bytes: usize) -> Result<Told> {
        let data = vec![7; bytes];
        let mut sent = None;
        wait_for("an ICMP error", patience, || {
            if sent.is_none_or(|at: Instant| at.elapsed() > Duration::from_millis(300)) {
                // A pending error fails this call.
                let _ = self.socket.send(&data);
                sent = Some(Instant::now());
            }
            self.told().transpose()
        })?
    }

    /// The errno of sending a datagram of that size.
    pub fn refusal_of(&self, bytes: usize) -> Option<i32> {
        self.socket.send(&vec![7; bytes]).err().and_then(|e| e.raw_os_error())
    }

    fn told(&self) -> Result<Option<Told>> {
        let mut control = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
        let mut data = vec![0; 65_536];
        let mut parts = [IoSliceMut::new(&mut data)];
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let got = recvmsg::<SockaddrStorage>(self.socket.as_raw_fd(), &mut parts, Some(&mut control), flags);
        let message = match got {
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            got => got.context("the error queue")?,
        };
        let to = message.address.as_ref().and_then(|a| {
            let v4 = a.as_sockaddr_in().map(|a| SocketAddr::V4((*a).into()));
            v4.or_else(|| a.as_sockaddr_in6().map(|a| SocketAddr::V6((*a).into())))
        });
        for part in message.cmsgs()? {
            let (error, offender) = match part {
                ControlMessageOwned::Ipv4RecvErr(e, from) => (e, from.map(|a| IpAddr::V4(SockaddrIn::from(a).ip()))),
                ControlMessageOwned::Ipv6RecvErr(e, from) => (e, from.map(|a| IpAddr::V6(SockaddrIn6::from(a).ip()))),
                _ => continue,
            };
            let unknown = if self.family == Family::V4 { "0.0.0.0" } else { "::" };
            let offender = offender.map_or_else(|| unknown.parse(), Ok)?;
            let to = to.context("an error without what it is about")?;
            return Ok(Some(Told { errno: error.ee_errno as i32, offender, info: error.ee_info, to }));
        }
        bail!("an error without its control message")
    }
}

/// The errno of a TCP connection with so few hops.
///
/// # Errors
/// It succeeds.
pub fn connect_within(netns: &Netns, to: SocketAddr, hops: i32) -> Result<Errno> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, connect, socket};
    netns.run(|| {
        let v4 = to.is_ipv4();
        let domain = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let fd = socket(domain, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        let (level, ttl, told) = match v4 {
            true => (libc::IPPROTO_IP, libc::IP_TTL, libc::IP_RECVERR),
            false => (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, libc::IPV6_RECVERR),
        };
        set_number(&fd, level, ttl, hops)?;
        set_number(&fd, level, told, 1)?;
        setsockopt(&fd, sockopt::SendTimeout, &TimeVal::seconds(SOON.as_secs() as i64 * 2))?;
        match connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
            Ok(()) => bail!("connected to {to}"),
            Err(e) => Ok(e),
        }
    })
}

fn set_number(socket: &impl AsFd, level: i32, name: i32, value: i32) -> Result<()> {
    set_option(socket, level, name, &value.to_ne_bytes())
}

/// CRC32c (RFC 3720 §12.1), SCTP's checksum, in transmission order.
pub fn crc32c(bytes: &[u8]) -> [u8; 4] {
    let crc = bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    });
    (!crc).to_le_bytes()
}
