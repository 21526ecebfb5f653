//! The agent's socket: commands reach the agent, and neither can harm the other.

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};
use nix::unistd::Pid;
use serde_json::Value;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use support::agent::{kill_all, watching};
use support::host::{SOON, patience, wait_for};
use support::need;
use support::netavark::{Document, Netavark, Network, Rung, binary};
use support::residue::Residue;
use support::topology::{Topology, state_dirs};

fn document(host: u8) -> Document {
    Document::new().on_dual(&Network::dual(7), "eth0", 7, host).publish("", 8000 + u16::from(host), 80, "tcp")
}

fn state(topology: &Topology) -> PathBuf {
    state_dirs(&format!("{:x}", topology.host.cookie())).swap_remove(0)
}

fn socket_path(topology: &Topology) -> PathBuf {
    state(topology).join("agent.sock")
}

fn connect(topology: &Topology) -> Result<UnixStream> {
    let stream = UnixStream::connect(socket_path(topology))?;
    stream.set_read_timeout(Some(SOON * patience()))?;
    Ok(stream)
}

/// A connection, if the queue of the socket has room for it.
fn queue(topology: &Topology) -> Result<Option<OwnedFd>> {
    let fd = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK, None)?;
    match socket::connect(fd.as_raw_fd(), &UnixAddr::new(&socket_path(topology))?) {
        Ok(()) => Ok(Some(fd)),
        Err(Errno::EAGAIN) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// The output of a verb for people, whatever its exit code.
fn json(topology: &Topology, verb: &str) -> Result<Value> {
    let mut command = Command::new(binary()?);
    command.args([verb, "--json"]);
    let out = topology.host.output(command, b"")?;
    serde_json::from_slice(&out.stdout).with_context(|| format!("{verb}: {}", String::from_utf8_lossy(&out.stderr)))
}

fn agent(topology: &Topology) -> Result<(i64, bool)> {
    let agent = &json(topology, "status")?["agent"];
    Ok((agent["pid"].as_i64().context("no agent")?, agent["answers"].as_bool().context("no answer")?))
}

#[test]
fn the_agent_answers_on_a_socket_for_root_and_the_next_agent_replaces_it() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let (web, other) = (topology.container("web")?, topology.container("other")?);
    netavark.setup(&web, &document(5))?;
    let pid = watching(&topology)?;
    let found = std::fs::metadata(socket_path(&topology))?;
    ensure!(found.file_type().is_socket() && found.permissions().mode() & 0o777 == 0o600, "{found:?}");
    ensure!(agent(&topology)? == (pid.into(), true), "{:?}", agent(&topology)?);

    kill_all(&topology)?;
    // A thread of it may take a moment to close the socket.
    wait_for("a stale socket", SOON, || UnixStream::connect(socket_path(&topology)).is_err().then_some(()))?;
    ensure!(socket_path(&topology).exists(), "the socket is gone");
    netavark.setup(&other, &document(6))?;
    let next = watching(&topology)?;
    ensure!(next != pid && agent(&topology)? == (next.into(), true), "{:?}", agent(&topology)?);
    netavark.teardown(&other, &document(6))?;
    netavark.teardown(&web, &document(5))?;
    residue.nothing_left(&topology, &[&web, &other])
}

#[test]
fn an_agent_that_hangs_delays_no_command_and_is_reported() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let (web, other) = (topology.container("web")?, topology.container("other")?);
    netavark.setup(&web, &document(5))?;
    let pid = watching(&topology)?;
    kill(Pid::from_raw(pid), Signal::SIGSTOP)?;
    // More connections than the queue of the socket has room for.
    let mut waiting = Vec::new();
    while let Some(connection) = queue(&topology)? {
        waiting.push(connection);
        ensure!(waiting.len() < 100_000, "the queue has no end");
    }
    let begun = Instant::now();
    for _ in 0..5 {
        netavark.setup(&other, &document(6))?;
        netavark.teardown(&other, &document(6))?;
    }
    let took = begun.elapsed();
    ensure!(took < SOON * patience(), "ten commands took {took:?}");
    ensure!(agent(&topology)? == (pid.into(), false), "{:?}", agent(&topology)?);
    let findings = json(&topology, "doctor")?["findings"].to_string();
    ensure!(findings.contains(&format!("the agent (pid {pid}) does not answer")), "{findings}");
    kill(Pid::from_raw(pid), Signal::SIGCONT)?;
    drop(waiting);
    wait_for("an answer of the agent", SOON, || agent(&topology).ok().filter(|a| *a == (pid.into(), true)))?;
    netavark.teardown(&web, &document(5))?;
    residue.nothing_left(&topology, &[&web, &other])
}

