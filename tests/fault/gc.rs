//! Sweeping, and connections that survive a change of the map layout.

use anyhow::{Context, Result, ensure};
use netpath_common::layout::{Flow4, FlowKey4, LAYOUT_VERSION, Next, Plain, name};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use std::ffi::CString;
use std::io::{Read, Write};
use std::mem::offset_of;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use support::bpf::{Attr, MAP_CREATE, MAP_UPDATE_ELEM, OBJ_PIN};
use support::host::Netns;
use support::need;
use support::netavark::{Document, Netavark, Network, Rung, binary};
use support::residue::Residue;
use support::topology::{CLIENT4, HOST4, Topology};
use support::traffic::{ANY, Dial, Proto, Server};

pub(crate) const NO_AGENT: (&str, &str) = ("NETPATH_AGENT", "off");

pub(crate) fn document(host: u8) -> Document {
    Document::new().on_dual(&Network::dual(7), "eth0", 7, host).publish("", 8000 + u16::from(host), 80, "tcp").publish(
        "",
        8000 + u16::from(host),
        80,
        "udp",
    )
}

pub(crate) fn gc(topology: &Topology) -> Result<Value> {
    let mut command = Command::new(binary()?);
    command.args(["gc", "--json"]).env(NO_AGENT.0, NO_AGENT.1);
    let out = topology.host.output(command, b"")?;
    ensure!(out.status.success(), "gc: {}", String::from_utf8_lossy(&out.stderr));
    let said: Value = serde_json::from_slice(&out.stdout)?;
    Ok(said["removed"].clone())
}

fn nothing(removed: &Value) -> bool {
    removed.as_object().is_some_and(|o| !o.is_empty() && o.values().all(|n| *n == 0))
}

fn pins(topology: &Topology, version: u32) -> PathBuf {
    Path::new("/sys/fs/bpf/netpath").join(format!("v{version}")).join(format!("{:x}", topology.host.cookie()))
}

pub(crate) type Flows4 = aya::maps::HashMap<aya::maps::MapData, FlowKey4, Flow4>;

pub(crate) fn flows(topology: &Topology) -> Result<Flows4> {
    flows_of(&pins(topology, LAYOUT_VERSION))
}

fn flows_of(tree: &Path) -> Result<Flows4> {
    let data = aya::maps::MapData::from_pin(tree.join("map").join(name::FLOW4))?;
    Ok(aya::maps::Map::from_map_data(data)?.try_into()?)
}

/// Ages the last packet of these flows.
pub(crate) fn age(flows: &mut Flows4, which: impl Fn(&FlowKey4) -> bool, seconds: u32) -> Result<usize> {
    let all: Vec<(FlowKey4, Flow4)> = flows.iter().flatten().filter(|(k, _)| which(k)).collect();
    for (key, mut flow) in all.iter().copied() {
        flow.next.last_seen = flow.next.last_seen.wrapping_sub(netpath_common::flow::ticks(seconds));
        flows.insert(key, flow, 0)?;
    }
    Ok(all.len())
}

#[test]
fn expired_flows_go_in_pairs_and_living_ones_stay() -> Result<()> {
    need!(need::netpath(), need::rung(Rung::Tcx));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let environment: Vec<_> = Rung::Tcx.environment().into_iter().chain([NO_AGENT]).collect();
    let netavark = Netavark::with(&topology, &environment)?;
    let web = topology.container("web")?;
    netavark.setup(&web, &document(5))?;
    let _servers = [Server::echo(&web, Proto::Tcp, ANY, 80, "web")?, Server::echo(&web, Proto::Udp, ANY, 80, "web")?];
    Dial::new(Proto::Tcp, HOST4, 8005).ask(&topology.client)?;
    Dial::new(Proto::Udp, HOST4, 8005).ask(&topology.client)?;
    // A masqueraded flow, which has a mark.
    let _outside = Server::echo(&topology.client, Proto::Udp, ANY, 9000, "outside")?;
    Dial::new(Proto::Udp, CLIENT4, 9000).ask(&web)?;
    ensure!(nothing(&gc(&topology)?), "something was removed while everything lives");

    let mut map = flows(&topology)?;
    let count = |map: &Flows4| map.keys().flatten().count();
    let all = count(&map);
    ensure!(all >= 6, "{all} halves of three flows");
    let udp = age(&mut map, |k| k.proto == 17, 200)?;
    // Only one half is old: its flow lives.
    ensure!(age(&mut map, |k| k.proto == 6 && k.side == 0, 9_000)? == 1, "one half of the TCP flow");
    let removed = gc(&topology)?;
    ensure!(removed["flows"] == udp && count(&map) == all - udp, "of {all} halves {udp} were old: {removed}");
    // Otherwise every port of the host would take the slow path after a while.
    ensure!(removed["marks"] == 1, "the mark of the port that was masqueraded to: {removed}");
    ensure!(nothing(&gc(&topology)?), "the second call removed something");
    age(&mut map, |_| true, 9_000)?;
    gc(&topology)?;
    ensure!(count(&map) == 0, "{} halves stay", count(&map));
    // And new flows work again.
    Dial::new(Proto::Udp, HOST4, 8005).ask(&topology.client)?;
    Dial::new(Proto::Udp, CLIENT4, 9000).ask(&web)?;
    netavark.teardown(&web, &document(5))?;
    residue.nothing_left(&topology, &[&web])
}

