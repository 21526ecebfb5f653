//! A real DHCP server, dnsmasq, in a namespace of the test's own; and netpath's proxy.

use crate::host::{Netns, SOON, wait_for};
use crate::topology::Topology;
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The directory of the proxy that commands of a topology use.
pub fn proxy_dir(topology: &Topology) -> PathBuf {
    topology.dir().join("proxy")
}

/// The process of the proxy, if one runs.
pub fn proxy(dir: &Path) -> Option<i32> {
    let text = std::fs::read_to_string(dir.join("nv-proxy.lock")).ok()?;
    let holder: serde_json::Value = serde_json::from_str(&text).ok()?;
    let pid = i32::try_from(holder["pid"].as_i64()?).ok()?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Not a zombie, which its parent has not waited for.
    (stat.contains("netpath") && !stat.contains(") Z ")).then_some(pid)
}

/// Ends the proxy of a topology, if one runs, and waits until it is gone.
///
/// # Errors
/// It does not end.
pub fn end_proxy(dir: &Path, signal: Signal) -> Result<()> {
    let Some(pid) = proxy(dir) else { return Ok(()) };
    kill(Pid::from_raw(pid), signal)?;
    wait_for("the end of the DHCP proxy", SOON, || proxy(dir).is_none().then_some(()))
}

/// A line of the server's file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Granted {
    pub mac: String,
    pub address: String,
    pub host_name: String,
    /// Bytes in hexadecimal, with colons.
    pub client_id: String,
}

/// Ends when it is dropped. Its leases stay in the directory.
pub struct DhcpServer {
    child: Child,
    dir: PathBuf,
}

impl DhcpServer {
    /// Serves `range` (`FIRST,LAST`) on `link`, with leases of two minutes that are extended after eight seconds, and more options of
    /// dnsmasq. Files are in `dir`.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(netns: &Netns, dir: &Path, link: &str, range: &str, more: &[&str]) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let mut command = Command::new("dnsmasq");
        command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root", "--port=0"]);
        command.args(["--no-resolv", "--no-hosts", "--no-ping", "--dhcp-authoritative", "--bind-interfaces"]);
        command.arg(format!("--interface={link}")).arg(format!("--dhcp-range={range},2m"));
        command.args(["--dhcp-option=option:T1,8", "--dhcp-option=option:T2,90", "--log-dhcp"]);
        command.arg(format!("--dhcp-leasefile={}", dir.join("leases").display()));
        command.arg(format!("--log-facility={}", dir.join("log").display()));
        command.args(more).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = netns.run(move || command.spawn()).context("cannot start dnsmasq")?;
        let mut server = Self { child, dir: dir.to_owned() };
        let port = || netns.run(|| std::fs::read_to_string("/proc/thread-self/net/udp")).unwrap_or_default();
        wait_for("a DHCP server", SOON, || match server.child.try_wait() {
            Ok(None) => port().contains(":0043 ").then_some(true),
            _ => Some(false),
        })?
        .then_some(())
        .with_context(|| format!("dnsmasq ended: {}", server.log()))?;
        Ok(server)
    }

    pub fn leases(&self) -> Vec<Granted> {
        let text = std::fs::read_to_string(self.dir.join("leases")).unwrap_or_default();
        let fields = text.lines().map(|line| line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        fields
            .filter_map(|f| match f.as_slice() {
                [_, mac, address, host_name, client_id] => Some(Granted {
                    mac: mac.clone(),
                    address: address.clone(),
                    host_name: host_name.clone(),
                    client_id: client_id.clone(),
                }),
                _ => None,
            })
            .collect()
    }

    /// What it was asked and has answered.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// How often it has logged this word, such as `DHCPACK`, for this address.
    pub fn count(&self, word: &str, address: &str) -> usize {
        let named = |l: &&str| l.contains(&format!("{word}(")) && l.split(' ').any(|w| w == address);
        self.log().lines().filter(named).count()
    }
}

impl Drop for DhcpServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
