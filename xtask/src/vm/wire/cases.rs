//! The cases: a fault, and the state required after it. Each restores the host.

use super::{PUBLISHED, Wire, at, slowest, ways};
use crate::vm::three_vms::{CLIENT, HOST, HOST_FAR, HOST_MAC, SECOND};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::time::Instant;

/// Source port of a UDP client across a power cut.
const OWN_PORT: u16 = 4000;
const NARROW: u32 = 1280;

pub(super) type Case = fn(&mut Wire<'_, '_>) -> Result<Vec<Moment>>;

pub(super) const CASES: [(&str, &str, Case); 6] = [
    // First, so that all others use the container that is taken down in the end.
    ("reboot", "the host loses its power, and containers are set up again", reboot),
    ("flap", "the uplink loses its carrier and gets it back", flap),
    ("down", "the uplink is taken down and up again", down_and_up),
    ("dhcp", "DHCP gives the uplink another address", dhcp),
    ("mtu", "the uplink's MTU shrinks and grows", mtu),
    ("uplink", "a second uplink comes and goes", second_uplink),
];

/// An event, and milliseconds until all traffic was right.
pub(super) type Moment = (&'static str, f64);

fn flap(wire: &mut Wire<'_, '_>) -> Result<Vec<Moment>> {
    wire.long_lived()?;
    let once = carrier_goes_and_comes(wire)? + wire.right(HOST[0])?;
    wire.long_lived_is_there()?;
    let mut came = 0.0;
    for _ in 0..5 {
        came = carrier_goes_and_comes(wire)?;
    }
    let often = came + wire.right(HOST[0])?;
    wire.long_lived_ends()?;
    Ok(vec![("once", once), ("five times", often)])
}

/// Milliseconds from the command that restores the carrier until the host's kernel lets the link send again. No probe runs
/// meanwhile: a client's request would be lost and repeated a second later, independently of the host.
fn carrier_goes_and_comes(wire: &mut Wire<'_, '_>) -> Result<f64> {
    wire.vms.host.carrier(0, false)?;
    let begun = Instant::now();
    wire.vms.host.carrier(0, true)?;
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}

/// As a restart of a network manager: IPv6 addresses and all routes are removed, and return.
fn down_and_up(wire: &mut Wire<'_, '_>) -> Result<Vec<Moment>> {
    wire.long_lived()?;
    wire.host_ip("link set eth0 down\n")?;
    wire.vms.first_uplink()?;
    let took = wire.right(HOST[0])?;
    wire.long_lived_ends()?;
    Ok(vec![("after", took)])
}

fn dhcp(wire: &mut Wire<'_, '_>) -> Result<Vec<Moment>> {
    const GIVEN: [&str; 2] = ["192.0.2.50", "192.0.2.51"];
    let mut moments = Vec::new();
    wire.host_ip(&format!("addr del {}/24 dev eth0\n", HOST[0]))?;
    let mut before = HOST[0];
    for (address, what) in GIVEN.into_iter().zip(["first lease", "another"]) {
        wire.vms
            .client
            .ask(&json!({"do": "lease", "link": "eth0", "mac": HOST_MAC, "address": address, "router": CLIENT[0]}))?;
        let command = if before == HOST[0] { json!({"do": "dhcp", "link": "eth0"}) } else { json!({"do": "renew"}) };
        wire.vms.host.ask(&command)?;
        wire.vms.host.ask(&json!({"do": "has", "link": "eth0", "address": address, "within_ms": 60_000}))?;
        moments.push((what, wire.right(address)?));
        let gone = json!({"udp": false, "to": at(before, PUBLISHED)});
        let within_ms = wire.within.as_millis() as u64;
        wire.vms.client.ask(&json!({"do": "silent", "probe": gone, "within_ms": within_ms}))?;
        before = address;
    }
    for (machine, name) in [(&mut wire.vms.host, "dhcp-client"), (&mut wire.vms.client, "dhcp-server")] {
        machine.ask(&json!({"do": "end", "name": name}))?;
    }
    wire.host_ip(&format!("addr del {before}/24 dev eth0\n"))?;
    wire.vms.first_uplink()?;
    moments.push(("back", wire.right(HOST[0])?));
    Ok(moments)
}

/// The link itself becomes narrower: larger packets are lost, and only the host knows.
fn mtu(wire: &mut Wire<'_, '_>) -> Result<Vec<Moment>> {
    wire.long_lived()?;
    wire.host_ip(&format!("link set eth0 mtu {NARROW}\n"))?;
    wire.vms.client.ask(&json!({"do": "narrow", "link": "eth0", "mtu": NARROW}))?;
    // Before a probe can learn the new size for it.
    wire.long_lived_is_there().context("the connection from before")?;
    let narrow = wire.right_with(HOST[0], 20_000)?;
    wire.vms.client.ask(&json!({"do": "narrow", "link": "eth0", "mtu": 0}))?;
    wire.host_ip("link set eth0 mtu 1500\n")?;
    let wide = wire.right_with(HOST[0], 20_000)?;
    wire.long_lived_ends()?;
    Ok(vec![("1280", narrow), ("1500", wide)])
}

fn second_uplink(wire: &mut Wire<'_, '_>) -> Result<Vec<Moment>> {
    wire.long_lived()?;
    wire.vms.host.ask(&json!({"do": "plug", "device": wire.far, "link": "eth1", "within_ms": 10_000}))?;
    // As with a returning carrier, no probe runs before the host's kernel lets the link send, and the clock runs meanwhile.
    let begun = Instant::now();
    wire.vms.second_uplink()?;
    wire.vms.host.ask(&json!({"do": "carrier", "link": "eth1", "up": true, "within_ms": 10_000}))?;
    let sends = begun.elapsed().as_secs_f64() * 1e3;
    let (inward, outward) = ways(HOST_FAR, SECOND, "second", 1_000);
    let [second, host] = [&inward, &outward].map(|probes| wire.probing(probes));
    wire.vms.second.send(&second)?;
    wire.vms.host.send(&host)?;
    let answers = [wire.vms.second.answer(), wire.vms.host.answer()];
    let came = sends + slowest(answers)?;
    let limit = wire.within.as_secs_f64() * 1e3;
    ensure!(came <= limit, "right after {came:.0} ms, {sends:.0} of them until the link sent");
    wire.right(HOST[0]).context("the first uplink beside it")?;
    wire.unplug()?;
    let went = wire.right(HOST[0])?;
    wire.long_lived_ends()?;
    Ok(vec![("it came", came), ("it went", went)])
}

fn reboot(wire: &mut Wire<'_, '_>) -> Result<Vec<Moment>> {
    let same = json!([{
        "udp": true, "to": at(HOST[0], PUBLISHED), "server": "web", "seen": CLIENT[0], "port": OWN_PORT,
    }]);
    let same = wire.probing(&same);
    wire.vms.client.ask(&same)?;
    wire.vms.restart_host()?;
    wire.unplug()?;
    wire.container()?;
    let took = wire.right(HOST[0])?;
    wire.vms.client.ask(&same)?;
    Ok(vec![("after setup", took)])
}
