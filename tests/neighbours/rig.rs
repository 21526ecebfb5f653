//! A host with another network software beside netpath, and the invariants on each.

use anyhow::{Context, Result, ensure};
use std::cell::Cell;
use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};
use support::expect::Expect;
use support::host::{Netns, patient};
use support::need::{self, Need};
use support::netavark::{AARDVARK, Document, Netavark, Network, Rung, is_incumbent};
use support::residue::Residue;
use support::topology::{Container, Family, Topology};
use support::traffic::{ANY, ANY4, Dial, Proto, Server, again};

/// Longer than an answer takes while IPv6 addresses of a bridge are still tentative, as with Netavark.
const QUICK: Duration = Duration::from_secs(3);

pub(crate) struct Rig<'t> {
    pub topology: &'t Topology,
    pub netavark: Netavark<'t>,
    expect: Expect,
    /// The neighbour changes its rules meanwhile: only objects with netpath's names must be gone.
    pub others_change: Cell<bool>,
}

impl std::ops::Deref for Rig<'_> {
    type Target = Expect;
    fn deref(&self) -> &Expect {
        &self.expect
    }
}

pub(crate) type Up = (Container, Document);

/// Requires a datapath for hosts with rules, and a resolver.
pub(crate) fn possible() -> Need {
    need::rung(Rung::Iptables)?;
    if Path::new(AARDVARK).exists() { Ok(()) } else { Err(AARDVARK.to_owned()) }
}

