//! One random packet or connection, and the observations at its ends.

use super::world::{Inside, World};
use anyhow::{Error, Result, ensure};
use nix::errno::Errno;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use support::echo::Pinger;
use support::host::{Netns, patient};
use support::packet::{ACK, FIN, Frame, L4, RST, SYN};
use support::raw::{Probe, Raw};
use support::rng::Rng;
use support::topology::Family;
use support::traffic::{Dial, Dress, Proto};

/// Time-out of silence. Answers come at once; all steps of a round share two processors.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum From {
    Client,
    /// An address behind the client.
    Outside,
    Far,
    Host,
    In(Inside),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum To {
    Host,
    HostSecond,
    HostFar,
    Localhost,
    Gateway(u8),
    In(Inside),
    Client,
    Outside,
    Far,
    /// An unused address behind the client.
    Unused,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum What {
    Tcp(Dress),
    Udp(Dress),
    /// An unconnected socket.
    Sendto(Dress),
    Echo,
    /// A datagram whose TTL expires at the next hop.
    Aged,
    /// A TCP packet of no connection, with these flags.
    Flags(u8),
    /// A protocol without a listener.
    Other(u8),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub n: u16,
    pub from: From,
    pub family: Family,
    pub what: What,
    pub to: To,
    pub port: u16,
    pub bytes: usize,
    /// Bound to its own address; else only to a port.
    pub bound: bool,
}

/// The observations at both ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    Answered {
        server: String,
        /// The client address that the server saw.
        client: IpAddr,
        keeps_port: bool,
        /// The client's address as its socket reports it.
        own: IpAddr,
        /// Whether the answer came from the address asked.
        by_the_asked: bool,
    },
    Echoed,
    /// A packet in answer to one that belongs to no connection.
    Heard {
        from: IpAddr,
        flags: u8,
    },
    /// An ICMP error: its kind and its sender.
    Told {
        from: IpAddr,
        kind: u8,
        code: u8,
    },
    Refused,
    Unreachable(Errno),
    Silent,
    Failed(String),
}

impl Outcome {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Answered { .. } | Self::Echoed => "answered",
            Self::Heard { .. } | Self::Refused => "refused",
            Self::Told { .. } | Self::Unreachable(_) => "told",
            Self::Silent => "silent",
            Self::Failed(_) => "failed",
        }
    }
}

impl From {
    const ALL: [Self; 8] = [
        Self::Client,
        Self::Outside,
        Self::Far,
        Self::Host,
        Self::In(Inside::Web),
        Self::In(Inside::App),
        Self::In(Inside::Other),
        Self::In(Inside::Listed),
    ];

    fn netns<'w>(self, world: &'w World<'_>) -> &'w Netns {
        match self {
            Self::Client | Self::Outside => &world.topology.client,
            Self::Far => world.topology.far(),
            Self::Host => &world.topology.host,
            Self::In(who) => world.container(who),
        }
    }

    fn address(self, family: Family) -> IpAddr {
        match self {
            Self::Client => family.client(),
            Self::Outside => family.outside(),
            Self::Far => family.far(),
            Self::Host => family.host(),
            Self::In(who) => who.address(family),
        }
    }
}

impl To {
    pub(super) fn address(self, family: Family) -> IpAddr {
        match self {
            Self::Host => family.host(),
            Self::HostSecond => family.host_second(),
            Self::HostFar => family.host_far(),
            Self::Localhost => family.localhost(),
            Self::Gateway(n) => family.gateway(n),
            Self::In(who) => who.address(family),
            Self::Client => family.client(),
            Self::Outside => family.outside(),
            Self::Far => family.far(),
            Self::Unused if family == Family::V4 => Ipv4Addr::new(203, 0, 113, 99).into(),
            Self::Unused => Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 0x99).into(),
        }
    }

    /// Whether this is an address of the host.
    pub(super) fn is_host(self) -> bool {
        matches!(self, Self::Host | Self::HostSecond | Self::HostFar | Self::Localhost | Self::Gateway(_))
    }
}

impl Step {
    pub(super) const PLAIN: Self = Self {
        n: 0,
        from: From::Client,
        family: Family::V4,
        what: What::Tcp(Dress::Plain),
        to: To::Host,
        port: 8080,
        bytes: 100,
        bound: false,
    };

