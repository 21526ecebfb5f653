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
fn the_path_comes_from_the_option_or_the_label() -> Result<()> {
    need!(need::rung(Rung::best_hooks()), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let web = topology.container("web")?;
    let net = Network::dual(7);
    let label = |path: &str| net.clone().set("labels", json!({"netpath.path": path}));
    let option = label("kernel").option("netpath.path", "offload");
    let cases = [(net.clone(), "ebpf"), (label("kernel"), "nftables"), (option, "ebpf"), (label("edge"), "nftables")];
    for (n, (net, rung)) in cases.into_iter().enumerate() {
        let document = Document::new().on_dual(&net, "eth0", 7, 5);
        let answer = netavark.try_setup(&web, &document.json(&web))?;
        let means_kernel = answer.stderr.matches("netpath.path=edge is gone and means kernel").count();
        answer.json()?;
        assert_eq!(rung, status(&topology)?["rung"]);
        assert_eq!(usize::from(n == 3), means_kernel, "{n}");
        netavark.teardown(&web, &document)?;
    }
    residue.nothing_left(&topology, &[&web])
}

#[test]
fn the_path_names_the_rules_of_others_that_packets_bypass() -> Result<()> {
    need!(need::rung(Rung::best_hooks()), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::on(&topology, Rung::best_hooks())?;
    let web = topology.container("web")?;
    let document = Document::new().on_dual(&Network::dual(7), "eth0", 7, 5);
    topology.host.command("nft", &["add", "table", "inet", "firewalld"])?;
    let chain = "add chain inet firewalld filter_FORWARD { type filter hook forward priority 10 ; policy drop ; }";
    topology.host.command("nft", &chain.split(' ').collect::<Vec<_>>())?;
    netavark.setup(&web, &document)?;
    let (path, why) = path_of(&topology)?;
    assert!(path == "offload" && why.contains("past it, table inet firewalld chain filter_FORWARD"), "{path}: {why}");
    topology.host.command("nft", &["delete", "table", "inet", "firewalld"])?;
    let (path, why) = path_of(&topology)?;
    assert!(path == "offload" && why.contains("nothing on this host filters"), "{path}: {why}");
    netavark.teardown(&web, &document)?;
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
