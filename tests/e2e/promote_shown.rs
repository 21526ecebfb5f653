//! `netpath flows`, `status` and `doctor` tell which flows programs carry where netfilter translates, and why not the others.

use crate::promote::{ROUNDS, Talk, World, ready};
use crate::rig::serve;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::time::Instant;
use support::agent::kill_all;
use support::host::{SOON, patience, wait_for};
use support::need;
use support::netavark::{Network, binary};
use support::offload::Lengths;
use support::topology::{Family, Topology};
use support::traffic::{Dial, Proto};

fn says(topology: &Topology, args: &[&str]) -> Result<String> {
    let mut command = std::process::Command::new(binary()?);
    command.args(args);
    let out = topology.host.output(command, b"")?;
    Ok(String::from_utf8(out.stdout)?)
}

fn json(topology: &Topology, verb: &str) -> Result<Value> {
    serde_json::from_str(&says(topology, &[verb, "--json"])?).with_context(|| verb.to_owned())
}

/// From the client to the published port.
fn talk(world: &World<'_>, proto: Proto, family: Family) -> Result<Talk> {
    let to = (family.host(), 8080);
    Talk::start(&world.topology.client, &Dial::new(proto, to.0, to.1), proto, family, to)
}

/// The flow to the published port that `is_it` accepts.
fn flow(topology: &Topology, is_it: impl Fn(&Value) -> bool) -> Result<Value> {
    let all = json(topology, "flows")?;
    let flows = all["flows"].as_array().context("no list of flows")?;
    let found = flows.iter().find(|f| f["origin"] == "published" && is_it(f));
    found.cloned().with_context(|| format!("it is not among {all}"))
}

fn is(protocol: &'static str, to: &'static str) -> impl Fn(&Value) -> bool {
    move |flow| flow["protocol"] == protocol && flow["translated_destination"].as_str().is_some_and(|t| t.contains(to))
}

/// Talks until the flow is shown as it should be.
fn until(
    topology: &Topology,
    talk: &mut Talk,
    is_it: impl Fn(&Value) -> bool,
    is_so: impl Fn(&Value) -> bool,
) -> Result<Value> {
    let begun = Instant::now();
    loop {
        talk.rounds(ROUNDS)?;
        let shown = flow(topology, &is_it)?;
        if is_so(&shown) {
            return Ok(shown);
        }
        ensure!(begun.elapsed() < SOON * patience(), "it is shown as {shown}");
    }
}

#[test]
fn a_carried_flow_is_shown_as_such_and_without_the_agent_as_the_kernels() -> Result<()> {
    need!(ready());
    let topology = Topology::new()?;
    let world = World::new(&topology, &Network::dual(7))?;
    let _inside = serve(&world.web, 80, "web")?;
    let tcp = is("tcp", "10.89.7.5:80");
    let udp = is("udp", "5]:80");
    let mut both = [talk(&world, Proto::Tcp, Family::V4)?, talk(&world, Proto::Udp, Family::V6)?];
    let mut carried = Value::Null;
    for (talk, is_it) in both.iter_mut().zip([&tcp as &dyn Fn(&Value) -> bool, &udp]) {
        world.is_promoted(talk)?;
        carried = until(&topology, talk, is_it, |f| f["carrier"] == "programs" && f["why"].is_null())?;
    }
    ensure!(carried["state"] == "replied" && carried["idle_s"].is_null(), "{carried}");
    ensure!(carried["expires_s"].as_u64().is_some_and(|s| s > 0) && carried["whole"] == true, "{carried}");
    ensure!(flow(&topology, &tcp)?["state"] == "established");
    let listed = says(&topology, &["flows"])?;
    ensure!(listed.lines().filter(|line| line.ends_with("programs")).count() == 2, "{listed}");

    // One that has not lasted.
    let mut short = talk(&world, Proto::Udp, Family::V4)?;
    short.rounds(1)?;
    let shown = flow(&topology, is("udp", "10.89.7.5:80"))?;
    ensure!(
        shown["carrier"] == "kernel" && shown["why"].as_str().is_some_and(|w| w.starts_with("short so far")),
        "{shown}"
    );

    let status = json(&topology, "status")?;
    ensure!(status["carried_flows"] == 2, "{status}");
    let doctor = json(&topology, "doctor")?;
    let promotion = &doctor["promotion"];
    ensure!(promotion["carried"] == 2 && promotion["agent"] == true && promotion["why_not"].is_null(), "{promotion}");
    ensure!(promotion["forbidding"] == serde_json::json!([]), "{promotion}");
    // The rule of this world counts.
    ensure!(promotion["passed_by"].to_string().contains("counter of 1 rule"), "{promotion}");
    let text = says(&topology, &["doctor"])?;
    ensure!(text.contains("PROMOTION programs carry flows that last, 2 now; no rule forbids it"), "{text}");

    kill_all(&topology)?;
    let mut talking = both.into_iter().next().context("two")?;
    let alone = |f: &Value| f["carrier"] == "kernel" && f["why"] == "no agent answers";
    until(&topology, &mut talking, &tcp, alone)?;
    ensure!(json(&topology, "status")?["carried_flows"].is_null(), "without an agent");
    let doctor = json(&topology, "doctor")?;
    let promotion = &doctor["promotion"];
    ensure!(promotion["agent"] == false && promotion["carried"] == 0, "{promotion}");
    ensure!(promotion["why_not"] == "no agent answers", "{promotion}");
    world.end()
}

