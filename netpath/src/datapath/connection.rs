//! A translated connection, as one datapath hands it to another.

use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// One direction of a connection; ports in host byte order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Direction {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub source_port: u16,
    pub destination_port: u16,
}

impl Direction {
    pub fn of(source: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            source: source.ip(),
            destination: destination.ip(),
            source_port: source.port(),
            destination_port: destination.port(),
        }
    }

    pub fn ends(self) -> [SocketAddr; 2] {
        [(self.source, self.source_port).into(), (self.destination, self.destination_port).into()]
    }

    pub fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    Tcp,
    Udp,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Connection {
    pub transport: Transport,
    /// As its originator sends.
    pub original: Direction,
    /// The same packets after translation.
    pub translated: Direction,
    pub replied: bool,
    /// Without a packet it ends after so many seconds.
    pub timeout_s: u32,
}

/// An entry of connection tracking as far as it concerns the promotion of its flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    pub connection: Connection,
    /// Another entry of the same tuples has another one.
    pub id: u32,
    pub mark: u32,
    /// Both ends have sent, and no part of the kernel has to see each packet: it has no helper, no sequence numbers to adjust,
    /// no zone; of TCP, it is established.
    pub is_plain: bool,
    /// Its windows are not checked.
    pub is_liberal: bool,
}

impl Entry {
    /// Whether it is the same entry, with the same translation and mark: the kernel may reuse the number of an entry.
    pub fn is_same(&self, other: &Self) -> bool {
        let what = |e: &Self| (e.id, e.mark, e.connection.original, e.connection.translated);
        what(self) == what(other)
    }
}
