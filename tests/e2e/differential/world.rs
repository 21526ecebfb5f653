//! One of the two hosts: three networks, a server behind everything published, and all peers of the steps.

use crate::rig::{Rig, Way, serve, serve_at};
use anyhow::Result;
use support::host::Netns;
use support::netavark::Document;
use support::topology::{Container, Family, Topology};
use support::traffic::Server;

/// A container and its document.
type Up = (Container, Document);

pub(super) struct World<'t> {
    pub topology: &'t Topology,
    pub is_ebpf: bool,
    /// br_netfilter passes IPv6 frames of bridges to netfilter, so `::1` is left to the host there.
    pub keeps_localhost6: bool,
    web: Up,
    app: Up,
    other: Up,
    listed: Up,
    servers: Vec<Server>,
}

impl<'t> World<'t> {
    /// ```text
    /// web     network 7: 8080, 8443 to 8447 (two of them served), 7000 without a server; 9090 on the second address,
    ///                    6060 on localhost
    /// app     network 7, publishes nothing
    /// other   network 8: 8181
    /// listed  network 9: 8282, for the client's own addresses
    /// ```
    pub(super) fn new(rig: &Rig<'t>, way: Way) -> Result<Self> {
        let topology = rig.topology;
        let mut document = Document::new().on_dual(&way.network(7), "eth0", 7, 5);
        for proto in ["tcp", "udp"] {
            document = document.publish("", 8080, 80, proto).publish_range("", 8443, 1443, 5, proto);
            document = document.publish("", 7000, 7000, proto).publish("127.0.0.1", 6060, 80, proto);
            for family in Family::BOTH {
                document = document.publish(&family.host_second().to_string(), 9090, 80, proto);
            }
        }
        let on = |n: u8, port: u16| {
            let allow = format!("{},{}", Family::V4.client(), Family::V6.client());
            let network = if n == 9 { way.network(9).option("netpath.allow", &allow) } else { way.network(n) };
            let document = Document::new().on_dual(&network, "eth0", n, 5);
            document.publish("", port, 80, "tcp").publish("", port, 80, "udp")
        };
        let web = rig.up("web", document)?;
        let app = rig.up("app", Document::new().on_dual(&way.network(7), "eth0", 7, 6))?;
        let (other, listed) = (rig.up("other", on(8, 8181))?, rig.up("listed", on(9, 8282))?);
        let mut servers = Vec::new();
        for (netns, port, name) in [
            (&*web.0, 80, "web"),
            (&*web.0, 1443, "first"),
            (&*web.0, 1445, "third"),
            (&*app.0, 80, "app"),
            (&*other.0, 80, "other"),
            (&*listed.0, 80, "listed"),
            (&topology.host, 7777, "host"),
            (&topology.client, 9000, "near"),
            (topology.far(), 9000, "far"),
        ] {
            servers.extend(serve(netns, port, name)?);
        }
        for family in Family::BOTH {
            servers.extend(serve_at(&topology.client, family.outside(), 9001, "outside")?);
        }
        routes(topology)?;
        for netns in [&topology.client, &topology.host, topology.far(), &web.0, &app.0, &other.0, &listed.0] {
            tells_every_error(netns)?;
        }
        let keeps_localhost6 = topology.host.sysctl("net/bridge/bridge-nf-call-ip6tables").is_ok_and(|v| v == "1");
        Ok(Self { topology, is_ebpf: way.rung.is_ebpf(), keeps_localhost6, web, app, other, listed, servers })
    }

    pub(super) fn container(&self, who: Inside) -> &Netns {
        match who {
            Inside::Web => &self.web.0,
            Inside::App => &self.app.0,
            Inside::Other => &self.other.0,
            Inside::Listed => &self.listed.0,
        }
    }

    /// Ends the servers; returns the containers for their teardown.
    pub(super) fn end(self) -> Vec<Up> {
        drop(self.servers);
        vec![self.web, self.app, self.other, self.listed]
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Inside {
    Web,
    App,
    Other,
    Listed,
}

impl Inside {
    pub(super) const ALL: [Self; 4] = [Self::Web, Self::App, Self::Other, Self::Listed];

    /// Network and host number.
    fn place(self) -> (u8, u8) {
        match self {
            Self::Web => (7, 5),
            Self::App => (7, 6),
            Self::Other => (8, 5),
            Self::Listed => (9, 5),
        }
    }

    pub(super) fn address(self, family: Family) -> std::net::IpAddr {
        let (network, host) = self.place();
        family.container(network, host)
    }
}

/// Adds routes to containers and to each other by the host on both neighbours.
fn routes(topology: &Topology) -> Result<()> {
    for (family, prefix) in [(Family::V4, 24), (Family::V6, 64)] {
        for n in [7, 8, 9] {
            let net = family.container(n, 0);
            topology.client.ip(&format!("route add {net}/{prefix} via {}\n", family.host()))?;
        }
        topology.client.ip(&format!(
            "route add {}/{} via {}\n",
            family.far(),
            if prefix == 24 { 32 } else { 128 },
            family.host()
        ))?;
        topology.far().ip(&format!("route add default via {} dev eth0\n", family.host_far()))?;
    }
    Ok(())
}

/// Disables the ICMP rate limits: a result must not depend on the number of earlier errors.
fn tells_every_error(netns: &Netns) -> Result<()> {
    netns.set_sysctl("net/ipv4/icmp_ratelimit", "0")?;
    netns.set_sysctl("net/ipv6/icmp/ratelimit", "0")?;
    // On older kernels these are global, and read-only in a namespace.
    for all in ["net/ipv4/icmp_msgs_per_sec", "net/ipv4/icmp_msgs_burst"] {
        let _ = netns.set_sysctl(all, "100000");
    }
    Ok(())
}
