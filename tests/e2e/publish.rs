//! The destinations of host addresses and ports.

use crate::rig::{rig, serve, web};
use anyhow::Result;
use std::net::{IpAddr, Ipv4Addr};
use support::need;
use support::netavark::{Document, Network, Rung, is_incumbent};
use support::topology::{Family, HOST4, HOST4_SECOND, HOST6, Topology, answers_for};
use support::traffic::{ANY, Dial, Proto, Server};

on_every_rung!(
    a_range_leads_to_the_same_place_in_the_range,
    a_publish_on_one_address_answers_only_there,
    the_v4_wildcard_serves_v4_only,
    the_v6_wildcard_serves_v6_only,
    two_containers_share_a_port_on_two_addresses,
    one_address_of_a_shared_port_falls_back_to_the_wildcard_publish,
    two_networks_of_one_container_hold_the_port_in_turn,
    every_uplink_reaches_a_published_port,
    an_answer_leaves_as_the_question_came,
    a_loopback_publish_is_never_reached_from_a_wire,
    an_unpublished_port_of_the_host_stays_the_hosts,
    a_range_of_ten_thousand_ports,
);

fn one(net: &Network) -> Document {
    Document::new().on_dual(net, "eth0", 7, 5)
}

fn a_range_leads_to_the_same_place_in_the_range(rung: Rung) -> Result<()> {
    rig(Topology::new(), rung, |rig| {
        let document = one(&Network::dual(7))
            .publish_range("", 9_000, 5_000, 100, "tcp")
            .publish_range("", 9_000, 5_000, 100, "udp");
        let up = rig.up("web", document)?;
        let mut servers = Vec::new();
        for (port, name) in [(5_000, "first"), (5_042, "middle"), (5_099, "last")] {
            servers.extend(serve(&up.0, port, name)?);
        }
        for family in Family::BOTH {
            for proto in Proto::BOTH {
                for (port, name) in [(9_000, "first"), (9_042, "middle"), (9_099, "last")] {
                    let dial = Dial::new(proto, family.host(), port);
                    rig.sees(name, &rig.topology.client, &dial, name, family.client());
                    if !is_incumbent() {
                        rig.sees(name, &up.0, &dial, name, family.gateway(7));
                    }
                }
            }
            for port in [8_999, 9_001, 9_100] {
                rig.silent("beside the range", &rig.topology.client, &Dial::new(Proto::Tcp, family.host(), port));
            }
        }
        Ok(vec![up])
    })
}

fn a_range_of_ten_thousand_ports(rung: Rung) -> Result<()> {
    rig(Topology::new(), rung, |rig| {
        let document = one(&Network::dual(7)).publish_range("", 20_000, 30_000, 10_000, "tcp");
        let up = rig.up("web", document)?;
        let _servers = (serve(&up.0, 30_000, "first")?, serve(&up.0, 39_999, "last")?);
        for family in Family::BOTH {
            for (port, name) in [(20_000, "first"), (29_999, "last")] {
                let dial = Dial::new(Proto::Tcp, family.host(), port);
                rig.sees(name, &rig.topology.client, &dial, name, family.client());
                rig.sees(name, &rig.topology.host, &dial, name, local_source(rung, family));
            }
        }
        Ok(vec![up])
    })
}

/// The source that a container sees of a client on the host that dials the host's own address.
fn local_source(rung: Rung, family: Family) -> IpAddr {
    if rung.is_ebpf() { family.gateway(7) } else { family.host() }
}