#[test]
fn garbage_and_many_connections_do_not_harm_the_agent() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let web = topology.container("web")?;
    netavark.setup(&web, &document(5))?;
    let pid = watching(&topology)?;
    let mut silent = Vec::new();
    for garbage in [&b""[..], b"\n", b"look\n", b"{\"request\":\"reboot\"}\n", b"\xff\0\xfe", &[b'{'; 1 << 20]] {
        let mut stream = connect(&topology)?;
        // The agent may close the connection before it has read all.
        let _ = stream.write_all(garbage);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
        silent.extend((0..20).map(|_| connect(&topology)).collect::<Result<Vec<_>>>()?);
    }
    wait_for("an answer of the agent", SOON, || agent(&topology).ok().filter(|a| *a == (pid.into(), true)))?;
    drop(silent);
    netavark.teardown(&web, &document(5))?;
    residue.nothing_left(&topology, &[&web])
}

/// The kernel sends no notification about rules of legacy iptables: by itself the agent sees them with the next round.
#[test]
fn the_agent_looks_when_it_is_told_to() -> Result<()> {
    need!(need::netpath(), need::rung(Rung::best_hooks()), need::program("iptables-legacy"));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    // Not forced: with the first rule of others netfilter takes over.
    let netavark = Netavark::with(&topology, &[])?;
    let web = topology.container("web")?;
    netavark.setup(&web, &document(5))?;
    watching(&topology)?;
    let looks = || -> Result<usize> {
        Ok(std::fs::read_to_string(state(&topology).join("agent.log"))?.matches("the datapath follows").count())
    };
    topology.host.command("iptables-legacy", &["-A", "FORWARD", "-s", "198.51.100.0/24", "-j", "DROP"])?;
    std::thread::sleep(Duration::from_millis(500) * patience());
    let before = looks()?;
    connect(&topology)?.write_all(b"{\"request\":\"look\"}\n")?;
    wait_for("a look", SOON, || looks().ok().filter(|now| *now > before))?;
    topology.host.command("iptables-legacy", &["-F", "FORWARD"])?;
    netavark.teardown(&web, &document(5))?;
    residue.nothing_left(&topology, &[&web])
}

/// A process that does nothing stands in for the agent, and the test for its socket.
#[test]
fn commands_tell_the_agent_that_they_have_changed_something() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let (web, other) = (topology.container("web")?, topology.container("other")?);
    netavark.setup(&web, &document(5))?;
    watching(&topology)?;
    kill_all(&topology)?;
    let mut stand_in = topology.host.run(|| Command::new("sleep").arg("60").spawn())?;
    let file = state(&topology).join("agent");
    let mut holder: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", stand_in.id()))?;
    let started =
        stat.rsplit_once(')').and_then(|(_, fields)| fields.split_whitespace().nth(19)).context("no start")?;
    holder["process"] = serde_json::json!({"pid": stand_in.id(), "started": started.parse::<u64>()?});
    std::fs::write(&file, holder.to_string())?;
    std::fs::remove_file(socket_path(&topology))?;
    let listener = UnixListener::bind(socket_path(&topology))?;
    listener.set_nonblocking(true)?;

    let told = || -> Result<String> {
        let mut text = String::new();
        listener.accept().context("no command has connected")?.0.read_to_string(&mut text)?;
        Ok(text)
    };
    netavark.setup(&other, &document(6))?;
    ensure!(told()? == "{\"request\":\"look\"}\n", "after setup");
    netavark.teardown(&other, &document(6))?;
    ensure!(told()? == "{\"request\":\"look\"}\n", "after teardown");
    ensure!(listener.accept().is_err(), "more than one request of a command");
    // It ends the stand-in, as it would the agent.
    netavark.teardown(&web, &document(5))?;
    let _ = stand_in.kill();
    stand_in.wait()?;
    residue.nothing_left(&topology, &[&web, &other])
}
