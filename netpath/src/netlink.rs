//! A netlink socket for one request at a time, with time-out, EINTR retry and detection of inconsistent dumps.

mod later;

pub use later::{Closing, close_later};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use nix::sys::time::TimeVal;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Longer than any answer takes. Turns a lost answer into an error.
const TIMEOUT: TimeVal = TimeVal::new(10, 0);
/// A dump arrives in datagrams of at most 32 KiB (`net/netlink/af_netlink.c, netlink_dump()`); a single object is smaller.
const RECEIVE_BYTES: usize = 32 * 1024;
/// Set in the messages of a dump that a change has made inconsistent (`include/uapi/linux/netlink.h`).
const NLM_F_DUMP_INTR: u16 = 0x10;
/// A dump takes microseconds and a change of a link milliseconds, so a few tries suffice.
const DUMP_TRIES: usize = 100;
/// Fits into every send buffer (`net.core.wmem_default` is 212,992 bytes, part of it overhead of the kernel).
const DEFAULT_SEND_BYTES: usize = 64 * 1024;

pub struct Netlink<M> {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
    is_netfilter: bool,
    protocol: PhantomData<M>,
}

impl<M> Drop for Netlink<M> {
    fn drop(&mut self) {
        if self.is_netfilter {
            later::keep(&self.socket);
        }
    }
}

/// The answers to one request.
struct Answers<M> {
    messages: Vec<M>,
    is_consistent: bool,
    /// Number of messages that could not be parsed.
    unparsed: usize,
}

