//! The first container does not wait for hooks of TCX: filters of clsact serve until the agent has attached
//! them.

use crate::rig::serve;
use anyhow::{Context, Result, ensure};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use support::agent::{agents, watching};
use support::host::{SOON, patience, wait_for};
use support::need;
use support::netavark::{Document, Netavark, Network, Rung};
use support::residue::Residue;
use support::topology::{Family, Topology};
use support::traffic::{Dial, Proto, exchange};

fn hooks(topology: &Topology) -> Result<Vec<(String, String)>> {
    let mut status = std::process::Command::new(support::netavark::binary()?);
    status.args(["status", "--json"]);
    let out = topology.host.output(status, b"")?;
    let status: serde_json::Value = serde_json::from_slice(&out.stdout).context("netpath status")?;
    let text = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
    let hooks = status["hooks"].as_array().context("no hooks")?;
    Ok(hooks.iter().map(|h| (text(&h["program"]), text(&h["by"]))).collect())
}

#[test]
fn connections_pass_while_hooks_of_tcx_take_the_place_of_filters() -> Result<()> {
    need!(need::root(), need::netpath(), need::bpf(), need::tcx());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let environment = [Rung::Tcx.environment(), vec![("NETPATH_KEEP_LOADED", "600")]].concat();
    let netavark = Netavark::with(&topology, &environment)?;
    let web = topology.container("web")?;
    let document = Document::new().on_dual(&Network::dual(7), "eth0", 7, 5);
    let document = document.publish("", 8080, 80, "tcp").publish("", 8080, 80, "udp");
    netavark.setup(&web, &document)?;
    let by = |program: &str| -> Result<Vec<String>> {
        Ok(hooks(&topology)?.into_iter().filter(|(name, _)| name == program).map(|(_, by)| by).collect())
    };
    ensure!(by("np_bridge_in")? == ["clsact"] && by("np_lo_in")? == ["clsact"], "{:?}", hooks(&topology)?);
    ensure!(by("np_uplink_in")? == ["clsact"] && by("np_uplink_out")? == ["clsact"], "{:?}", hooks(&topology)?);
    let _inside = serve(&web, 80, "web")?;
    let _outside = serve(&topology.client, 9000, "outside")?;
    watching(&topology)?;
    let published = Dial::new(Proto::Tcp, Family::V4.host(), 8080);
    let mut lasting = topology.client.run(|| published.connect_stream())?;
    let (stop, passed) = (AtomicBool::new(false), AtomicU32::new(0));
    let dial_all = || -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            for family in Family::BOTH {
                for proto in Proto::BOTH {
                    Dial::new(proto, family.host(), 8080).ask(&topology.client).context("published")?;
                    Dial::new(proto, family.host(), 8080).ask(&topology.host).context("from the host")?;
                    Dial::new(proto, family.client(), 9000).ask(&web).context("masqueraded")?;
                }
            }
            passed.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    let settled = std::thread::scope(|scope| {
        let dialled = scope.spawn(dial_all);
        let settled = wait_for("hooks of TCX", Duration::from_secs(8) * patience(), || {
            let settled = ["np_bridge_in", "np_lo_in", "np_uplink_in", "np_uplink_out"];
            settled.into_iter().all(|hook| by(hook).is_ok_and(|by| by == ["tcx"])).then_some(())
        });
        std::thread::sleep(Duration::from_millis(300));
        stop.store(true, Ordering::Relaxed);
        let dialled = dialled.join().map_err(|_| anyhow::anyhow!("panicked"))?;
        settled.and(dialled)
    });
    settled?;
    ensure!(passed.load(Ordering::Relaxed) > 3, "too few connections");
    exchange(&mut lasting, b"still there")?;
    drop(lasting);
    netavark.teardown(&web, &document)?;
    let mut gc = std::process::Command::new(support::netavark::binary()?);
    gc.args(["gc", "--all"]);
    topology.host.output(gc, b"")?;
    wait_for("the end of the agent", SOON, || agents(&topology).is_empty().then_some(()))?;
    residue.nothing_left(&topology, &[&web])
}
