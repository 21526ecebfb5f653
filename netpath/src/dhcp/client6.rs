//! DHCPv6 (RFC 8415): one address for an interface, by the exchanges of [`Client`].
//!
//! The messages go by an ordinary socket from the interface's link-local address, which it has by itself.

use super::client::{Answer, Client, FIRST_PAUSE, LONGEST_PAUSE, LOOK, TRIES, xid};
use super::lease::{Lease, Lease6, now};
use super::message::Identity;
use crate::model::error::{Context, Error, Result};
use dhcproto::v6::{DhcpOption, IAAddr, IANA, Message, MessageType, ORO, OptionCode};
use dhcproto::{Decodable, Encodable};
use socket2::{Domain, Socket, Type};
use std::io::{ErrorKind, Read};
use std::net::{Ipv6Addr, SocketAddrV6};
use std::time::{Duration, Instant};

const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
const SERVER: u16 = 547;
const CLIENT: u16 = 546;

enum Ask<'a> {
    Solicit,
    Request(&'a Lease6),
    /// Of its server.
    Renew(&'a Lease6),
    /// Of any server.
    Rebind(&'a Lease6),
    Release(&'a Lease6),
}

#[derive(PartialEq, Debug)]
enum Reply {
    Offer(Lease6),
    Granted(Lease6),
    /// The server does not give that address, or no longer.
    Refused,
}

impl Client<'_> {
    /// As [`Client::acquire`].
    pub(super) fn acquire6(&self, iaid: u32, until: Instant) -> Result<Option<Lease6>> {
        let socket = self.socket6(CLIENT)?;
        let (mut transaction, mut begun) = (xid(), Instant::now());
        let mut offer: Option<Lease6> = None;
        let (mut pause, mut tries) = (FIRST_PAUSE, 0);
        while Instant::now() < until {
            let ask = offer.as_ref().map_or(Ask::Solicit, Ask::Request);
            let sent = self.send6(&socket, &encode(self.who, iaid, transaction, begun.elapsed(), &ask)?);
            // The link-local address cannot be used before it was seen to be no duplicate.
            let next = (Instant::now() + if sent.is_ok() { pause } else { LOOK }).min(until);
            let is_first = offer.is_none();
            match self.await_reply6(&socket, iaid, transaction, next, |r| matches!(r, Reply::Offer(_)) == is_first)? {
                Some(Reply::Offer(lease)) => {
                    (offer, pause, tries) = (Some(lease), FIRST_PAUSE, 0);
                    (transaction, begun) = (xid(), Instant::now());
                }
                Some(Reply::Granted(lease)) => return Ok(Some(lease)),
                // A server that takes back its own offers is not asked at once.
                Some(Reply::Refused) => {
                    (offer, transaction, begun) = (None, xid(), Instant::now());
                    self.await_reply6(&socket, iaid, transaction, next, |_| false)?;
                }
                None if sent.is_err() => {}
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

    /// As [`Client::renew`].
    pub(super) fn renew6(&self, lease: &Lease6, any: bool, until: Instant) -> Result<Answer> {
        let iaid = self.who.iaid.unwrap_or_default();
        let socket = self.socket6(CLIENT)?;
        let (transaction, begun) = (xid(), Instant::now());
        let mut pause = FIRST_PAUSE;
        while Instant::now() < until {
            let ask = if any { Ask::Rebind(lease) } else { Ask::Renew(lease) };
            if let Err(e) = self.send6(&socket, &encode(self.who, iaid, transaction, begun.elapsed(), &ask)?) {
                tracing::debug!(interface = self.interface, "a DHCPv6 server cannot be asked: {e}");
            }
            let next = (Instant::now() + pause).min(until);
            match self.await_reply6(&socket, iaid, transaction, next, |r| !matches!(r, Reply::Offer(_)))? {
                Some(Reply::Granted(new)) => return Ok(Answer::Granted(Lease::V6(new))),
                Some(_) => return Ok(Answer::Refused),
                None => pause = (pause * 2).min(LONGEST_PAUSE),
            }
        }
        Ok(Answer::Nothing)
    }

    /// As [`Client::release`]. From any port: the answer is not waited for.
    pub(super) fn release6(&self, lease: &Lease6) -> Result<()> {
        let iaid = self.who.iaid.unwrap_or_default();
        let message = encode(self.who, iaid, xid(), Duration::ZERO, &Ask::Release(lease))?;
        self.send6(&self.socket6(0)?, &message).context(|| format!("cannot release {}", lease.address))
    }

    fn socket6(&self, port: u16) -> Result<Socket> {
        let what = || format!("cannot use port {port} of {} for DHCPv6", self.interface);
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, None).context(what)?;
        socket.set_only_v6(true).context(what)?;
        socket.set_reuse_address(true).context(what)?;
        socket.bind_device(Some(self.interface.as_bytes())).context(what)?;
        socket.bind(&SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0).into()).context(what)?;
        Ok(socket)
    }

    fn send6(&self, socket: &Socket, message: &[u8]) -> std::io::Result<()> {
        socket.send_to(message, &SocketAddrV6::new(SERVERS, SERVER, 0, self.index).into()).map(drop)
    }

    /// The first wanted answer; `None`: there was none by `until`.
    fn await_reply6(
        &self,
        socket: &Socket,
        iaid: u32,
        transaction: u32,
        until: Instant,
        wanted: impl Fn(&Reply) -> bool,
    ) -> Result<Option<Reply>> {
        let what = || "cannot receive a DHCPv6 message".to_owned();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            if (self.stop)() {
                return Err(Error::new("the exchange with DHCPv6 servers was stopped"));
            }
            // 0 would mean for ever.
            socket.set_read_timeout(Some(left.clamp(Duration::from_millis(1), LOOK))).context(what)?;
            let (mut buffer, mut from) = ([0; 4096], socket);
            match from.read(&mut buffer) {
                Ok(n) => {
                    if let Some(reply) = decode(&buffer[..n], self.who, iaid, transaction).filter(&wanted) {
                        return Ok(Some(reply));
                    }
                }
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
                Err(e) => return Err(e).context(what),
            }
        }
    }
}

/// `transaction`: of its bits the lower 24 are sent. `elapsed`: since the client began to ask.
fn encode(who: &Identity, iaid: u32, transaction: u32, elapsed: Duration, ask: &Ask<'_>) -> Result<Vec<u8>> {
    let (kind, lease, server) = match ask {
        Ask::Solicit => (MessageType::Solicit, None, None),
        Ask::Request(lease) => (MessageType::Request, Some(lease), Some(&lease.server)),
        Ask::Renew(lease) => (MessageType::Renew, Some(lease), Some(&lease.server)),
        Ask::Rebind(lease) => (MessageType::Rebind, Some(lease), None),
        Ask::Release(lease) => (MessageType::Release, Some(lease), Some(&lease.server)),
    };
    let [_, xid @ ..] = transaction.to_be_bytes();
    let mut message = Message::new_with_id(kind, xid);
    let options = message.opts_mut();
    options.insert(DhcpOption::ClientId(who.client_id.clone()));
    if let Some(server) = server {
        options.insert(DhcpOption::ServerId(server.clone()));
    }
    // In hundredths of a second (§21.9).
    let hundredths = u16::try_from(elapsed.as_millis() / 10).unwrap_or(u16::MAX);
    options.insert(DhcpOption::ElapsedTime(hundredths));
    let mut association = IANA { id: iaid, t1: 0, t2: 0, opts: Default::default() };
    if let Some(lease) = lease {
        let address = IAAddr { addr: lease.address, preferred_life: 0, valid_life: 0, opts: Default::default() };
        association.opts.insert(DhcpOption::IAAddr(address));
    }
    options.insert(DhcpOption::IANA(association));
    if !matches!(ask, Ask::Release(_)) {
        let wanted = vec![OptionCode::DomainNameServers, OptionCode::DomainSearchList];
        options.insert(DhcpOption::ORO(ORO { opts: wanted }));
    }
    message.to_vec().context(|| "cannot write a DHCPv6 message".to_owned())
}

/// `None`: it is no answer to `transaction`, or nothing that can be used.
fn decode(bytes: &[u8], who: &Identity, iaid: u32, transaction: u32) -> Option<Reply> {
    let message = Message::from_bytes(bytes).ok()?;
    let [_, xid @ ..] = transaction.to_be_bytes();
    let options = message.opts();
    let is_own = matches!(options.get(OptionCode::ClientId), Some(DhcpOption::ClientId(id)) if *id == who.client_id);
    let Some(DhcpOption::ServerId(server)) = options.get(OptionCode::ServerId) else { return None };
    if message.xid() != xid || !is_own {
        return None;
    }
    let lease = lease(&message, server, iaid);
    match (message.msg_type(), lease) {
        (MessageType::Advertise, Some(lease)) => Some(Reply::Offer(lease)),
        (MessageType::Reply, Some(lease)) => Some(Reply::Granted(lease)),
        (MessageType::Reply, None) => Some(Reply::Refused),
        _ => None,
    }
}

/// `None`: the server gives no address.
fn lease(message: &Message, server: &[u8], iaid: u32) -> Option<Lease6> {
    let options = message.opts();
    let all = options.get_all(OptionCode::IANA).unwrap_or_default();
    let association = all.iter().find_map(|o| match o {
        DhcpOption::IANA(association) if association.id == iaid => Some(association),
        _ => None,
    })?;
    let is_usable = |a: &Ipv6Addr| !(a.is_unspecified() || a.is_loopback() || a.is_multicast());
    let addresses = association.opts.get_all(OptionCode::IAAddr).unwrap_or_default();
    let (address, lifetime) = addresses.iter().find_map(|o| match o {
        DhcpOption::IAAddr(a) if a.valid_life > 0 && is_usable(&a.addr) => Some((a.addr, a.valid_life)),
        _ => None,
    })?;
    // §14.2: the server leaves them to the client by 0.
    let (t1, t2) = match (association.t1, association.t2) {
        (t1, t2) if 0 < t1 && t1 < t2 && t2 < lifetime => (t1, t2),
        _ => (lifetime / 2, lifetime - lifetime / 5),
    };
    let dns_servers = match options.get(OptionCode::DomainNameServers) {
        Some(DhcpOption::DomainNameServers(list)) => list.iter().filter(|a| is_usable(a)).copied().collect(),
        _ => Vec::new(),
    };
    let domain = match options.get(OptionCode::DomainSearchList) {
        Some(DhcpOption::DomainSearchList(list)) => {
            list.first().map(|n| n.to_string().trim_end_matches('.').to_owned())
        }
        _ => None,
    };
    let (server, domain) = (server.to_vec(), domain.filter(|d| !d.is_empty()));
    Some(Lease6 { address, server, dns_servers, domain, t1, t2, lifetime, obtained: now() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const XID: u32 = 0x0102_0304;

    fn who() -> Identity {
        let client_id = [&[0, 4], [7; 16].as_slice()].concat();
        Identity { mac: [2, 0, 0, 0, 0, 9], client_id, iaid: Some(9), host_name: "web".into(), by_broadcast: false }
    }

    fn granted() -> Lease6 {
        let (address, server) = ("2001:db8::50".parse().expect("an address"), vec![0, 3, 0, 1, 2, 3]);
        let (dns_servers, domain) = (vec!["2001:db8::53".parse().expect("an address")], None);
        Lease6 { address, server, dns_servers, domain, t1: 30, t2: 60, lifetime: 120, obtained: Duration::ZERO }
    }

    /// A server's answer with this lifetime of the address, for association `iaid`.
    fn answer(kind: MessageType, iaid: u32, valid_life: u32, times: (u32, u32)) -> Message {
        let [_, xid @ ..] = XID.to_be_bytes();
        let mut message = Message::new_with_id(kind, xid);
        let (lease, options) = (granted(), message.opts_mut());
        options.insert(DhcpOption::ClientId(who().client_id));
        options.insert(DhcpOption::ServerId(lease.server));
        options.insert(DhcpOption::DomainNameServers(lease.dns_servers));
        let mut association = IANA { id: iaid, t1: times.0, t2: times.1, opts: Default::default() };
        let address = IAAddr { addr: lease.address, preferred_life: valid_life, valid_life, opts: Default::default() };
        association.opts.insert(DhcpOption::IAAddr(address));
        options.insert(DhcpOption::IANA(association));
        message
    }

    fn read(message: &Message) -> Option<Reply> {
        decode(&message.to_vec().expect("a message"), &who(), 9, XID)
    }

    #[test]
    fn answers_are_read_and_those_to_others_are_not() {
        let timeless = |lease: Lease6| Lease6 { obtained: Duration::ZERO, ..lease };
        for (kind, is_offer) in [(MessageType::Advertise, true), (MessageType::Reply, false)] {
            match read(&answer(kind, 9, 120, (30, 60))) {
                Some(Reply::Offer(lease)) if is_offer => assert_eq!(granted(), timeless(lease)),
                Some(Reply::Granted(lease)) if !is_offer => assert_eq!(granted(), timeless(lease)),
                other => panic!("{kind:?}: {other:?}"),
            }
        }
        // The client chooses where the server gives no times, or none that make sense.
        for times in [(0, 0), (60, 30), (30, 120)] {
            let Some(Reply::Granted(lease)) = read(&answer(MessageType::Reply, 9, 120, times)) else {
                panic!("{times:?}")
            };
            assert_eq!((60, 96), (lease.t1, lease.t2), "{times:?}");
        }
        assert_eq!(Some(Reply::Refused), read(&answer(MessageType::Reply, 9, 0, (0, 0))), "taken back");
        assert_eq!(Some(Reply::Refused), read(&answer(MessageType::Reply, 8, 120, (0, 0))), "of another association");
        assert_eq!(None, read(&answer(MessageType::Advertise, 9, 0, (0, 0))));
        let mut others = answer(MessageType::Reply, 9, 120, (0, 0));
        assert_eq!(None, decode(&others.to_vec().expect("a message"), &who(), 9, XID ^ 1), "another transaction");
        others.opts_mut().remove(OptionCode::ClientId);
        others.opts_mut().insert(DhcpOption::ClientId(vec![0, 4, 8]));
        assert_eq!(None, read(&others), "another client");
    }

    #[test]
    fn cut_and_changed_messages_are_no_crash() {
        let whole = answer(MessageType::Reply, 9, 120, (30, 60)).to_vec().expect("a message");
        for at in 0..whole.len() {
            let _ = decode(&whole[..at], &who(), 9, XID);
            for bit in 0..8 {
                let mut changed = whole.clone();
                changed[at] ^= 1 << bit;
                let _ = decode(&changed, &who(), 9, XID);
            }
        }
    }

    #[test]
    fn what_is_asked_names_the_server_where_one_is_meant() {
        let lease = granted();
        for (ask, names_server, has_address) in [
            (Ask::Solicit, false, false),
            (Ask::Request(&lease), true, true),
            (Ask::Renew(&lease), true, true),
            (Ask::Rebind(&lease), false, true),
            (Ask::Release(&lease), true, true),
        ] {
            let bytes = encode(&who(), 9, XID, Duration::from_millis(1_230), &ask).expect("a message");
            let message = Message::from_bytes(&bytes).expect("a message");
            assert_eq!([2, 3, 4], message.xid());
            let options = message.opts();
            assert_eq!(Some(&DhcpOption::ElapsedTime(123)), options.get(OptionCode::ElapsedTime));
            assert_eq!(names_server, options.get(OptionCode::ServerId).is_some());
            let Some(DhcpOption::IANA(association)) = options.get(OptionCode::IANA) else { panic!("no association") };
            assert_eq!((9, has_address), (association.id, association.opts.get(OptionCode::IAAddr).is_some()));
        }
    }
}
