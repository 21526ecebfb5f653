//! netpath's own network options: allow lists, direct access, masquerade off.

use crate::rig::{Rig, rig, serve, web};
use anyhow::{Context, Result};
use serde_json::json;
use std::time::Duration;
use support::host::Netns;
use support::need;
use support::netavark::{Document, Network, Rung};
use support::topology::{Family, Topology};
use support::traffic::{Dial, Proto};

on_every_rung!(
    an_allow_list_lets_in_its_clients_and_the_host,
    a_container_is_reached_by_its_own_address_only_with_direct,
    without_masquerade_containers_are_seen_as_they_are,
    traffic_is_counted_by_publish_and_endpoint,
    a_filter_of_the_hosts_sees_published_and_masqueraded_packets,
);

const PATIENCE: Duration = Duration::from_millis(200);

fn one(net: &Network) -> Document {
    Document::new().on_dual(net, "eth0", 7, 5)
}

/// Adds routes to containers on a neighbour of the host.
fn route_to_containers(neighbour: &Netns, host: impl Fn(Family) -> std::net::IpAddr) -> Result<()> {
    for family in Family::BOTH {
        let prefix = if family == Family::V4 { 24 } else { 64 };
        let net = family.container(7, 0);
        neighbour.ip(&format!("route add {net}/{prefix} via {}\n", host(family)))?;
    }
    Ok(())
}

fn an_allow_list_lets_in_its_clients_and_the_host(rung: Rung) -> Result<()> {
    need!(need::netpath());
    rig(Topology::with_far(), rung, |rig| {
        let allow = format!("{}/24,{}", Family::V4.client(), Family::V6.client());
        let net = Network::dual(7).set("labels", json!({"netpath.allow": allow}));
        let document = one(&net).publish("", 8080, 80, "tcp").publish("", 8080, 80, "udp");
        let (up, _servers) = web(rig, document)?;
        for family in Family::BOTH {
            for proto in Proto::BOTH {
                let near = Dial::new(proto, family.host(), 8080);
                rig.sees("from the list", &rig.topology.client, &near, "web", family.client());
                let far = Dial::new(proto, family.host_far(), 8080);
                rig.silent("from elsewhere", rig.topology.far(), &far.patience(PATIENCE));
                let seen = near.ask(&rig.topology.host);
                rig.note(seen.as_ref().is_ok_and(|s| s.server == "web"), || format!("from the host: {near}: {seen:?}"));
            }
        }
        // Another container is a client like others, and not on the list.
        let neighbour = rig.up("neighbour", Document::new().on_dual(&net, "eth0", 7, 6))?;
        let dial = Dial::new(Proto::Tcp, Family::V4.host(), 8080);
        rig.silent("from a neighbour", &neighbour.0, &dial.patience(PATIENCE));
        Ok(vec![up, neighbour])
    })
}

fn a_container_is_reached_by_its_own_address_only_with_direct(rung: Rung) -> Result<()> {
    need!(need::netpath());
    for direct in [false, true] {
        rig(Topology::new(), rung, |rig| {
            let net = Network::dual(7).option("netpath.direct", &direct.to_string());
            route_to_containers(&rig.topology.client, Family::host)?;
            let (up, _servers) = web(rig, one(&net).publish("", 8080, 80, "tcp"))?;
            for family in Family::BOTH {
                for proto in Proto::BOTH {
                    let dial = Dial::new(proto, family.container(7, 5), 80);
                    if direct {
                        rig.sees("an open network", &rig.topology.client, &dial, "web", family.client());
                    } else {
                        rig.silent("a closed network", &rig.topology.client, &dial.patience(PATIENCE));
                    }
                }
                let dial = Dial::new(Proto::Tcp, family.host(), 8080);
                rig.sees("published all the same", &rig.topology.client, &dial, "web", family.client());
                let dial = Dial::new(Proto::Tcp, family.container(7, 5), 80);
                rig.sees("from the host", &rig.topology.host, &dial, "web", family.gateway(7));
            }
            Ok(vec![up])
        })
        .with_context(|| format!("netpath.direct={direct}"))?;
    }
    Ok(())
}

fn without_masquerade_containers_are_seen_as_they_are(rung: Rung) -> Result<()> {
    need!(need::netpath());
    rig(Topology::new(), rung, |rig| {
        let net = Network::dual(7).set("labels", json!({"netpath.masquerade": "false"}));
        route_to_containers(&rig.topology.client, Family::host)?;
        let (up, _web) = web(rig, one(&net).publish("", 8080, 80, "tcp"))?;
        let _outside = serve(&rig.topology.client, 9000, "outside")?;
        for family in Family::BOTH {
            for proto in Proto::BOTH {
                let dial = Dial::new(proto, family.client(), 9000);
                rig.sees("out", &up.0, &dial, "outside", family.container(7, 5));
            }
            let dial = Dial::new(Proto::Tcp, family.host(), 8080);
            rig.sees("in", &rig.topology.client, &dial, "web", family.client());
            let dial = Dial::new(Proto::Tcp, family.container(7, 5), 80);
            rig.silent("still closed", &rig.topology.client, &dial.patience(PATIENCE));
        }
        Ok(vec![up])
    })
}

