//! Sockets of the DNS server that get the queries to port 53 of a network's gateways, although they are at another port.

use super::addr::mapped;
use crate::model::error::{Context, Error, Result};
use aya::EbpfLoader;
use aya::maps::{MapData, SockHash};
use aya::programs::SkLookup;
use aya::programs::sk_lookup::SkLookupLink;
use netpath_common::layout::{DnsKey, PROTO_TCP, PROTO_UDP, name, program};
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

static BYTES: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netpath-ebpf-dns.o"));

/// Ends when it is dropped. Beside any rung: netfilter sees a query before the sockets of the host are looked up.
pub struct DnsSockets {
    map: SockHash<MapData, DnsKey>,
    _link: SkLookupLink,
}

impl DnsSockets {
    /// For the network namespace of this thread.
    ///
    /// # Errors
    /// The kernel refuses the program.
    pub fn open() -> Result<Self> {
        let what = || "cannot lead DNS queries to another port".to_owned();
        let mut ebpf = EbpfLoader::new().btf(None).load(BYTES).context(what)?;
        let lacks = || Error::new(what()).because("the object lacks a map or program");
        let program: &mut SkLookup = ebpf.program_mut(program::DNS).ok_or_else(lacks)?.try_into().context(what)?;
        program.load().context(what)?;
        let id = program.attach(File::open("/proc/thread-self/ns/net").context(what)?).context(what)?;
        let link = program.take_link(id).context(what)?;
        let map = SockHash::try_from(ebpf.take_map(name::DNS).ok_or_else(lacks)?).context(what)?;
        Ok(Self { map, _link: link })
    }

    /// Queries to port 53 of `server` reach this socket, which is bound, and listens if it is of TCP. Until it is closed.
    ///
    /// # Errors
    /// The kernel refuses the socket.
    pub fn lead(&mut self, server: IpAddr, is_udp: bool, socket: BorrowedFd<'_>) -> Result<()> {
        let proto = u32::from(if is_udp { PROTO_UDP } else { PROTO_TCP });
        let key = DnsKey { server: mapped(server), proto };
        let what = || format!("cannot lead DNS queries to {server} to another port");
        self.map.insert(key, socket.as_raw_fd(), 0).context(what)
    }
}
