//! Datagrams larger than a frame.

use crate::rig::{Way, rig_on, serve};
use anyhow::{Context, Result, ensure};
use std::net::{SocketAddr, UdpSocket};
use support::echo::{Pinger, Watcher};
use support::host::{Netns, SOON};
use support::netavark::Document;
use support::packet::{Frame, L4, Piece};
use support::raw::Raw;
use support::topology::{Family, Topology};
use support::traffic::{Dial, Proto, again, wait_until_answered};

on_every_way!(
    a_published_port_takes_and_gives_large_datagrams,
    a_container_sends_and_receives_large_datagrams,
    large_echo_goes_out_and_comes_back,
    a_later_fragment_may_come_first,
    large_datagrams_pass_a_small_uplink,
);

const LARGE: usize = 4_000;

fn large(ip: std::net::IpAddr, port: u16) -> [Dial; 2] {
    [Dial::new(Proto::Udp, ip, port).bytes(LARGE), Dial::new(Proto::Udp, ip, port).bytes(LARGE).unconnected()]
}

fn a_published_port_takes_and_gives_large_datagrams(way: Way) -> Result<()> {
    rig_on(Topology::new(), way, |rig| {
        let web = rig.up("web", way.published(7, 5))?;
        let _servers = serve(&web.0, 80, "web")?;
        for family in Family::BOTH {
            for dial in large(family.host(), 8080) {
                rig.sees("external", &rig.topology.client, &dial, "web", family.client());
            }
        }
        Ok(vec![web])
    })
}

fn a_container_sends_and_receives_large_datagrams(way: Way) -> Result<()> {
    rig_on(Topology::new(), way, |rig| {
        let app = rig.up("app", Document::new().on_dual(&way.network(7), "eth0", 7, 5))?;
        let _servers = serve(&rig.topology.client, 9000, "near")?;
        for family in Family::BOTH {
            for dial in large(family.client(), 9000) {
                rig.sees("masquerade", &app.0, &dial, "near", family.host());
            }
        }
        Ok(vec![app])
    })
}

fn large_echo_goes_out_and_comes_back(way: Way) -> Result<()> {
    rig_on(Topology::new(), way, |rig| {
        let app = rig.up("app", Document::new().on_dual(&way.network(7), "eth0", 7, 5))?;
        for family in Family::BOTH {
            let watcher = Watcher::new(&rig.topology.client, family)?;
            for sequence in 0..3 {
                rig.met("echo", Pinger::new(&app.0, family, 4_711)?.ping(family.client(), sequence, LARGE));
            }
            let seen = watcher.sources();
            rig.note(seen == [family.host()].into(), || format!("echo was asked by {seen:?}"));
        }
        Ok(vec![app])
    })
}

/// Sends a datagram in three pieces, in this order.
fn send_in_pieces(
    netns: &Netns,
    from: SocketAddr,
    to: SocketAddr,
    data: &[u8],
    id: u16,
    order: [usize; 3],
) -> Result<()> {
    let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
    let mut whole = Frame::udp((from.ip(), from.port()), (to.ip(), to.port()));
    whole.payload = data.to_vec();
    let transport = whole.quoted().split_off(if to.is_ipv4() { 20 } else { 40 });
    const STEP: usize = 1_400;
    let pieces: Vec<&[u8]> = transport.chunks(STEP).collect();
    ensure!(pieces.len() == 3, "{} pieces", pieces.len());
    let raw = Raw::new(netns, family, libc::IPPROTO_RAW)?;
    for n in order {
        let mut frame = Frame::new(from.ip(), to.ip(), L4::Raw(libc::IPPROTO_UDP as u8));
        frame.fragment = Some(Piece { id, offset: (n * STEP / 8) as u16, more: n < 2 });
        frame.payload = pieces[n].to_vec();
        raw.send(to.ip(), &frame.quoted())?;
    }
    Ok(())
}

/// After a fragmented datagram whose fragments were in order, as where packets of one flow are reordered.
fn a_later_fragment_may_come_first(way: Way) -> Result<()> {
    rig_on(Topology::new(), way, |rig| {
        let web = rig.up("web", way.published(7, 5))?;
        let _servers = serve(&web.0, 80, "web")?;
        let client = &rig.topology.client;
        for family in Family::BOTH {
            let from = SocketAddr::new(family.client(), 23_460);
            let to = SocketAddr::new(family.host(), 8080);
            let socket = client.run(|| UdpSocket::bind(from))?;
            socket.set_read_timeout(Some(SOON))?;
            for (id, order) in [(1, [0, 1, 2]), (2, [2, 0, 1]), (3, [1, 2, 0]), (4, [2, 1, 0])] {
                let data: Vec<u8> = (0..LARGE).map(|n| (n.wrapping_mul(7) >> 3) as u8 ^ id as u8).collect();
                send_in_pieces(client, from, to, &data, id, order)?;
                let mut answer = vec![0; 65_536];
                let heard = again(|| socket.recv_from(&mut answer)).context("the answer");
                if let Some((len, sender)) = rig.met(&format!("{family:?} {order:?}"), heard) {
                    let so = sender == to && answer[..len].ends_with(&data);
                    rig.note(so, || format!("{order:?}: {len} bytes from {sender}"));
                }
            }
        }
        Ok(vec![web])
    })
}

/// The host's stack fragments them further, or sends the container an error.
fn large_datagrams_pass_a_small_uplink(way: Way) -> Result<()> {
    rig_on(Topology::new().and_then(|t| t.narrow_uplink(1_280)), way, |rig| {
        let web = rig.up("web", way.published(7, 5))?;
        let _servers = (serve(&web.0, 80, "web")?, serve(&rig.topology.client, 9000, "near")?);
        for family in Family::BOTH {
            let outward = Dial::new(Proto::Udp, family.client(), 9000).bytes(LARGE);
            let inward = Dial::new(Proto::Udp, family.host(), 8080).bytes(LARGE);
            // With IPv6 the first one is lost: only its sender fragments a datagram.
            for (what, netns, dial, source) in [
                ("masquerade", &*web.0, outward, family.host()),
                ("published", &rig.topology.client, inward, family.client()),
            ] {
                if family == Family::V6 {
                    rig.met(what, wait_until_answered(netns, &dial));
                }
                rig.sees(what, netns, &dial, if what == "published" { "web" } else { "near" }, source);
            }
        }
        Ok(vec![web])
    })
}
