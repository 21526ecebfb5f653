//! UDP sockets of the server. One to which queries for another port are led answers from that port: its answers leave by a raw
//! socket, since the kernel takes the source port of all others from where they are bound.

use crate::dns::wire;
use netpath_common::checksum::{fold16, fold32};
use netpath_common::layout::PROTO_UDP;
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use tokio::net::UdpSocket;

/// Bytes of the headers of IPv6 and UDP.
pub(super) const HEADERS: usize = 40 + 8;
const TTL: u8 = 64;

pub(super) struct Udp {
    socket: UdpSocket,
    sender: Option<Sender>,
}

struct Sender {
    raw: Socket,
    from: SocketAddr,
}

impl Deref for Udp {
    type Target = UdpSocket;
    fn deref(&self) -> &UdpSocket {
        &self.socket
    }
}

impl AsFd for Udp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Udp {
    pub(super) fn new(socket: UdpSocket) -> Self {
        Self { socket, sender: None }
    }

    /// # Errors
    /// A raw socket is not permitted.
    pub(super) fn answering_from(address: IpAddr, port: u16, socket: UdpSocket) -> io::Result<Self> {
        let from = SocketAddr::new(address, port);
        // It receives nothing: no packet has this protocol.
        let protocol = Protocol::from(libc::IPPROTO_RAW);
        let raw = Socket::new(Domain::for_address(from), Type::RAW, Some(protocol))?;
        raw.set_nonblocking(true)?;
        // By this address the kernel chooses the route.
        raw.bind(&SocketAddr::new(address, 0).into())?;
        Ok(Self { socket, sender: Some(Sender { raw, from }) })
    }

    /// Where answers leave.
    pub(super) fn way_out(&self) -> BorrowedFd<'_> {
        self.sender.as_ref().map_or_else(|| self.socket.as_fd(), |sender| sender.raw.as_fd())
    }

    /// Whether [`way_out`](Self::way_out) takes packets with their [headers](Self::headers), and the client without its port.
    pub(super) fn needs_headers(&self) -> bool {
        self.sender.is_some()
    }

    /// Writes the headers of an answer to `out`, and returns their length: 0 if the kernel writes them.
    pub(super) fn headers(&self, answer: &[u8], client: SocketAddr, out: &mut [u8; HEADERS]) -> usize {
        self.sender.as_ref().map_or(0, |sender| headers(answer, sender.from, client, out))
    }

    /// Sends one answer. One that the kernel does not take is lost, as on any way.
    pub(super) fn send(&self, answer: &[u8], client: SocketAddr) {
        let Some(sender) = &self.sender else {
            let _ = self.socket.try_send_to(answer, client);
            return;
        };
        let sent = sender.send(answer, client);
        if sent.is_err_and(|e| e.raw_os_error() == Some(libc::EMSGSIZE)) {
            self.send_cut(answer, client);
        }
    }

    /// For an answer that is larger than the MTU: what goes through a raw socket is not fragmented.
    pub(super) fn send_cut(&self, answer: &[u8], client: SocketAddr) {
        if let (Some(sender), Some(cut)) = (&self.sender, wire::cut(answer)) {
            let _ = sender.send(&cut, client);
        }
    }
}

impl Sender {
    fn send(&self, answer: &[u8], mut client: SocketAddr) -> io::Result<usize> {
        let mut front = [0; HEADERS];
        let length = headers(answer, self.from, client, &mut front);
        client.set_port(0);
        self.raw.send_to_vectored(&[IoSlice::new(&front[..length]), IoSlice::new(answer)], &client.into())
    }
}

/// Of IP (RFC 791, RFC 8200 §3) and UDP. The kernel completes that of IPv4: identification, checksum.
fn headers(answer: &[u8], from: SocketAddr, client: SocketAddr, out: &mut [u8; HEADERS]) -> usize {
    // An answer is shorter than its limit.
    let of_udp = (8 + answer.len()) as u16;
    let begin = match (from.ip(), client.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let length = (20 + of_udp).to_be_bytes();
            out[..12].copy_from_slice(&[0x45, 0, length[0], length[1], 0, 0, 0, 0, TTL, PROTO_UDP, 0, 0]);
            out[12..16].copy_from_slice(&from.octets());
            out[16..20].copy_from_slice(&to.octets());
            20
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let length = of_udp.to_be_bytes();
            out[..8].copy_from_slice(&[0x60, 0, 0, 0, length[0], length[1], PROTO_UDP, TTL]);
            out[8..24].copy_from_slice(&from.octets());
            out[24..40].copy_from_slice(&to.octets());
            40
        }
        _ => return 0,
    };
    let [sport, dport, length] = [from.port(), client.port(), of_udp].map(u16::to_be_bytes);
    out[begin..begin + 8].copy_from_slice(&[sport[0], sport[1], dport[0], dport[1], length[0], length[1], 0, 0]);
    let addresses = if begin == 20 { 12..20 } else { 8..40 };
    let covered =
        sum(&out[addresses]) + sum(&[0, PROTO_UDP]) + sum(&length) + sum(&out[begin..begin + 8]) + sum(answer);
    // Zero means that there is none (RFC 768).
    let check = match !fold16(fold32(covered)) {
        0 => u16::MAX,
        check => check,
    };
    out[begin + 6..begin + 8].copy_from_slice(&check.to_ne_bytes());
    begin + 8
}

/// Of 16-bit words in memory order, the last one filled up with zero.
fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|pair| u64::from(u16::from_ne_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The receiver's check: with its own checksum, everything sums up to all ones.
    #[test]
    fn headers_carry_a_checksum_that_holds() {
        for (from, client) in [("10.89.7.1:53", "10.89.7.5:40000"), ("[fd41:7::1]:53", "[fd41:7::5]:40001")] {
            let [from, client]: [SocketAddr; 2] = [from, client].map(|a| a.parse().expect("an address"));
            for length in [12, 13, 512, 1232] {
                let answer: Vec<u8> = (0..length).map(|n: u16| (n * 7) as u8).collect();
                let mut out = [0; HEADERS];
                let end = headers(&answer, from, client, &mut out);
                let begin = end - 8;
                let addresses = if begin == 20 { 12..20 } else { 8..40 };
                let length = u64::from((8 + length).to_be());
                let all = sum(&out[addresses]) + sum(&[0, 17]) + length + sum(&out[begin..end]) + sum(&answer);
                assert_eq!(u16::MAX, fold16(fold32(all)), "{from} {length}");
            }
        }
    }
}