/// On eBPF it sees nothing of them, which `chosen` proves.
fn a_filter_of_the_hosts_sees_published_and_masqueraded_packets(rung: Rung) -> Result<()> {
    need!(need::netpath());
    if rung.is_ebpf() {
        return Ok(());
    }
    rig(Topology::with_far(), rung, |rig| {
        let host = &rig.topology.host;
        let [far4, far6] = Family::BOTH.map(Family::far);
        host.feed(
            "nft",
            &["-f", "-"],
            &format!(
                "table inet guard {{ chain forward {{ type filter hook forward priority 0; policy accept;
                 ip saddr {far4} drop; ip6 saddr {far6} drop; ip daddr {far4} drop; ip6 daddr {far6} drop; }}; }}\n"
            ),
        )?;
        let document = one(&Network::dual(7)).publish("", 8080, 80, "tcp").publish("", 8080, 80, "udp");
        let (up, _servers) = web(rig, document)?;
        let _near = serve(&rig.topology.client, 9000, "near")?;
        let _far = serve(rig.topology.far(), 9000, "far")?;
        for filtered in [true, false] {
            for family in Family::BOTH {
                for proto in Proto::BOTH {
                    let dial = Dial::new(proto, family.host(), 8080);
                    rig.sees("in, allowed", &rig.topology.client, &dial, "web", family.client());
                    let dial = Dial::new(proto, family.client(), 9000);
                    rig.sees("out, allowed", &up.0, &dial, "near", family.host());
                    let into = Dial::new(proto, family.host_far(), 8080);
                    let out = Dial::new(proto, family.far(), 9000);
                    if filtered {
                        rig.silent("in, past the filter", rig.topology.far(), &into.patience(PATIENCE));
                        rig.silent("out, past the filter", &up.0, &out.patience(PATIENCE));
                    } else {
                        rig.sees("in, no filter", rig.topology.far(), &into, "web", family.far());
                        rig.sees("out, no filter", &up.0, &out, "far", family.host_far());
                    }
                }
            }
            if filtered {
                host.command("nft", &["delete", "table", "inet", "guard"])?;
                rig.netavark.call(&["firewall-reload"], b"")?.done()?;
            }
        }
        Ok(vec![up])
    })
}

/// On the eBPF rung; netfilter has counters of its own.
fn traffic_is_counted_by_publish_and_endpoint(rung: Rung) -> Result<()> {
    need!(need::netpath());
    if !rung.is_ebpf() {
        return Ok(());
    }
    rig(Topology::new(), rung, |rig| {
        let document = one(&Network::dual(7)).publish("", 8080, 80, "tcp").publish("", 8080, 80, "udp");
        let (up, _servers) = web(rig, document)?;
        let _outside = serve(&rig.topology.client, 9000, "outside")?;
        for _ in 0..5 {
            Dial::new(Proto::Udp, Family::V4.host(), 8080).ask(&rig.topology.client)?;
        }
        let before = traffic(rig)?;
        // TCP 8080, UDP 8080, the whole endpoint.
        rig.note(before[0] == (0, 0) && before[1] == (5, 5) && before[2] == (5, 5), || {
            format!("published: {before:?}")
        });
        for _ in 0..3 {
            Dial::new(Proto::Udp, Family::V4.client(), 9000).ask(&up.0)?;
        }
        let after = traffic(rig)?;
        rig.note(after[1] == (5, 5) && after[2] == (8, 8), || format!("with its own: {after:?}"));
        rig.netavark.teardown(&up.0, &up.1)?;
        rig.netavark.setup(&up.0, &up.1)?;
        let anew = traffic(rig)?;
        rig.note(anew.iter().all(|t| *t == (0, 0)), || format!("a new endpoint: {anew:?}"));
        Ok(vec![up])
    })
}

/// (packets in, packets out) of each publish, last of the endpoint.
fn traffic(rig: &Rig<'_>) -> Result<Vec<(u64, u64)>> {
    let netpath = support::netavark::binary()?.to_string_lossy().into_owned();
    let status: serde_json::Value =
        serde_json::from_str(&rig.topology.host.command(&netpath, &["status", "--json"])?).context("status --json")?;
    let endpoint = &status["networks"][0]["endpoints"][0];
    let lines = endpoint["publishes"].as_array().context("no publishes")?.iter().chain([endpoint]);
    lines.map(|l| l["packets_in"].as_u64().zip(l["packets_out"].as_u64()).context("no packets")).collect()
}
