//! DHCP: dnsmasq as the server, busybox's client.

use crate::machine::Machine;
use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs::{self, Permissions};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

const SERVER: &str = "dhcp-server";
const CLIENT: &str = "dhcp-client";
const SCRIPT: &str = "/run/dhcp-script";
/// The new address is added before the old one is removed, as by a network manager; without a lease there is none.
const ON_LEASE: &str = r#"#!/bin/sh
case "$1" in
deconfig) ip -4 addr flush dev "$interface" ;;
bound|renew)
    ip addr replace "$ip/$mask" dev "$interface"
    ip -4 -o addr show dev "$interface" | while read -r _ _ _ address _; do
        [ "$address" = "$ip/$mask" ] || ip addr del "$address" dev "$interface"
    done
    ip route replace default via "$router" dev "$interface"
    ;;
esac
"#;

/// The server gives `address` to `mac` from now on, instead of the address before.
pub(crate) fn lease(
    machine: &mut Machine,
    link: &str,
    mac: &str,
    address: Ipv4Addr,
    router: Ipv4Addr,
) -> Result<Value> {
    machine.end(SERVER)?;
    let mut command = Command::new("dnsmasq");
    command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--leasefile-ro", "--user=root"]);
    command.args(["--no-resolv", "--no-hosts", "--port=0", "--no-ping", "--dhcp-authoritative", "--bind-interfaces"]);
    let [a, b, c, _] = router.octets();
    command.arg(format!("--interface={link}")).arg(format!("--dhcp-range={},static,2m", Ipv4Addr::new(a, b, c, 0)));
    command.arg(format!("--dhcp-host={mac},{address}")).arg(format!("--dhcp-option=option:router,{router}"));
    machine.start(SERVER, command)?;
    Ok(Value::Null)
}

/// Starts the client on the link.
pub(crate) fn begin(machine: &mut Machine, link: &str) -> Result<()> {
    fs::write(SCRIPT, ON_LEASE).with_context(|| format!("cannot write {SCRIPT}"))?;
    fs::set_permissions(SCRIPT, Permissions::from_mode(0o755))?;
    let mut command = Command::new("udhcpc");
    command.args(["-f", "-i", link, "-s", SCRIPT, "-t", "20", "-T", "1", "-A", "1"]);
    machine.start(CLIENT, command)
}

/// Renews the lease, as at half of its time.
pub(crate) fn renew(machine: &Machine) -> Result<()> {
    machine.signal(CLIENT, Signal::SIGUSR1)
}
