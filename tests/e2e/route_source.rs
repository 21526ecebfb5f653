//! Outbound traffic by a route with an explicit source (`ip route … src`): masquerade uses it, and follows changes.

use crate::rig::{Rig, rig, serve_at};
use anyhow::Result;
use std::net::IpAddr;
use std::time::{Duration, Instant};
use support::host::{Netns, SOON, patience, wait_for};
use support::need;
use support::netavark::{Document, Network, Rung};
use support::topology::{Family, Topology, answers_for};
use support::traffic::{Dial, Proto, Server, exchange};

on_every_rung!(
    the_source_of_the_default_route_is_used,
    a_more_specific_route_without_a_source_has_the_address_of_the_way_out,
    a_rule_about_a_bridge_leads_to_its_tables_source,
    a_rule_about_one_container_leads_to_its_tables_source,
    another_source_of_a_route_is_used_from_then_on,
    the_source_of_each_of_two_uplinks_is_used,
);

/// An address beside [`Family::outside`], also reached by the default route.
fn beside(family: Family) -> IpAddr {
    match family {
        Family::V4 => [203, 0, 113, 99].into(),
        Family::V6 => [0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 0x99].into(),
    }
}

fn len(family: Family) -> u8 {
    if family == Family::V4 { 32 } else { 128 }
}

fn option(family: Family) -> &'static str {
    if family == Family::V4 { "-4" } else { "-6" }
}

/// The default route, with a source or without.
fn default_route(host: &Netns, family: Family, source: Option<IpAddr>) -> Result<()> {
    let source = source.map_or_else(String::new, |s| format!(" src {s}"));
    host.ip(&format!("route replace default via {} dev eth0{source}\n", family.client()))
}

/// Restores the host's routes.
fn restore(host: &Netns) -> Result<()> {
    Family::BOTH.iter().try_for_each(|family| default_route(host, *family, None))
}

