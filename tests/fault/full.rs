//! An overfull flow table: its memory stays constant, `netpath status` reports its fill level at once, and expired flows are
//! removed.

use crate::gc::{NO_AGENT, age, document, flows, gc};
use crate::scaled;
use anyhow::{Context, Result, ensure};
use netpath_common::addr::Be16;
use netpath_common::family::Ipv4;
use netpath_common::flow::{REPLIED, REPLY_HALF};
use netpath_common::layout::{FLOWS4, FLOWS6, Flow4, FlowKey4, Next, PROTO_UDP, SIDE_BRIDGE, SIDE_UPLINK};
use netpath_common::nat_plan::other_key;
use netpath_common::reason::Reason;
use serde_json::Value;
use std::process::Command;
use std::time::{Duration, Instant};
use support::need;
use support::netavark::{Netavark, Rung, binary};
use support::residue::Residue;
use support::topology::{CLIENT4, HOST4, Topology};
use support::traffic::{ANY, Dial, Proto, Server};

fn status(topology: &Topology) -> Result<(Value, Duration)> {
    let mut command = Command::new(binary()?);
    command.args(["status", "--json"]);
    let begun = Instant::now();
    let out = topology.host.output(command, b"")?;
    ensure!(out.status.success(), "status: {}", String::from_utf8_lossy(&out.stderr));
    Ok((serde_json::from_slice(&out.stdout)?, begun.elapsed()))
}

/// Flow number `n` of a container, each to another outside end.
fn halves(n: u32, now: u32) -> [(FlowKey4, Flow4); 2] {
    let [_, a, b, c] = n.to_be_bytes();
    let (web, outside, host) = ([10, 89, 7, 5], [100, a, b, c], [192, 0, 2, 1]);
    let (port, service) = (Be16::new(40_000), Be16::new(53));
    let next = Next {
        last_seen: now,
        state: REPLIED,
        reverse_side: SIDE_UPLINK,
        origin: Reason::FlowMasqueraded as u8,
        ..Next::default()
    };
    let key = FlowKey4 {
        src: web,
        dst: outside,
        sport: port,
        dport: service,
        proto: PROTO_UDP,
        side: SIDE_BRIDGE,
        pad: [0; 2],
    };
    let there = Flow4 { src: host, dst: outside, sport: port, dport: service, next };
    let back = Flow4 {
        src: outside,
        dst: web,
        sport: service,
        dport: port,
        next: Next { reverse_side: SIDE_BRIDGE, state: REPLIED | REPLY_HALF, ..next },
    };
    [(other_key::<Ipv4>(&there, PROTO_UDP), back), (key, there)]
}

#[test]
fn a_million_flows_take_no_more_memory_and_are_counted() -> Result<()> {
    need!(need::netpath(), need::rung(Rung::Tcx));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let environment: Vec<_> = Rung::Tcx.environment().into_iter().chain([NO_AGENT]).collect();
    let netavark = Netavark::with(&topology, &environment)?;
    let web = topology.container("web")?;
    netavark.setup(&web, &document(5))?;
    let _servers = [
        Server::echo(&web, Proto::Tcp, ANY, 80, "web")?,
        Server::echo(&topology.client, Proto::Udp, ANY, 9000, "near")?,
    ];
    let (empty, _) = status(&topology)?;

    let mut map = flows(&topology)?;
    let wanted = scaled(1_000_000) as u32;
    let now = support::maps::now();
    for n in 0..wanted {
        for (key, flow) in halves(n, now) {
            map.insert(key, flow, 0)?;
        }
    }
    let (full, took) = status(&topology)?;
    let there = map.keys().flatten().count() as u64;
    let told = |status: &Value, key: &str| status["flows"][key].as_u64().with_context(|| format!("{key}: {status}"));
    let (used, limit) = (told(&full, "used")?, told(&full, "limit")?);
    need::say(&format!(
        "{wanted} flows: {used} of {limit} in the table, {} KiB; reported in {} ms",
        told(&full, "memory_bytes")? / 1024,
        took.as_millis()
    ));
    ensure!(limit == u64::from(FLOWS4 + FLOWS6) / 2, "the limit is {limit}");
    ensure!(used == there.div_ceil(2) && used <= limit, "{used} flows reported, {there} halves present");
    ensure!(there * 10 > u64::from(FLOWS4) * 9, "{there} halves of {FLOWS4}: not full");
    for (of, [before, after]) in [("flows", [&empty["flows"], &full["flows"]]), ("all maps", [&empty, &full])] {
        ensure!(before["memory_bytes"] == after["memory_bytes"], "the memory of {of}: {before}, {after}");
    }

    // New flows find a place, and unused ones are evicted.
    Dial::new(Proto::Tcp, HOST4, 8005).ask(&topology.client)?;
    Dial::new(Proto::Udp, CLIENT4, 9000).ask(&web)?;
    age(&mut map, |key| key.dst[0] == 100 || key.src[0] == 100, 9_000)?;
    let removed = gc(&topology)?;
    let (swept, _) = status(&topology)?;
    ensure!(told(&swept, "used")? < 10, "{removed} were swept, {} are left", swept["flows"]);
    Dial::new(Proto::Udp, CLIENT4, 9000).ask(&web)?;
    netavark.teardown(&web, &document(5))?;
    residue.nothing_left(&topology, &[&web])
}
