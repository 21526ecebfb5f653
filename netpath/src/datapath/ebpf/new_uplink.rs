//! What the agent holds for interfaces that are new: a program at the look-up of listening sockets, and the sockets that discard
//! what it finds. Both end with the agent.

use super::loader::{self, Families, QUIET};
use super::pins::Pins;
use crate::model::error::{Context, Error, Result};
use aya::maps::SockMap;
use aya::programs::SkLookup;
use aya::programs::sk_lookup::SkLookupLink;
use netpath_common::layout::{SINK4, SINK6, name, program};
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Socket, Type};
use std::any::Any;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

struct NewUplinks {
    _link: SkLookupLink,
    _sinks: Vec<Socket>,
}

/// For [`Backend::hold`](crate::datapath::Backend::hold).
pub(super) fn take(host: u64) -> Option<Box<dyn Any + Send>> {
    let pins = Pins::of(host);
    if !loader::is_complete(&pins) {
        return None;
    }
    Some(match NewUplinks::take(&pins) {
        Ok(held) => Box::new(held),
        Err(e) => {
            tracing::debug!("clients on new interfaces may be connected to the engine's sockets for a moment: {e}");
            Box::new(())
        }
    })
}

impl NewUplinks {
    fn take(pins: &Pins) -> Result<Self> {
        let what = || "cannot take clients on new interfaces from listening sockets".to_owned();
        let mut ebpf = loader::load(pins, QUIET, Families::Both)?;
        let map = ebpf.map_mut(name::SINK).ok_or_else(|| Error::new(what()).because("the object lacks a map"))?;
        let mut map = SockMap::try_from(map).context(what)?;
        let mut sinks = Vec::new();
        for (key, any) in
            [(SINK4, SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))), (SINK6, (Ipv6Addr::UNSPECIFIED, 0).into())]
        {
            match apart(|| sink(any)) {
                Ok(sink) => {
                    map.set(key, &sink, 0).context(what)?;
                    sinks.push(sink);
                }
                // A host without IPv6 has no clients of it.
                Err(e) if key == SINK6 => tracing::debug!("no socket of IPv6: {e}"),
                Err(e) => return Err(Error::new(what()).because(e)),
            }
        }
        let program = ebpf.program_mut(program::NEW_UPLINK);
        let program: &mut SkLookup = program
            .ok_or_else(|| Error::new(what()).because("the object lacks a program"))?
            .try_into()
            .context(what)?;
        program.load().context(what)?;
        let netns = File::open("/proc/thread-self/ns/net").context(what)?;
        let id = program.attach(netns).context(what)?;
        Ok(Self { _link: program.take_link(id).context(what)?, _sinks: sinks })
    }
}

/// Runs `make` in a network namespace of its own: a port of the host's would be missing to its servers.
fn apart<T: Send>(make: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        make()
    };
    std::thread::scope(|scope| scope.spawn(inside).join().map_err(|_| io::Error::other("the thread panicked"))?)
}

/// A listening socket that discards every packet before it is answered.
fn sink(at: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
    // BPF_RET | BPF_K: keep 0 bytes (`net/ipv4/tcp_ipv4.c, tcp_filter()`).
    let mut nothing = [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 }];
    let filter = libc::sock_fprog { len: 1, filter: nothing.as_mut_ptr() };
    // SAFETY: the kernel reads the program of the given length, and copies it.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    socket.bind(&at.into())?;
    socket.listen(1)?;
    Ok(socket)
}
