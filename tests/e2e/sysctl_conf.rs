//! The file that keeps systemd-sysctl from changing a bridge's sysctls (`/run/sysctl.d/10-netpath-<bridge>.conf`).
//!
//! Each test is on a machine of its own, as far as netpath can tell: network, mount and PID namespaces with an empty /run, in
//! which systemd seems to run.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use support::holder::Holder;
use support::host::{SOON, wait_for};
use support::need;
use support::netavark::{Document, Network, Rung, binary};

/// `$1` is made in place of /run/systemd/system, if it is given.
const BOOT: &str = "
    set -eu
    mount --make-rprivate /
    mount -t tmpfs netpath-test /run
    mkdir -p /run/config \"$1\"
    ip link set lo up
    ip netns add web
    ip netns add app
    ip netns add host
    echo ready
    exec cat >/dev/null
";

struct Machine {
    holder: Holder,
    datapath: &'static str,
}

impl Machine {
    fn boot(datapath: &'static str, systemd: bool) -> Result<Self> {
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]);
        unshare.args(["sh", "-c", BOOT, "sh", if systemd { "/run/systemd/system" } else { "/run/other" }]);
        Ok(Self { holder: Holder::start(unshare).context("cannot make the machine's namespaces")?, datapath })
    }

    fn command(&self, program: &[&str]) -> Command {
        let mut command = self.holder.enter(&["net", "mnt", "pid"]);
        command.args(program).env("NETPATH_DATAPATH", self.datapath).env("NETPATH_AGENT", "off");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts `verb` for container `name`, by `prefix`.
    fn start(&self, prefix: &[&str], verb: &str, name: &str) -> Result<Child> {
        let (program, netns) = (binary()?.display().to_string(), format!("/run/netns/{name}"));
        let args = [prefix, &[&program, "podman", "--config", "/run/config", verb, &netns]].concat();
        let mut child = self.command(&args).spawn()?;
        let host = if name == "web" { 5 } else { 6 };
        let document =
            Document::new().on_dual(&Network::dual(7), "eth0", 7, host).publish("", 8000 + u16::from(host), 80, "tcp");
        let document = document.json_for(&name.repeat(4), name).to_string();
        child.stdin.take().context("no pipe")?.write_all(document.as_bytes())?;
        Ok(child)
    }

    fn call(&self, verb: &str, name: &str) -> Result<()> {
        succeeded(&self.start(&[], verb, name)?.wait_with_output()?)
    }

    fn run(&self, program: &[&str]) -> Result<()> {
        succeeded(&self.command(program).output()?)
    }

    fn has_bridge(&self) -> Result<bool> {
        Ok(self.command(&["ip", "link", "show", "podman7"]).output()?.status.success())
    }

    fn file(&self) -> Result<PathBuf> {
        let init = self.holder.init().context("the machine has no init")?;
        Ok(format!("/proc/{init}/root/run/sysctl.d/10-netpath-podman7.conf").into())
    }

    /// The settings in the file; `None`: there is no file.
    fn settings(&self) -> Result<Option<Vec<String>>> {
        Ok(fs::read_to_string(self.file()?).ok().map(|text| settings(&text)))
    }
}

fn settings(text: &str) -> Vec<String> {
    text.lines().filter(|l| !l.starts_with('#')).map(ToOwned::to_owned).collect()
}

