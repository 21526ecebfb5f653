//! `netpath.xdp=on`: the XDP program ahead of the uplink's classifier. Traffic is the same as without; datagrams of known flows
//! bypass the classifier; and where XDP cannot be attached, traffic is not affected.

use crate::rig::{Rig, rig, serve, web};
use anyhow::{Context, Result};
use netpath_common::reason::Reason;
use std::time::Duration;
use support::host::{SOON, wait_for};
use support::need;
use support::netavark::{Document, Network, Rung};
use support::third_party::{Counter, Place, Side};
use support::topology::{Container, Family, Topology};
use support::traffic::{Dial, Proto};

on_every_rung!(
    traffic_is_the_same_as_without_xdp,
    datagrams_of_known_flows_bypass_the_classifier,
    dropped_packets_are_dropped_early,
    the_program_is_attached_while_networks_request_it,
    a_program_of_others_stays_and_traffic_goes_on_without_ours,
    an_uplink_that_has_no_xdp_goes_without,
);

fn document(n: u8, host: u8) -> Document {
    let network = Network::dual(n).option("netpath.xdp", "on");
    let document = Document::new().on_dual(&network, "eth0", n, host);
    document.publish("", 8080, 80, "tcp").publish("", 8080, 80, "udp")
}

/// Inbound and outbound, both protocols and families.
fn all(rig: &Rig<'_>, what: &str, web: &Container) {
    for family in Family::BOTH {
        for proto in Proto::BOTH {
            for bytes in [1, 1_400, 8_000] {
                let dial = Dial::new(proto, family.host(), 8080).bytes(bytes);
                rig.sees(what, &rig.topology.client, &dial, "web", family.client());
                let dial = Dial::new(proto, family.client(), 9000).bytes(bytes);
                rig.sees(what, web, &dial, "near", family.host());
            }
            let hairpin = Dial::new(proto, family.host(), 8080).ask(web);
            rig.note(hairpin.as_ref().is_ok_and(|s| s.server == "web"), || format!("{what}: hairpin: {hairpin:?}"));
        }
    }
}

fn traffic_is_the_same_as_without_xdp(rung: Rung) -> Result<()> {
    need!(need::netpath());
    rig(Topology::new(), rung, |rig| {
        let (up, _servers) = web(rig, document(7, 5))?;
        let _near = serve(&rig.topology.client, 9000, "near")?;
        let attached = rig.topology.host.xdp("eth0")?;
        rig.note(attached.is_some() == rung.is_ebpf(), || format!("the program at the uplink: {attached:?}"));
        all(rig, "checksums left to the device", &up.0);
        rig.topology.client.complete_checksums("eth0")?;
        all(rig, "checksums complete", &up.0);
        Ok(vec![up])
    })
}

fn datagrams_of_known_flows_bypass_the_classifier(rung: Rung) -> Result<()> {
    need!(need::netpath());
    need!(need::programs(rung), need::tcx());
    const MANY: u64 = 40;
    rig(Topology::new(), rung, |rig| {
        let (up, _servers) = web(rig, document(7, 5))?;
        let _near = serve(&rig.topology.client, 9000, "near")?;
        let behind = Counter::tcx(&rig.topology.host, "eth0", Side::Ingress, Place::First)?;
        for complete in [false, true] {
            if complete {
                rig.topology.client.complete_checksums("eth0")?;
            }
            for (port, family) in [(40_000, Family::V4), (40_001, Family::V6)] {
                let inward = Dial::new(Proto::Udp, family.host(), 8080).from(family.client(), port);
                let outward = Dial::new(Proto::Udp, family.client(), 9000).from(family.container(7, 5), port);
                for (what, netns, dial, server, source) in [
                    ("published", &rig.topology.client, inward, "web", family.client()),
                    ("answers", &*up.0, outward, "near", family.host()),
                ] {
                    let redirected = rig.counted(Reason::Redirected)?;
                    let before = behind.seen()?;
                    // One loss is enough for a failure, and takes a while.
                    let _ = (0..MANY).try_for_each(|_| rig.sees(what, netns, &dial, server, source).map(drop));
                    let came = behind.seen()? - before;
                    // Neighbour discovery and the like arrive too, and each flow's first packet.
                    let so = if complete { came < MANY / 2 } else { came >= MANY };
                    rig.note(so, || {
                        format!("{what}, {family:?}, checksums complete {complete}: {came} of {MANY} at the classifier")
                    });
                    let redirected = rig.counted(Reason::Redirected)? - redirected;
                    rig.note(redirected >= 2 * MANY - 2, || format!("{what}, {family:?}: {redirected} counted"));
                }
            }
        }
        Ok(vec![up])
    })
}

fn dropped_packets_are_dropped_early(rung: Rung) -> Result<()> {
    need!(need::netpath());
    need!(need::programs(rung), need::tcx());
    rig(Topology::new(), rung, |rig| {
        let (up, _servers) = web(rig, document(7, 5))?;
        let behind = Counter::tcx(&rig.topology.host, "eth0", Side::Ingress, Place::First)?;
        const MANY: u32 = 40;
        for family in Family::BOTH {
            let prefix = if family == Family::V4 { 24 } else { 64 };
            let net = family.container(7, 0);
            rig.topology.client.ip(&format!("route add {net}/{prefix} via {}\n", family.host()))?;
            let (dropped, before) = (rig.counted(Reason::DropDirect)?, behind.seen()?);
            let dial = Dial::new(Proto::Udp, family.container(7, 5), 80).patience(Duration::from_millis(2));
            (0..MANY).for_each(|_| rig.silent("a closed network", &rig.topology.client, &dial));
            let (dropped, came) = (rig.counted(Reason::DropDirect)? - dropped, behind.seen()? - before);
            let so = dropped == u64::from(MANY) && came < u64::from(MANY) / 2;
            rig.note(so, || format!("{family:?}: of {MANY}, {dropped} dropped and {came} at the classifier"));
        }
        Ok(vec![up])
    })
}

