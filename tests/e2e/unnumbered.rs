//! An uplink without an address: the host's are on `lo`, and the next hops are on-link, or those of IPv4 are IPv6 addresses.

use crate::rig::{rig, serve, web};
use anyhow::{Context, Result};
use std::net::Ipv6Addr;
use support::host::Netns;
use support::netavark::{Document, Network, Rung};
use support::topology::{Family, Topology};
use support::traffic::{Dial, Proto};

on_every_rung!(ports_and_masquerade_work_by_next_hops_on_the_link, ports_and_masquerade_work_by_next_hops_of_ipv6);

fn link_local(netns: &Netns) -> Result<Ipv6Addr> {
    let links = netns.ip_json(&["address", "show", "dev", "eth0"])?;
    let own = links[0]["addr_info"].as_array().into_iter().flatten().filter_map(|a| a["local"].as_str());
    Ok(own.into_iter().find(|a| a.starts_with("fe80:")).context("no link-local address")?.parse()?)
}

/// `by_v6`: IPv4 has next hops of IPv6.
fn unnumbered(by_v6: bool) -> Result<Topology> {
    let topology = Topology::new()?;
    let Topology { client, host, .. } = &topology;
    let (of_host, of_client) = (link_local(host)?, link_local(client)?);
    host.ip("address flush dev eth0 scope global\n")?;
    let [v4, v6] = Family::BOTH.map(|f| (f.host(), f.client()));
    host.ip(&format!("address add {}/32 dev lo\naddress add {}/128 dev lo nodad\n", v4.0, v6.0))?;
    let to_client = if by_v6 { format!("inet6 {of_client} dev eth0") } else { format!("{} dev eth0 onlink", v4.1) };
    host.ip(&format!("route replace 0.0.0.0/0 via {to_client}\nroute replace default via {of_client} dev eth0\n"))?;
    client.ip(&format!("route add {}/128 via {of_host} dev eth0\n", v6.0))?;
    if by_v6 {
        client.ip(&format!("route replace {}/32 via inet6 {of_host} dev eth0\n", v4.0))?;
    }
    Ok(topology)
}

fn ports_and_masquerade_work_by_next_hops_on_the_link(rung: Rung) -> Result<()> {
    serves(rung, unnumbered(false))
}

fn ports_and_masquerade_work_by_next_hops_of_ipv6(rung: Rung) -> Result<()> {
    serves(rung, unnumbered(true))
}

fn serves(rung: Rung, topology: Result<Topology>) -> Result<()> {
    rig(topology, rung, |rig| {
        let client = &rig.topology.client;
        let document = Document::new().on_dual(&Network::dual(7), "eth0", 7, 5);
        let (web, _servers) = web(rig, document.publish("", 8080, 80, "tcp").publish("", 8080, 80, "udp"))?;
        let _outside = serve(client, 9000, "outside")?;
        for family in Family::BOTH {
            for proto in Proto::BOTH {
                // Twice: the second uses what the first has left.
                for _ in 0..2 {
                    let published = Dial::new(proto, family.host(), 8080).bytes(50_000);
                    rig.sees("published", client, &published, "web", family.client());
                    let outward = Dial::new(proto, family.client(), 9000);
                    rig.sees("masqueraded", &web.0, &outward, "outside", family.host());
                }
            }
        }
        for family in Family::BOTH {
            rig.met("of the host", Dial::new(Proto::Tcp, family.host(), 8080).ask(&rig.topology.host));
        }
        Ok(vec![web])
    })
}