fn a_publish_on_one_address_answers_only_there(rung: Rung) -> Result<()> {
    rig(Topology::new(), rung, |rig| {
        let mut document = one(&Network::dual(7));
        for host_ip in [HOST4_SECOND, HOST6] {
            for proto in Proto::BOTH {
                document = document.publish(&host_ip.to_string(), 8080, 80, proto.name());
            }
        }
        let (web, _servers) = web(rig, document)?;
        let client = &rig.topology.client;
        for proto in Proto::BOTH {
            rig.sees("v4", client, &Dial::new(proto, HOST4_SECOND, 8080), "web", Family::V4.client());
            rig.sees("v6", client, &Dial::new(proto, HOST6, 8080), "web", Family::V6.client());
            for family in Family::BOTH {
                let other = if family == Family::V4 { HOST4 } else { family.host_second() };
                rig.silent("another address", client, &Dial::new(proto, other, 8080));
                rig.silent("another address, from the host", &rig.topology.host, &Dial::new(proto, other, 8080));
                rig.silent("localhost", &rig.topology.host, &Dial::new(proto, family.localhost(), 8080));
            }
        }
        Ok(vec![web])
    })
}

fn the_v4_wildcard_serves_v4_only(rung: Rung) -> Result<()> {
    only_one_family(rung, "0.0.0.0", Family::V4, Family::V6)
}

fn the_v6_wildcard_serves_v6_only(rung: Rung) -> Result<()> {
    only_one_family(rung, "::", Family::V6, Family::V4)
}

/// Netavark 1.4.0 takes both families for the wildcard address.
fn only_one_family(rung: Rung, host_ip: &str, served: Family, other: Family) -> Result<()> {
    need!(need::netpath());
    rig(Topology::new(), rung, |rig| {
        let document = one(&Network::dual(7)).publish(host_ip, 8080, 80, "tcp").publish(host_ip, 8080, 80, "udp");
        let (web, _servers) = web(rig, document)?;
        for proto in Proto::BOTH {
            let dial = |family: Family| Dial::new(proto, family.host(), 8080);
            rig.sees("served", &rig.topology.client, &dial(served), "web", served.client());
            rig.sees("served", &rig.topology.host, &dial(served), "web", local_source(rung, served));
            rig.silent("other family", &rig.topology.client, &dial(other));
            rig.silent("other family, from the host", &rig.topology.host, &dial(other));
        }
        Ok(vec![web])
    })
}

fn two_containers_share_a_port_on_two_addresses(rung: Rung) -> Result<()> {
    rig(Topology::new(), rung, |rig| {
        let mut up = Vec::new();
        let mut servers = Vec::new();
        type Pick = fn(Family) -> IpAddr;
        let shares = [("first", 5, Family::host as Pick), ("second", 6, Family::host_second as Pick)];
        for (name, host, address) in shares {
            let mut document = Document::new().on_dual(&Network::dual(7), "eth0", 7, host);
            for family in Family::BOTH {
                for proto in Proto::BOTH {
                    document = document.publish(&address(family).to_string(), 8080, 80, proto.name());
                }
            }
            up.push(rig.up(name, document)?);
            servers.extend(serve(&up[up.len() - 1].0, 80, name)?);
        }
        let dials = |address: Pick| Family::BOTH.map(|f| Proto::BOTH.map(|p| (f, Dial::new(p, address(f), 8080))));
        let answers = |name: &str, address: Pick| {
            for (family, dial) in dials(address).as_flattened() {
                rig.sees(name, &rig.topology.client, dial, name, family.client());
                let seen = dial.ask(&rig.topology.host);
                rig.note(seen.as_ref().is_ok_and(|s| s.server == name), || format!("{name} locally: {seen:?}"));
            }
        };
        for (name, _, address) in shares {
            answers(name, address);
        }
        let (first, document) = up.remove(0);
        rig.netavark.teardown(&first, &document)?;
        answers("second", Family::host_second);
        for (_, dial) in dials(Family::host).as_flattened() {
            rig.silent("of the removed container", &rig.topology.client, dial);
            rig.silent("of the removed container, from the host", &rig.topology.host, dial);
        }
        Ok(up)
    })
}

