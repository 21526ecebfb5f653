//! netpath's own network options, and what `netpath status` knows.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use support::need;
use support::netavark::{Document, Netavark, Network, Rung};
use support::residue::Residue;
use support::topology::Topology;

fn status(topology: &Topology) -> Result<Value> {
    let netpath = support::netavark::binary()?.to_string_lossy().into_owned();
    serde_json::from_str(&topology.host.command(&netpath, &["status", "--json"])?).context("status --json")
}

fn path_of(topology: &Topology) -> Result<(String, String)> {
    let status = status(topology)?;
    let word = |key: &str| status["networks"][0][key].as_str().unwrap_or_default().to_owned();
    Ok((word("path"), word("why")))
}

/// Podman passes labels through; unknown options it rejects itself.
#[test]
fn the_path_comes_from_the_option_the_label_or_the_hosts_filters() -> Result<()> {
    need!(need::rung(Rung::best_hooks()), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::on(&topology, Rung::best_hooks())?;
    let web = topology.container("web")?;
    let net = Network::dual(7);
    let label = net.clone().set("labels", json!({"netpath.path": "edge"}));
    let on = |net: &Network| Document::new().on_dual(net, "eth0", 7, 5);
    for (net, path) in
        [(&net, "offload"), (&label, "edge"), (&label.clone().option("netpath.path", "offload"), "offload")]
    {
        netavark.setup(&web, &on(net))?;
        assert_eq!(path, path_of(&topology)?.0);
        netavark.teardown(&web, &on(net))?;
    }
    topology.host.command("nft", &["add", "table", "inet", "firewalld"])?;
    let chain = "add chain inet firewalld filter_FORWARD { type filter hook forward priority 10 ; policy drop ; }";
    topology.host.command("nft", &chain.split(' ').collect::<Vec<_>>())?;
    netavark.setup(&web, &on(&net))?;
    let (found, reason) = path_of(&topology)?;
    assert_eq!("edge", found);
    assert!(reason.contains("inet firewalld") && reason.contains("filter_FORWARD"), "{reason}");
    topology.host.command("nft", &["delete", "table", "inet", "firewalld"])?;
    netavark.call(&["firewall-reload"], b"")?.done()?;
    assert_eq!("offload", path_of(&topology)?.0, "the filter is gone");
    netavark.teardown(&web, &on(&net))?;
    residue.nothing_left(&topology, &[&web])
}

#[test]
fn status_has_a_line_for_each_network_endpoint_and_port() -> Result<()> {
    need!(need::rung(Rung::best_hooks()), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::on(&topology, Rung::best_hooks())?;
    let web = topology.container("web")?;
    let document = Document::new().on_dual(&Network::dual(7), "eth0", 7, 5).publish("", 8080, 80, "tcp").publish_range(
        "127.0.0.1",
        9000,
        80,
        10,
        "udp",
    );
    netavark.setup(&web, &document)?;
    let status = status(&topology)?;
    let endpoint = &status["networks"][0]["endpoints"][0];
    assert_eq!(
        (&json!("net7"), &json!("podman7")),
        (&status["networks"][0]["network"], &status["networks"][0]["bridge"])
    );
    assert_eq!(json!(true), endpoint["counted"], "{status}");
    let ports: Vec<_> = endpoint["publishes"].as_array().context("publishes")?.iter().collect();
    let [http, range] = ports.as_slice() else { anyhow::bail!("two publishes: {endpoint}") };
    assert_eq!((&json!(8080), &json!("*")), (&http["first_port"], &http["host"]));
    assert_eq!((&json!(10), &json!("127.0.0.1")), (&range["ports"], &range["host"]));
    for line in [&status["networks"][0], endpoint, http, range] {
        for field in ["packets_in", "bytes_in", "packets_out", "bytes_out"] {
            assert!(line[field].is_u64(), "{field} in {line}");
        }
    }
    // The port arrays alone hold more than a megabyte.
    assert!(status["memory_bytes"].as_u64().is_some_and(|b| b > 1 << 20), "{}", status["memory_bytes"]);
    let netpath = support::netavark::binary()?.to_string_lossy().into_owned();
    let text = topology.host.command(&netpath, &["status"])?;
    for named in ["net7", "podman7", "8080/tcp", "127.0.0.1 9000-9009/udp"] {
        assert!(text.contains(named), "{named} is not in\n{text}");
    }
    netavark.teardown(&web, &document)?;
    residue.nothing_left(&topology, &[&web])
}
