//! Records for tests.

use super::*;
use ipnet::IpNet;

pub fn name(s: &str) -> IfName {
    s.parse().expect("an interface name")
}

/// An endpoint on a bridge, with these addresses and default values otherwise. Each address has a separate subnet, whose first
/// host address is the gateway. The links do not exist yet.
pub fn plain(order: u64, network: &str, bridge: &str, addresses: &[&str]) -> Record {
    let nets: Vec<IpNet> = addresses.iter().map(|a| a.parse().expect("an address")).collect();
    Record {
        order,
        container: Container { id: format!("{order:064}"), name: format!("c{order}") },
        netns: "/nowhere".into(),
        network: Network {
            name: network.into(),
            id: "0".repeat(64),
            attachment: Attachment::Bridge(name(bridge)),
            mtu: None,
            subnets: nets.iter().map(|n| Subnet { net: n.trunc(), gateway: n.hosts().next() }).collect(),
            routes: Vec::new(),
            internal: false,
            isolation: Isolation::Open,
            default_route: true,
            metric: 100,
            outbound4: None,
            outbound6: None,
            path: TranslationPath::Auto,
            direct: false,
            masquerade: true,
            xdp: Default::default(),
            vlan: None,
            vrf: None,
            dhcp: false,
            dhcp6: false,
            slaac: false,
            dns: false,
            dns_addresses: None,
            dns_port: network::DNS_PORT,
            dns_servers: Vec::new(),
            dns_ttl: 0,
        },
        endpoint: Endpoint {
            interface: name("eth0"),
            host_interface: None,
            addresses: nets,
            mac: None,
            aliases: Vec::new(),
            dns_servers: Vec::new(),
            host_name: String::new(),
        },
        publishes: Vec::new(),
        allow: Vec::new(),
        traffic: TrafficIds::default(),
        links: None,
    }
}

pub fn links(bridge_index: u32, veth_index: u32) -> Option<Links> {
    Some(Links::Bridge(BridgeLinks {
        bridge_index,
        bridge_mac: Mac::from_kernel([2, 0, 0, 0, 0, 1]),
        veth_index,
        veth_name: name("veth0"),
        container_mac: Mac::from_kernel([2, 0, 0, 0, 1, veth_index as u8]),
        mtu: 1500,
        takes_xdp: false,
    }))
}

/// An endpoint on podman1, with links.
pub fn record(order: u64, addresses: &[&str], publishes: Vec<Publish>) -> Record {
    Record { publishes, links: links(10, 20 + order as u32), ..plain(order, "net", "podman1", addresses) }
}

pub fn tcp(bind: HostBind, host: u16, container: u16, count: u16) -> Publish {
    Publish::new(bind, Proto::Tcp, host, container, count).expect("a publish")
}

pub fn at(a: &str) -> HostBind {
    HostBind::Address(a.parse().expect("an address"))
}
