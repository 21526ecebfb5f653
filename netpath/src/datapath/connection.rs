//! A translated connection, as one datapath hands it to another.

use std::net::IpAddr;

/// One direction of a connection; ports in host byte order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Direction {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub source_port: u16,
    pub destination_port: u16,
}

impl Direction {
    pub fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
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