fn succeeded(output: &Output) -> Result<()> {
    ensure!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

const OF_BRIDGE: [&str; 3] = [
    "net/ipv4/conf/podman7/rp_filter = 2",
    "net/ipv6/conf/podman7/accept_dad = 0",
    "net/ipv6/conf/podman7/accept_ra = 0",
];

#[test]
fn the_file_is_there_from_the_first_container_to_the_last() -> Result<()> {
    need!(need::root(), need::netpath());
    let machine = Machine::boot("none", true)?;
    machine.call("setup", "web")?;
    ensure!(machine.settings()?.context("no file")? == OF_BRIDGE, "{:?}", machine.settings()?);
    machine.call("setup", "app")?;
    machine.call("teardown", "web")?;
    ensure!(machine.settings()?.is_some_and(|s| s == OF_BRIDGE), "{:?}", machine.settings()?);
    machine.call("teardown", "app")?;
    ensure!(!machine.has_bridge()? && machine.settings()?.is_none(), "left: {:?}", machine.settings()?);
    Ok(())
}

/// What is set for a rung is in the file as well.
#[test]
fn the_file_holds_what_a_rung_sets() -> Result<()> {
    need!(need::netpath(), need::rung(Rung::Iptables));
    let machine = Machine::boot("iptables", true)?;
    machine.call("setup", "web")?;
    let settings = machine.settings()?.context("no file")?;
    ensure!(settings.contains(&"net/ipv4/conf/podman7/route_localnet = 1".to_owned()), "{settings:?}");
    ensure!(OF_BRIDGE.iter().all(|line| settings.iter().any(|s| s == line)), "{settings:?}");
    machine.call("teardown", "web")?;
    ensure!(machine.settings()?.is_none(), "left: {:?}", machine.settings()?);
    Ok(())
}

/// A FIFO in place of the file stops netpath where it reads it, and then where it writes it.
#[test]
fn the_file_is_written_before_the_bridge_exists_and_goes_after_a_kill() -> Result<()> {
    need!(need::root(), need::netpath());
    let machine = Machine::boot("none", true)?;
    machine.run(&["mkdir", "-p", "/run/sysctl.d"])?;
    let fifo = || machine.run(&["mkfifo", "/run/sysctl.d/10-netpath-podman7.conf"]);
    let file = machine.file()?;
    let read = || {
        let open = || fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&file).ok();
        wait_for("a setup that reads the file", SOON, open)
    };

    fifo()?;
    let setup = machine.start(&[], "setup", "web")?;
    drop(read()?);
    ensure!(settings(&fs::read_to_string(&file)?) == OF_BRIDGE, "another content");
    succeeded(&setup.wait_with_output()?)?;
    machine.call("teardown", "web")?;
    ensure!(!file.exists(), "left after a teardown");

    fifo()?;
    let mut setup = machine.start(&[], "setup", "web")?;
    let end = read()?;
    ensure!(!machine.has_bridge()?, "the bridge exists before the file");
    // nsenter waits for netpath, which is its child.
    let child = fs::read_to_string(format!("/proc/{0}/task/{0}/children", setup.id()))?;
    kill(Pid::from_raw(child.trim().parse().context("no child")?), Signal::SIGKILL)?;
    setup.wait()?;
    drop(end);
    fs::remove_file(&file)?;
    fs::write(&file, "net/ipv4/conf/podman7/rp_filter = 2\n")?;
    machine.call("teardown", "web")?;
    ensure!(!file.exists(), "left after a setup that was killed");
    Ok(())
}

#[test]
fn the_file_goes_with_a_setup_that_fails_and_with_a_container_that_is_gone() -> Result<()> {
    need!(need::root(), need::netpath());
    let machine = Machine::boot("none", true)?;
    machine.run(&["ip", "link", "add", "podman7", "type", "veth", "peer", "name", "other"])?;
    ensure!(machine.call("setup", "web").is_err(), "an interface of that name is no bridge");
    ensure!(machine.settings()?.is_none(), "left after a failure: {:?}", machine.settings()?);
    machine.run(&["ip", "link", "del", "podman7"])?;

    machine.call("setup", "web")?;
    ensure!(machine.settings()?.is_some(), "no file");
    machine.run(&["ip", "netns", "del", "web"])?;
    wait_for("the end of the veth", SOON, || {
        let ports = machine.command(&["ip", "-brief", "link", "show", "master", "podman7"]).output().ok()?;
        ports.stdout.is_empty().then_some(())
    })?;
    machine.run(&[&binary()?.display().to_string(), "gc"])?;
    ensure!(!machine.has_bridge()? && machine.settings()?.is_none(), "left after gc: {:?}", machine.settings()?);
    Ok(())
}

#[test]
fn there_is_no_file_where_systemd_would_not_use_it() -> Result<()> {
    need!(need::root(), need::netpath());
    let without = Machine::boot("none", false)?;
    without.call("setup", "web")?;
    ensure!(without.settings()?.is_none(), "without systemd: {:?}", without.settings()?);
    without.call("teardown", "web")?;

    let machine = Machine::boot("none", true)?;
    machine.call("setup", "web")?;
    // A bridge of the same name, in a network namespace that udev does not see.
    for verb in ["setup", "teardown"] {
        let other = machine.start(&["ip", "netns", "exec", "host"], verb, "app")?;
        succeeded(&other.wait_with_output()?)?;
        ensure!(machine.settings()?.is_some_and(|s| s == OF_BRIDGE), "after {verb}: {:?}", machine.settings()?);
    }
    machine.call("teardown", "web")?;
    ensure!(machine.settings()?.is_none(), "left: {:?}", machine.settings()?);
    Ok(())
}
