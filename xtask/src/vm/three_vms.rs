//! Three machines: two clients and, between them, the host with the containers.
//!
//! ```text
//!   client                                  host                                   second
//!   eth0 192.0.2.2, 2001:db8:1::2 ──── eth0 192.0.2.1, 2001:db8:1::1
//!                                      eth1 198.51.100.1, 2001:db8:2::1 ──── eth0 198.51.100.2, 2001:db8:2::2
//! ```
//! The host's default routes point to the client. The addresses are those of the tests' namespaces (tests/support/topology.rs).

use super::image::{Base, Programs, Suite};
use super::kernel::Kernel;
use super::machine::{Boot, Machine, Part};
use super::qemu::{Acceleration, Qemu, accelerated};
use anyhow::{Context, Result, bail};
use report::variants::{Program, Variant};
use serde_json::{Value, json};
use std::fs::DirBuilder;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

pub(super) const CLIENT: [&str; 2] = ["192.0.2.2", "2001:db8:1::2"];
pub(super) const HOST: [&str; 2] = ["192.0.2.1", "2001:db8:1::1"];
pub(super) const HOST_FAR: [&str; 2] = ["198.51.100.1", "2001:db8:2::1"];
pub(super) const SECOND: [&str; 2] = ["198.51.100.2", "2001:db8:2::2"];
pub(super) const HOST_MAC: &str = "52:54:00:00:02:01";

const PARTS: [Part; 3] = [
    Part { name: "client", macs: &["52:54:00:00:02:02"] },
    Part { name: "host", macs: &[HOST_MAC, "52:54:00:00:64:01"] },
    Part { name: "second", macs: &["52:54:00:00:64:02"] },
];
/// Boot limit under emulation on a busy machine.
const LONGEST_BOOT: Duration = Duration::from_secs(180);

/// The parts that the three machines are built from.
pub(super) struct VmSetup {
    pub qemu: Qemu,
    pub kernel: Kernel,
    initramfs: PathBuf,
    directory: Directory,
}

/// Removed on drop; `cargo xtask clean` recognizes the name.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl VmSetup {
    /// `vm_node` (tests/vm_node) is the program that the guests run.
    ///
    /// # Errors
    /// A part is missing on this machine.
    pub(super) fn new(qemu: Qemu, kernel: Kernel, programs: &Programs, vm_node: PathBuf) -> Result<Self> {
        let suite = Suite {
            name: "vm_node".to_owned(),
            executable: vm_node,
            arguments: Vec::new(),
            is_whole: true,
            conducted: true,
        };
        let suites = [suite];
        // Socket paths must be short.
        let directory = std::env::temp_dir().join(format!("netpath-wire-{}", std::process::id()));
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let directory = Directory(directory);
        let initramfs = directory.0.join("initramfs");
        Base::gather(programs, &suites)?.image(&kernel, &suites, &[], &initramfs)?;
        Ok(Self { qemu, kernel, initramfs, directory })
    }

    fn boot(&self) -> Boot<'_> {
        Boot { qemu: &self.qemu, kernel: &self.kernel.image, initramfs: &self.initramfs, directory: &self.directory.0 }
    }
}

pub(super) struct ThreeVms<'k> {
    setup: &'k VmSetup,
    pub acceleration: Acceleration,
    pub client: Machine,
    pub host: Machine,
    pub second: Machine,
    /// Nothing has been set up on the host since it was booted.
    pub is_fresh: bool,
    /// Both ends of both wires; the machines hold duplicates.
    wires: [(UnixDatagram, UnixDatagram); 2],
}

