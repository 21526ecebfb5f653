//! Sockets of the DNS server that get the queries to port 53 of a network's gateways, although they are at another port.

use super::addr::mapped;
use crate::datapath::LeadDns;
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

pub(super) struct DnsSockets {
    map: SockHash<MapData, DnsKey>,
    _link: SkLookupLink,
}

pub(super) fn open() -> Result<Box<dyn LeadDns>> {
    let what = || "cannot lead DNS queries to another port".to_owned();
    let mut ebpf = EbpfLoader::new().btf(None).load(BYTES).context(what)?;
    let lacks = || Error::new(what()).because("the object lacks a map or program");
    let program: &mut SkLookup = ebpf.program_mut(program::DNS).ok_or_else(lacks)?.try_into().context(what)?;
    program.load().context(what)?;
    let id = program.attach(File::open("/proc/thread-self/ns/net").context(what)?).context(what)?;
    let link = program.take_link(id).context(what)?;
    let map = SockHash::try_from(ebpf.take_map(name::DNS).ok_or_else(lacks)?).context(what)?;
    Ok(Box::new(DnsSockets { map, _link: link }))
}

impl LeadDns for DnsSockets {
    fn lead(&mut self, server: IpAddr, is_udp: bool, socket: BorrowedFd<'_>) -> Result<()> {
        let proto = u32::from(if is_udp { PROTO_UDP } else { PROTO_TCP });
        let key = DnsKey { server: mapped(server), proto };
        let what = || format!("cannot lead DNS queries to {server} to another port");
        self.map.insert(key, socket.as_raw_fd(), 0).context(what)
    }
}
