//! Programs that are replaced under traffic.

use crate::rig::{Rig, Way, rig_on};
use anyhow::{Context, Result, anyhow};
use netpath_common::layout::program::XDP_IN;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use support::generator::bulk::{Iperf, Stream, server};
use support::host::{SOON, patience, wait_for};
use support::long_lived::{LongLived, all_answer, idle};
use support::netavark::{Document, Netavark, binary};
use support::topology::{Family, HOST4, Topology, state_dirs};
use support::traffic::{ANY, Dial, Proto, Server};

on_every_way!(nothing_breaks_when_the_programs_are_replaced);

/// Connections per path and family: a hundred in total.
const IDLE: usize = 25;
/// Port of iperf3.
const BULK: u16 = 5_201;

struct Traffic {
    long_lived: Vec<LongLived>,
    idle: Vec<TcpStream>,
}

impl Traffic {
    fn goes_on(&mut self, rig: &Rig<'_>, when: &str) -> Result<()> {
        self.long_lived.iter().try_for_each(LongLived::goes_on).with_context(|| when.to_owned())?;
        rig.met(when, all_answer(&mut self.idle));
        Ok(())
    }
}

fn nothing_breaks_when_the_programs_are_replaced(way: Way) -> Result<()> {
    support::need!(support::need::netpath());
    support::need!(support::need::programs(way.rung));
    rig_on(Topology::new(), way, |rig| {
        // With every program attached.
        let network = way.wide_network(7).option("netpath.xdp", "on");
        let document = Document::new().on_dual(&network, "eth0", 7, 5).publish("", 8080, 80, "tcp");
        let document = document.publish("", BULK, BULK, "tcp");
        let web = rig.up("web", document)?;
        let _servers = (
            Server::echo_for(&web.0, 2 * IDLE + 10, ANY, 80, "web")?,
            Server::echo_for(&rig.topology.client, 2 * IDLE + 10, ANY, 9000, "near")?,
        );
        let mut traffic = Traffic { long_lived: Vec::new(), idle: Vec::new() };
        for family in Family::BOTH {
            let inward = Dial::new(Proto::Tcp, family.host(), 8080);
            let outward = Dial::new(Proto::Tcp, family.client(), 9000);
            for (netns, dial) in [(&rig.topology.client, inward), (&*web.0, outward)] {
                traffic.long_lived.push(LongLived::start(netns, &dial)?);
                traffic.idle.extend(idle(netns, &dial, IDLE)?);
            }
        }
        let bulk = bulk(rig, &web.0)?;
        monitored(rig, &mut traffic)?;
        let app = upgraded(rig, way, &mut traffic)?;
        for long_lived in traffic.long_lived {
            rig.met("a long-lived connection", long_lived.finish());
        }
        if let Some((stream, _server)) = bulk {
            no_pause(rig, stream);
        }
        Ok(vec![app, web])
    })
}

/// A stream to the container for the duration of the test.
fn bulk(rig: &Rig<'_>, web: &support::topology::Container) -> Result<Option<(Stream, Iperf)>> {
    if let Err(what) = support::need::program("iperf3") {
        support::need::say(&format!("skip: the stream needs {what}"));
        return Ok(None);
    }
    let server = server(web, BULK)?;
    Ok(Some((Stream::start(&rig.topology.client, SocketAddr::new(HOST4, BULK))?, server)))
}

/// No second without a byte, except on a slow machine.
fn no_pause(rig: &Rig<'_>, stream: Stream) {
    let Some(seconds) = rig.met("a stream", stream.finish()) else { return };
    let pause = seconds.split(|bytes| *bytes > 0.0).map(<[f64]>::len).max().unwrap_or(0);
    let so = pause <= patience() as usize && seconds.iter().any(|bytes| *bytes > 0.0);
    rig.note(so, || format!("the bytes of a stream, second by second: {seconds:?}"));
}

/// Waits until all attached programs are those of a monitor, or none is. `unless`: the reason why that can no longer happen.
fn at_place(rig: &Rig<'_>, monitored: bool, mut unless: impl FnMut() -> Option<String>) -> Result<()> {
    wait_for(&format!("all programs of the monitor in place: {monitored}"), SOON * 4, || {
        if let Some(why) = unless() {
            return Some(Err(anyhow!(why)));
        }
        let status = rig.status().ok()?;
        let hooks = status["hooks"].as_array()?;
        let has_xdp = hooks.iter().any(|h| h["program"] == XDP_IN);
        let so = has_xdp && hooks.iter().all(|h| h["monitored"] == monitored);
        so.then_some(Ok(()))
    })?
}

/// Error output of a monitor that has ended by itself.
fn last_words(monitor: &mut Child) -> Option<String> {
    let ended = monitor.try_wait().ok()??;
    let mut words = String::new();
    // Without it, only the status is reported.
    let _ = monitor.stderr.take().map(|mut e| e.read_to_string(&mut words));
    Some(format!("the monitor ended with {ended}: {}", words.trim()))
}

/// A monitor replaces the programs by its own, and restores them.
fn monitored(rig: &Rig<'_>, traffic: &mut Traffic) -> Result<()> {
    let mut command = Command::new(binary()?);
    command.args(["monitor", "--show", "drops"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut monitor: Child = rig.topology.host.run(|| command.spawn())?;
    let came = at_place(rig, true, || last_words(&mut monitor));
    let seen = came.and_then(|()| traffic.goes_on(rig, "with the monitor's programs"));
    if monitor.try_wait()?.is_none() {
        kill(Pid::from_raw(monitor.id() as i32), Signal::SIGINT)?;
    }
    let ended = monitor.wait()?;
    seen?;
    rig.note(ended.success(), || format!("the monitor ended with {ended}"));
    at_place(rig, false, || None)?;
    traffic.goes_on(rig, "after the monitor")
}

/// The next command of another build replaces them.
fn upgraded(rig: &Rig<'_>, way: Way, traffic: &mut Traffic) -> Result<(support::topology::Container, Document)> {
    let digests = || -> Vec<String> {
        let dirs = state_dirs(&format!("{:x}", rig.topology.host.cookie()));
        let names = dirs.into_iter().filter_map(|d| std::fs::read_dir(d).ok()).flatten().flatten();
        let names = names.filter_map(|e| e.file_name().into_string().ok());
        names.filter_map(|n| n.strip_prefix("object-").map(|mark| mark.trim_end_matches("-v4").to_owned())).collect()
    };
    let before = digests();
    let [digest] = before.as_slice() else { anyhow::bail!("expected one object, found {before:?}") };
    let newer = Netavark::newer(rig.topology, way.rung, digest)?;
    let app = rig.topology.container("app")?;
    let network = way.wide_network(7).option("netpath.xdp", "on");
    let document = Document::new().on_dual(&network, "eth0", 7, 6);
    newer.setup(&app, &document)?;
    let after = digests();
    rig.note(after.len() == 1 && after != before, || format!("objects before {before:?}, after {after:?}"));
    at_place(rig, false, || None)?;
    traffic.goes_on(rig, "with the newer programs")?;
    Ok((app, document))
}
