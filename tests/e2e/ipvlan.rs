//! Containers on the wire of one of the host's links that share its hardware address.

use crate::rig::{Rig, rig, serve, serve_at};
use anyhow::Result;
use std::net::IpAddr;
use support::need;
use support::netavark::{Document, Network, Rung};
use support::topology::{CLIENT4, CLIENT6, Container, Family, Topology};
use support::traffic::{Dial, Proto};

on_every_rung!(a_container_is_on_the_wire_of_its_parent);

const IPVLAN: &str = "link add link v0 name iv0 type ipvlan mode l2";

fn on(n: u8) -> [IpAddr; 2] {
    [format!("192.0.2.{n}"), format!("2001:db8:1::{n}")].map(|a| a.parse().expect("an address"))
}

fn up(rig: &Rig<'_>, name: &str, mode: &str, n: u8) -> Result<(Container, Document)> {
    let network = Network::new("lan", "eth0")
        .set("driver", "ipvlan")
        .option("mode", mode)
        .subnet("192.0.2.0/24", &CLIENT4.to_string())
        .subnet("2001:db8:1::/64", &CLIENT6.to_string());
    let [v4, v6] = on(n).map(|a| a.to_string());
    rig.up(name, Document::new().on(&network, "eth0", &[&v4, &v6]))
}

fn a_container_is_on_the_wire_of_its_parent(rung: Rung) -> Result<()> {
    need!(need::accepted("ip", IPVLAN));
    rig(Topology::new(), rung, |rig| {
        let (web, document) = up(rig, "web", "l2", 50)?;
        let (other, of_other) = up(rig, "other", "l2", 51)?;
        // Served by the datapath on the same uplink.
        let served =
            rig.up("served", Document::new().on_dual(&Network::dual(7), "eth0", 7, 5).publish("", 8080, 80, "tcp"))?;
        let _servers = [serve(&web, 80, "web")?, serve(&served.0, 80, "served")?];
        let mut outside = Vec::new();
        for family in Family::BOTH {
            outside.extend(serve_at(&rig.topology.client, family.outside(), 9000, "outside")?);
        }
        for (family, proto) in Family::BOTH.into_iter().flat_map(|f| Proto::BOTH.map(|p| (f, p))) {
            let [own, neighbour] = [50, 51].map(|n| on(n)[family as usize]);
            rig.sees("in", &rig.topology.client, &Dial::new(proto, own, 80), "web", family.client());
            rig.sees("from its neighbour", &other, &Dial::new(proto, own, 80), "web", neighbour);
            rig.sees("out", &web, &Dial::new(proto, family.outside(), 9000), "outside", own);
        }
        let published = Dial::new(Proto::Tcp, Family::V4.host(), 8080);
        rig.sees("published beside it", &rig.topology.client, &published, "served", Family::V4.client());
        Ok(vec![(web, document), (other, of_other), served])
    })
}

/// The parent routes between them, without ARP.
#[test]
fn the_routing_modes_join_the_containers_of_a_parent() -> Result<()> {
    need!(need::netpath(), need::accepted("ip", IPVLAN), need::rung(Rung::best_hooks()));
    for mode in ["l3", "l3s"] {
        rig(Topology::new(), Rung::best_hooks(), |rig| {
            let (web, document) = up(rig, "web", mode, 50)?;
            let (other, of_other) = up(rig, "other", mode, 51)?;
            let _server = serve(&web, 80, "web")?;
            rig.sees(mode, &other, &Dial::new(Proto::Tcp, on(50)[0], 80), "web", on(51)[0]);
            Ok(vec![(web, document), (other, of_other)])
        })?;
    }
    Ok(())
}
