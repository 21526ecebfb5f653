//! One rtnetlink socket in one namespace, driven to the end of each request before the next begins.

use crate::model::error::{Context, Error, Result};
use futures_util::StreamExt;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, TokioSocket};
use std::cell::RefCell;
use std::fmt;
use std::os::fd::{FromRawFd, IntoRawFd};

/// Set in every message of a dump that a change has cut across (`include/uapi/linux/netlink.h`).
const NLM_F_DUMP_INTR: u16 = 0x10;
/// A dump takes microseconds, a change of a link milliseconds: a few tries are plenty.
const DUMP_TRIES: usize = 100;

/// The kernel's answer to one request.
#[derive(Debug)]
pub enum Refused {
    /// By the kernel, with its errno.
    Kernel(std::io::Error),
    /// The socket, not the request, failed.
    Socket(String),
}

impl Refused {
    pub fn errno(&self) -> Option<i32> {
        match self {
            Refused::Kernel(e) => e.raw_os_error(),
            Refused::Socket(_) => None,
        }
    }

    pub fn exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    /// The object of the request, or the link it names, is not there.
    pub fn is_missing(&self) -> bool {
        matches!(self.errno(), Some(libc::ENODEV | libc::ESRCH | libc::ENOENT | libc::EADDRNOTAVAIL))
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Kernel(e) => e.fmt(f),
            Refused::Socket(text) => write!(f, "netlink socket: {text}"),
        }
    }
}

impl std::error::Error for Refused {}

pub type Answer<T> = std::result::Result<T, Refused>;

pub struct Rtnl {
    runtime: tokio::runtime::Runtime,
    handle: RefCell<rtnetlink::Handle>,
}

impl Rtnl {
    /// Asks the namespace of the calling thread.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn here() -> Result<Self> {
        Self::over(Self::socket()?)
    }

    /// A socket of the namespace of the calling thread, for [`Rtnl::over`] in any thread.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub(super) fn socket() -> Result<Socket> {
        Socket::new(NETLINK_ROUTE).context(|| "cannot open a netlink socket".to_owned())
    }

    /// # Errors
    /// The socket cannot be used.
    pub(super) fn over(socket: Socket) -> Result<Self> {
        let what = || "cannot use a netlink socket".to_owned();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().context(what)?;
        socket.set_non_blocking(true).context(what)?;
        let (connection, handle, _) = {
            let _context = runtime.enter();
            // SAFETY: the descriptor is open, and this is now its one owner.
            rtnetlink::from_socket(unsafe { TokioSocket::from_raw_fd(socket.into_raw_fd()) })
        };
        runtime.spawn(connection);
        Ok(Self { runtime, handle: RefCell::new(handle) })
    }

    /// Asks for a change and waits for the acknowledgement. `flags` come on top of REQUEST and ACK.
    ///
    /// # Errors
    /// What the kernel answered.
    pub(super) fn change(&self, message: RouteNetlinkMessage, flags: u16) -> Answer<()> {
        self.ask(message, flags | NLM_F_ACK).map(drop)
    }

    /// Asks and gathers every message of the answer.
    ///
    /// # Errors
    /// What the kernel answered.
    pub(super) fn ask(&self, message: RouteNetlinkMessage, flags: u16) -> Answer<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMP_TRIES {
            if let Some(answer) = self.ask_once(message.clone(), flags)? {
                return Ok(answer);
            }
        }
        Err(Refused::Socket("the list kept changing while it was read".into()))
    }

    /// `None`: the list changed while it was read, and may be incomplete.
    fn ask_once(&self, message: RouteNetlinkMessage, flags: u16) -> Answer<Option<Vec<RouteNetlinkMessage>>> {
        tracing::trace!(?message, "netlink");
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        let mut stream = self.handle.borrow_mut().request(request).map_err(|e| Refused::Socket(e.to_string()))?;
        self.runtime.block_on(async {
            let mut answer = Vec::new();
            let mut whole = true;
            while let Some(message) = stream.next().await {
                whole &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::Error(e) if e.raw_code() != 0 => return Err(Refused::Kernel(e.to_io())),
                    NetlinkPayload::InnerMessage(m) => answer.push(m),
                    _ => {}
                }
            }
            Ok(whole.then_some(answer))
        })
    }
}

/// Gives a refusal its operation and object.
pub(super) fn failed(what: String) -> impl FnOnce(Refused) -> Error {
    move |e| Error::new(what).because(e)
}
