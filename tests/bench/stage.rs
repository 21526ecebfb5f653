//! One variant with everything up: namespaces, container, servers; and the ends of each traffic path.
//!
//! In a variant without a host the topology's host acts as the container: it is joined to the client by one veth.

use crate::backend::{Backend, NETWORK, Places};
use anyhow::Result;
use report::variants::{Kind, Variant};
use std::net::{IpAddr, SocketAddr};
use support::generator::bulk::{self, Iperf};
use support::generator::udp::Counter;
use support::generator::{Servers, tcp};
use support::hop::Hop;
use support::host::Netns;
use support::netavark::Document;
use support::topology::{CLIENT4, Container, Family, HOST4, Topology};

/// Traffic paths.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// Client → published port of the host.
    Published,
    /// Container → client.
    Masqueraded,
    /// Host → 127.0.0.1, published port.
    Local,
    /// Host → the container's own address: the reference for `Local`.
    Address,
    /// Container → published port of the host, which is its own.
    Hairpin,
}

impl Way {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Way::Published => "published",
            Way::Masqueraded => "masqueraded",
            Way::Local => "localhost",
            Way::Address => "address",
            Way::Hairpin => "hairpin",
        }
    }

    pub(crate) fn goes_through(self, kind: Kind) -> bool {
        match kind {
            Kind::Direct => matches!(self, Way::Published | Way::Masqueraded),
            Kind::Routed => matches!(self, Way::Published | Way::Masqueraded | Way::Address),
            Kind::Hop => matches!(self, Way::Published | Way::Masqueraded),
            Kind::Backend(_) => true,
        }
    }
}

/// Ports of the servers; the published port is greater by [`SHIFT`], so that translation is part of the cost.
const ONCE: u16 = 80;
const ECHO: u16 = 81;
const BULK: u16 = 82;
/// Short connections of each path that reaches the server from the gateway's address have a separate port: the kernel delays a
/// connection whose addresses and ports another has just used, unless the same host has made both.
const ONCE_LOCAL: u16 = 83;
const ONCE_ADDRESS: u16 = 84;
const ONCE_HAIRPIN: u16 = 85;
const PORTS: [u16; 6] = [ONCE, ECHO, BULK, ONCE_LOCAL, ONCE_ADDRESS, ONCE_HAIRPIN];
const SHIFT: u16 = 8000;
const HOST_PART: u8 = 5;

/// Servers of one namespace.
struct Served {
    sink: Counter,
    _threads: Servers,
    _iperf: Iperf,
}

impl Served {
    fn start(netns: &Netns) -> Result<Self> {
        let mut threads = Servers::default();
        for port in [ONCE, ONCE_LOCAL, ONCE_ADDRESS, ONCE_HAIRPIN] {
            threads.connections(netns, port)?;
        }
        threads.round_trips(netns, ECHO)?;
        threads.datagrams(netns, ECHO)?;
        let sink = threads.sink(netns, ONCE)?;
        Ok(Self { sink, _threads: threads, _iperf: bulk::server(netns, BULK)? })
    }
}

/// Dropped in order: servers, container, namespaces.
pub(crate) struct Stage {
    pub variant: &'static Variant,
    inside: Served,
    outside: Served,
    up: Option<(Backend, Document)>,
    _hop: Option<Hop>,
    container: Container,
    topology: Topology,
}

/// One traffic path through a stage.
pub(crate) struct Path<'s> {
    pub from: &'s Netns,
    ip: IpAddr,
    shift: u16,
    once: u16,
    pub counter: &'s Counter,
}

impl Path<'_> {
    fn to(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, port + self.shift)
    }

    /// The server of short connections.
    pub(crate) fn once(&self) -> SocketAddr {
        self.to(self.once)
    }

    /// The receiver of datagrams.
    pub(crate) fn sink(&self) -> SocketAddr {
        self.to(ONCE)
    }

    pub(crate) fn echo(&self) -> SocketAddr {
        self.to(ECHO)
    }

    pub(crate) fn bulk(&self) -> SocketAddr {
        self.to(BULK)
    }
}

impl Stage {
    /// # Errors
    /// A part cannot be made, or a path gives no answer.
    pub(crate) fn new(variant: &'static Variant, places: &Places) -> Result<Self> {
        let topology = topology()?;
        if variant.is_as_over_a_wire() {
            topology.client.complete_checksums("eth0")?;
        }
        let container = topology.container("web")?;
        let mut hop = None;
        let up = match variant.kind {
            Kind::Direct => None,
            Kind::Routed => {
                route(&topology, &container)?;
                None
            }
            Kind::Hop => {
                route(&topology, &container)?;
                let Topology { client, host, .. } = &topology;
                hop = Some(Hop::between((client, "eth0"), (host, "eth0"), (host, "web0"), (&container, "eth0"))?);
                None
            }
            Kind::Backend(_) => {
                let backend = Backend::new(variant, places, &topology)?;
                let document = PORTS.into_iter().fold(backend.document(HOST_PART), |document, port| {
                    document.publish("", port + SHIFT, port, "tcp").publish("", port + SHIFT, port, "udp")
                });
                backend.setup(&topology, &container, &document)?;
                Some((backend, document))
            }
        };
        let container_side = if matches!(variant.kind, Kind::Direct) { &topology.host } else { &container };
        let (inside, outside) = (Served::start(container_side)?, Served::start(&topology.client)?);
        Ok(Self { variant, inside, outside, up, _hop: hop, container, topology })
    }

