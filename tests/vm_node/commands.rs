//! What can be asked of a node, as it is written on the control port: `{"n": 7, "do": "down", "name": "web"}`. The answer
//! has the number of its command.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Command {
    /// Lines of `ip -batch`.
    Ip {
        lines: String,
    },
    /// `net/ipv4/ip_forward`
    Sysctl {
        name: String,
        value: String,
    },
    /// Gives what the program prints.
    Run {
        program: String,
        arguments: Vec<String>,
    },
    /// Makes a container and has a backend set it up; gives milliseconds.
    Up(Container),
    /// Has it torn down, and ends it; gives milliseconds.
    Down {
        name: String,
    },
    /// Echo servers, TCP and UDP, both families.
    Echo {
        container: Option<String>,
        port: u16,
        name: String,
    },
    /// Side by side, each again and again until the answer is right; gives the milliseconds of each.
    Probe {
        probes: Vec<Probe>,
        within_ms: u64,
    },
    /// Asks again and again until nobody answers.
    Silent {
        probe: Probe,
        within_ms: u64,
    },
    /// A TCP connection that is kept busy.
    LongLived {
        name: String,
        probe: Probe,
    },
    GoesOn {
        name: String,
    },
    Finish {
        name: String,
    },
    /// Waits until the link has a carrier, or has none.
    Carrier {
        link: String,
        up: bool,
        within_ms: u64,
    },
    /// Takes the driver from a device, whose link is gone then; gives the device.
    Unplug {
        link: String,
    },
    Plug {
        device: String,
        link: String,
        within_ms: u64,
    },
    /// Takes no packet larger than `mtu` from a link; 0: whatever its own size is.
    Narrow {
        link: String,
        mtu: u32,
    },
    /// A DHCP server that knows one client.
    Lease {
        link: String,
        mac: String,
        address: Ipv4Addr,
        router: Ipv4Addr,
    },
    /// A DHCP client.
    Dhcp {
        link: String,
    },
    Renew,
    /// Waits until a link has an address.
    Has {
        link: String,
        address: IpAddr,
        within_ms: u64,
    },
    /// What `netpath status --json` says.
    Status,
    /// Lines of what backends may leave behind on this machine.
    Left,
    /// Ends what runs in the background under this name.
    End {
        name: String,
    },
    /// Servers for measuring.
    Serve {
        container: Option<String>,
    },
    Measure {
        container: Option<String>,
        what: Measure,
    },
}

#[derive(Deserialize)]
pub struct Container {
    pub name: String,
    /// Called under the name `netavark`.
    pub program: String,
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Of the network.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// Host port, container port; TCP and UDP.
    pub publish: Vec<(u16, u16)>,
}

#[derive(Deserialize, Clone)]
pub struct Probe {
    /// Whence; the machine itself without a name.
    pub container: Option<String>,
    pub udp: bool,
    pub to: SocketAddr,
    /// The name of the server that answers.
    #[serde(default)]
    pub server: String,
    /// The source address that it sees.
    pub seen: Option<IpAddr>,
    /// Of the payload.
    pub bytes: Option<usize>,
    /// The client's own port.
    pub port: Option<u16>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Seconds that the processors of the machine were busy since boot.
    Busy,
    /// Datagrams that the sink has received.
    Sunk,
    Tcp {
        to: SocketAddr,
        streams: u8,
        back: bool,
        seconds: u64,
    },
    Udp {
        to: SocketAddr,
        bytes: u16,
        seconds: u64,
    },
    Connections {
        to: SocketAddr,
        ms: u64,
    },
    /// Datagrams of 64 bytes.
    Flood {
        to: SocketAddr,
        ms: u64,
    },
    RoundTrips {
        to: SocketAddr,
        udp: bool,
        ms: u64,
    },
}
