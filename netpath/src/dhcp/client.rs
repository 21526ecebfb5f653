//! The exchanges of a client with servers, each in the network namespace of the calling thread. What is kept between them is a [`Lease`].

use super::lease::{Lease, Lease4};
use super::message::{Ask, Identity, Reply, decode, encode};
use super::socket::{BROADCAST, PacketSocket};
use crate::model::error::{Context, Error, Result};
use socket2::{Domain, Socket, Type};
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

/// Between two messages of one exchange, at first and at most.
pub(super) const FIRST_PAUSE: Duration = Duration::from_secs(1);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(16);
/// Requests for one offer.
pub(super) const TRIES: u32 = 3;
/// Between two looks whether the exchange is to end.
pub(super) const LOOK: Duration = Duration::from_millis(100);

/// A client on one interface.
pub struct Client<'a> {
    pub index: u32,
    pub interface: &'a str,
    pub who: &'a Identity,
    /// Whether the exchange is to end early.
    pub stop: &'a dyn Fn() -> bool,
}

/// To the request to extend a lease.
pub enum Answer {
    Granted(Lease),
    /// DHCPNAK: the address must not be used any longer.
    Refused,
    Nothing,
}

impl Client<'_> {
    /// Asks all servers for an address; `None`: none has granted one by `until`.
    ///
    /// # Errors
    /// The interface cannot be used, or the exchange was stopped.
    pub fn acquire(&self, until: Instant) -> Result<Option<Lease>> {
        match self.who.iaid {
            None => Ok(self.acquire4(until)?.map(Lease::V4)),
            Some(iaid) => Ok(self.acquire6(iaid, until)?.map(Lease::V6)),
        }
    }

    /// Asks for the extension of a lease: its server, or with `any` all servers.
    ///
    /// # Errors
    /// The interface cannot be used, or the exchange was stopped.
    pub fn renew(&self, lease: &Lease, any: bool, until: Instant) -> Result<Answer> {
        match lease {
            Lease::V4(lease) => self.renew4(lease, any, until),
            Lease::V6(lease) => self.renew6(lease, any, until),
        }
    }

    /// Gives the address back: from its own interface, or from another one of the same network if it is gone. Nothing waits for a
    /// neighbour to be found.
    ///
    /// # Errors
    /// The interface cannot be used.
    pub fn release(&self, lease: &Lease) -> Result<()> {
        match lease {
            Lease::V4(lease) => self.release4(lease),
            Lease::V6(lease) => self.release6(lease),
        }
    }

    fn acquire4(&self, until: Instant) -> Result<Option<Lease4>> {
        let socket = PacketSocket::open(self.index)?;
        let (xid, begun) = (xid(), Instant::now());
        let mut offer: Option<Lease4> = None;
        let (mut pause, mut tries) = (FIRST_PAUSE, 0);
        while Instant::now() < until {
            let ask = offer.as_ref().map_or(Ask::Discover, Ask::Request);
            let seconds = u16::try_from(begun.elapsed().as_secs()).unwrap_or(u16::MAX);
            let message = encode(self.who, xid, seconds, &ask)?;
            socket.send((self.who.mac, BROADCAST), (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST), &message)?;
            let next = (Instant::now() + pause).min(until);
            match self.await_reply(&socket, xid, next, |reply| match reply {
                Reply::Offer(_) => offer.is_none(),
                Reply::Ack(_) | Reply::Nak => offer.is_some(),
            })? {
                Some(Reply::Offer(lease)) => (offer, pause, tries) = (Some(lease), FIRST_PAUSE, 0),
                Some(Reply::Ack(lease)) => return Ok(Some(lease)),
                // A server that takes back its own offers is not asked at once.
                Some(Reply::Nak) => {
                    offer = None;
                    self.await_reply(&socket, xid, next, |_| false)?;
                }
                None => {
                    tries += 1;
                    if offer.is_some() && tries == TRIES {
                        (offer, tries) = (None, 0);
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
        Ok(None)
    }

    fn renew4(&self, lease: &Lease4, any: bool, until: Instant) -> Result<Answer> {
        // Servers broadcast refusals, which a socket with the lease's address does not get.
        let socket = PacketSocket::open(self.index)?;
        // Also where nothing is sent by it: without it the kernel tells the server that the port is closed.
        let own = self.own_socket(lease);
        let (xid, begun) = (xid(), Instant::now());
        let mut pause = FIRST_PAUSE;
        while Instant::now() < until {
            let seconds = u16::try_from(begun.elapsed().as_secs()).unwrap_or(u16::MAX);
            let message = encode(self.who, xid, seconds, &Ask::Renew(lease))?;
            if any {
                socket.send((self.who.mac, BROADCAST), (lease.address.addr(), Ipv4Addr::BROADCAST), &message)?;
            } else {
                let sent = own
                    .as_ref()
                    .map_err(ToString::to_string)
                    .and_then(|s| send(s, lease, &message).map_err(|e| e.to_string()));
                if let Err(e) = sent {
                    tracing::debug!(interface = self.interface, "a DHCP server cannot be asked: {e}");
                }
            }
            let next = (Instant::now() + pause).min(until);
            match self.await_reply(&socket, xid, next, |reply| !matches!(reply, Reply::Offer(_)))? {
                Some(Reply::Ack(lease)) => return Ok(Answer::Granted(Lease::V4(lease))),
                Some(_) => return Ok(Answer::Refused),
                None => pause = (pause * 2).min(LONGEST_PAUSE),
            }
        }
        Ok(Answer::Nothing)
    }

    /// To the hardware address that the lease came from.
    fn release4(&self, lease: &Lease4) -> Result<()> {
        let message = encode(self.who, xid(), 0, &Ask::Release(lease))?;
        let socket = PacketSocket::open(self.index)?;
        socket.send((self.who.mac, lease.server_mac), (lease.address.addr(), lease.server), &message)
    }

    /// With the lease's address and the client's port.
    fn own_socket(&self, lease: &Lease4) -> Result<Socket> {
        let what = || format!("cannot use port 68 of {} on {}", lease.address.addr(), self.interface);
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).context(what)?;
        socket.set_reuse_address(true).context(what)?;
        socket.bind_device(Some(self.interface.as_bytes())).context(what)?;
        socket.bind(&SocketAddr::from((lease.address.addr(), 68)).into()).context(what)?;
        socket.set_nonblocking(true).context(what)?;
        Ok(socket)
    }

    /// The first wanted answer; `None`: there was none by `until`.
    fn await_reply(
        &self,
        socket: &PacketSocket,
        xid: u32,
        until: Instant,
        wanted: impl Fn(&Reply) -> bool,
    ) -> Result<Option<Reply>> {
        while Instant::now() < until {
            if (self.stop)() {
                return Err(Error::new("the exchange with DHCP servers was stopped"));
            }
            let Some((from, bytes)) = socket.receive(until.min(Instant::now() + LOOK))? else { continue };
            if let Some(reply) = decode(&bytes, xid, self.who, from).filter(&wanted) {
                return Ok(Some(reply));
            }
        }
        Ok(None)
    }
}

/// By the host's own routing. The answer is read from the packet socket, and this one is emptied.
fn send(own: &Socket, lease: &Lease4, message: &[u8]) -> std::io::Result<()> {
    let mut buffer = [0; 2048];
    let mut own_end = own;
    while own_end.read(&mut buffer).is_ok() {}
    own.send_to(message, &SocketAddr::from((lease.server, 67)).into()).map(drop)
}

pub(super) fn xid() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    // Differs between clients and exchanges; nothing relies on more.
    RandomState::new().hash_one(Instant::now()) as u32
}
