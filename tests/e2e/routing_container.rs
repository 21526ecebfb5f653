//! A container that is the router of further subnets, as a VPN server: the host has a route to them by it.

use crate::rig::{rig, serve, serve_at, web};
use anyhow::Result;
use std::net::IpAddr;
use support::netavark::{Document, Network, Rung};
use support::topology::{Family, Topology};
use support::traffic::{Dial, Proto};

on_every_rung!(addresses_behind_a_container_are_reached_by_its_route);

fn behind(family: Family) -> IpAddr {
    family.pick([10, 8, 0, 2].into(), [0xfd08, 0, 0, 0, 0, 0, 0, 2].into())
}

fn addresses_behind_a_container_are_reached_by_its_route(rung: Rung) -> Result<()> {
    rig(Topology::new(), rung, |rig| {
        let Topology { client, host, .. } = rig.topology;
        let document = Document::new().on_dual(&Network::dual(7), "eth0", 7, 6);
        let (web, _servers) = web(rig, document.publish("", 8080, 80, "tcp").publish("", 8080, 80, "udp"))?;
        let vpn = rig.up("vpn", Document::new().on_dual(&Network::dual(7), "eth0", 7, 5))?;
        let mut servers = Vec::new();
        let _outside = serve(client, 9000, "outside")?;
        for family in Family::BOTH {
            let (prefix, nodad) = (family.pick("/32", "/128"), family.pick("", " nodad"));
            vpn.0.ip(&format!("address add {}{prefix} dev lo{nodad}\n", behind(family)))?;
            client.ip(&format!("route add {}{prefix} via {}\n", behind(family), family.host()))?;
            // A UDP server on all addresses would answer from another one.
            servers.extend(serve_at(&vpn.0, behind(family), 5000, "vpn")?);
        }
        let net = |family: Family| family.pick("10.8.0.0/24", "fd08::/64");
        let outward = || {
            let of = |family: Family| {
                Proto::BOTH.map(|p| (family, Dial::new(p, family.client(), 9000).from(behind(family), 0)))
            };
            Family::BOTH.into_iter().flat_map(of)
        };
        let silent = |what: &'static str| {
            rig.all_silent(&outward().map(|(_, dial)| (what, &*vpn.0, dial)).collect::<Vec<_>>());
        };
        // Without a route the source is forged.
        silent("no route");
        for family in Family::BOTH {
            host.ip(&format!("route add {} via {} dev podman7\n", net(family), family.container(7, 5)))?;
        }
        for (family, dial) in outward() {
            rig.sees("from behind", &vpn.0, &dial, "outside", behind(family));
        }
        for family in Family::BOTH {
            for proto in Proto::BOTH {
                let inward = Dial::new(proto, behind(family), 5000);
                rig.sees("to behind", client, &inward, "vpn", family.client());
                rig.sees("from a neighbour", &web.0, &inward, "vpn", family.container(7, 6));
                // Its own addresses are translated as before.
                let own = Dial::new(proto, family.client(), 9000);
                rig.sees("the router itself", &vpn.0, &own, "outside", family.host());
                let published = Dial::new(proto, family.host(), 8080).from(behind(family), 0);
                rig.met("a published port from behind", published.ask(&vpn.0));
            }
            host.ip(&format!("route del {} via {} dev podman7\n", net(family), family.container(7, 5)))?;
        }
        silent("the route is gone");
        for family in Family::BOTH {
            vpn.0.ip(&format!("address del {}{} dev lo\n", behind(family), family.pick("/32", "/128")))?;
        }
        Ok(vec![web, vpn])
    })
}
