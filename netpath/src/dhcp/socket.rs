//! Frames on an interface that has no address yet, or not the one that an answer is sent to.

use crate::model::error::{Context, Result};
use socket2::{Domain, SockAddr, SockFilter, Socket, Type};
use std::io::{ErrorKind, Read};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

const SERVER: u16 = 67;
const CLIENT: u16 = 68;
const ETHERNET: usize = 14;
const IP: usize = 20;
const UDP: usize = 8;
pub(super) const BROADCAST: [u8; 6] = [0xff; 6];

/// A packet socket that receives datagrams to a DHCP client. It belongs to the namespace of the thread that opens it.
pub(super) struct PacketSocket(Socket);

impl PacketSocket {
    /// # Errors
    /// There is no such interface, or it is no Ethernet.
    pub(super) fn open(index: u32) -> Result<Self> {
        let what = || format!("cannot send DHCP messages on interface {index}");
        // No protocol: nothing is received before the filter is there.
        let socket = Socket::new(Domain::PACKET, Type::RAW, None).context(what)?;
        socket.attach_filter(&to_client()).context(what)?;
        socket.bind(&address(index).context(what)?).context(what)?;
        Ok(Self(socket))
    }

    /// # Errors
    /// The kernel's.
    pub(super) fn send(&self, macs: ([u8; 6], [u8; 6]), ips: (Ipv4Addr, Ipv4Addr), payload: &[u8]) -> Result<()> {
        let sent = self.0.send(&frame(macs, ips, payload));
        sent.map(drop).context(|| "cannot send a DHCP message".to_owned())
    }

    /// The sender's hardware address and the payload; `None`: nothing has come by then.
    ///
    /// # Errors
    /// The kernel's, such as that the interface has gone.
    pub(super) fn receive(&self, until: Instant) -> Result<Option<([u8; 6], Vec<u8>)>> {
        let what = || "cannot receive a DHCP message".to_owned();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            // 0 would mean for ever.
            self.0.set_read_timeout(Some(left.max(Duration::from_millis(1)))).context(what)?;
            let mut buffer = [0; 2048];
            match (&self.0).read(&mut buffer) {
                Ok(n) => {
                    if let Some(found) = payload(&buffer[..n]) {
                        return Ok(Some(found));
                    }
                }
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
                Err(e) => return Err(e).context(what),
            }
        }
    }
}

fn address(index: u32) -> std::io::Result<SockAddr> {
    // SAFETY: the closure writes a whole `sockaddr_ll`, which is smaller than the storage, and its length.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, len| {
            let address = storage.cast::<libc::sockaddr_ll>();
            address.write_bytes(0, 1);
            (*address).sll_family = libc::AF_PACKET as u16;
            (*address).sll_protocol = (libc::ETH_P_IP as u16).to_be();
            (*address).sll_ifindex = index.cast_signed();
            *len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })?
    };
    Ok(address)
}

/// Whole UDP datagrams to port 68: a busy container's other packets would fill the socket.
fn to_client() -> [SockFilter; 9] {
    let at = |code: u32, jt, jf, k| SockFilter::new(code as u16, jt, jf, k);
    let ethernet = ETHERNET as u32;
    [
        at(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, ethernet + 9),
        at(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 6, libc::IPPROTO_UDP as u32),
        at(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, ethernet + 6),
        at(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 4, 0, 0x3fff),
        at(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0, 0, ethernet),
        at(libc::BPF_LD | libc::BPF_H | libc::BPF_IND, 0, 0, ethernet + 2),
        at(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, CLIENT.into()),
        at(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        at(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ]
}

/// To a server. `macs`, `ips`: source and destination.
fn frame(macs: ([u8; 6], [u8; 6]), ips: (Ipv4Addr, Ipv4Addr), payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(ETHERNET + IP + UDP + payload.len());
    frame.extend(macs.1);
    frame.extend(macs.0);
    frame.extend((libc::ETH_P_IP as u16).to_be_bytes());
    let (datagram, packet) = ((UDP + payload.len()) as u16, (IP + UDP + payload.len()) as u16);
    // Version and length, precedence as clients use it, length, id, no fragment, TTL, protocol, checksum.
    frame.extend([0x45, 0x10]);
    frame.extend(packet.to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, libc::IPPROTO_UDP as u8, 0, 0]);
    frame.extend(ips.0.octets());
    frame.extend(ips.1.octets());
    let check = checksum(0, &frame[ETHERNET..]);
    frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&check.to_be_bytes());
    for word in [CLIENT, SERVER, datagram, 0] {
        frame.extend(word.to_be_bytes());
    }
    frame.extend(payload);
    // The pseudo-header: the addresses, which end the IP header, protocol and length.
    let pseudo = u32::from(datagram) + libc::IPPROTO_UDP as u32;
    let check = match checksum(pseudo, &frame[ETHERNET + 12..]) {
        // 0 would mean that there is none.
        0 => u16::MAX,
        check => check,
    };
    frame[ETHERNET + IP + 6..ETHERNET + IP + 8].copy_from_slice(&check.to_be_bytes());
    frame
}

/// RFC 1071, continued from `sum`.
fn checksum(sum: u32, bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w.get(1).copied().unwrap_or(0)));
    let sum = words.fold(sum, u32::wrapping_add);
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// Of a frame that has passed the filter. Checksums may have been left to a device that does not exist between namespaces.
fn payload(frame: &[u8]) -> Option<([u8; 6], Vec<u8>)> {
    let from = frame.get(6..12)?.try_into().ok()?;
    let packet = frame.get(ETHERNET..)?;
    let header = usize::from(packet.first()? & 0xf) * 4;
    let datagram = packet.get(header..)?;
    let length = usize::from(u16::from_be_bytes(datagram.get(4..6)?.try_into().ok()?));
    Some((from, datagram.get(UDP..length)?.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_valid_checksums_and_gives_its_payload_back() {
        for payload_len in [1, 2, 300, 301] {
            let data: Vec<u8> = (0..payload_len).map(|i| (i * 37) as u8).collect();
            let ips = (Ipv4Addr::new(192, 0, 2, 9), Ipv4Addr::BROADCAST);
            let made = frame(([2; 6], BROADCAST), ips, &data);
            assert_eq!(0, checksum(0, &made[ETHERNET..ETHERNET + IP]), "IP");
            let pseudo = (UDP + data.len()) as u32 + libc::IPPROTO_UDP as u32;
            assert_eq!(0, checksum(pseudo, &made[ETHERNET + 12..]), "UDP, {payload_len} bytes");
            assert_eq!(Some(([2; 6], data)), payload(&made));
        }
        assert_eq!(None, payload(&[0; 20]));
    }
}