#[test]
fn a_flow_that_a_limit_meets_is_shown_with_the_rule_until_the_rule_goes() -> Result<()> {
    need!(ready());
    let topology = Topology::new()?;
    let world = World::new(&topology, &Network::dual(7))?;
    let host = &topology.host;
    host.command(
        "nft",
        &["insert", "rule", "inet", "other", "forward", "limit", "rate", "over", "1000000/second", "drop"],
    )?;
    let _inside = serve(&world.web, 80, "web")?;
    let mut talk = talk(&world, Proto::Tcp, Family::V4)?;
    let named = |text: &str| text.starts_with("table inet other chain forward") && text.contains("limit");
    let why = |f: &Value| f["why"].as_str().is_some_and(named);
    let shown = until(&topology, &mut talk, is("tcp", "10.89.7.5:80"), why)?;
    ensure!(shown["carrier"] == "kernel", "{shown}");
    let rule = json(&topology, "doctor")?["promotion"]["forbidding"][0].clone();
    ensure!(rule["rule"].as_str().is_some_and(named) && rule["why"].is_string(), "{rule}");
    let text = says(&topology, &["doctor"])?;
    ensure!(text.contains("1 rule forbids it") && text.contains("  table inet other chain forward rule"), "{text}");
    ensure!(json(&topology, "status")?["carried_flows"] == 0, "nothing is carried");

    host.command("nft", &["flush", "chain", "inet", "other", "forward"])?;
    until(&topology, &mut talk, is("tcp", "10.89.7.5:80"), |f| f["carrier"] == "programs")?;
    world.end()
}

#[test]
fn a_capture_at_the_bridge_is_named() -> Result<()> {
    need!(ready());
    let topology = Topology::new()?;
    let world = World::new(&topology, &Network::dual(7))?;
    let passed_by = || -> Result<String> { Ok(json(&topology, "doctor")?["promotion"]["passed_by"].to_string()) };
    // The agent has looked at the host.
    wait_for("an agent that carries flows", SOON, || passed_by().ok().filter(|all| all.contains("counter")))?;
    ensure!(!passed_by()?.contains("capture"), "{}", passed_by()?);
    let capture = Lengths::at(&topology.host, "podman7")?;
    let is_named = || passed_by().ok().filter(|all| all.contains("a packet capture at podman7"));
    wait_for("the capture in doctor", SOON, is_named)?;
    drop(capture);
    wait_for("doctor without it", SOON, || passed_by().ok().filter(|all| !all.contains("capture")))?;
    world.end()
}
