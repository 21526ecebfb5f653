//! Messages of a client and the answers of servers.

use super::lease::{Lease4 as Lease, now};
use crate::model::error::{Context, Result};
use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, OptionCode};
use dhcproto::{Decodable, Encodable};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// How a container presents itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Identity {
    pub mac: [u8; 6],
    /// With its type in front. Empty: the hardware address. Of DHCPv6: a DUID.
    pub client_id: Vec<u8>,
    /// Of DHCPv6: the identity association; `None`: it is DHCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iaid: Option<u32>,
    pub host_name: String,
    /// Answers have to be broadcast: the interface shares its hardware address with others.
    pub by_broadcast: bool,
}

pub(super) enum Ask<'a> {
    Discover,
    /// Takes an offer.
    Request(&'a Lease),
    /// Extends a lease that is in use.
    Renew(&'a Lease),
    Release(&'a Lease),
}

#[derive(PartialEq, Debug)]
pub(super) enum Reply {
    Offer(Lease),
    Ack(Lease),
    Nak,
}

/// `seconds`: since the client began to ask.
///
/// # Errors
/// A text is too long for the message.
pub(super) fn encode(who: &Identity, xid: u32, seconds: u16, ask: &Ask<'_>) -> Result<Vec<u8>> {
    let mut message = Message::default();
    let flags = if who.by_broadcast { Flags::default().set_broadcast() } else { Flags::default() };
    message.set_xid(xid).set_secs(seconds).set_flags(flags).set_chaddr(&who.mac);
    let kind = match ask {
        Ask::Discover => MessageType::Discover,
        Ask::Request(_) | Ask::Renew(_) => MessageType::Request,
        Ask::Release(_) => MessageType::Release,
    };
    if let Ask::Renew(lease) | Ask::Release(lease) = ask {
        message.set_ciaddr(lease.address.addr());
    }
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    if !who.client_id.is_empty() {
        options.insert(DhcpOption::ClientIdentifier(who.client_id.clone()));
    }
    if let Ask::Request(lease) = ask {
        options.insert(DhcpOption::RequestedIpAddress(lease.address.addr()));
    }
    if let Ask::Request(lease) | Ask::Release(lease) = ask {
        options.insert(DhcpOption::ServerIdentifier(lease.server));
    }
    if !matches!(ask, Ask::Release(_)) {
        options.insert(DhcpOption::MaxMessageSize(1500));
        options.insert(DhcpOption::ParameterRequestList(vec![
            OptionCode::SubnetMask,
            OptionCode::Router,
            OptionCode::DomainNameServer,
            OptionCode::Hostname,
            OptionCode::DomainName,
            OptionCode::InterfaceMtu,
            OptionCode::NtpServers,
        ]));
        if !who.host_name.is_empty() {
            options.insert(DhcpOption::Hostname(who.host_name.clone()));
        }
    }
    message.to_vec().context(|| "cannot write a DHCP message".to_owned())
}

/// `None`: it is no answer to `xid`, or nothing that can be used.
pub(super) fn decode(bytes: &[u8], xid: u32, who: &Identity, from: [u8; 6]) -> Option<Reply> {
    // The length first: `chaddr()` panics where it is too large.
    let is_answer = |m: &Message| m.xid() == xid && m.hlen() == 6 && m.chaddr() == who.mac;
    let message = Message::from_bytes(bytes).ok().filter(is_answer)?;
    match message.opts().msg_type()? {
        MessageType::Offer => lease(&message, from).map(Reply::Offer),
        MessageType::Ack => lease(&message, from).map(Reply::Ack),
        MessageType::Nak => Some(Reply::Nak),
        _ => None,
    }
}

/// The value of an option, if the message has it.
macro_rules! option {
    ($message:expr, $name:ident) => {
        match $message.opts().get(OptionCode::$name) {
            Some(DhcpOption::$name(value)) => Some(value.clone()),
            _ => None,
        }
    };
}

fn lease(message: &Message, from: [u8; 6]) -> Option<Lease> {
    let address = message.yiaddr();
    let is_usable =
        !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || address.is_broadcast());
    let lifetime = option!(message, AddressLeaseTime).filter(|seconds| is_usable && *seconds > 0)?;
    let (t1, t2) = (option!(message, Renewal).unwrap_or(0), option!(message, Rebinding).unwrap_or(0));
    // RFC 2131 §4.4.5.
    let (t1, t2) = match 0 < t1 && t1 < t2 && t2 < lifetime {
        true => (t1, t2),
        false => (lifetime / 2, lifetime - lifetime / 8),
    };
    let known =
        |list: Option<Vec<Ipv4Addr>>| list.unwrap_or_default().into_iter().filter(|a| !a.is_unspecified()).collect();
    // Some servers end texts with a NUL.
    let text = |t: Option<String>| t.map(|t| t.trim_end_matches('\0').to_owned()).filter(|t| !t.is_empty());
    Some(Lease {
        address: Ipv4Net::with_netmask(address, option!(message, SubnetMask)?).ok()?,
        server: option!(message, ServerIdentifier)?,
        server_mac: from,
        next_server: message.siaddr(),
        gateways: known(option!(message, Router)),
        dns_servers: known(option!(message, DomainNameServer)),
        ntp_servers: known(option!(message, NtpServers)),
        domain: text(option!(message, DomainName)),
        host_name: text(option!(message, Hostname)),
        mtu: option!(message, InterfaceMtu),
        t1,
        t2,
        lifetime,
        obtained: now(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const XID: u32 = 7;

    fn who() -> Identity {
        let client_id = [&[0], b"5d2f".as_slice()].concat();
        Identity { mac: [2, 0, 0, 0, 0, 9], client_id, iaid: None, host_name: "web".into(), by_broadcast: false }
    }

    /// A server's answer with these options beside the necessary ones.
    fn answer(kind: MessageType, more: Vec<DhcpOption>) -> Message {
        let mut message = Message::default();
        message.set_xid(XID).set_chaddr(&who().mac).set_yiaddr([192, 0, 2, 50]);
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ServerIdentifier([192, 0, 2, 1].into()));
        options.insert(DhcpOption::SubnetMask([255, 255, 255, 0].into()));
        options.insert(DhcpOption::AddressLeaseTime(120));
        more.into_iter().for_each(|option| drop(options.insert(option)));
        message
    }

    fn read(message: &Message) -> Option<Reply> {
        decode(&message.to_vec().expect("short"), XID, &who(), [1; 6])
    }

    fn leased(message: &Message) -> Lease {
        match read(message) {
            Some(Reply::Ack(lease)) => lease,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_answer_becomes_a_lease_with_usable_times() {
        let lease = leased(&answer(MessageType::Ack, vec![DhcpOption::DomainName("lab\0".into())]));
        assert_eq!(("192.0.2.50/24".parse(), Some("lab")), (Ok(lease.address), lease.domain.as_deref()));
        assert_eq!((60, 105, 120), (lease.t1, lease.t2, lease.lifetime));
        let times =
            |t1, t2| leased(&answer(MessageType::Ack, vec![DhcpOption::Renewal(t1), DhcpOption::Rebinding(t2)]));
        assert_eq!((3, 60), (times(3, 60).t1, times(3, 60).t2));
        assert_eq!((60, 105), (times(90, 60).t1, times(90, 60).t2), "in the wrong order");
    }

    #[test]
    fn what_is_no_answer_to_the_client_or_grants_nothing_is_ignored() {
        let good = answer(MessageType::Ack, Vec::new());
        assert!(read(&good).is_some());
        let change = |change: fn(&mut Message)| {
            let mut message = good.clone();
            change(&mut message);
            read(&message)
        };
        assert_eq!(None, change(|m| _ = m.set_xid(8)));
        assert_eq!(None, change(|m| _ = m.set_chaddr(&[2, 0, 0, 0, 0, 8])));
        assert_eq!(None, change(|m| _ = m.set_yiaddr([0, 0, 0, 0])));
        assert_eq!(None, change(|m| drop(m.opts_mut().insert(DhcpOption::AddressLeaseTime(0)))));
        assert_eq!(None, change(|m| drop(m.opts_mut().remove(OptionCode::SubnetMask))));
        assert_eq!(None, change(|m| drop(m.opts_mut().insert(DhcpOption::MessageType(MessageType::Discover)))));
        assert_eq!(None, decode(b"short", XID, &who(), [1; 6]));
        assert_eq!(Some(Reply::Nak), change(|m| drop(m.opts_mut().insert(DhcpOption::MessageType(MessageType::Nak)))));
    }

    #[test]
    fn a_client_sends_what_servers_need() {
        let lease = leased(&answer(MessageType::Ack, Vec::new()));
        let sent = |ask: &Ask<'_>| Message::from_bytes(&encode(&who(), XID, 1, ask).expect("short")).expect("valid");
        for ask in [Ask::Discover, Ask::Request(&lease), Ask::Renew(&lease), Ask::Release(&lease)] {
            let message = sent(&ask);
            assert_eq!(Some(who().client_id), option!(message, ClientIdentifier));
            let in_use = matches!(ask, Ask::Renew(_) | Ask::Release(_));
            assert_eq!(in_use, message.ciaddr() == lease.address.addr());
            let named = matches!(ask, Ask::Request(_) | Ask::Release(_));
            assert_eq!(named, option!(message, ServerIdentifier).is_some(), "RFC 2131, table 5");
            assert_eq!(!matches!(ask, Ask::Release(_)), option!(message, Hostname).is_some());
        }
    }
}