/// A publish on one address takes precedence over one on all addresses, for as long as it exists; the order of setup does not
/// matter.
fn one_address_of_a_shared_port_falls_back_to_the_wildcard_publish(rung: Rung) -> Result<()> {
    need!(need::netpath());
    rig(Topology::new(), rung, |rig| {
        let on = |host: u8, addresses: &[String]| {
            let ports = addresses.iter().flat_map(|a| Proto::BOTH.map(|p| (a, p)));
            let document = Document::new().on_dual(&Network::dual(7), "eth0", 7, host);
            ports.fold(document, |d, (address, proto)| d.publish(address, 8080, 80, proto.name()))
        };
        let every = on(5, &[String::new()]);
        let one = on(6, &Family::BOTH.map(|f| f.host_second().to_string()));
        let (all, some) = (rig.topology.container("all")?, rig.topology.container("some")?);
        let asked = |first: Option<&str>, second: Option<&str>| {
            let addresses = [(first, Family::host as fn(Family) -> IpAddr), (second, Family::host_second)];
            for ((name, address), family) in addresses.iter().flat_map(|a| Family::BOTH.map(|f| (a, f))) {
                for dial in Proto::BOTH.map(|p| Dial::new(p, address(family), 8080)) {
                    match name {
                        Some(name) => drop(rig.sees(name, &rig.topology.client, &dial, name, family.client())),
                        None => rig.silent("unpublished", &rig.topology.client, &dial),
                    }
                }
            }
        };
        rig.netavark.setup(&all, &every)?;
        rig.netavark.setup(&some, &one)?;
        // Servers on all addresses of the containers: they outlast a teardown.
        let mut servers = vec![serve(&all, 80, "all")?, serve(&some, 80, "some")?];
        asked(Some("all"), Some("some"));
        rig.netavark.teardown(&some, &one)?;
        asked(Some("all"), Some("all"));
        rig.netavark.setup(&some, &one)?;
        asked(Some("all"), Some("some"));
        servers.remove(0);
        rig.netavark.teardown(&all, &every)?;
        asked(None, Some("some"));
        // The newer container has all addresses now.
        rig.netavark.setup(&all, &every)?;
        servers.push(serve(&all, 80, "all")?);
        asked(Some("all"), Some("some"));
        Ok(vec![(all, every), (some, one)])
    })
}

/// Podman gives every network of a container all its ports. Removing the one that holds a port reveals the other.
fn two_networks_of_one_container_hold_the_port_in_turn(rung: Rung) -> Result<()> {
    rig(Topology::new(), rung, |rig| {
        let with_ports = |d: Document| d.publish("", 8080, 80, "tcp").publish("", 8080, 80, "udp");
        let first = with_ports(Document::new().on_dual(&Network::dual(7), "eth0", 7, 5));
        let second = with_ports(Document::new().on_dual(&Network::dual(8), "eth1", 8, 5));
        let web = rig.topology.container("web")?;
        // As `podman network connect`: one network per call.
        rig.netavark.setup(&web, &first)?;
        rig.netavark.setup(&web, &second)?;
        // One server for each of the two addresses, so that the answer identifies the path.
        let mut servers = Vec::new();
        for family in Family::BOTH {
            for proto in Proto::BOTH {
                servers.push(Server::echo(&web, proto, family.container(7, 5), 80, "by-net7")?);
                servers.push(Server::echo(&web, proto, family.container(8, 5), 80, "by-net8")?);
            }
        }
        let ask = |name: &str| {
            for family in Family::BOTH {
                for proto in Proto::BOTH {
                    let dial = Dial::new(proto, family.host(), 8080);
                    rig.sees(name, &rig.topology.client, &dial, name, family.client());
                }
            }
        };
        ask("by-net7");
        rig.netavark.teardown(&web, &first)?;
        ask("by-net8");
        Ok(vec![(web, second)])
    })
}