    pub(super) fn roll(rng: &Rng) -> Self {
        let from = *rng.pick(&From::ALL);
        let family = *rng.pick(&Family::BOTH);
        let what = match rng.below(20) {
            0..=5 => What::Tcp(*rng.pick(&[Dress::Plain, Dress::Plain, Dress::Options])),
            6..=9 => What::Udp(*rng.pick(&[Dress::Plain, Dress::Unsummed, Dress::Options])),
            10..=12 => What::Sendto(*rng.pick(&[Dress::Plain, Dress::Unsummed, Dress::Options])),
            13..=14 => What::Echo,
            15 => What::Aged,
            16..=17 => What::Flags(*rng.pick(&[SYN, ACK, SYN | ACK, RST, FIN | ACK])),
            // Unassigned, and different for each sender: a protocol without ports has one flow per end at a time.
            _ => What::Other(150 + From::ALL.iter().position(|f| *f == from).unwrap_or(0) as u8),
        };
        let inside = To::In(*rng.pick(&Inside::ALL));
        let hosts = [To::Host, To::HostSecond, To::HostFar, To::Gateway(7), To::Gateway(8), To::Localhost];
        let others = [To::Client, To::Outside, To::Far, To::Unused, inside, inside];
        let to = if rng.below(5) < 3 { *rng.pick(&hosts) } else { *rng.pick(&others) };
        let port = match to {
            To::Client | To::Far if rng.below(4) > 0 => 9000,
            To::Outside if rng.below(4) > 0 => 9001,
            To::In(_) if rng.below(3) > 0 => *rng.pick(&[80, 1443, 8080]),
            _ => *rng.pick(&[8080, 8080, 8080, 8181, 8282, 8443, 8445, 8444, 8447, 9090, 6060, 7000, 7777, 80, 5999]),
        };
        let bytes = match rng.below(4) {
            0 => rng.below(64),
            1 => rng.below(1_400),
            2 => 1_400 + rng.below(200),
            _ => rng.below(9_000),
        };
        // A ping socket and raw ones have no port; an unbound socket has the address of its route.
        let bound = from == From::Outside || rng.below(4) == 0;
        let step = Self { from, family, what, to, port, bytes: bytes as usize, bound, ..Self::PLAIN };
        if step.is_meant() { step } else { Self::roll(rng) }
    }

    /// Excludes steps that do not concern the host, or depend on timing: a container resolves an address of its own network for
    /// three seconds.
    fn is_meant(&self) -> bool {
        let raw = matches!(self.what, What::Flags(_) | What::Other(_) | What::Echo | What::Aged);
        let alone = self.to == To::Localhost && self.from != From::Host;
        let pretends = raw && (self.from == From::Outside || self.to == To::Localhost);
        let own = self.from.address(self.family) == self.to.address(self.family);
        // Its own address is no source towards localhost.
        let impossible = self.bound && self.to == To::Localhost;
        !alone && !pretends && !own && !impossible
    }

    fn sport(&self) -> u16 {
        20_000 + self.n
    }

    /// Runs the step, and returns the observations.
    pub(super) fn take(&self, world: &World<'_>) -> Outcome {
        let netns = self.from.netns(world);
        let to = SocketAddr::new(self.to.address(self.family), self.port);
        let seen = match self.what {
            What::Tcp(dress) => self.ask(netns, Dial::new(Proto::Tcp, to.ip(), to.port()).dressed(dress)),
            What::Udp(dress) => self.ask(netns, Dial::new(Proto::Udp, to.ip(), to.port()).dressed(dress)),
            What::Sendto(dress) => {
                self.ask(netns, Dial::new(Proto::Udp, to.ip(), to.port()).unconnected().dressed(dress))
            }
            What::Echo => self.send_echo(netns, to.ip()),
            What::Aged => self.send_aged(netns, to),
            What::Flags(flags) => self.send_flags(netns, to, flags),
            What::Other(protocol) => self.send_other(netns, to.ip(), protocol),
        };
        seen.unwrap_or_else(|e| failure(&e))
    }

