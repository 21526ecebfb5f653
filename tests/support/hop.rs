//! The minimum cost of a host between client and container: a program at each of its two devices sets the hardware addresses of
//! the next link on every IPv4 frame and redirects it. No lookup, no translation, no change of the hop count.

use crate::bpf::{self, Attr, instruction};
use crate::host::Netns;
use anyhow::{Context, Result, bail};
use std::os::fd::{AsRawFd, OwnedFd};

/// A device: namespace and name.
pub type Device<'a> = (&'a Netns, &'a str);

/// Both programs, attached until dropped. Needs TCX (6.6).
pub struct Hop {
    _links: [OwnedFd; 2],
}

/// include/uapi/linux/bpf.h, `___BPF_FUNC_MAPPER`.
const REDIRECT: i32 = 23;
const REDIRECT_PEER: i32 = 155;
/// Offsets in `struct __sk_buff`.
const PROTOCOL: i16 = 16;
const DATA: i16 = 76;
const DATA_END: i16 = 80;
/// In network byte order.
const ETH_P_IP: i32 = 0x0008;

impl Hop {
    /// Between `client` and `container`, over `uplink` and `veth` of one host: redirects into the container, and out by the
    /// uplink.
    ///
    /// # Errors
    /// There is no such device, or no TCX.
    pub fn between(client: Device<'_>, uplink: Device<'_>, veth: Device<'_>, container: Device<'_>) -> Result<Self> {
        let inward = program(mac(container)?, mac(veth)?, index(veth)?, REDIRECT_PEER);
        let outward = program(mac(client)?, mac(uplink)?, index(uplink)?, REDIRECT);
        Ok(Self { _links: [attach(uplink, &inward)?, attach(veth, &outward)?] })
    }
}

fn attach((netns, device): Device<'_>, instructions: &[u64]) -> Result<OwnedFd> {
    let program = bpf::load(bpf::PROG_TYPE_SCHED_CLS, instructions, "hop")?;
    let mut attr = Attr::default();
    attr.words(0, &[program.as_raw_fd() as u32, index((netns, device))?, bpf::TCX_INGRESS]);
    netns.run(|| attr.open(bpf::LINK_CREATE)).with_context(|| format!("cannot attach to {device}"))
}

fn program(dmac: [u8; 6], smac: [u8; 6], device: u32, redirect: i32) -> Vec<u64> {
    let addresses = [dmac, smac].concat();
    let word = |n: usize| i32::from_le_bytes([0, 1, 2, 3].map(|i| addresses[4 * n + i]));
    // Distance from the last conditional jump to "next program".
    const AWAY: i16 = 7;
    vec![
        instruction(0x61, 0x12, PROTOCOL, 0),
        instruction(0x55, 0x02, 5 + AWAY, ETH_P_IP),
        instruction(0x61, 0x12, DATA, 0),
        instruction(0x61, 0x13, DATA_END, 0),
        instruction(0xbf, 0x24, 0, 0),
        instruction(0x07, 0x04, 0, 14),
        instruction(0x2d, 0x34, AWAY, 0),
        instruction(0x62, 0x02, 0, word(0)),
        instruction(0x62, 0x02, 4, word(1)),
        instruction(0x62, 0x02, 8, word(2)),
        instruction(0xb7, 0x01, 0, device as i32),
        instruction(0xb7, 0x02, 0, 0),
        instruction(0x85, 0, 0, redirect),
        instruction(0x95, 0, 0, 0),
        instruction(0xb7, 0, 0, -1),
        instruction(0x95, 0, 0, 0),
    ]
}

fn index((netns, device): Device<'_>) -> Result<u32> {
    netns.run(|| nix::net::if_::if_nametoindex(device)).with_context(|| device.to_owned())
}

fn mac((netns, device): Device<'_>) -> Result<[u8; 6]> {
    let links = netns.ip_json(&["link", "show", "dev", device])?;
    let text = links[0]["address"].as_str().with_context(|| format!("{device} has no hardware address"))?;
    let bytes: Vec<u8> = text.split(':').map(|b| u8::from_str_radix(b, 16)).collect::<Result<_, _>>()?;
    match bytes.try_into() {
        Ok(mac) => Ok(mac),
        Err(_) => bail!("{device} has the hardware address {text}"),
    }
}
