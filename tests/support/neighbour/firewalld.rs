//! firewalld with a private D-Bus.

use super::{OWN, Pids, Place, unpacked};
use crate::host::{Netns, SOON, wait_for};
use crate::need::Need;
use anyhow::{Context, Result};
use std::path::Path;

/// Debian's next release of it, overlaid on the machine's own Python.
const NEWER: &str = "firewalld-2";
const PROGRAM: &str = "usr/sbin/firewalld";
const NAME: &str = "org.fedoraproject.FirewallD1";

/// A bus on which root may do everything, as on the system bus.
const BUS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=SOCKET</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/> <allow own="*"/> <allow send_type="method_call"/> <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/> <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/> <allow receive_type="method_return"/> <allow receive_type="error"/>
    <allow receive_type="signal"/>
  </policy>
</busconfig>
"#;

pub struct Firewalld {
    place: Place,
    address: String,
}

impl Firewalld {
    pub fn need() -> Need {
        unpacked(PROGRAM, &[OWN])?;
        unpacked("usr/bin/dbus-daemon", &[OWN])
    }

    /// Requirement of [`Firewalld::strict`].
    pub fn need_newer() -> Need {
        Self::need()?;
        let there = super::tree(NEWER).join(PROGRAM).exists();
        if there {
            Ok(())
        } else {
            Err("firewalld 2.3, which cargo xtask setup unpacks where there is Debian's apt".to_owned())
        }
    }

    /// Default settings; the links of `host` are in the default zone. Its files are in `dir`.
    ///
    /// # Errors
    /// It does not run; the error holds its log.
    pub fn start(host: &Netns, dir: &Path) -> Result<Self> {
        Self::with(host, dir, &[OWN], &[])
    }

    /// With StrictForwardPorts, which came with 2.3.
    ///
    /// # Errors
    /// As [`Firewalld::start`].
    pub fn strict(host: &Netns, dir: &Path) -> Result<Self> {
        Self::with(host, dir, &[NEWER, OWN], &[("StrictForwardPorts", "yes")])
    }

    fn with(host: &Netns, dir: &Path, trees: &[&str], settings: &[(&str, &str)]) -> Result<Self> {
        let place = Place::new(host, dir, trees, Pids::Shared)?;
        let socket = dir.join("bus");
        let config = dir.join("bus.conf");
        std::fs::write(&config, BUS.replace("SOCKET", &socket.display().to_string()))?;
        for (key, value) in settings {
            place.run("sed", &["-i", &format!("s/^{key}=.*/{key}={value}/"), "/etc/firewalld/firewalld.conf"])?;
            place.run("grep", &["-qx", &format!("{key}={value}"), "/etc/firewalld/firewalld.conf"])?;
        }
        let address = format!("unix:path={}", socket.display());
        let firewalld = Self { place, address };
        firewalld.place.daemon("dbus-daemon", &format!("dbus-daemon --nofork --config-file={}", config.display()))?;
        wait_for("the bus", SOON, || socket.exists().then_some(()))
            .with_context(|| firewalld.place.log("dbus-daemon"))?;
        let with_bus = format!("env DBUS_SYSTEM_BUS_ADDRESS={} firewalld --nofork --nopid", firewalld.address);
        firewalld.place.daemon("firewalld", &with_bus)?;
        firewalld.ready().with_context(|| firewalld.place.log("firewalld"))?;
        Ok(firewalld)
    }

    fn ready(&self) -> Result<()> {
        let named = || {
            let name = format!("string:{NAME}");
            let ask = ["--system", "--print-reply", "--dest=org.freedesktop.DBus", "/"];
            let args = [&ask[..], &["org.freedesktop.DBus.NameHasOwner", &name]].concat();
            self.on_the_bus("dbus-send", &args).ok()?.contains("true").then_some(())
        };
        wait_for(&format!("{NAME} on the bus"), SOON * 4, named)?;
        self.command(&["--state"]).map(drop)
    }

    /// The environment variable of the bus: DBUS_SYSTEM_BUS_ADDRESS.
    pub fn bus(&self) -> (&'static str, &str) {
        ("DBUS_SYSTEM_BUS_ADDRESS", &self.address)
    }

    /// `firewall-cmd` with `args`.
    ///
    /// # Errors
    /// It failed; the error holds its output.
    pub fn command(&self, args: &[&str]) -> Result<String> {
        self.on_the_bus("firewall-cmd", args)
    }

    fn on_the_bus(&self, program: &str, args: &[&str]) -> Result<String> {
        let mut command = self.place.command(program, args);
        command.env("DBUS_SYSTEM_BUS_ADDRESS", &self.address);
        self.place.finish(command, None)
    }

    /// The sources of the zone `zone`.
    ///
    /// # Errors
    /// As [`Firewalld::command`].
    pub fn sources(&self, zone: &str) -> Result<Vec<String>> {
        let said = self.command(&[&format!("--zone={zone}"), "--list-sources"])?;
        Ok(said.split_whitespace().map(str::to_owned).collect())
    }
}
