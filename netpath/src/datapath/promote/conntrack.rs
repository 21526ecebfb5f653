//! What the promotion of flows asks of connection tracking.

use crate::datapath::connection::{Direction, Entry, Transport};
use crate::datapath::netfilter::{adopt, nfnetlink};
use crate::netlink::Netlink;
use netlink_packet_netfilter::NetfilterMessage;
use std::io;

pub(crate) struct Conntrack(Netlink<NetfilterMessage>);

impl Conntrack {
    /// # Errors
    /// A kernel without nfnetlink.
    pub(crate) fn open() -> io::Result<Self> {
        nfnetlink::open().map(Self)
    }

    /// The entry with this tuple in one of its directions.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn entry(&mut self, transport: Transport, tuple: Direction) -> io::Result<Option<Entry>> {
        adopt::entry(&mut self.0, transport, tuple)
    }

    /// Conntrack accepts what it has not seen of the windows of this connection.
    ///
    /// # Errors
    /// The kernel's: the entry is gone.
    pub(crate) fn make_liberal(&mut self, entry: &Entry) -> io::Result<()> {
        adopt::make_liberal(&mut self.0, entry)
    }
}
