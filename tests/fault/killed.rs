//! SIGKILL at random moments of setup and teardown: the next teardown leaves nothing, the next setup works.
//!
//! Only calls ended by the kill count: one that was faster is tried again, at another moment.

use crate::idle::netpath;
use anyhow::{Context, Result, ensure};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::Duration;
use support::host::wait_for;
use support::need;
use support::netavark::{Document, Netavark, Network, Rung};
use support::residue::Residue;
use support::rng::Rng;
use support::topology::{CLIENT4, Container, HOST4, Topology};
use support::traffic::{ANY, Dial, Proto, Server};

/// Interrupted calls of setup, and as many of teardown: more than fifty over the four tests in every run, and fifty in each with
/// `NETPATH_SOAK=full`.
fn moments() -> usize {
    if need::is_full() { 25 } else { 7 }
}

on_every_rung!(killed);

#[test]
fn killed_with_macvlans() -> Result<()> {
    need!(need::accepted("ip", "link add link v0 name mv0 type macvlan mode bridge"));
    let lan = |name, net, gateway| Network::new(name, "eth0").set("driver", "macvlan").subnet(net, gateway);
    let document = Document::new()
        .on(&lan("lan", "192.0.2.0/24", "192.0.2.2"), "eth0", &["192.0.2.50"])
        .on(&lan("lan6", "2001:db8:1::/64", "2001:db8:1::2"), "eth1", &["2001:db8:1::50"])
        .on_dual(&Network::dual(7), "eth2", 7, 5);
    killed_at(Rung::best_hooks(), &[], &document, &Dial::new(Proto::Tcp, [192, 0, 2, 50].into(), 80))
}

#[test]
fn killed_while_programs_stay_loaded() -> Result<()> {
    killed_at(Rung::best_hooks(), &[("NETPATH_KEEP_LOADED", "600")], &ports(), &Dial::new(Proto::Tcp, HOST4, 8080))
}

fn killed(rung: Rung) -> Result<()> {
    killed_at(rung, &[], &ports(), &Dial::new(Proto::Tcp, HOST4, 8080))
}

fn ports() -> Document {
    Document::new()
        .on_dual(&Network::dual(7), "eth0", 7, 5)
        .on_dual(&Network::dual(8), "eth1", 8, 5)
        .publish("", 8080, 80, "tcp")
        .publish_range("", 9000, 9000, 100, "udp")
}

/// `dial` reaches the container's port 80.
fn killed_at(rung: Rung, more: &[(&str, &str)], document: &Document, dial: &Dial) -> Result<()> {
    need!(need::netpath(), need::rung(rung));
    let rng = Rng::new();
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[&rung.environment(), more].concat())?;
    let nothing_left = |web: &Container| {
        if !more.is_empty() {
            netpath(&topology, &["gc", "--all"])?;
        }
        residue.nothing_left(&topology, &[web])
    };
    let (setup, teardown) = durations(&topology, &netavark, document)?;
    let mut counts = Vec::new();
    for (verb, whole) in [("setup", setup), ("teardown", teardown)] {
        let (mut cut, mut tries) = (0, 0);
        while cut < moments() {
            ensure!(
                tries < 4 * moments(),
                "{rung:?}: of {tries} calls of {verb} only {cut} were killed in time ({rng})"
            );
            tries += 1;
            let web = topology.container("web")?;
            if verb == "teardown" {
                netavark.setup(&web, document)?;
            }
            let after = whole.mul_f64(rng.below(1_000) as f64 / 1_000.0);
            let what = || {
                format!(
                    "{rung:?}: {verb} {tries} killed after {} of {} µs ({rng})",
                    after.as_micros(),
                    whole.as_micros()
                )
            };
            if !kill_after(&topology, &netavark, verb, &web, document, after).with_context(what)? {
                netavark.teardown(&web, document).with_context(what)?;
                continue;
            }
            cut += 1;

            netavark.teardown(&web, document).with_context(what)?;
            nothing_left(&web).with_context(what)?;
            netavark.setup(&web, document).with_context(what)?;
            let server = Server::echo(&web, Proto::Tcp, ANY, 80, "web")?;
            let seen = dial.ask(&topology.client).with_context(what)?;
            assert_eq!(CLIENT4, seen.client.ip(), "{}", what());
            drop(server);
            netavark.teardown(&web, document).with_context(what)?;
            nothing_left(&web).with_context(what)?;
        }
        counts.push(format!("{cut} of {tries} calls of {verb}"));
    }
    need::say(&format!("{rung:?}: killed before their end {}; all undone by the next teardown", counts.join(" and ")));
    Ok(())
}

/// Duration of a setup and of a teardown here, the median of five each.
fn durations(topology: &Topology, netavark: &Netavark<'_>, document: &Document) -> Result<(Duration, Duration)> {
    let (mut setups, mut teardowns) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let web = topology.container("web")?;
        let setup = netavark.try_setup(&web, &document.json(&web))?;
        setup.done()?;
        let teardown = netavark.try_teardown(&web, &document.json(&web))?;
        teardown.done()?;
        setups.push(setup.took);
        teardowns.push(teardown.took);
    }
    setups.sort();
    teardowns.sort();
    Ok((setups[2], teardowns[2]))
}

/// True if the kill ended it.
fn kill_after(
    topology: &Topology,
    netavark: &Netavark<'_>,
    verb: &str,
    web: &Container,
    document: &Document,
    after: Duration,
) -> Result<bool> {
    let mut command = netavark.command(&[verb, &web.path().to_string_lossy()]);
    let mut child =
        topology.host.run(|| command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn())?;
    let mut pipe = child.stdin.take().context("no pipe")?;
    pipe.write_all(document.json(web).to_string().as_bytes())?;
    drop(pipe);
    std::thread::sleep(after);
    child.kill()?;
    let status = child.wait()?;
    // Its children, such as an iptables program, end by themselves.
    let children = || topology.host.processes().into_iter().filter(|(_, name)| name != "netpath-agent").count();
    wait_for("the end of its children", support::host::SOON, || (children() == 0).then_some(()))?;
    Ok(status.signal() == Some(nix::sys::signal::Signal::SIGKILL as i32))
}