/// A command sweeps a little if there was no sweep for a minute.
#[test]
fn commands_remove_expired_flows_where_no_agent_runs() -> Result<()> {
    need!(need::netpath(), need::rung(Rung::Tcx));
    let topology = Topology::new()?;
    let environment: Vec<_> = Rung::Tcx.environment().into_iter().chain([NO_AGENT]).collect();
    let netavark = Netavark::with(&topology, &environment)?;
    let (web, other) = (topology.container("web")?, topology.container("other")?);
    netavark.setup(&web, &document(5))?;
    let _server = Server::echo(&web, Proto::Udp, ANY, 80, "web")?;
    Dial::new(Proto::Udp, HOST4, 8005).ask(&topology.client)?;
    let mut map = flows(&topology)?;
    age(&mut map, |_| true, 9_000)?;
    let swept = Path::new("/run/netpath").join(format!("{:x}", topology.host.cookie())).join("swept");
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(61);
    std::fs::File::options().write(true).open(&swept).context("swept")?.set_modified(long_ago)?;
    netavark.setup(&other, &document(6))?;
    ensure!(map.keys().flatten().count() == 0, "expired flows stay");
    netavark.teardown(&other, &document(6))?;
    netavark.teardown(&web, &document(5))
}

/// Leftovers of a host whose namespace was removed while its containers ran.
#[test]
fn pins_and_records_of_a_host_that_is_gone_are_removed() -> Result<()> {
    need!(need::netpath(), need::rung(Rung::Tcx));
    let here = Topology::new()?;
    let web = here.container("web")?;
    let gone = Netns::create(&here.dir().join("gone"))?;
    gone.ip("link set lo up\n")?;
    let config = here.dir().join("gone-config");
    std::fs::create_dir(&config)?;
    let mut setup = Command::new(binary()?);
    setup.arg("podman").arg("--config").arg(&config).arg("setup").arg(web.path());
    setup.envs(Rung::Tcx.environment()).env(NO_AGENT.0, NO_AGENT.1);
    let out = gone.output(setup, document(5).json(&web).to_string().as_bytes())?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    let places = support::topology::state_dirs(&format!("{:x}", gone.cookie()));
    let left = || places.iter().filter(|p| p.exists()).count();
    ensure!(left() >= 2, "{places:?}");
    gc(&here)?;
    ensure!(left() >= 2, "a host that lives has lost {places:?}");
    drop((gone, web));
    // The kernel removes a namespace asynchronously.
    let ended = support::host::wait_for("the end of the host's traces", support::host::SOON, || {
        gc(&here).ok()?;
        (left() == 0).then_some(())
    });
    places.iter().for_each(|p| drop(std::fs::remove_dir_all(p)));
    ended?;
    ensure!(nothing(&gc(&here)?), "the second call removed something");
    Ok(())
}

#[test]
fn connections_outlive_a_new_layout_of_the_maps() -> Result<()> {
    for rung in [Rung::Tcx, Rung::Clsact] {
        need!(need::netpath(), need::rung(rung));
        relayout(rung).with_context(|| format!("{rung:?}"))?;
    }
    Ok(())
}