    /// `None` where this variant lacks the path.
    pub(crate) fn path(&self, way: Way) -> Option<Path<'_>> {
        if !way.goes_through(self.variant.kind) {
            return None;
        }
        let Topology { client, host, .. } = &self.topology;
        let (inside, address) = match self.variant.kind {
            Kind::Direct => (host, HOST4),
            Kind::Routed | Kind::Hop | Kind::Backend(_) => {
                (&self.container.netns, Family::V4.container(NETWORK, HOST_PART))
            }
        };
        let published = matches!(self.variant.kind, Kind::Backend(_));
        let (from, ip, shift) = match way {
            Way::Published if published => (client, HOST4, SHIFT),
            Way::Published => (client, address, 0),
            Way::Masqueraded => (inside, CLIENT4, 0),
            Way::Local => (host, Family::V4.localhost(), SHIFT),
            Way::Address => (host, address, 0),
            Way::Hairpin => (inside, HOST4, SHIFT),
        };
        let server = if way == Way::Masqueraded { &self.outside } else { &self.inside };
        let once = match way {
            Way::Published | Way::Masqueraded => ONCE,
            Way::Local => ONCE_LOCAL,
            Way::Address => ONCE_ADDRESS,
            Way::Hairpin => ONCE_HAIRPIN,
        };
        Some(Path { from, ip, shift, once, counter: &server.sink })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some((backend, document)) = &self.up {
            // Its namespaces and its private mounts end anyway.
            let _ = backend.teardown(&self.topology, &self.container, document);
        }
    }
}

/// Keeps bridged packets out of netfilter, as on a host without br_netfilter: with it every packet would pass the rules of
/// Netavark twice, and a container would not reach its own published port.
pub(crate) fn topology() -> Result<Topology> {
    let topology = Topology::new()?;
    for family in ["iptables", "ip6tables"] {
        // Absent without the module.
        let _ = topology.host.set_sysctl(&format!("net/bridge/bridge-nf-call-{family}"), "0");
    }
    Ok(topology)
}

/// The container behind a host that routes and does nothing else.
fn route(topology: &Topology, container: &Container) -> Result<()> {
    let (address, gateway) = (Family::V4.container(NETWORK, HOST_PART), Family::V4.gateway(NETWORK));
    let net = Family::V4.container(NETWORK, 0);
    topology.host.ip(&format!(
        "link add web0 type veth peer name eth0 netns {}\naddr add {gateway}/24 dev web0\nlink set web0 up\n",
        container.path().display()
    ))?;
    container.ip(&format!(
        "link set lo up\naddr add {address}/24 dev eth0\nlink set eth0 up\nroute add default via {gateway}\n"
    ))?;
    topology.host.set_sysctl("net/ipv4/ip_forward", "1")?;
    topology.client.ip(&format!("route add {net}/24 via {HOST4}\n"))
}

/// A host with a backend and one permanent container that keeps bridge and programs in place, as on a host in use.
pub(crate) struct Host {
    pub backend: Backend,
    pub topology: Topology,
    keeper: (Container, Document),
}

/// Host part of the container that [`Host`] keeps; others follow it.
const KEEPER: u8 = 2;
pub(crate) const FIRST_FREE: u8 = 3;

impl Host {
    /// # Errors
    /// A part cannot be made. Direct and routed have no backend.
    pub(crate) fn new(variant: &'static Variant, places: &Places) -> Result<Self> {
        let topology = topology()?;
        let backend = Backend::new(variant, places, &topology)?;
        let container = topology.container("keeper")?;
        let document = backend.document(KEEPER).publish("", 999, 80, "tcp");
        backend.setup(&topology, &container, &document)?;
        Ok(Self { backend, topology, keeper: (container, document) })
    }

    /// Short connections through the published port `port` of `container`.
    ///
    /// # Errors
    /// No connection is made.
    pub(crate) fn connections(&self, container: &Netns, port: u16, time: std::time::Duration) -> Result<tcp::Rate> {
        let mut servers = Servers::default();
        servers.connections(container, ONCE)?;
        tcp::connections(&self.topology.client, SocketAddr::new(HOST4, port), time)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let (container, document) = &self.keeper;
        let _ = self.backend.teardown(&self.topology, container, document);
    }
}