    /// Twice: the second meets the state of the first.
    fn ask(&self, netns: &Netns, dial: Dial) -> Result<Outcome> {
        let any = if self.family == Family::V4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let source = if self.bound { self.from.address(self.family) } else { any };
        let dial = dial.from(source, self.sport()).bytes(self.bytes).patience(patient(PATIENCE));
        let once = || -> Result<Outcome> {
            let seen = dial.ask(netns)?;
            Ok(Outcome::Answered {
                server: seen.server,
                client: seen.client.ip(),
                keeps_port: seen.client.port() == self.sport(),
                own: seen.own.ip(),
                by_the_asked: seen.peer == dial.to,
            })
        };
        let first = once()?;
        // A TCP socket keeps its port for a while.
        if dial.proto == Proto::Udp {
            let second = once().unwrap_or_else(|e| failure(&e));
            ensure!(first == second, "the second time another outcome than {first:?}: {second:?}");
        }
        Ok(first)
    }

    fn send_echo(&self, netns: &Netns, to: IpAddr) -> Result<Outcome> {
        let pinger = Pinger::new(netns, self.family, self.sport())?;
        pinger.ping_within(patient(PATIENCE), to, 1, self.bytes).map(|()| Outcome::Echoed)
    }

    fn send_aged(&self, netns: &Netns, to: SocketAddr) -> Result<Outcome> {
        let told = Probe::new(netns, to)?.hops(1)?.error_within(patient(PATIENCE), self.bytes.min(1_000))?;
        Ok(Outcome::Told { from: told.offender, kind: told.errno as u8, code: 0 })
    }

    fn send_flags(&self, netns: &Netns, to: SocketAddr, flags: u8) -> Result<Outcome> {
        let frame = Frame::tcp((self.from.address(self.family), self.sport()), (to.ip(), to.port()), flags);
        let frame = Frame { payload: Vec::new(), ..frame };
        let ear = Raw::new(netns, self.family, libc::IPPROTO_TCP)?;
        Raw::new(netns, self.family, libc::IPPROTO_RAW)?.send(to.ip(), &frame.quoted())?;
        let ports = [to.port().to_be_bytes(), self.sport().to_be_bytes()].concat();
        let (from, answer) = ear.receive(patient(PATIENCE), |b| b.len() >= 20 && b[..4] == ports[..])?;
        Ok(Outcome::Heard { from, flags: answer[13] })
    }

    fn send_other(&self, netns: &Netns, to: IpAddr, protocol: u8) -> Result<Outcome> {
        let v4 = self.family == Family::V4;
        let ear = Raw::new(netns, self.family, if v4 { libc::IPPROTO_ICMP } else { libc::IPPROTO_ICMPV6 })?;
        let mark = [b"step".as_slice(), &self.n.to_be_bytes(), &[protocol; 2]].concat();
        let frame =
            Frame { payload: mark.clone(), ..Frame::new(self.from.address(self.family), to, L4::Raw(protocol)) };
        Raw::new(netns, self.family, libc::IPPROTO_RAW)?.send(to, &frame.quoted())?;
        // After the error's header and the quoted network header.
        let at = 8 + if v4 { 20 } else { 40 };
        let (from, error) = ear.receive(patient(PATIENCE), |b| b.len() >= at + 8 && b[at..at + 8] == mark[..])?;
        Ok(Outcome::Told { from, kind: error[0], code: error[1] })
    }
}

/// An error of a socket, classified by its meaning to the caller.
fn failure(error: &Error) -> Outcome {
    let raw = error.chain().find_map(|cause| {
        let io = cause.downcast_ref::<std::io::Error>();
        let told = io.and_then(std::io::Error::raw_os_error).map(Errno::from_raw);
        let silent = io.is_some_and(|e| e.kind() == std::io::ErrorKind::TimedOut).then_some(Errno::ETIMEDOUT);
        told.or(silent).or_else(|| cause.downcast_ref::<Errno>().copied())
    });
    let waited = error.chain().any(|c| {
        let text = c.to_string();
        text.contains("no packet within") || text.contains("not so after")
    });
    match raw {
        Some(Errno::ECONNREFUSED) => Outcome::Refused,
        Some(Errno::EAGAIN | Errno::ETIMEDOUT | Errno::EINPROGRESS) => Outcome::Silent,
        Some(errno @ (Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::EACCES | Errno::EPROTO)) => {
            Outcome::Unreachable(errno)
        }
        None if waited => Outcome::Silent,
        _ => Outcome::Failed(format!("{error:#}")),
    }
}