impl<'k> ThreeVms<'k> {
    /// Boots the machines and assigns their addresses.
    ///
    /// # Errors
    /// A machine does not boot.
    pub(super) fn boot(setup: &'k VmSetup, wanted: Option<Acceleration>) -> Result<Self> {
        let wires = [UnixDatagram::pair()?, UnixDatagram::pair()?];
        let [client, host, second] = &PARTS;
        let (client, acceleration) = accelerated("client", wanted, |acceleration, patience| {
            let wire = end(&wires[0].0)?;
            let up = Machine::start(&setup.boot(), client, vec![wire], acceleration).and_then(|mut machine| {
                let patience = patience.unwrap_or(LONGEST_BOOT);
                machine.is_up(patience)?.then_some(machine).with_context(|| not_up("the client", patience))
            });
            Ok(up.map(|machine| (machine, acceleration)).map_err(|why| format!("{why:#}")))
        })?;
        let host = Machine::start(&setup.boot(), host, vec![end(&wires[0].1)?, end(&wires[1].1)?], acceleration)?;
        let second = Machine::start(&setup.boot(), second, vec![end(&wires[1].0)?], acceleration)?;
        let mut vms = Self { setup, acceleration, client, host, second, is_fresh: true, wires };
        for machine in [&mut vms.host, &mut vms.second] {
            come_up(machine)?;
        }
        vms.client.ask(&ip(&addresses("eth0", CLIENT)))?;
        vms.second.ask(&ip(&addresses("eth0", SECOND)))?;
        vms.first_uplink()?;
        Ok(vms)
    }

    /// Assigns the addresses of the host's first uplink, and the default routes.
    ///
    /// # Errors
    /// The host rejects them.
    pub(super) fn first_uplink(&mut self) -> Result<()> {
        let routes =
            format!("route replace default via {}\nroute replace default via {} dev eth0\n", CLIENT[0], CLIENT[1]);
        self.host.ask(&ip(&(addresses("eth0", HOST) + &routes))).map(drop)
    }

    /// Assigns the addresses of the second uplink, which has a route to its own subnet only.
    ///
    /// # Errors
    /// The host rejects them.
    pub(super) fn second_uplink(&mut self) -> Result<()> {
        self.host.ask(&ip(&addresses("eth1", HOST_FAR))).map(drop)
    }

    /// Powers the host off and boots it again, with nothing set up.
    ///
    /// # Errors
    /// The host does not boot.
    pub(super) fn restart_host(&mut self) -> Result<()> {
        let ends = vec![end(&self.wires[0].1)?, end(&self.wires[1].1)?];
        self.host.cut()?;
        self.host = Machine::start(&self.setup.boot(), &PARTS[1], ends, self.acceleration)?;
        come_up(&mut self.host)?;
        self.is_fresh = true;
        self.first_uplink()
    }

    /// Sets up the container `web` on the host; returns milliseconds.
    ///
    /// # Errors
    /// The backend rejects it.
    pub(super) fn up(&mut self, variant: &Variant, publish: &[(u16, u16)]) -> Result<f64> {
        self.is_fresh = false;
        let object =
            |words: &[(&str, &str)]| words.iter().map(|&(k, v)| (k.to_owned(), Value::from(v))).collect::<Value>();
        let (options, environment) = (object(variant.options), object(variant.environment));
        let program =
            if variant.program() == Some(Program::Netpath) { "/usr/bin/netpath" } else { "/usr/bin/netavark" };
        let took = self.host.ask(&json!({
            "do": "up", "name": "web", "program": program,
            "environment": environment, "options": options, "publish": publish,
        }))?;
        Ok(took.as_f64().unwrap_or_default())
    }

    /// # Errors
    /// The backend fails.
    pub(super) fn down(&mut self) -> Result<f64> {
        Ok(self.host.ask(&json!({"do": "down", "name": "web"}))?.as_f64().unwrap_or_default())
    }
}

fn come_up(machine: &mut Machine) -> Result<()> {
    if machine.is_up(LONGEST_BOOT)? {
        return Ok(());
    }
    bail!("{}", not_up("a machine", LONGEST_BOOT))
}

fn not_up(who: &str, patience: Duration) -> String {
    format!("{who} is not up after {} s", patience.as_secs())
}

fn end(socket: &UnixDatagram) -> Result<OwnedFd> {
    Ok(socket.try_clone().context("cannot copy an end of a wire")?.into())
}

pub(super) fn ip(lines: &str) -> Value {
    json!({"do": "ip", "lines": lines})
}

fn addresses(link: &str, [v4, v6]: [&str; 2]) -> String {
    format!("addr replace {v4}/24 dev {link}\naddr replace {v6}/64 dev {link} nodad\nlink set {link} up\n")
}
