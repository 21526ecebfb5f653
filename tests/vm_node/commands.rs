//! Commands to a node, as sent on the control port: `{"n": 7, "do": "down", "name": "web"}`. The answer has the number of its
//! command.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub(crate) enum Command {
    /// Lines of `ip -batch`.
    Ip {
        lines: String,
    },
    /// `net/ipv4/ip_forward`
    Sysctl {
        name: String,
        value: String,
    },
    /// Returns the program's output.
    Run {
        program: String,
        arguments: Vec<String>,
    },
    /// Creates a container and calls a backend's setup; returns milliseconds.
    Up(Container),
    /// Calls its teardown, and removes it; returns milliseconds.
    Down {
        name: String,
    },
    /// Echo servers, TCP and UDP, both families.
    Echo {
        container: Option<String>,
        port: u16,
        name: String,
    },
    /// In parallel, each repeated until the answer is right; returns the milliseconds of each.
    Probe {
        probes: Vec<Probe>,
        within_ms: u64,
    },
    /// Repeated until there is no answer.
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
    /// Unbinds a device from its driver, which removes its link; returns the device.
    Unplug {
        link: String,
    },
    Plug {
        device: String,
        link: String,
        within_ms: u64,
    },
    /// Accepts no packet larger than `mtu` from a link; 0: no limit.
    Narrow {
        link: String,
        mtu: u32,
    },
    /// A DHCP server for one client.
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
    /// Output of `netpath status --json`.
    Status,
    /// Objects that backends may leave behind on this machine, one per line.
    Left,
    /// Ends the background process of this name.
    End {
        name: String,
    },
    /// Starts the servers for measurements.
    Serve {
        container: Option<String>,
    },
    Measure {
        container: Option<String>,
        what: Measure,
    },
}

#[derive(Deserialize)]
pub(crate) struct Container {
    pub name: String,
    /// Called under the name `netavark`.
    pub program: String,
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Options of the network.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// Host port, container port; TCP and UDP.
    pub publish: Vec<(u16, u16)>,
}

#[derive(Deserialize, Clone)]
pub(crate) struct Probe {
    /// The source container; the machine itself without a name.
    pub container: Option<String>,
    pub udp: bool,
    pub to: SocketAddr,
    /// The expected name of the answering server.
    #[serde(default)]
    pub server: String,
    /// The expected source address, as the server sees it.
    pub seen: Option<IpAddr>,
    /// Size of the payload.
    pub bytes: Option<usize>,
    /// The client's own port.
    pub port: Option<u16>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Measure {
    /// Seconds that the machine's processors were busy since boot.
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
