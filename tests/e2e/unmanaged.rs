//! Bridges that the administrator makes: containers are on their wire, and whatever serves netpath's own bridges leaves them alone.

use crate::rig::{Rig, rig, serve, serve_at};
use anyhow::Result;
use std::net::{IpAddr, Ipv4Addr};
use support::need;
use support::netavark::{Document, Network, Rung};
use support::topology::{Container, FAR4, Family, HOST4_FAR, Topology};
use support::traffic::{Dial, Proto};

on_every_rung!(a_container_is_on_the_wire_of_an_unmanaged_bridge);

/// Behind the gateway on the wire.
const BEYOND: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 77));
const VLANS: &str = "link add name br9 type bridge vlan_filtering 1";

/// The host's second uplink becomes a port of `lan0`, which takes its address.
fn with_bridge() -> Result<Topology> {
    let topology = Topology::with_far()?;
    topology.host.ip(&format!(
        "link add lan0 address 0a:00:00:00:00:07 type bridge\naddr flush dev eth1\nlink set eth1 master lan0\n\
         addr add {HOST4_FAR}/24 dev lan0\nlink set lan0 up\n"
    ))?;
    topology.far().ip(&format!("addr add {BEYOND}/32 dev lo\n"))?;
    Ok(topology)
}

fn lan() -> Network {
    Network::new("lan", "lan0").option("mode", "unmanaged").subnet("198.51.100.0/24", &FAR4.to_string())
}

fn address(n: u8) -> IpAddr {
    IpAddr::from([198, 51, 100, n])
}

fn on_lan(rig: &Rig<'_>, name: &str, network: &Network, n: u8) -> Result<(Container, Document)> {
    rig.up(name, Document::new().on(network, "eth0", &[&address(n).to_string()]))
}

fn a_container_is_on_the_wire_of_an_unmanaged_bridge(rung: Rung) -> Result<()> {
    rig(with_bridge(), rung, |rig| {
        let (web, document) = on_lan(rig, "web", &lan(), 50)?;
        let (other, of_other) = on_lan(rig, "other", &lan(), 51)?;
        // Served by the datapath, beside it.
        let served =
            rig.up("served", Document::new().on_dual(&Network::dual(7), "eth0", 7, 5).publish("", 8080, 80, "tcp"))?;
        let _servers =
            [serve(&web, 80, "web")?, serve(&served.0, 80, "served")?, serve(&rig.topology.host, 90, "host")?];
        let _outside = serve_at(rig.topology.far(), BEYOND, 9000, "outside")?;
        for proto in Proto::BOTH {
            rig.sees("from the wire", rig.topology.far(), &Dial::new(proto, address(50), 80), "web", FAR4);
            rig.sees("from its neighbour", &other, &Dial::new(proto, address(50), 80), "web", address(51));
            rig.sees("from the host", &rig.topology.host, &Dial::new(proto, address(50), 80), "web", HOST4_FAR);
            rig.sees("to the host", &web, &Dial::new(proto, HOST4_FAR, 90), "host", address(50));
            // By the gateway on the wire, with its own address.
            rig.sees("out", &web, &Dial::new(proto, BEYOND, 9000), "outside", address(50));
        }
        let published = Dial::new(Proto::Tcp, Family::V4.host(), 8080);
        rig.sees("published beside it", &rig.topology.client, &published, "served", Family::V4.client());
        Ok(vec![(web, document), (other, of_other), served])
    })
}

#[test]
fn containers_reach_those_of_their_vlan() -> Result<()> {
    need!(need::netpath(), need::accepted("ip", VLANS), need::rung(Rung::best_hooks()));
    let topology = Topology::new();
    rig(topology, Rung::best_hooks(), |rig| {
        let lan = |vlan: &str| {
            let network = Network::new(&format!("lan{vlan}"), "podman9").option("vlan", vlan);
            network.option("no_default_route", "1").subnet("198.51.100.0/24", "198.51.100.1")
        };
        let (one, of_one) = on_lan(rig, "one", &lan("20"), 50)?;
        let (same, of_same) = on_lan(rig, "same", &lan("20"), 51)?;
        let (other, of_other) = on_lan(rig, "other", &lan("30"), 52)?;
        let _server = serve(&one, 80, "one")?;
        rig.sees("in its VLAN", &same, &Dial::new(Proto::Tcp, address(50), 80), "one", address(51));
        rig.silent("in another", &other, &Dial::new(Proto::Tcp, address(50), 80));
        Ok(vec![(one, of_one), (same, of_same), (other, of_other)])
    })
}
