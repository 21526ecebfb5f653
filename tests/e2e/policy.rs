//! Isolation and internal networks.

use crate::rig::{Rig, rig, serve};
use anyhow::Result;
use support::host::Netns;
use support::need;
use support::netavark::{Document, Network, Rung};
use support::topology::{Container, Family, Topology};
use support::traffic::{Dial, Proto};

on_every_rung!(
    isolation_follows_its_table,
    published_ports_are_reached_from_isolated_networks,
    an_internal_network_has_no_way_out_and_none_in,
);

const NETS: [(u8, &str); 6] =
    [(11, "false"), (12, "false"), (13, "true"), (14, "true"), (15, "strict"), (16, "strict")];

fn up_on(rig: &Rig<'_>, n: u8, net: &Network, publish: bool) -> Result<(Container, Document)> {
    let mut document = Document::new().on_dual(net, "eth0", n, 5);
    if publish {
        document = document.publish("", 8000 + u16::from(n), 80, "tcp").publish("", 8000 + u16::from(n), 80, "udp");
    }
    rig.up(&format!("on{n}"), document)
}

/// Netavark's truth table: open and isolated networks communicate unless both are isolated; strict ones reach no other network.
fn isolation_follows_its_table(rung: Rung) -> Result<()> {
    need!(need::netpath());
    rig(Topology::new(), rung, |rig| {
        let mut up = Vec::new();
        let mut servers = Vec::new();
        for (n, isolate) in NETS {
            up.push(up_on(rig, n, &Network::dual(n).option("isolate", isolate), false)?);
            servers.extend(serve(&up[up.len() - 1].0, 80, isolate)?);
        }
        let mut apart = Vec::new();
        for (i, (from, one)) in NETS.into_iter().enumerate() {
            for (to, other) in NETS.into_iter().filter(|(to, _)| *to != from) {
                let talk = one != "strict" && other != "strict" && (one == "false" || other == "false");
                for family in Family::BOTH {
                    for proto in Proto::BOTH {
                        let what = format!("isolate={one} net{from} to isolate={other} net{to}");
                        let dial = Dial::new(proto, family.container(to, 5), 80);
                        if talk {
                            let seen = dial.ask(&up[i].0);
                            rig.note(seen.as_ref().is_ok_and(|s| s.server == other), || format!("{what}: {seen:?}"));
                        } else {
                            apart.push((what, i, dial));
                        }
                    }
                }
            }
        }
        let apart: Vec<_> = apart.into_iter().map(|(what, i, dial)| (what, &*up[i].0, dial)).collect();
        rig.all_silent(&apart);
        Ok(up)
    })
}

fn published_ports_are_reached_from_isolated_networks(rung: Rung) -> Result<()> {
    need!(need::netpath());
    rig(Topology::new(), rung, |rig| {
        let mut up = Vec::new();
        let mut servers = Vec::new();
        for (n, isolate) in [(13, "true"), (14, "true"), (15, "strict")] {
            up.push(up_on(rig, n, &Network::dual(n).option("isolate", isolate), true)?);
            servers.extend(serve(&up[up.len() - 1].0, 80, &format!("net{n}"))?);
        }
        for (container, _) in &up {
            for to in [13, 14, 15] {
                for family in Family::BOTH {
                    for proto in Proto::BOTH {
                        let dial = Dial::new(proto, family.host(), 8000 + u16::from(to));
                        let what = format!("from {}", container.name);
                        rig.sees(&what, container, &dial, &format!("net{to}"), family.gateway(to));
                    }
                }
            }
        }
        Ok(up)
    })
}

fn an_internal_network_has_no_way_out_and_none_in(rung: Rung) -> Result<()> {
    need!(need::netpath());
    rig(Topology::new(), rung, |rig| {
        let internal = Network::dual(7).set("internal", true);
        let open = Network::dual(8).option("isolate", "false");
        let inside = up_on(rig, 7, &internal, true)?;
        let beside = rig.up("beside", Document::new().on_dual(&internal, "eth0", 7, 6))?;
        let outside = up_on(rig, 8, &open, false)?;
        let _servers = (
            serve(&inside.0, 80, "inside")?,
            serve(&outside.0, 80, "outside")?,
            serve(&rig.topology.client, 9000, "near")?,
            serve(&rig.topology.host, 9000, "host")?,
        );
        // A process in the container adds the missing route, and the client has a route too.
        for family in Family::BOTH {
            inside.0.ip(&format!("route add default via {}\n", family.gateway(7)))?;
            let prefix = if family == Family::V4 { 24 } else { 64 };
            rig.topology.client.ip(&format!(
                "route add {}/{prefix} via {}\n",
                family.container(7, 0),
                family.host()
            ))?;
        }
        let mut apart: Vec<(&str, &Netns, Dial)> = Vec::new();
        for family in Family::BOTH {
            for proto in Proto::BOTH {
                let dial = |to, port| Dial::new(proto, to, port);
                apart.extend([
                    ("out", &*inside.0, dial(family.client(), 9000)),
                    ("to another network", &inside.0, dial(family.container(8, 5), 80)),
                    ("from another network", &outside.0, dial(family.container(7, 5), 80)),
                    ("from the wire", &rig.topology.client, dial(family.container(7, 5), 80)),
                    ("published, from the wire", &rig.topology.client, dial(family.host(), 8007)),
                ]);
                let within = dial(family.container(7, 5), 80);
                rig.sees("within", &beside.0, &within, "inside", family.container(7, 6));
                let host = dial(family.gateway(7), 9000);
                rig.sees("to its gateway", &inside.0, &host, "host", family.container(7, 5));
            }
        }
        rig.all_silent(&apart);
        Ok(vec![inside, beside, outside])
    })
}
