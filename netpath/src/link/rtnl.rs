//! An rtnetlink socket of one namespace, for one request at a time.

use crate::model::error::{Context, Error, Result};
use crate::netlink::Netlink;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use std::cell::RefCell;
use std::fmt;

/// The error of one request: the kernel's, or that of the socket.
#[derive(Debug)]
pub struct RequestError(std::io::Error);

impl RequestError {
    pub fn errno(&self) -> Option<i32> {
        self.0.raw_os_error()
    }

    pub fn exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    /// The object of the request, or the link that it names, does not exist.
    pub fn is_missing(&self) -> bool {
        matches!(self.errno(), Some(libc::ENODEV | libc::ESRCH | libc::ENOENT | libc::EADDRNOTAVAIL))
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Tools look for netavark's prefix.
        write!(f, "Netlink error: {}", self.0)
    }
}

impl std::error::Error for RequestError {}

pub type Answer<T> = std::result::Result<T, RequestError>;

pub struct Rtnl(RefCell<Netlink<RouteNetlinkMessage>>);

impl Rtnl {
    /// Opens a socket in the calling thread's namespace. The socket stays there, whichever thread uses it.
    ///
    /// # Errors
    /// The socket cannot be created.
    pub fn here() -> Result<Self> {
        let socket = Netlink::open(NETLINK_ROUTE).context(|| "cannot open a netlink socket".to_owned())?;
        Ok(Self(RefCell::new(socket)))
    }

    /// Makes a change and waits for the acknowledgement. `flags` are added to REQUEST and ACK.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn change(&self, message: RouteNetlinkMessage, flags: u16) -> Answer<()> {
        tracing::trace!(?message, "netlink");
        self.0.borrow_mut().change(message, flags).map_err(RequestError)
    }

    /// Makes several changes in one datagram, each with its flags; the kernel continues after a change that it refuses.
    ///
    /// # Errors
    /// That of the first refused change.
    pub(super) fn batch(&self, messages: Vec<(RouteNetlinkMessage, u16)>) -> Answer<()> {
        tracing::trace!(?messages, "netlink");
        self.0.borrow_mut().batch(messages).map_err(RequestError)
    }

    /// Reads one object.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn read(&self, message: RouteNetlinkMessage) -> Answer<Vec<RouteNetlinkMessage>> {
        tracing::trace!(?message, "netlink");
        self.0.borrow_mut().read(message).map_err(RequestError)
    }

    /// Lists all objects of a kind.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn dump(&self, message: RouteNetlinkMessage) -> Answer<Vec<RouteNetlinkMessage>> {
        tracing::trace!(?message, "netlink");
        self.0.borrow_mut().dump(message).map_err(RequestError)
    }
}

/// Adds the operation and its object to an error.
pub(super) fn failed(what: String) -> impl FnOnce(RequestError) -> Error {
    move |e| Error::new(what).because(e)
}
