//! An uplink without Ethernet: packets start with their IP header, as on a VPN device.

use crate::rig::{Rig, rig, serve, web};
use anyhow::Result;
use std::collections::BTreeSet;
use std::net::IpAddr;
use support::echo::{Pinger, Watcher};
use support::need;
use support::netavark::{Document, Network, Rung};
use support::topology::{Family, TUN, Topology};
use support::traffic::{Dial, Proto};

on_every_rung!(a_published_port_is_reached_over_tun, containers_go_out_over_tun, a_tun_beside_a_veth_serves_both);

/// Several TCP segments, and datagrams of connected and unconnected sockets.
fn dials(ip: IpAddr, port: u16) -> [Dial; 3] {
    [
        Dial::new(Proto::Tcp, ip, port).bytes(300_000),
        Dial::new(Proto::Udp, ip, port).bytes(1_300),
        Dial::new(Proto::Udp, ip, port).unconnected(),
    ]
}

fn published() -> Document {
    let net = Network::dual(7);
    Document::new().on_dual(&net, "eth0", 7, 5).publish("", 8080, 80, "tcp").publish("", 8080, 80, "udp")
}

fn a_published_port_is_reached_over_tun(rung: Rung) -> Result<()> {
    need!(need::tun());
    rig(Topology::with_tun(), rung, |rig| {
        let (web, _servers) = web(rig, published())?;
        of_layer_3(rig, rung)?;
        for family in Family::BOTH {
            for dial in dials(family.host_far(), 8080) {
                rig.sees("over tun", rig.topology.far(), &dial, "web", family.far());
            }
            // Not published: unreachable, although the container serves it.
            rig.silent("unpublished", rig.topology.far(), &Dial::new(Proto::Tcp, family.host_far(), 80));
        }
        Ok(vec![web])
    })
}

fn containers_go_out_over_tun(rung: Rung) -> Result<()> {
    need!(need::tun());
    rig(Topology::with_tun(), rung, |rig| {
        let app = rig.up("app", Document::new().on_dual(&Network::dual(7), "eth0", 7, 5))?;
        of_layer_3(rig, rung)?;
        let _servers = serve(rig.topology.far(), 9000, "far")?;
        for family in Family::BOTH {
            for dial in dials(family.far(), 9000) {
                rig.sees("out over tun", &app.0, &dial, "far", family.host_far());
            }
            let watcher = Watcher::new(rig.topology.far(), family)?;
            for (sequence, bytes) in [(0, 0), (1, 56), (2, 1_300)] {
                let echo = Pinger::new(&app.0, family, 4_711)?.ping(family.far(), sequence, bytes);
                rig.note(echo.is_ok(), || format!("echo of {bytes} bytes over tun: {echo:?}"));
            }
            let seen = watcher.sources();
            rig.note(seen == [family.host_far()].into(), || format!("echo was asked by {seen:?}"));
        }
        Ok(vec![app])
    })
}

/// Each client is answered over its own uplink, and netpath does not route between the two.
fn a_tun_beside_a_veth_serves_both(rung: Rung) -> Result<()> {
    need!(need::tun());
    rig(Topology::with_tun(), rung, |rig| {
        let (web, _servers) = web(rig, published())?;
        let _near = serve(&rig.topology.client, 9000, "near")?;
        let _far = serve(rig.topology.far(), 9000, "far")?;
        for family in Family::BOTH {
            for proto in Proto::BOTH {
                let dial = |ip, port| Dial::new(proto, ip, port);
                let (client, far) = (&rig.topology.client, rig.topology.far());
                rig.sees("from veth", client, &dial(family.host(), 8080), "web", family.client());
                rig.sees("from tun", far, &dial(family.host_far(), 8080), "web", family.far());
                rig.sees("to veth", &web.0, &dial(family.client(), 9000), "near", family.host());
                rig.sees("to tun", &web.0, &dial(family.far(), 9000), "far", family.host_far());
            }
        }
        Ok(vec![web])
    })
}

/// On the eBPF rung the device has only the program for packets without Ethernet.
fn of_layer_3(rig: &Rig<'_>, rung: Rung) -> Result<()> {
    let at = match rung {
        Rung::Tcx => rig.topology.host.tcx_ingress(TUN)?,
        Rung::Clsact => {
            let shown = rig.topology.host.command("tc", &["filter", "show", "dev", TUN, "ingress"])?;
            // Each program is listed twice, as the filter and as the program.
            let names: BTreeSet<&str> = shown.split_whitespace().filter(|w| w.starts_with("np_")).collect();
            names.into_iter().map(str::to_owned).collect()
        }
        Rung::Nftables | Rung::Iptables | Rung::IptablesLegacy => return Ok(()),
    };
    let names: Vec<&str> = at.iter().map(|n| n.split(':').next().unwrap_or_default()).collect();
    rig.note(names == ["np_uplink_in_l3"], || format!("programs at the ingress of {TUN}: {names:?}"));
    Ok(())
}