/// On port 9000 of each of these: a UDP server on all addresses would answer from another one.
fn serve(netns: &Netns, of: &[fn(Family) -> IpAddr], name: &str) -> Result<Vec<Server>> {
    let all = Family::BOTH.iter().flat_map(|family| of.iter().map(|address| address(*family)));
    Ok(all.map(|ip| serve_at(netns, ip, 9000, name)).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

fn app(n: u8, host: u8) -> Document {
    Document::new().on_dual(&Network::dual(n), "eth0", n, host)
}

/// Waits until nothing wakes the agent any more: last, the link-local addresses of the new links leave the tentative state.
/// After that only the route changes.
fn is_quiet(topology: &Topology) -> Result<()> {
    support::agent::watching(topology)?;
    wait_for("all addresses to be sure", SOON * 4, || {
        let unsure = topology.host.ip_json(&["-6", "addr", "show", "tentative"]).ok()?;
        (!unsure.to_string().contains("fe80")).then_some(())
    })?;
    std::thread::sleep(Duration::from_millis(300));
    Ok(())
}

/// Both protocols from `netns` to port 9000 of `to` are seen as `source`.
fn leaves_as(rig: &Rig<'_>, what: &str, netns: &Netns, to: IpAddr, server: &str, source: IpAddr) {
    for proto in Proto::BOTH {
        rig.sees(what, netns, &Dial::new(proto, to, 9000), server, source);
    }
}

/// As [`leaves_as`], for new connections within the time that the agent needs.
fn comes_to_leave_as(rig: &Rig<'_>, what: &str, netns: &Netns, to: IpAddr, source: IpAddr) {
    let begun = Instant::now();
    let limit = Duration::from_secs(2) * patience();
    let mut last = None;
    while begun.elapsed() < limit {
        let seen = Dial::new(Proto::Tcp, to, 9000).patience(SOON).ask(netns);
        if seen.as_ref().is_ok_and(|s| s.client.ip() == source) {
            return leaves_as(rig, what, netns, to, "near", source);
        }
        last = Some(seen);
        std::thread::sleep(Duration::from_millis(20));
    }
    rig.note(false, || format!("{what}: not seen as {source} in {limit:?}, at last {last:?}"));
}

fn the_source_of_the_default_route_is_used(rung: Rung) -> Result<()> {
    need!(need::netpath(), need::route_source(rung));
    rig(Topology::new(), rung, |rig| {
        let host = &rig.topology.host;
        for family in Family::BOTH {
            default_route(host, family, Some(family.host_second()))?;
        }
        let app = rig.up("app", app(7, 5))?;
        let _server = serve(&rig.topology.client, &[Family::outside, Family::client], "near")?;
        for family in Family::BOTH {
            leaves_as(rig, "by the route", &app.0, family.outside(), "near", family.host_second());
            // The uplink's own subnet has a route of its own.
            leaves_as(rig, "on the link", &app.0, family.client(), "near", family.host());
        }
        restore(host)?;
        Ok(vec![app])
    })
}

fn a_more_specific_route_without_a_source_has_the_address_of_the_way_out(rung: Rung) -> Result<()> {
    need!(need::netpath(), need::route_source(rung));
    rig(Topology::new(), rung, |rig| {
        let Topology { client, host, .. } = rig.topology;
        for family in Family::BOTH {
            default_route(host, family, Some(family.host_second()))?;
            host.ip(&format!("route add {}/{} via {} dev eth0\n", family.outside(), len(family), family.client()))?;
            let nodad = if family == Family::V6 { " nodad" } else { "" };
            client.ip(&format!("addr add {}/{} dev lo{nodad}\n", beside(family), len(family)))?;
            answers_for(client, beside(family))?;
        }
        let app = rig.up("app", app(7, 5))?;
        let _server = serve(client, &[Family::outside, beside], "near")?;
        is_quiet(rig.topology)?;
        for family in Family::BOTH {
            leaves_as(rig, "without a source", &app.0, family.outside(), "near", family.host());
            leaves_as(rig, "around it", &app.0, beside(family), "near", family.host_second());
            host.ip(&format!("route del {}/{} via {} dev eth0\n", family.outside(), len(family), family.client()))?;
            comes_to_leave_as(rig, "the route is gone", &app.0, family.outside(), family.host_second());
        }
        restore(host)?;
        Ok(vec![app])
    })
}

fn a_rule_about_a_bridge_leads_to_its_tables_source(rung: Rung) -> Result<()> {
    rule_leads_to_source(rung, |_| "iif podman7".to_owned(), app(8, 5), 8)
}

fn a_rule_about_one_container_leads_to_its_tables_source(rung: Rung) -> Result<()> {
    let about = |family: Family| format!("from {}", family.container(7, 5));
    rule_leads_to_source(rung, about, app(7, 6), 7)
}

/// Traffic of the rule's subject leaves by the source of table 100, that of the other container, on network `n`, by the address
/// of the outgoing route.
fn rule_leads_to_source(rung: Rung, about: impl Fn(Family) -> String, other: Document, n: u8) -> Result<()> {
    need!(need::netpath(), need::route_source(rung));
    rig(Topology::new(), rung, |rig| {
        let Topology { client, host, .. } = rig.topology;
        let apply = |verb: &str| -> Result<()> {
            for family in Family::BOTH {
                let (route, rule) =
                    (format!("route {verb} default table 100"), format!("rule {verb} {}", about(family)));
                let way = format!("via {} dev eth0 src {}", family.client(), family.host_second());
                for words in [format!("{route} {way}"), format!("{rule} lookup 100")] {
                    host.command("ip", &[&[option(family)], &words.split(' ').collect::<Vec<_>>()[..]].concat())?;
                }
            }
            Ok(())
        };
        apply("add")?;
        let (app, other) = (rig.up("app", app(7, 5))?, rig.up("other", other)?);
        let _server = serve(client, &[Family::outside], "near")?;
        for family in Family::BOTH {
            leaves_as(rig, "by the rule", &app.0, family.outside(), "near", family.host_second());
            leaves_as(rig, &format!("network {n}, without one"), &other.0, family.outside(), "near", family.host());
        }
        is_quiet(rig.topology)?;
        apply("del")?;
        for family in Family::BOTH {
            comes_to_leave_as(rig, "the rule is gone", &app.0, family.outside(), family.host());
        }
        apply("add")?;
        for family in Family::BOTH {
            comes_to_leave_as(rig, "the rule is there", &app.0, family.outside(), family.host_second());
            leaves_as(rig, "without one", &other.0, family.outside(), "near", family.host());
        }
        apply("del")?;
        Ok(vec![app, other])
    })
}

fn another_source_of_a_route_is_used_from_then_on(rung: Rung) -> Result<()> {
    need!(need::netpath(), need::route_source(rung));
    rig(Topology::new(), rung, |rig| {
        let host = &rig.topology.host;
        let app = rig.up("app", app(7, 5))?;
        let _server = serve(&rig.topology.client, &[Family::outside, Family::client], "near")?;
        is_quiet(rig.topology)?;
        for family in Family::BOTH {
            let to = family.outside();
            leaves_as(rig, "before", &app.0, to, "near", family.host());
            default_route(host, family, Some(family.host_second()))?;
            comes_to_leave_as(rig, "a source", &app.0, to, family.host_second());
            let dial = Dial::new(Proto::Tcp, to, 9000);
            let mut lasting = app.0.run(|| dial.connect_stream())?;
            let (_, first) = exchange(&mut lasting, b"first")?;
            rig.note(first.ip() == family.host_second(), || format!("lasting: {first}"));
            default_route(host, family, None)?;
            comes_to_leave_as(rig, "none again", &app.0, to, family.host());
            let second = exchange(&mut lasting, b"second").map(|(_, seen)| seen);
            rig.note(second.as_ref().is_ok_and(|s| *s == first), || format!("{first} went on as {second:?}"));
        }
        Ok(vec![app])
    })
}

/// Rungs differ in the number of paths: a rule names its interface.
fn the_source_of_each_of_two_uplinks_is_used(rung: Rung) -> Result<()> {
    need!(need::netpath(), need::route_source(rung));
    rig(Topology::with_far(), rung, |rig| {
        let Topology { client, host, .. } = rig.topology;
        let far = rig.topology.far();
        for family in Family::BOTH {
            default_route(host, family, Some(family.host_second()))?;
            let nodad = if family == Family::V6 { " nodad" } else { "" };
            far.ip(&format!("addr add {}/{} dev lo{nodad}\n", beside(family), len(family)))?;
            answers_for(far, beside(family))?;
            // An address of the other uplink, as a service address on `lo`: the answers are sent to it.
            let (to, source) = (beside(family), family.host_second());
            host.ip(&format!("route add {to}/{} via {} dev eth1 src {source}\n", len(family), family.far()))?;
            far.ip(&format!("route add {source}/{} via {} dev eth0\n", len(family), family.host_far()))?;
        }
        let app = rig.up("app", app(7, 5))?;
        let _servers = (serve(client, &[Family::outside], "near")?, serve(far, &[beside, Family::far], "far")?);
        for family in Family::BOTH {
            leaves_as(rig, "by the first", &app.0, family.outside(), "near", family.host_second());
            leaves_as(rig, "by the second", &app.0, beside(family), "far", family.host_second());
            leaves_as(rig, "on its link", &app.0, family.far(), "far", family.host_far());
            host.ip(&format!("route del {}/{} via {} dev eth1\n", beside(family), len(family), family.far()))?;
        }
        restore(host)?;
        Ok(vec![app])
    })
}