fn every_uplink_reaches_a_published_port(rung: Rung) -> Result<()> {
    rig(Topology::with_far(), rung, |rig| {
        let document = one(&Network::dual(7)).publish("", 8080, 80, "tcp").publish("", 8080, 80, "udp");
        let (web, _servers) = web(rig, document)?;
        for family in Family::BOTH {
            for proto in Proto::BOTH {
                let near = Dial::new(proto, family.host(), 8080);
                let far = Dial::new(proto, family.host_far(), 8080);
                rig.sees("near", &rig.topology.client, &near, "web", family.client());
                rig.sees("far", rig.topology.far(), &far, "web", family.far());
            }
        }
        Ok(vec![web])
    })
}

/// The host's own route to the client uses the other uplink.
fn an_answer_leaves_as_the_question_came(rung: Rung) -> Result<()> {
    need!(need::programs(rung));
    rig(Topology::with_far(), rung, |rig| {
        let document = one(&Network::dual(7)).publish("", 8080, 80, "tcp").publish("", 8080, 80, "udp");
        let (web, _servers) = web(rig, document)?;
        let far = rig.topology.far();
        // A router in between would not answer ARP for the client's address.
        far.set_sysctl("net/ipv4/conf/all/arp_ignore", "1")?;
        for (family, len) in [(Family::V4, "/32"), (Family::V6, "/128 nodad")] {
            far.ip(&format!("addr add {}{len} dev lo\n", family.outside()))?;
            answers_for(far, family.outside())?;
            for proto in Proto::BOTH {
                let dial = Dial::new(proto, family.host_far(), 8080).from(family.outside(), 0).bytes(3_000);
                rig.sees("from behind the other uplink", far, &dial, "web", family.outside());
            }
        }
        Ok(vec![web])
    })
}

fn a_loopback_publish_is_never_reached_from_a_wire(rung: Rung) -> Result<()> {
    rig(Topology::new(), rung, |rig| {
        let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let document =
            one(&Network::dual(7)).publish("127.0.0.1", 8080, 80, "tcp").publish("127.0.0.1", 8080, 80, "udp");
        let (web, _servers) = web(rig, document)?;
        let (client, host) = (&rig.topology.client, &rig.topology.host);
        // A client with a route for 127.0.0.1 by the host.
        client.ip("route del local 127.0.0.1 dev lo table local\n\
             route del local 127.0.0.0/8 dev lo table local\n\
             route add 127.0.0.1/32 via 192.0.2.1 dev eth0 src 192.0.2.2\n")?;
        client.set_sysctl("net/ipv4/conf/eth0/route_localnet", "1")?;
        for proto in Proto::BOTH {
            let dial = Dial::new(proto, localhost, 8080);
            rig.sees("from the host", host, &dial, "web", Family::V4.gateway(7));
            rig.silent("from the wire", client, &dial);
            rig.silent("by the host's address", client, &Dial::new(proto, HOST4, 8080));
        }
        Ok(vec![web])
    })
}

fn an_unpublished_port_of_the_host_stays_the_hosts(rung: Rung) -> Result<()> {
    rig(Topology::new(), rung, |rig| {
        let document = one(&Network::dual(7)).publish("", 8080, 80, "tcp").publish("", 8080, 80, "udp");
        let (web, _servers) = web(rig, document)?;
        let mut servers = serve(&rig.topology.host, 80, "host")?;
        // Published for TCP and UDP: the host's own server on the port is hidden, one on another port is not.
        servers.push(Server::echo(&rig.topology.host, Proto::Tcp, ANY, 8081, "host")?);
        for family in Family::BOTH {
            let client = &rig.topology.client;
            for proto in Proto::BOTH {
                rig.sees("port 80", client, &Dial::new(proto, family.host(), 80), "host", family.client());
                rig.sees("published", client, &Dial::new(proto, family.host(), 8080), "web", family.client());
                let from_container = Dial::new(proto, family.gateway(7), 80);
                rig.sees("by the gateway", &web.0, &from_container, "host", family.container(7, 5));
            }
            rig.sees("port 8081", client, &Dial::new(Proto::Tcp, family.host(), 8081), "host", family.client());
        }
        Ok(vec![web])
    })
}
