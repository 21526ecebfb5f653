//! Requests whose answers come late, in pieces or not at all. The kernel's end is played by a peer that does each of these when it is
//! told to.

use super::*;
use netlink_packet_core::{DoneMessage, NLM_F_MULTIPART};
use nix::sys::pthread::pthread_kill;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{TcAttribute, TcMessage};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{FromRawFd, IntoRawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::thread::JoinHandleExt;
use std::sync::mpsc;
use std::time::Duration;

type Route = Netlink<RouteNetlinkMessage>;
const SHORT: TimeVal = TimeVal::new(0, 300_000);
pub(crate) const INCONSISTENT: u16 = NLM_F_DUMP_INTR;
/// More than any of these tests takes.
const LIMIT: Duration = Duration::from_secs(20);

/// The end of the kernel.
pub(crate) struct Peer(UnixStream);

impl Peer {
    /// A socket for requests, and its other end. It keeps datagrams apart, as netlink does.
    pub(crate) fn new(timeout: TimeVal) -> (Route, Self) {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .expect("a pair of sockets");
        // SAFETY: the descriptor is open, and `into_raw_fd` has given its ownership away.
        let ours = unsafe { Socket::from_raw_fd(ours.into_raw_fd()) };
        (Netlink::with(ours, netlink_sys::protocols::NETLINK_ROUTE, timeout).expect("a socket"), Self(theirs.into()))
    }

    /// The sequence number of the next request; `None`: the other end is closed.
    fn request(&mut self) -> Option<u32> {
        let mut bytes = [0; 4096];
        let len = self.0.read(&mut bytes).expect("a request");
        sequence_number(&bytes[..len])
    }

    /// Each in a datagram of its own.
    fn send(&mut self, sequence: u32, flags: u16, payload: NetlinkPayload<RouteNetlinkMessage>) {
        let mut header = NetlinkHeader::default();
        header.sequence_number = sequence;
        header.flags = flags | NLM_F_MULTIPART;
        let mut message = NetlinkMessage::new(header, payload);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.0.write_all(&bytes).expect("an answer");
    }

    /// Answers a request for a dump with the clsact qdiscs of these interfaces.
    pub(crate) fn answer(&mut self, flags: u16, interfaces: &[i32]) -> bool {
        let Some(sequence) = self.request() else { return false };
        for index in interfaces {
            let mut qdisc = TcMessage::with_index(*index);
            qdisc.attributes.push(TcAttribute::Kind("clsact".into()));
            let qdisc = RouteNetlinkMessage::NewQueueDiscipline(qdisc);
            self.send(sequence, flags, NetlinkPayload::InnerMessage(qdisc));
        }
        self.send(sequence, flags, NetlinkPayload::Done(DoneMessage::default()));
        true
    }
}

/// Runs `work` and fails if it does not end.
pub(crate) fn ends<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = mpsc::channel();
    std::thread::spawn(move || done.send(work()));
    result.recv_timeout(LIMIT).expect("it waits for ever")
}

fn get_qdiscs() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default())
}

#[test]
fn a_request_without_an_answer_fails_in_time() {
    let (mut netlink, mut peer) = Peer::new(SHORT);
    let failed = ends(move || netlink.dump(get_qdiscs())).expect_err("there is no answer");
    assert_eq!(ErrorKind::WouldBlock, failed.kind(), "{failed}");
    assert!(peer.request().is_some(), "nothing was asked");
    let real = Route::open(netlink_sys::protocols::NETLINK_ROUTE).expect("a socket");
    let timeout = nix::sys::socket::getsockopt(&real.socket, sockopt::ReceiveTimeout).expect("an option");
    assert_eq!(TIMEOUT, timeout, "of the socket to the kernel");
}

#[test]
fn a_signal_does_not_end_a_request() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
    // A handler; the signal's default ends the process.
    let _handler = runtime
        .block_on(async { tokio::signal::unix::signal(tokio::signal::unix::SignalKind::user_defined2()) })
        .expect("a handler");
    let (mut netlink, mut peer) = Peer::new(TimeVal::new(5, 0));
    let asks = std::thread::spawn(move || netlink.dump(get_qdiscs()));
    let sequence = peer.request().expect("a request");
    for _ in 0..20 {
        // It waits in `recv`, except for a moment after each signal.
        std::thread::sleep(Duration::from_millis(5));
        pthread_kill(asks.as_pthread_t(), Signal::SIGUSR2).expect("the thread has ended by a signal");
    }
    peer.send(sequence, 0, NetlinkPayload::Done(DoneMessage::default()));
    let answered = asks.join().expect("no panic");
    assert_eq!(0, answered.expect("the signals end it").len());
}

#[test]
fn a_dump_that_a_change_has_made_inconsistent_is_read_again() {
    let (mut netlink, mut peer) = Peer::new(TimeVal::new(5, 0));
    let answers = std::thread::spawn(move || {
        let count = peer.answer(INCONSISTENT, &[1]) && peer.answer(0, &[1, 2]);
        assert!(count, "it was not asked twice");
        (0_usize..).take_while(|_| peer.answer(INCONSISTENT, &[1])).count()
    });
    let (first, second) = ends(move || (netlink.dump(get_qdiscs()), netlink.dump(get_qdiscs())));
    assert_eq!(2, first.expect("the second one is consistent").len());
    let failed = second.expect_err("none is consistent").to_string();
    assert!(failed.contains("kept changing"), "{failed}");
    assert_eq!(DUMP_TRIES, answers.join().expect("no panic"));
}