/// Runs `test` on a host that must be restored. `test` returns the containers that it has not torn down.
pub(crate) fn beside(
    topology: &Topology,
    environment: &[(&str, &str)],
    test: impl FnOnce(&Rig<'_>) -> Result<Vec<Up>>,
) -> Result<()> {
    let residue = Residue::watch(topology)?;
    let rig = Rig {
        topology,
        netavark: Netavark::with(topology, environment)?,
        expect: Expect::default(),
        others_change: Cell::default(),
    };
    let up = test(&rig).with_context(|| rig.take().join("\n"))?;
    for (container, document) in &up {
        rig.met("teardown", rig.netavark.teardown(container, document));
    }
    rig.met("the host afterwards", residue.nothing_left_of(topology, &[], |line| rig.is_to_be_gone(line)));
    rig.all_met("beside neighbours")
}

/// TCP and UDP 8080 of the host lead to port 80 of a container on [`Network::dual`] 7.
pub(crate) fn published() -> Document {
    plain().publish("", 8080, 80, "tcp").publish("", 8080, 80, "udp")
}

/// The same container without ports.
pub(crate) fn plain() -> Document {
    Document::new().on_dual(&Network::dual(7).set("dns_enabled", true), "eth0", 7, 5)
}

impl Rig<'_> {
    /// Whether a difference between the host before and after must be gone.
    fn is_to_be_gone(&self, line: &str) -> bool {
        const OURS: [&str; 7] = ["podman7", "10.89.7.", "fd41:7:", "NETAVARK", "NETPATH", "netpath", "bpf"];
        !self.others_change.get() || OURS.iter().any(|name| line.contains(name))
    }

    pub(crate) fn up(&self, name: &str, document: Document) -> Result<Up> {
        let container = self.topology.container(name)?;
        self.netavark.setup(&container, &document).with_context(|| format!("setup of {name}"))?;
        Ok((container, document))
    }

    /// Servers that answer for the container, for the outside, and on a port of the host that the neighbour may have closed.
    pub(crate) fn serve(&self, container: &Netns) -> Result<Vec<Server>> {
        let Topology { client, host, .. } = self.topology;
        let mut servers = Vec::new();
        for proto in Proto::BOTH {
            servers.push(Server::echo(container, proto, ANY, 80, "web")?);
            servers.push(Server::echo(client, proto, ANY, 9000, "outside")?);
            servers.push(Server::echo(host, proto, ANY, 9100, "host")?);
        }
        Ok(servers)
    }

    /// The guarantees for the container on every host.
    pub(crate) fn served(&self, what: &str, container: &Netns) {
        self.reached(what, 8080, "web");
        for family in Family::BOTH {
            self.leaves(what, container, family);
            // The resolver takes a moment to start.
            let begun = Instant::now();
            let mut named = self.named(container, family);
            while named.is_err() && begun.elapsed() < patient(QUICK) {
                named = self.named(container, family);
            }
            self.met(&format!("{what}: a name, over {family:?}"), named);
        }
    }

    /// The resolver at the gateway knows the container's own name.
    fn named(&self, container: &Netns, family: Family) -> Result<()> {
        let own = family.container(7, 5);
        let (kind, address) = match own {
            IpAddr::V4(ip) => (1, ip.octets().to_vec()),
            IpAddr::V6(ip) => (28, ip.octets().to_vec()),
        };
        // RFC 1035 section 4.1: one question, of class IN.
        let header = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        let question = [&header[..], b"\x03web\x03dns\x06podman\0", &[0, kind, 0, 1]].concat();
        container.run(|| {
            let socket = UdpSocket::bind((if own.is_ipv4() { ANY4 } else { ANY }, 0))?;
            socket.set_read_timeout(Some(patient(QUICK)))?;
            socket.connect((family.gateway(7), 53))?;
            socket.send(&question)?;
            let mut answer = [0; 512];
            let len = again(|| socket.recv(&mut answer)).context("receive")?;
            let answer = &answer[..len];
            let known = answer[3] & 15 == 0 && answer.windows(address.len()).any(|w| w == address);
            ensure!(known, "{own} is not in the answer {answer:02x?}");
            Ok(())
        })
    }

    /// A client outside reaches `server` by this port of the host.
    pub(crate) fn reached(&self, what: &str, port: u16, server: &str) {
        for (family, proto) in each() {
            let to = dial(proto, family.host(), port);
            self.sees(&format!("{what}: published"), &self.topology.client, &to, server, family.client());
        }
    }

    /// Outbound traffic of the container is answered, and comes from the host.
    pub(crate) fn leaves(&self, what: &str, container: &Netns, family: Family) {
        for proto in Proto::BOTH {
            let to = dial(proto, family.client(), 9000);
            self.sees(&format!("{what}: out"), container, &to, "outside", family.host());
        }
    }

    /// The container's port is not reachable by its own address, even with a route.
    pub(crate) fn unreached(&self, what: &str) -> Result<()> {
        if is_incumbent() {
            return Ok(());
        }
        for family in Family::BOTH {
            let (net, host) = (family.container(7, 0), family.host());
            let length = if net.is_ipv4() { 24 } else { 64 };
            self.topology.client.ip(&format!("route replace {net}/{length} via {host}\n"))?;
            for proto in Proto::BOTH {
                self.silent(what, &self.topology.client, &dial(proto, family.container(7, 5), 80));
            }
        }
        Ok(())
    }

    /// Whether port 9100 of the host answers the client.
    pub(crate) fn own_port(&self, what: &str, open: bool) {
        for (family, proto) in each() {
            let to = dial(proto, family.host(), 9100);
            match open {
                true => drop(self.sees(what, &self.topology.client, &to, "host", family.client())),
                false => self.silent(what, &self.topology.client, &to),
            }
        }
    }

    /// The port is closed to the client's first address for `proto`, and open to its second: the rule matches the source.
    pub(crate) fn closed_but_to_one(&self, what: &str, family: Family, proto: Proto) {
        let to = dial(proto, family.host(), 8080);
        let from = |ip: IpAddr| to.clone().from(ip, 0);
        let allowed = family.outside();
        self.sees(&format!("{what}: the admitted client"), &self.topology.client, &from(allowed), "web", allowed);
        self.silent(&format!("{what}: another client"), &self.topology.client, &from(family.client()));
    }
}

/// Less patient than elsewhere: on a host without service, many would be waited for.
pub(crate) fn dial(proto: Proto, ip: IpAddr, port: u16) -> Dial {
    Dial::new(proto, ip, port).patience(patient(QUICK))
}

/// Both families and both protocols.
pub(crate) fn each() -> impl Iterator<Item = (Family, Proto)> {
    Family::BOTH.into_iter().flat_map(|family| Proto::BOTH.map(|proto| (family, proto)))
}
