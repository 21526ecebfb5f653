//! The path of packets through a host that filters forwarded traffic, and flows across a change of path.

use crate::rig::{Rig, rig, web};
use anyhow::{Context, Result};
use netpath_common::reason::Reason;
use support::filter::Filter;
use support::long_lived::LongLived;
use support::need;
use support::netavark::{Document, Network, Rung};
use support::topology::{Family, Topology};
use support::traffic::{ANY, Dial, Proto, Server};

on_every_rung!(
    a_filter_of_the_host_is_obeyed_on_edge,
    a_filter_of_the_host_is_passed_by_on_offload,
    auto_goes_through_a_filter_that_was_there_before,
    auto_goes_by_where_there_is_no_filter,
    running_flows_outlive_a_filter_that_comes_and_goes,
    a_block_list_before_routing_is_obeyed,
);

/// Matches packets to the container, as the host's filter sees them.
const NOTHING_TO_THE_CONTAINER: [&str; 2] = ["tcp dport 80 drop", "udp dport 80 drop"];

fn published(path: Option<&str>, host: u8) -> Document {
    let mut net = Network::dual(7);
    if let Some(path) = path {
        net = net.option("netpath.path", path);
    }
    let document = Document::new().on_dual(&net, "eth0", 7, host);
    document.publish("", 8080, 80, "tcp").publish("", 8080, 80, "udp")
}

fn served(rig: &Rig<'_>, what: &str) {
    for family in Family::BOTH {
        for proto in Proto::BOTH {
            let dial = Dial::new(proto, family.host(), 8080);
            rig.sees(what, &rig.topology.client, &dial, "web", family.client());
        }
    }
}

fn silent(rig: &Rig<'_>, what: &str) {
    for family in Family::BOTH {
        for proto in Proto::BOTH {
            rig.silent(what, &rig.topology.client, &Dial::new(proto, family.host(), 8080));
        }
    }
}

/// All packets of the dials of [`served`] took that path.
fn took(rig: &Rig<'_>, rung: Rung, edge: bool) -> Result<()> {
    if !rung.is_ebpf() {
        return Ok(());
    }
    let counted = || Ok::<_, anyhow::Error>([rig.counted(Reason::Translated)?, rig.counted(Reason::Redirected)?]);
    let before = counted()?;
    served(rig, "counted");
    let after = counted()?;
    let [translated, redirected] = [after[0] - before[0], after[1] - before[1]];
    let so = if edge { translated > 0 && redirected == 0 } else { translated == 0 && redirected > 0 };
    rig.note(so, || format!("{translated} packets through the stack, {redirected} past it; edge: {edge}"));
    let status = rig.status()?;
    let path = status["networks"].as_array().and_then(|n| n.iter().find(|n| n["network"] == "net7"));
    let word = if edge { "edge" } else { "offload" };
    rig.note(path.is_some_and(|n| n["path"] == word), || format!("expected {word}: {path:?}"));
    Ok(())
}

fn a_filter_of_the_host_is_obeyed_on_edge(rung: Rung) -> Result<()> {
    need!(need::netpath());
    need!(need::program("nft"));
    rig(Topology::new(), rung, |rig| {
        let (web, _servers) = web(rig, published(Some("edge"), 5))?;
        took(rig, rung, true)?;
        let filter = Filter::forward(&rig.topology.host, &NOTHING_TO_THE_CONTAINER)?;
        silent(rig, "filtered");
        drop(filter);
        served(rig, "not filtered any more");
        Ok(vec![web])
    })
}

fn a_filter_of_the_host_is_passed_by_on_offload(rung: Rung) -> Result<()> {
    need!(need::netpath());
    need!(need::program("nft"));
    need!(need::programs(rung));
    rig(Topology::new(), rung, |rig| {
        let _filter = Filter::forward(&rig.topology.host, &NOTHING_TO_THE_CONTAINER)?;
        let (web, _servers) = web(rig, published(Some("offload"), 5))?;
        took(rig, rung, false)?;
        Ok(vec![web])
    })
}

fn auto_goes_through_a_filter_that_was_there_before(rung: Rung) -> Result<()> {
    need!(need::netpath());
    need!(need::program("nft"));
    rig(Topology::new(), rung, |rig| {
        let filter = Filter::forward(&rig.topology.host, &NOTHING_TO_THE_CONTAINER)?;
        let (web, _servers) = web(rig, published(None, 5))?;
        silent(rig, "filtered");
        drop(filter);
        let _other = Filter::forward(&rig.topology.host, &["tcp dport 81 drop"])?;
        took(rig, rung, true)?;
        Ok(vec![web])
    })
}

