//! A directory of network files, and the server over it in the host of a topology.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use support::dns::Resolver;
use support::host::{Netns, SOON, wait_for};
use support::netavark::binary;
use support::topology::{CLIENT4, HOST4, Topology};

/// The port of the tests: the host's own server may have 53.
pub(crate) const PORT: u16 = 53;
/// Of containers that are not the client itself.
pub(crate) const FRONT: &str = "192.0.2.1,2001:db8:1::1\n\
    aaaaaaaaaaaa1111 192.0.2.2 2001:db8:1::2 Client,aaaaaaaaaaaa\n\
    bbbbbbbbbbbb1111 10.89.7.3 fd41:7::3 Web,www,pool,bbbbbbbbbbbb\n\
    cccccccccccc1111 10.89.7.4  db,pool\n";

pub(crate) struct Rig {
    pub(crate) topology: Topology,
    pub(crate) dir: PathBuf,
}

impl Rig {
    pub(crate) fn new() -> Result<Self> {
        let topology = Topology::new()?;
        let dir = topology.dir().join("names");
        std::fs::create_dir(&dir)?;
        std::fs::write(topology.dir().join("resolv.conf"), "")?;
        Ok(Self { topology, dir })
    }

    /// With this network, and a server.
    pub(crate) fn serving(front: &str) -> Result<Self> {
        let rig = Self::new()?;
        rig.write("front", front)?;
        rig.start(&[])?;
        Ok(rig)
    }

    pub(crate) fn write(&self, network: &str, text: &str) -> Result<()> {
        // As a whole, as netpath does: the server may read it at any time.
        let unfinished = self.topology.dir().join("unfinished");
        std::fs::write(&unfinished, text)?;
        Ok(std::fs::rename(unfinished, self.dir.join(network))?)
    }

    pub(crate) fn resolv_conf(&self) -> PathBuf {
        self.topology.dir().join("resolv.conf")
    }

    pub(crate) fn command(&self, environment: &[(&str, &str)]) -> Result<Command> {
        let mut command = Command::new(binary()?);
        command.arg0("aardvark-dns").env("NETPATH_RESOLV_CONF", self.resolv_conf()).envs(environment.iter().copied());
        command.arg("--config").arg(&self.dir).args(["-p", &PORT.to_string(), "run"]);
        Ok(command)
    }

    pub(crate) fn try_start(&self, environment: &[(&str, &str)]) -> Result<Output> {
        self.topology.host.output(self.command(environment)?, b"")
    }

    pub(crate) fn start(&self, environment: &[(&str, &str)]) -> Result<()> {
        let out = self.try_start(environment)?;
        ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Ok(())
    }

    pub(crate) fn pid(&self) -> Result<Pid> {
        let text = std::fs::read_to_string(self.dir.join("aardvark.pid")).context("no pid file")?;
        Ok(Pid::from_raw(text.parse()?))
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(self.pid()?, signal)?)
    }

    /// Has the files read, and waits until the answer to `name` says so.
    pub(crate) fn reload_until(&self, name: &str, address: &str) -> Result<()> {
        self.signal(Signal::SIGHUP)?;
        let client = self.client();
        wait_for("the change to be visible", SOON, || {
            let found = client.addresses(name, support::dns::Type::A).ok()?;
            found.contains(address).then_some(())
        })
    }

    pub(crate) fn client(&self) -> Resolver<'_> {
        self.client_at(CLIENT4)
    }

    pub(crate) fn client_at(&self, address: IpAddr) -> Resolver<'_> {
        let server = if address.is_ipv4() { HOST4 } else { support::topology::HOST6 };
        Resolver::new(&self.topology.client, address, SocketAddr::new(server, PORT))
    }

    /// Resident memory of the server, in kilobytes.
    pub(crate) fn memory(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    pub(crate) fn is_running(&self, pid: Pid) -> bool {
        is_running(&self.topology.host, pid)
    }
}

pub(crate) fn is_running(host: &Netns, pid: Pid) -> bool {
    host.processes().iter().any(|(p, _)| *p == pid.as_raw())
}

impl Drop for Rig {
    fn drop(&mut self) {
        for (pid, name) in self.topology.host.processes() {
            if name == "aardvark-dns" {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}