impl<M: NetlinkSerializable + NetlinkDeserializable> Netlink<M> {
    /// Opens a socket in the network namespace of the calling thread. `protocol`: NETLINK_ROUTE, NETLINK_NETFILTER.
    ///
    /// # Errors
    /// The kernel does not have the protocol.
    pub fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Self::with(socket, protocol, TIMEOUT)
    }

    fn with(socket: Socket, protocol: isize, timeout: TimeVal) -> io::Result<Self> {
        setsockopt(&socket, sockopt::ReceiveTimeout, &timeout)?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: vec![0; RECEIVE_BYTES],
            is_netfilter: protocol == NETLINK_NETFILTER,
            protocol: PhantomData,
        })
    }

    /// A consistent dump. Messages that cannot be parsed are skipped.
    ///
    /// # Errors
    /// The kernel's, or the list kept changing while it was read.
    pub fn dump(&mut self, request: M) -> io::Result<Vec<M>>
    where
        M: Clone,
    {
        self.dump_counted(request).map(|(messages, _)| messages)
    }

    /// As [`Netlink::dump`], with the number of skipped messages.
    ///
    /// # Errors
    /// As [`Netlink::dump`].
    pub fn dump_counted(&mut self, request: M) -> io::Result<(Vec<M>, usize)>
    where
        M: Clone,
    {
        for _ in 0..DUMP_TRIES {
            let answers = self.request(request.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            if answers.is_consistent {
                return Ok((answers.messages, answers.unparsed));
            }
        }
        Err(io::Error::other("the list kept changing while it was read"))
    }

    /// A dump, or `None` if it has more than `limit` messages. It may be inconsistent: for lists that change all the time,
    /// whose reader is notified of the next change. Consumes the socket, which an unfinished dump would keep busy.
    ///
    /// # Errors
    /// The kernel's.
    pub fn dump_at_most(mut self, request: M, limit: usize) -> io::Result<Option<Vec<M>>> {
        self.send(vec![(request, NLM_F_REQUEST | NLM_F_DUMP)])?;
        let mut messages = Vec::new();
        self.receive(|_, payload| match payload {
            NetlinkPayload::InnerMessage(m) => {
                messages.push(m);
                messages.len() > limit
            }
            NetlinkPayload::Done(_) | NetlinkPayload::Error(_) => true,
            _ => false,
        })?;
        Ok((messages.len() <= limit).then_some(messages))
    }

    /// Reads one object.
    ///
    /// # Errors
    /// The kernel's, or the answer cannot be parsed, which does not mean that the object is absent.
    pub fn read(&mut self, request: M) -> io::Result<Vec<M>> {
        let answers = self.request(request, NLM_F_REQUEST | NLM_F_ACK)?;
        if answers.unparsed > 0 {
            return Err(io::Error::other("the kernel's answer cannot be parsed"));
        }
        Ok(answers.messages)
    }

    /// Makes one change and waits for the acknowledgement. `flags` are added to REQUEST and ACK.
    ///
    /// # Errors
    /// The kernel's.
    pub fn change(&mut self, change: M, flags: u16) -> io::Result<()> {
        self.request(change, NLM_F_REQUEST | NLM_F_ACK | flags).map(drop)
    }

    /// Sends several messages in one datagram, each with its flags, and waits for all requested acknowledgements.
    ///
    /// # Errors
    /// That of the first refused message.
    pub fn batch(&mut self, messages: Vec<(M, u16)>) -> io::Result<()> {
        let mut answers = messages.iter().filter(|(_, flags)| flags & NLM_F_ACK != 0).count();
        self.send(messages)?;
        if self.is_netfilter {
            later::has_committed();
        }
        let acknowledged = |_, payload| {
            answers -= usize::from(matches!(payload, NetlinkPayload::Error(_)));
            answers == 0
        };
        self.receive(acknowledged).map(drop)
    }

    fn request(&mut self, request: M, flags: u16) -> io::Result<Answers<M>> {
        self.send(vec![(request, flags)])?;
        let (mut messages, mut is_consistent) = (Vec::new(), true);
        let unparsed = self.receive(|flags, payload| {
            is_consistent &= flags & NLM_F_DUMP_INTR == 0;
            match payload {
                NetlinkPayload::InnerMessage(m) => {
                    messages.push(m);
                    false
                }
                NetlinkPayload::Done(_) | NetlinkPayload::Error(_) => true,
                _ => false,
            }
        })?;
        Ok(Answers { messages, is_consistent, unparsed })
    }

    fn send(&mut self, messages: Vec<(M, u16)>) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for (message, flags) in messages {
            let mut header = NetlinkHeader::default();
            header.flags = flags;
            header.sequence_number = self.sequence;
            let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
            message.finalize();
            let start = bytes.len();
            bytes.resize(start + message.buffer_len(), 0);
            message.serialize(&mut bytes[start..]);
        }
        if bytes.len() > DEFAULT_SEND_BYTES {
            self.enlarge_send_buffer(bytes.len())?;
        }
        self.socket.send(&bytes, 0).map(drop)
    }

    /// A datagram must fit into the send buffer. A size above `net.core.wmem_max` needs CAP_NET_ADMIN in the initial user
    /// namespace.
    fn enlarge_send_buffer(&self, bytes: usize) -> io::Result<()> {
        let size = bytes + DEFAULT_SEND_BYTES;
        let socket = &self.socket;
        setsockopt(socket, sockopt::SndBufForce, &size).or_else(|_| setsockopt(socket, sockopt::SndBuf, &size))?;
        Ok(())
    }

    /// Passes answers with their flags to `take` until it returns `true` or the kernel reports an error. Returns the number
    /// of messages that could not be parsed.
    fn receive(&mut self, mut take: impl FnMut(u16, NetlinkPayload<M>) -> bool) -> io::Result<usize> {
        let mut unparsed = 0;
        loop {
            let len = match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
                Ok(len) => len,
                // Commands check for signals between requests.
                Err(Errno::EINTR) => continue,
                Err(e) => return Err(e.into()),
            };
            let mut rest = self.buffer.get(..len).ok_or_else(|| io::Error::other("the kernel's answer is too long"))?;
            while let Some(length) = message_length(rest) {
                let this = &rest[..length];
                rest = rest.get(align(length)..).unwrap_or_default();
                if sequence_number(this) != Some(self.sequence) {
                    continue;
                }
                let message = match NetlinkMessage::<M>::deserialize(this) {
                    Ok(message) => message,
                    Err(e) => {
                        tracing::debug!(error = %e, "a message of the kernel cannot be parsed");
                        unparsed += 1;
                        continue;
                    }
                };
                match &message.payload {
                    NetlinkPayload::Error(e) if e.code.is_some() => return Err(e.to_io()),
                    NetlinkPayload::Done(d) if d.code != 0 => return Err(io::Error::from_raw_os_error(-d.code)),
                    _ => {}
                }
                if take(message.header.flags, message.payload) {
                    return Ok(unparsed);
                }
            }
        }
    }
}

/// A socket that can be read when the kernel has sent a notification of one of these groups, in the network namespace of the calling
/// thread. It does not block.
///
/// # Errors
/// The kernel does not have the protocol or a group.
pub fn listen(protocol: isize, groups: &[u32]) -> io::Result<OwnedFd> {
    let mut socket = Socket::new(protocol)?;
    socket.set_non_blocking(true)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    groups.iter().try_for_each(|group| socket.add_membership(*group))?;
    socket.as_fd().try_clone_to_owned()
}

/// Length of the first message (`struct nlmsghdr`), if it is complete.
fn message_length(bytes: &[u8]) -> Option<usize> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?);
    usize::try_from(length).ok().filter(|&l| l >= 16 && l <= bytes.len())
}

/// Sequence number of the first message (`struct nlmsghdr`).
fn sequence_number(bytes: &[u8]) -> Option<u32> {
    bytes.get(8..)?.first_chunk().map(|number| u32::from_ne_bytes(*number))
}

/// Messages start at multiples of four bytes (NLMSG_ALIGN).
fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

#[cfg(test)]
#[path = "netlink_tests.rs"]
pub(crate) mod tests;