/// A tree of today under the name of layout 1, with flows in the format of that layout, is one of its.
fn relayout(rung: Rung) -> Result<()> {
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::on(&topology, rung)?;
    let (web, other) = (topology.container("web")?, topology.container("other")?);
    netavark.setup(&web, &document(5))?;
    repeater(&web, 80)?;
    repeater(&topology.client, 9000)?;
    let mut connections = [
        topology.client.run(|| TcpStream::connect(SocketAddr::from((HOST4, 8005))))?,
        web.run(|| TcpStream::connect(SocketAddr::from((CLIENT4, 9000))))?,
        topology.host.run(|| TcpStream::connect(SocketAddr::from((HOST4, 8005))))?,
    ];
    talk(&mut connections)?;
    // No agent may repair the state meanwhile.
    for (pid, _) in topology.host.processes() {
        kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL)?;
    }

    let old = pins(&topology, 1);
    std::fs::create_dir_all(old.parent().context("no parent")?)?;
    std::fs::rename(pins(&topology, LAYOUT_VERSION), &old).context("renaming a tree")?;
    talk(&mut connections).context("before the change")?;
    // The running programs are today's: to them a stamp in seconds is hours old on a host that is up for hours. The last
    // acknowledgements have arrived before the stamps change, and no packet is sent until the map is replaced.
    std::thread::sleep(Duration::from_millis(500));
    let stamped = flows_of(&old)?.iter().collect::<Result<Vec<_>, _>>()?;
    replace_by_earlier(&old.join("map").join(name::FLOW4), &stamped)?;
    netavark.setup(&other, &document(6))?;
    ensure!(!old.exists(), "the old tree stays");
    let now = support::maps::now();
    let idle = |flow: &Flow4| flow.next.last_seen.max(now) - flow.next.last_seen.min(now);
    let ages = flows(&topology)?.iter().map(|f| f.map(|(_, flow)| idle(&flow))).collect::<Result<Vec<_>, _>>()?;
    let oldest = netpath_common::flow::ticks(60);
    ensure!(ages.len() >= 4 && ages.iter().all(|age| *age < oldest), "ticks since their last packet: {ages:?}");
    talk(&mut connections).context("after the change")?;
    let new = topology.client.run(|| TcpStream::connect(SocketAddr::from((HOST4, 8005))))?;
    talk(&mut [new]).context("a new one")?;
    netavark.teardown(&other, &document(6))?;
    talk(&mut connections).context("after a teardown")?;
    netavark.teardown(&web, &document(5))?;
    residue.nothing_left(&topology, &[&web, &other])
}

/// Pins a map of layout 1 with these flows at `pin`: the stamps in seconds, without acknowledgement and serial number.
fn replace_by_earlier(pin: &Path, flows: &[(FlowKey4, Flow4)]) -> Result<()> {
    const LRU_HASH: u32 = 9;
    let at = offset_of!(Flow4, next);
    let (ack, after) = (at + offset_of!(Next, ack), at + offset_of!(Next, match_dmac));
    let size = size_of::<Flow4>() - (after - ack);
    let mut attr = Attr::default();
    attr.words(0, &[LRU_HASH, size_of::<FlowKey4>() as u32, size as u32, 1_024]);
    let map = attr.open(MAP_CREATE).context("cannot create a map")?;
    for (key, mut flow) in flows.iter().copied() {
        flow.next.last_seen = netpath_common::flow::seconds(flow.next.last_seen);
        let (key, flow) = (bytes(&key), bytes(&flow));
        let value = [&flow[..ack], &flow[after..]].concat();
        let mut attr = Attr::default();
        attr.words(0, &[map.as_raw_fd() as u32]);
        attr.pointer(8, key.as_ptr());
        attr.pointer(16, value.as_ptr());
        attr.call(MAP_UPDATE_ELEM).context("cannot add a flow")?;
    }
    std::fs::remove_file(pin)?;
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let mut attr = Attr::default();
    attr.pointer(0, path.as_ptr());
    attr.words(8, &[map.as_raw_fd() as u32]);
    attr.call(OBJ_PIN).context("cannot pin a map").map(drop)
}

fn bytes<T: Plain>(value: &T) -> Vec<u8> {
    value.as_bytes().to_vec()
}

fn talk(connections: &mut [TcpStream]) -> Result<()> {
    for (at, connection) in connections.iter_mut().enumerate() {
        connection.set_read_timeout(Some(support::host::SOON))?;
        connection.write_all(b"still there?").with_context(|| format!("connection {at}"))?;
        let mut answer = [0; 12];
        connection.read_exact(&mut answer).with_context(|| format!("connection {at}"))?;
        ensure!(&answer == b"still there?", "connection {at}: {answer:?}");
    }
    Ok(())
}

/// Repeats all input, to every client.
fn repeater(netns: &Netns, port: u16) -> Result<()> {
    let listener = netns.run(|| TcpListener::bind(("::", port)))?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let (mut from, mut to) = (&stream, &stream);
                let _ = std::io::copy(&mut from, &mut to);
            });
        }
    });
    Ok(())
}
