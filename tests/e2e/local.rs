//! Clients on the host itself: the addresses that their sockets report, and clients that bind before they connect.

use crate::rig::{Rig, rig, serve, web};
use anyhow::Result;
use std::net::{IpAddr, Ipv4Addr};
use support::host::{SOON, wait_for};
use support::need;
use support::netavark::{Document, Network, Rung};
use support::topology::{CLIENT4, Family, Topology};
use support::traffic::{Dial, Proto};

on_every_rung!(
    a_client_bound_to_localhost_is_served,
    a_client_bound_to_the_hosts_address_is_served,
    ipv6_localhost_reaches_a_container_without_ipv6,
    one_datagram_socket_talks_to_two_services,
    a_client_elsewhere_on_the_host_is_left_alone,
    every_loopback_address_is_localhost,
);

fn published() -> Document {
    Document::new().on_dual(&Network::dual(7), "eth0", 7, 5).publish("", 8080, 80, "tcp").publish("", 8080, 80, "udp")
}

fn dials(ip: IpAddr) -> Vec<Dial> {
    vec![
        Dial::new(Proto::Tcp, ip, 8080).bytes(300_000),
        Dial::new(Proto::Udp, ip, 8080),
        Dial::new(Proto::Udp, ip, 8080).unconnected(),
    ]
}

/// The programs at connect() must not redirect these: the container could not answer 127.0.0.1. They are translated on `lo`.
fn a_client_bound_to_localhost_is_served(rung: Rung) -> Result<()> {
    rig(Topology::new(), rung, |rig| {
        let (web, _servers) = web(rig, published())?;
        let families = if rung.is_ebpf() { &Family::BOTH[..] } else { &[Family::V4] };
        for family in families {
            for dial in dials(family.localhost()) {
                let dial = dial.from(family.localhost(), 0);
                rig.sees(&format!("{family:?}"), &rig.topology.host, &dial, "web", family.gateway(7));
            }
        }
        Ok(vec![web])
    })
}

fn a_client_bound_to_the_hosts_address_is_served(rung: Rung) -> Result<()> {
    rig(Topology::new(), rung, |rig| {
        let (web, _servers) = web(rig, published())?;
        for family in Family::BOTH {
            for dial in dials(family.host()) {
                let dial = dial.from(family.host(), 0);
                // The host's own address where no translation is needed, else the bridge's.
                let seen = dial.ask(&rig.topology.host);
                let may = [family.host(), family.gateway(7)];
                let so =
                    seen.as_ref().is_ok_and(|s| s.server == "web" && may.contains(&s.client.ip()) && s.peer == dial.to);
                rig.note(so, || format!("{dial}: expected one of {may:?}, got {seen:?}"));
            }
        }
        Ok(vec![web])
    })
}

fn ipv6_localhost_reaches_a_container_without_ipv6(rung: Rung) -> Result<()> {
    need!(match rung {
        Rung::Iptables | Rung::IptablesLegacy =>
            Err("programs at connect(): netfilter cannot translate ::1".to_owned()),
        Rung::Nftables => need::bpf(),
        Rung::Tcx | Rung::Clsact => Ok(()),
    });
    rig(Topology::new(), rung, |rig| {
        let net = Network::new("four", "podman7").subnet("10.89.7.0/24", "10.89.7.1");
        let document =
            Document::new().on(&net, "eth0", &["10.89.7.5"]).publish("", 8080, 80, "tcp").publish("", 8080, 80, "udp");
        let (web, _servers) = web(rig, document)?;
        // Beside nftables the agent loads them.
        let is_attached =
            || rig.status().ok()?["hooks"].as_array()?.iter().find(|h| h["program"] == "np_connect6").map(drop);
        wait_for("programs at sockets", SOON, is_attached)?;
        // Not by sendto(): there the kernel rejects an address of the other family (net/ipv6/udp.c, udpv6_sendmsg()).
        for dial in dials(Family::V6.localhost()).into_iter().filter(|d| d.connected) {
            rig.sees("::1", &rig.topology.host, &dial, "web", Family::V4.gateway(7));
        }
        Ok(vec![web])
    })
}

/// recvfrom() returns for each answer the address that was dialled.
fn one_datagram_socket_talks_to_two_services(rung: Rung) -> Result<()> {
    rig(Topology::new(), rung, |rig| {
        let (web, _servers) = web(rig, published())?;
        let document = Document::new().on_dual(&Network::dual(7), "eth0", 7, 6).publish("", 8081, 80, "udp");
        let app = rig.up("app", document)?;
        let _others = serve(&app.0, 80, "app")?;
        for family in if rung.is_ebpf() { &Family::BOTH[..] } else { &[Family::V4] } {
            two_services(rig, *family)?;
        }
        Ok(vec![app, web])
    })
}

fn two_services(rig: &Rig<'_>, family: Family) -> Result<()> {
    let localhost = family.localhost();
    let heard = rig.topology.host.run(|| -> Result<Vec<(std::net::SocketAddr, String)>> {
        let socket = std::net::UdpSocket::bind((if family == Family::V4 { "0.0.0.0" } else { "::" }, 0))?;
        socket.set_read_timeout(Some(SOON))?;
        let mut heard = Vec::new();
        for _ in 0..3 {
            for port in [8080, 8081] {
                socket.send_to(b"hello", (localhost, port))?;
                let mut answer = [0; 200];
                let (len, from) = support::traffic::again(|| socket.recv_from(&mut answer))?;
                let text = String::from_utf8_lossy(&answer[..len]);
                heard.push((from, text.split(' ').next().unwrap_or("").to_owned()));
            }
        }
        Ok(heard)
    })?;
    let both = vec![((localhost, 8080).into(), "web".to_owned()), ((localhost, 8081).into(), "app".to_owned())];
    rig.note(heard == [both.clone(), both.clone(), both.clone()].concat(), || {
        format!("{family:?}: expected {both:?} three times, got {heard:?}")
    });
    Ok(())
}

/// The programs are attached to the machine's cgroup root; only sockets of the served host may be affected.
fn a_client_elsewhere_on_the_host_is_left_alone(rung: Rung) -> Result<()> {
    rig(Topology::new(), rung, |rig| {
        let (web, _servers) = web(rig, published())?;
        // The client's namespace has its own server on the published port and on its localhost.
        let _own = serve(&rig.topology.client, 8080, "own")?;
        for dial in dials(IpAddr::V4(Ipv4Addr::LOCALHOST)) {
            rig.sees("localhost elsewhere", &rig.topology.client, &dial, "own", Family::V4.localhost());
        }
        for dial in dials(CLIENT4) {
            rig.sees("own address elsewhere", &rig.topology.client, &dial, "own", CLIENT4);
        }
        // And a container's localhost is its own.
        let _inside = serve(&web.0, 8080, "inside")?;
        for dial in dials(IpAddr::V4(Ipv4Addr::LOCALHOST)) {
            rig.sees("localhost in the container", &web.0, &dial, "inside", Family::V4.localhost());
        }
        Ok(vec![web])
    })
}

fn every_loopback_address_is_localhost(rung: Rung) -> Result<()> {
    rig(Topology::new(), rung, |rig| {
        let (web, _servers) = web(rig, published())?;
        for dial in dials(IpAddr::V4(Ipv4Addr::new(127, 9, 8, 7))) {
            let seen = dial.ask(&rig.topology.host);
            let so = seen.as_ref().is_ok_and(|s| s.server == "web" && s.peer == dial.to);
            rig.note(so, || format!("{dial}: {seen:?}"));
        }
        Ok(vec![web])
    })
}
