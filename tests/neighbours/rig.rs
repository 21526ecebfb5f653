//! A host beside whose neighbours netpath runs, and what must be so on each of them.

use anyhow::{Context, Result};
use kit::expect::Expect;
use kit::host::{Netns, SOON, patient, wait_for};
use kit::need::{self, Need};
use kit::netavark::{Document, Netavark, Network, Rung, is_incumbent};
use kit::residue::Snapshot;
use kit::topology::{Container, Family, Topology};
use kit::traffic::{ANY, Dial, Proto, Server};
use std::cell::Cell;
use std::net::IpAddr;
use std::time::Duration;

pub struct Rig<'t> {
    pub topology: &'t Topology,
    pub netavark: Netavark<'t>,
    expect: Expect,
    /// The neighbour's own rules change meanwhile: only what bears netpath's names is netpath's to take away.
    pub others_change: Cell<bool>,
}

impl std::ops::Deref for Rig<'_> {
    type Target = Expect;
    fn deref(&self) -> &Expect {
        &self.expect
    }
}

pub type Up = (Container, Document);

/// netpath has a datapath for hosts with rules.
pub fn possible() -> Need {
    need::rung(Rung::Iptables)
}

/// Runs `test` on a host that is as it should be left: but for forwarding, on which others may rely by then. `test` gives back
/// what it has not torn down.
pub fn beside(
    topology: &Topology,
    environment: &[(&str, &str)],
    test: impl FnOnce(&Rig<'_>) -> Result<Vec<Up>>,
) -> Result<()> {
    let before = Snapshot::take(topology, &[])?;
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
    let mut left = Vec::new();
    let _ = wait_for("an empty host", SOON / 2, || {
        left = before.difference(&Snapshot::take(topology, &[]).ok()?);
        left.retain(|line| rig.is_to_be_gone(line));
        left.is_empty().then_some(())
    });
    rig.note(left.is_empty(), || format!("left behind or missing: {}", left.join(", ")));
    rig.all_met("beside neighbours")
}

/// TCP and UDP 8080 of the host lead to port 80 of a container on [`Network::dual`] 7.
pub fn published() -> Document {
    plain().publish("", 8080, 80, "tcp").publish("", 8080, 80, "udp")
}

/// The same container without ports.
pub fn plain() -> Document {
    Document::new().on_dual(&Network::dual(7), "eth0", 7, 5)
}

impl Rig<'_> {
    /// Of the differences between the host before and after.
    fn is_to_be_gone(&self, line: &str) -> bool {
        const OURS: [&str; 7] = ["podman7", "10.89.7.", "fd41:7:", "NETAVARK", "NETPATH", "netpath", "bpf"];
        const KEPT_BY_NETAVARK: [&str; 3] = ["netfilter", "sysctl", "config"];
        let forwarding =
            line[2..].starts_with("sysctl") && ["ip_forward =", "/forwarding ="].iter().any(|s| line.contains(s));
        let kept = is_incumbent() && KEPT_BY_NETAVARK.iter().any(|kind| line[2..].starts_with(kind));
        let another = self.others_change.get() && !OURS.iter().any(|name| line.contains(name));
        !(forwarding || kept || another)
    }

    pub fn up(&self, name: &str, document: Document) -> Result<Up> {
        let container = self.topology.container(name)?;
        self.netavark.setup(&container, &document).with_context(|| format!("setup of {name}"))?;
        Ok((container, document))
    }

    /// Servers that answer for the container, for the world outside, and for the host: one of its ports that the neighbour may
    /// have closed, and the resolver at the gateways.
    pub fn serve(&self, container: &Netns) -> Result<Vec<Server>> {
        let Topology { client, host, .. } = self.topology;
        let mut servers = Vec::new();
        for proto in Proto::BOTH {
            servers.push(Server::echo(container, proto, ANY, 80, "web")?);
            servers.push(Server::echo(client, proto, ANY, 9000, "outside")?);
            servers.push(Server::echo(host, proto, ANY, 9100, "host")?);
        }
        for family in Family::BOTH {
            servers.push(Server::echo(host, Proto::Udp, family.gateway(7), 53, "resolver")?);
        }
        Ok(servers)
    }

    /// What is promised of the container on every host.
    pub fn served(&self, what: &str, container: &Netns) {
        self.reached(what, 8080, "web");
        for family in Family::BOTH {
            self.leaves(what, container, family);
            let ask = dial(Proto::Udp, family.gateway(7), 53);
            self.sees(&format!("{what}: a name"), container, &ask, "resolver", family.container(7, 5));
        }
    }

    /// A client outside reaches `server` by this port of the host.
    pub fn reached(&self, what: &str, port: u16, server: &str) {
        for (family, proto) in each() {
            let to = dial(proto, family.host(), port);
            self.sees(&format!("{what}: published"), &self.topology.client, &to, server, family.client());
        }
    }

    /// What leaves the container is answered, and comes from the host.
    pub fn leaves(&self, what: &str, container: &Netns, family: Family) {
        for proto in Proto::BOTH {
            let to = dial(proto, family.client(), 9000);
            self.sees(&format!("{what}: out"), container, &to, "outside", family.host());
        }
    }

    /// The container's port is not reached by its own address, though the client knows the way.
    pub fn unreached(&self, what: &str) -> Result<()> {
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

    /// Port 9100 of the host answers the client, or not.
    pub fn own_port(&self, what: &str, open: bool) {
        for (family, proto) in each() {
            let to = dial(proto, family.host(), 9100);
            match open {
                true => drop(self.sees(what, &self.topology.client, &to, "host", family.client())),
                false => self.silent(what, &self.topology.client, &to),
            }
        }
    }

    /// The port is closed to the client's first address for `proto`, and open to its second: who asks is told by the rule.
    pub fn closed_but_to_one(&self, what: &str, family: Family, proto: Proto) {
        let to = dial(proto, family.host(), 8080);
        let from = |ip: IpAddr| to.clone().from(ip, 0);
        let allowed = family.outside();
        self.sees(&format!("{what}: who is let in"), &self.topology.client, &from(allowed), "web", allowed);
        self.silent(&format!("{what}: who is shut out"), &self.topology.client, &from(family.client()));
    }
}

/// Not as patient as others: of a host where nothing is served, a test tells in a minute.
pub fn dial(proto: Proto, ip: IpAddr, port: u16) -> Dial {
    Dial::new(proto, ip, port).patience(patient(Duration::from_secs(1)))
}

/// Both families and both protocols.
pub fn each() -> impl Iterator<Item = (Family, Proto)> {
    Family::BOTH.into_iter().flat_map(|family| Proto::BOTH.map(|proto| (family, proto)))
}
