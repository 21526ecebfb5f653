//! Frames with an 802.1Q tag that has a priority and no VLAN (IEEE 802.1Q §6.9.1), as DCB and some switches send them.

use crate::rig::{Rig, rig, serve};
use anyhow::{Context, Result, ensure};
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::time::Duration;
use support::host::{Netns, SOON};
use support::netavark::{Document, Network, Rung};
use support::packet::{ACK, Frame, Mac, SYN};
use support::packet_socket;
use support::raw::Raw;
use support::topology::{Family, Topology};
use support::traffic::{Dial, Proto, again};

on_every_rung!(a_published_port_answers_priority_tagged_frames);

/// Priority 3 and VLAN 0; a VLAN that the host does not have.
const PRIORITY: u16 = 3 << 13;
const VLAN: u16 = 5;

fn a_published_port_answers_priority_tagged_frames(rung: Rung) -> Result<()> {
    rig(Topology::new(), rung, |rig| {
        let document = Document::new().on_dual(&Network::dual(7), "eth0", 7, 5);
        let web = rig.up("web", document.publish("", 8080, 80, "tcp").publish("", 8080, 80, "udp"))?;
        let _servers = serve(&web.0, 80, "web")?;
        let wire = Wire::new(rig)?;
        for family in Family::BOTH {
            rig.sees(
                "untagged",
                &rig.topology.client,
                &Dial::new(Proto::Udp, family.host(), 8080),
                "web",
                family.client(),
            );
            rig.met(&format!("{family:?}, udp"), wire.asks(family, PRIORITY));
            rig.met(&format!("{family:?}, tcp"), wire.connects(family, PRIORITY));
            rig.note(wire.asks(family, VLAN).is_err(), || format!("{family:?}: a frame of a VLAN was answered"));
        }
        Ok(vec![web])
    })
}

/// The client's end of the wire to the host.
struct Wire<'t> {
    client: &'t Netns,
    socket: OwnedFd,
    macs: [Mac; 2],
}

impl<'t> Wire<'t> {
    fn new(rig: &Rig<'t>) -> Result<Self> {
        let client = &rig.topology.client;
        let mac = |netns: &Netns| -> Result<Mac> {
            let link = netns.ip_json(&["link", "show", "dev", "eth0"])?;
            let text = link[0]["address"].as_str().context("no hardware address")?.to_owned();
            let bytes: Result<Vec<u8>, _> = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
            bytes?.try_into().ok().context("not six bytes")
        };
        let macs = [mac(&rig.topology.host)?, mac(client)?];
        Ok(Self { client, socket: packet_socket::open(client, None)?, macs })
    }

    /// Sends a frame to the host with this tag.
    fn send(&self, frame: Frame, tag: u16) -> Result<()> {
        let mut bytes = frame.macs(self.macs[0], self.macs[1]).bytes();
        let [high, low] = tag.to_be_bytes();
        bytes.splice(12..12, [0x81, 0x00, high, low]);
        packet_socket::send(self.client, &self.socket, "eth0", &bytes)
    }

    /// A datagram with this tag is answered.
    fn asks(&self, family: Family, tag: u16) -> Result<()> {
        let socket = self.client.run(|| UdpSocket::bind((family.client(), 0)))?;
        socket.set_read_timeout(Some(if tag == VLAN { Duration::from_millis(400) } else { SOON }))?;
        let own = (family.client(), socket.local_addr()?.port());
        self.send(Frame::udp(own, (family.host(), 8080)), tag)?;
        let mut answer = [0; 200];
        let (len, from) = again(|| socket.recv_from(&mut answer)).context("no answer")?;
        let answer = String::from_utf8_lossy(&answer[..len]).into_owned();
        ensure!(
            answer.starts_with("web ") && (from.ip(), from.port()) == (family.host(), 8080),
            "{answer} from {from}"
        );
        Ok(())
    }

    /// A SYN with this tag is answered by the container's server.
    fn connects(&self, family: Family, tag: u16) -> Result<()> {
        let hears = Raw::new(self.client, family, libc::IPPROTO_TCP)?;
        let own = (family.client(), 23_460);
        self.send(Frame { payload: Vec::new(), ..Frame::tcp(own, (family.host(), 8080), SYN) }, tag)?;
        let is_answer =
            |b: &[u8]| b.len() > 13 && b[..4] == [0x1f, 0x90, 0x5b, 0xa4] && b[13] & (SYN | ACK) == SYN | ACK;
        hears.receive(SOON, is_answer).map(drop)
    }
}
