//! A netlink socket that asks one thing at a time and waits for the answer.

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable};
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Longer than any answer takes; only so that a lost one is an error and not a hang.
const ANSWER_LIMIT_S: i64 = 10;
/// A dump comes in pieces of 32 KiB at most (`net/netlink/af_netlink.c, netlink_dump()`); what is said of one object is less.
const ANSWER_BYTES: usize = 32 * 1024;
/// Set in every message of a dump that a change has cut across (`include/uapi/linux/netlink.h`).
const NLM_F_DUMP_INTR: u16 = 0x10;
/// A dump takes microseconds, a change of a link milliseconds: a few tries are plenty.
const DUMP_TRIES: usize = 100;
/// Fits into every send buffer (`net.core.wmem_default` is 212,992 bytes, of which the kernel's own data takes a part).
const SMALL: usize = 64 * 1024;

pub struct Netlink<M> {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
    protocol: PhantomData<M>,
}

/// What has come for one question.
struct Answers<M> {
    messages: Vec<M>,
    are_of_one_moment: bool,
    /// Further messages, that could not be read.
    unread: usize,
}

impl<M: NetlinkSerializable + NetlinkDeserializable> Netlink<M> {
    /// In the network namespace of the calling thread. `protocol`: NETLINK_ROUTE, NETLINK_NETFILTER.
    ///
    /// # Errors
    /// A kernel without it.
    pub fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // SAFETY: the descriptor is open for as long as the socket, which outlives the borrow.
        let fd = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
        let limit = libc::timeval { tv_sec: ANSWER_LIMIT_S, tv_usec: 0 };
        setsockopt(&fd.as_fd(), sockopt::ReceiveTimeout, &limit.into())?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; ANSWER_BYTES], protocol: PhantomData })
    }

    /// Everything that answers a dump, of one moment. Messages that cannot be read are left out.
    ///
    /// # Errors
    /// What the kernel answers, or that the list kept changing while it was read.
    pub fn dump(&mut self, question: M) -> io::Result<Vec<M>>
    where
        M: Clone,
    {
        self.dump_counted(question).map(|(messages, _)| messages)
    }

    /// As [`Netlink::dump`], with the number of messages that were left out.
    ///
    /// # Errors
    /// As [`Netlink::dump`].
    pub fn dump_counted(&mut self, question: M) -> io::Result<(Vec<M>, usize)>
    where
        M: Clone,
    {
        for _ in 0..DUMP_TRIES {
            let answers = self.ask(question.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            if answers.are_of_one_moment {
                return Ok((answers.messages, answers.unread));
            }
        }
        Err(io::Error::other("the list kept changing while it was read"))
    }

    /// What answers a dump, unless that is more than `limit` messages. A change may have cut across it: for lists that change
    /// all the time, whose reader is told of the next change. The socket ends with it, as a dump that is broken off would
    /// keep it busy.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn dump_at_most(mut self, question: M, limit: usize) -> io::Result<Option<Vec<M>>> {
        self.send(vec![(question, NLM_F_REQUEST | NLM_F_DUMP)])?;
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

    /// The answer to a question about one object.
    ///
    /// # Errors
    /// What the kernel answers, or that it cannot be parsed, which does not mean that the object is absent.
    pub fn read(&mut self, question: M) -> io::Result<Vec<M>> {
        let answers = self.ask(question, NLM_F_REQUEST | NLM_F_ACK)?;
        if answers.unread > 0 {
            return Err(io::Error::other("the kernel's answer cannot be read"));
        }
        Ok(answers.messages)
    }

    /// One change, acknowledged. `flags` come on top of REQUEST and ACK.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn change(&mut self, change: M, flags: u16) -> io::Result<()> {
        self.ask(change, NLM_F_REQUEST | NLM_F_ACK | flags).map(drop)
    }

    /// Several messages in one datagram, each with its flags; waits for the acknowledgement of all that ask for one.
    ///
    /// # Errors
    /// The first that the kernel refuses.
    pub fn batch(&mut self, messages: Vec<(M, u16)>) -> io::Result<()> {
        let mut answers = messages.iter().filter(|(_, flags)| flags & NLM_F_ACK != 0).count();
        self.send(messages)?;
        let acknowledged = |_, payload| {
            answers -= usize::from(matches!(payload, NetlinkPayload::Error(_)));
            answers == 0
        };
        self.receive(acknowledged).map(drop)
    }

    fn ask(&mut self, question: M, flags: u16) -> io::Result<Answers<M>> {
        self.send(vec![(question, flags)])?;
        let (mut messages, mut are_of_one_moment) = (Vec::new(), true);
        let unread = self.receive(|flags, payload| {
            are_of_one_moment &= flags & NLM_F_DUMP_INTR == 0;
            match payload {
                NetlinkPayload::InnerMessage(m) => {
                    messages.push(m);
                    false
                }
                NetlinkPayload::Done(_) | NetlinkPayload::Error(_) => true,
                _ => false,
            }
        })?;
        Ok(Answers { messages, are_of_one_moment, unread })
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
        if bytes.len() > SMALL {
            self.make_room(bytes.len())?;
        }
        self.socket.send(&bytes, 0).map(drop)
    }

    /// A datagram must fit into the send buffer. Beyond `net.core.wmem_max` that takes CAP_NET_ADMIN in the initial user
    /// namespace.
    fn make_room(&self, bytes: usize) -> io::Result<()> {
        // SAFETY: the descriptor is open for as long as the socket, which outlives the borrow.
        let fd = unsafe { BorrowedFd::borrow_raw(self.socket.as_raw_fd()) };
        let room = bytes + SMALL;
        setsockopt(&fd, sockopt::SndBufForce, &room).or_else(|_| setsockopt(&fd, sockopt::SndBuf, &room))?;
        Ok(())
    }

    /// Hands the answers with their flags to `take` until it says that this was the last; an error of the kernel ends it.
    /// Gives how many could not be read.
    fn receive(&mut self, mut take: impl FnMut(u16, NetlinkPayload<M>) -> bool) -> io::Result<usize> {
        let mut unread = 0;
        loop {
            let len = match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
                Ok(len) => len,
                // Half an answer is of no use; a command that is to end looks at signals between two questions.
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
                        tracing::debug!(error = %e, "a message of the kernel cannot be read");
                        unread += 1;
                        continue;
                    }
                };
                match &message.payload {
                    NetlinkPayload::Error(e) if e.code.is_some() => return Err(e.to_io()),
                    NetlinkPayload::Done(d) if d.code != 0 => return Err(io::Error::from_raw_os_error(-d.code)),
                    _ => {}
                }
                if take(message.header.flags, message.payload) {
                    return Ok(unread);
                }
            }
        }
    }
}

/// Of the message that begins here, if it is whole.
fn message_length(bytes: &[u8]) -> Option<usize> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?);
    usize::try_from(length).ok().filter(|&l| l >= 16 && l <= bytes.len())
}

/// Of the message that begins here (`struct nlmsghdr`).
fn sequence_number(bytes: &[u8]) -> Option<u32> {
    bytes.get(8..)?.first_chunk().map(|number| u32::from_ne_bytes(*number))
}

/// Messages begin at multiples of four (NLMSG_ALIGN).
fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}
