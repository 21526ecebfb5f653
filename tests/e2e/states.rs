//! States of TCP connections between real sockets.

use crate::rig::rig;
use anyhow::{Context, Result};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use support::host::Netns;
use support::netavark::{Document, Network, Rung};
use support::packet::{Frame, RST};
use support::raw::Raw;
use support::topology::{Family, Topology};
use support::traffic::{ANY, Dial, Proto, Server, exchange};

on_every_rung!(a_forged_reset_ends_no_idle_connection);

/// Longer than a flow lives after a reset that ends it.
const IDLE: Duration = Duration::from_secs(12);

fn a_forged_reset_ends_no_idle_connection(rung: Rung) -> Result<()> {
    rig(Topology::new(), rung, |rig| {
        let (client, document) = (&rig.topology.client, Document::new().on_dual(&Network::dual(7), "eth0", 7, 5));
        let web = rig.up("web", document.publish("", 8080, 80, "tcp"))?;
        let _servers =
            (Server::echo(&web.0, Proto::Tcp, ANY, 80, "web")?, Server::echo(client, Proto::Tcp, ANY, 9000, "near")?);
        let mut idle = Vec::new();
        for family in Family::BOTH {
            let published = Dial::new(Proto::Tcp, family.host(), 8080);
            let mut stream = client.run(|| published.connect_stream())?;
            exchange(&mut stream, b"hello")?;
            // From either end, as a stranger would who knows addresses and ports.
            let (own, host) = (stream.local_addr()?, SocketAddr::new(family.host(), 8080));
            forge(client, family, own, host)?;
            forge(&web.0, family, SocketAddr::new(family.container(7, 5), 80), own)?;
            idle.push((format!("{family:?}, published"), stream));

            let outbound = Dial::new(Proto::Tcp, family.client(), 9000);
            let mut stream: TcpStream = web.0.run(|| outbound.connect_stream())?;
            let (_, seen) = exchange(&mut stream, b"hello")?;
            let (own, server) = (stream.local_addr()?, SocketAddr::new(family.client(), 9000));
            forge(client, family, server, seen)?;
            forge(&web.0, family, own, server)?;
            idle.push((format!("{family:?}, outbound"), stream));
        }
        std::thread::sleep(IDLE);
        for (what, stream) in &mut idle {
            rig.met(what, exchange(stream, b"still here").context("after forged resets"));
        }
        Ok(vec![web])
    })
}

/// Sends resets whose numbers are wrong: their receiver ignores them.
fn forge(netns: &Netns, family: Family, from: SocketAddr, to: SocketAddr) -> Result<()> {
    let raw = Raw::new(netns, family, libc::IPPROTO_RAW)?;
    for seq in [7, 0x4000_0007, 0x8000_0007, 0xc000_0007] {
        let frame = Frame::tcp((from.ip(), from.port()), (to.ip(), to.port()), RST).numbered(seq, 0);
        raw.send(to.ip(), &frame.quoted())?;
    }
    Ok(())
}
