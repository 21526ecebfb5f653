//! One rtnetlink socket in one namespace, driven to the end of each request before the next begins.

use crate::model::error::{Context, Error, Result};
use crate::netlink::Netlink;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use std::cell::RefCell;
use std::fmt;

/// The kernel's answer to one request, or that there was none.
#[derive(Debug)]
pub struct Refused(std::io::Error);

impl Refused {
    pub fn errno(&self) -> Option<i32> {
        self.0.raw_os_error()
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
        self.0.fmt(f)
    }
}

impl std::error::Error for Refused {}

pub type Answer<T> = std::result::Result<T, Refused>;

pub struct Rtnl(RefCell<Netlink<RouteNetlinkMessage>>);

impl Rtnl {
    /// Asks the namespace that is now the calling thread's, from any thread.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn here() -> Result<Self> {
        let socket = Netlink::open(NETLINK_ROUTE).context(|| "cannot open a netlink socket".to_owned())?;
        Ok(Self(RefCell::new(socket)))
    }

    /// Asks for a change and waits for the acknowledgement. `flags` come on top of REQUEST and ACK.
    ///
    /// # Errors
    /// What the kernel answered.
    pub(super) fn change(&self, message: RouteNetlinkMessage, flags: u16) -> Answer<()> {
        tracing::trace!(?message, "netlink");
        self.0.borrow_mut().change(message, flags).map_err(Refused)
    }

    /// Asks for several changes in one request, each with its flags; the kernel goes on after one that it refuses.
    ///
    /// # Errors
    /// The first that the kernel refuses.
    pub(super) fn batch(&self, messages: Vec<(RouteNetlinkMessage, u16)>) -> Answer<()> {
        tracing::trace!(?messages, "netlink");
        self.0.borrow_mut().batch(messages).map_err(Refused)
    }

    /// Asks about one object.
    ///
    /// # Errors
    /// What the kernel answered.
    pub(super) fn read(&self, message: RouteNetlinkMessage) -> Answer<Vec<RouteNetlinkMessage>> {
        tracing::trace!(?message, "netlink");
        self.0.borrow_mut().read(message).map_err(Refused)
    }

    /// Asks for all objects of a kind.
    ///
    /// # Errors
    /// What the kernel answered.
    pub(super) fn dump(&self, message: RouteNetlinkMessage) -> Answer<Vec<RouteNetlinkMessage>> {
        tracing::trace!(?message, "netlink");
        self.0.borrow_mut().dump(message).map_err(Refused)
    }
}

/// Gives a refusal its operation and object.
pub(super) fn failed(what: String) -> impl FnOnce(Refused) -> Error {
    move |e| Error::new(what).because(e)
}