fn the_program_is_attached_while_networks_request_it(rung: Rung) -> Result<()> {
    need!(need::netpath());
    need!(need::programs(rung));
    rig(Topology::with_far(), rung, |rig| {
        let host = &rig.topology.host;
        let plain = Document::new().on_dual(&Network::dual(8), "eth0", 8, 5);
        let keeper = rig.up("keeper", plain)?;
        let at = || -> Result<[bool; 2]> { Ok([host.xdp("eth0")?.is_some(), host.xdp("eth1")?.is_some()]) };
        rig.note(at()? == [false; 2], || "attached without a request".to_owned());
        let internal = Network::dual(9).option("netpath.xdp", "on").set("internal", true);
        let closed = rig.up("closed", Document::new().on_dual(&internal, "eth0", 9, 5))?;
        rig.note(at()? == [false; 2], || "attached for an internal network".to_owned());
        let first = rig.up("first", document(7, 5))?;
        // Repeated at once: a detached program must not block the next attachment.
        for round in 0..3 {
            let second = rig.up(&format!("second{round}"), Document::new().on_dual(&of_second(), "eth0", 6, 5))?;
            rig.note(at()? == [true; 2], || format!("round {round}: not at both uplinks"));
            if round == 0 {
                rig.netavark.teardown(&first.0, &first.1)?;
                rig.note(at()? == [true; 2], || "gone, and one network still requests it".to_owned());
            }
            rig.netavark.teardown(&second.0, &second.1)?;
            rig.note(at()? == [false; 2], || format!("round {round}: left behind"));
        }
        Ok(vec![keeper, closed])
    })
}

fn of_second() -> Network {
    Network::dual(6).option("netpath.xdp", "on")
}

/// The finding of `netpath doctor` on the program at `interface`.
fn finding(rig: &Rig<'_>, interface: &str) -> Result<Option<String>> {
    let netpath = support::netavark::binary()?.to_string_lossy().into_owned();
    let mut command = std::process::Command::new(netpath);
    command.args(["doctor", "--json"]);
    let out = rig.topology.host.output(command, b"")?;
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).context("netpath doctor")?;
    let missing = format!("np_xdp_in is not attached to {interface}: ");
    let all = report["findings"].as_array().context("no findings")?;
    Ok(all.iter().find_map(|f| f["what"].as_str()?.strip_prefix(&missing).map(str::to_owned)))
}

/// The reason in `netpath status`.
fn refused(rig: &Rig<'_>, interface: &str) -> Result<Option<String>> {
    let status = rig.status()?;
    let all = status["xdp_refused"].as_array().context("no xdp_refused")?;
    Ok(all.iter().find(|r| r["interface"] == interface).and_then(|r| r["why"].as_str().map(str::to_owned)))
}

fn a_program_of_others_stays_and_traffic_goes_on_without_ours(rung: Rung) -> Result<()> {
    need!(need::netpath());
    need!(need::programs(rung));
    rig(Topology::new(), rung, |rig| {
        let host = &rig.topology.host;
        let third_party = Counter::xdp(host, "eth0")?;
        let theirs = host.xdp("eth0")?;
        let (up, _servers) = web(rig, document(7, 5))?;
        let _near = serve(&rig.topology.client, 9000, "near")?;
        let before = third_party.seen()?;
        all(rig, "beside another program", &up.0);
        rig.note(third_party.seen()? > before, || "the other program sees no packet".to_owned());
        rig.note(host.xdp("eth0")? == theirs, || "another program is there".to_owned());
        let why = Some("another XDP program is there".to_owned());
        let said = (refused(rig, "eth0")?, finding(rig, "eth0")?);
        rig.note(said == (why.clone(), why), || format!("status and doctor say {said:?}"));
        drop(third_party);
        // The kernel frees a link asynchronously.
        let came = wait_for("our program at the uplink", SOON * 4, || {
            rig.netavark.call(&["firewall-reload"], b"").ok()?;
            host.xdp("eth0").ok()?.filter(|_| refused(rig, "eth0").is_ok_and(|r| r.is_none()))
        });
        rig.met("the other program is gone", came);
        let said = (refused(rig, "eth0")?, finding(rig, "eth0")?);
        rig.note(said == (None, None), || format!("then status and doctor say {said:?}"));
        all(rig, "after the other program", &up.0);
        Ok(vec![up])
    })
}

fn an_uplink_that_has_no_xdp_goes_without(rung: Rung) -> Result<()> {
    need!(need::netpath());
    need!(need::programs(rung));
    rig(Topology::new(), rung, |rig| {
        // A bridge with an address of its own is an uplink.
        rig.topology.host.ip("link add br0 type bridge\naddr add 198.51.100.1/24 dev br0\nlink set br0 up\n")?;
        let (up, _servers) = web(rig, document(7, 5))?;
        let _near = serve(&rig.topology.client, 9000, "near")?;
        all(rig, "beside an uplink without", &up.0);
        let said = (refused(rig, "br0")?, finding(rig, "br0")?, refused(rig, "eth0")?);
        let so = |why: &Option<String>| why.as_ref().is_some_and(|w| w.contains("no native XDP"));
        rig.note(so(&said.0) && so(&said.1) && said.2.is_none(), || format!("status and doctor say {said:?}"));
        rig.netavark.teardown(&up.0, &up.1)?;
        rig.topology.host.ip("link del br0\n")?;
        Ok(Vec::new())
    })
}