/// Redirected packets would bypass such a filter too.
fn a_block_list_before_routing_is_obeyed(rung: Rung) -> Result<()> {
    need!(need::netpath());
    need!(need::program("nft"));
    rig(Topology::new(), rung, |rig| {
        let list = |sets: &str| {
            let table = "table inet guard";
            let chain = format!("chain blocked {{\ntype filter hook prerouting priority -300;\n{sets}\n}}");
            rig.topology.host.feed("nft", &["-f", "-"], &format!("{table}\ndelete {table}\n{table} {{\n{chain}\n}}\n"))
        };
        list(&format!("ip saddr {} drop\nip6 saddr {} drop", Family::V4.client(), Family::V6.client()))?;
        let (web, _servers) = web(rig, published(None, 5))?;
        silent(rig, "on the list");
        list("ip saddr 203.0.113.1 drop")?;
        took(rig, rung, true)?;
        rig.topology.host.command("nft", &["delete", "table", "inet", "guard"])?;
        Ok(vec![web])
    })
}

/// The path changes as soon as netpath has seen a filter, with the next container at the latest.
fn auto_goes_by_where_there_is_no_filter(rung: Rung) -> Result<()> {
    need!(need::netpath());
    need!(need::program("nft"));
    rig(Topology::new(), rung, |rig| {
        let (web, _servers) = web(rig, published(None, 5))?;
        took(rig, rung, false)?;
        let filter = Filter::forward(&rig.topology.host, &NOTHING_TO_THE_CONTAINER)?;
        let app = rig.up("app", Document::new().on_dual(&Network::dual(7), "eth0", 7, 6))?;
        silent(rig, "filtered");
        drop(filter);
        rig.netavark.teardown(&app.0, &app.1)?;
        took(rig, rung, false)?;
        Ok(vec![web])
    })
}

fn running_flows_outlive_a_filter_that_comes_and_goes(rung: Rung) -> Result<()> {
    need!(need::netpath());
    need!(need::program("nft"));
    rig(Topology::new(), rung, |rig| {
        let up = rig.up("web", published(None, 5))?;
        let _servers = (
            Server::echo_for(&up.0, 20, ANY, 80, "web")?,
            Server::echo(&up.0, Proto::Udp, ANY, 80, "web")?,
            Server::echo_for(&rig.topology.client, 20, ANY, 9000, "near")?,
        );
        let start = || -> Result<Vec<LongLived>> {
            let mut streams = Vec::new();
            for family in Family::BOTH {
                let inward = Dial::new(Proto::Tcp, family.host(), 8080);
                let outward = Dial::new(Proto::Tcp, family.client(), 9000);
                streams.push(LongLived::start(&rig.topology.client, &inward)?);
                streams.push(LongLived::start(&up.0, &outward)?);
            }
            Ok(streams)
        };
        let go_on = |streams: &[LongLived], when: &str| -> Result<()> {
            streams.iter().try_for_each(LongLived::goes_on).with_context(|| when.to_owned())
        };
        let mut streams = start()?;
        let filter = Filter::stateful(&rig.topology.host)?;
        go_on(&streams, "with a filter that netpath has not noticed")?;
        let app = rig.up("app", Document::new().on_dual(&Network::dual(7), "eth0", 7, 6))?;
        go_on(&streams, "with a filter")?;
        let edge = start()?;
        took_new(rig, rung, true)?;
        drop(filter);
        streams.extend(edge);
        go_on(&streams, "the filter is gone")?;
        rig.netavark.teardown(&app.0, &app.1)?;
        go_on(&streams, "back on offload")?;
        took_new(rig, rung, false)?;
        for stream in streams {
            rig.met("a running flow", stream.finish());
        }
        Ok(vec![up])
    })
}

/// New flows are served, and start on that path. (Packets cannot be counted beside running flows.)
fn took_new(rig: &Rig<'_>, rung: Rung, edge: bool) -> Result<()> {
    served(rig, "a new flow");
    if rung.is_ebpf() {
        let status = rig.status()?;
        let word = if edge { "edge" } else { "offload" };
        rig.note(status["networks"][0]["path"] == word, || format!("expected {word}: {}", status["networks"]));
    }
    Ok(())
}
