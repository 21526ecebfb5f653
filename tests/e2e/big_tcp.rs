//! BIG TCP: GSO packets above 64 KiB between client and container.

use crate::rig::rig;
use anyhow::{Result, ensure};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use support::host::Netns;
use support::load::{bulk, bulk_server};
use support::need;
use support::netavark::{Document, Network, Rung};
use support::topology::{Family, Topology};
use support::traffic::ANY;

on_every_rung!(large_transfers_pass_with_packets_above_64_kib);

const SIZE: u32 = 200_000;
/// `include/uapi/linux/if_link.h`, IFLA_GSO_MAX_SIZE, IFLA_GRO_MAX_SIZE, IFLA_GSO_IPV4_MAX_SIZE, IFLA_GRO_IPV4_MAX_SIZE.
const SIZES6: [u16; 2] = [41, 58];
const SIZES4: [u16; 2] = [63, 64];

fn large_transfers_pass_with_packets_above_64_kib(rung: Rung) -> Result<()> {
    let topology = Topology::new()?;
    need!(enlarge(&topology.client, &SIZES6).map_err(|e| format!("gso_max_size above 64 KiB (5.19): {e:#}")));
    let families: &[Family] = if enlarge(&topology.client, &SIZES4).is_ok() { &Family::BOTH } else { &[Family::V6] };
    rig(Ok(topology), rung, |rig| {
        let document = Document::new().on_dual(&Network::dual(7), "eth0", 7, 5).publish("", 8080, 80, "tcp");
        let web = rig.up("web", document)?;
        for netns in [&rig.topology.host, &web.0] {
            enlarge(netns, &SIZES6)?;
            if families.len() > 1 {
                enlarge(netns, &SIZES4)?;
            }
        }
        let _server = bulk_server(&web.0, ANY, 80)?;
        for family in families {
            let took = bulk(&rig.topology.client, SocketAddr::new(family.host(), 8080), 64 << 20);
            rig.met(&format!("{family:?}, up and down"), took);
        }
        Ok(vec![web])
    })
}

/// Sets these sizes of `eth0`, which `ip` of Debian 12 cannot.
fn enlarge(netns: &Netns, attributes: &[u16]) -> Result<()> {
    // struct nlmsghdr and struct ifinfomsg (`include/uapi/linux/netlink.h`, `rtnetlink.h`).
    const RTM_NEWLINK: u16 = 16;
    const REQUEST_AND_ACK: u16 = 1 | 4;
    netns.run(|| -> Result<()> {
        let index = nix::net::if_::if_nametoindex("eth0")?;
        let mut message = [0; 32];
        message[4..6].copy_from_slice(&RTM_NEWLINK.to_ne_bytes());
        message[6..8].copy_from_slice(&REQUEST_AND_ACK.to_ne_bytes());
        message[20..24].copy_from_slice(&index.to_ne_bytes());
        let mut message = message.to_vec();
        for attribute in attributes {
            message.extend(8_u16.to_ne_bytes());
            message.extend(attribute.to_ne_bytes());
            message.extend(SIZE.to_ne_bytes());
        }
        let len = message.len() as u32;
        message[..4].copy_from_slice(&len.to_ne_bytes());
        let (family, kind) = (AddressFamily::Netlink, SockType::Raw);
        let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
        send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
        let mut answer = [0; 512];
        let len = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        ensure!(len >= 20, "a short answer");
        let error = i32::from_ne_bytes(answer[16..20].try_into()?);
        if error == 0 { Ok(()) } else { Err(std::io::Error::from_raw_os_error(-error).into()) }
    })
}
