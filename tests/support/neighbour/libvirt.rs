//! The rules of libvirt for its network `default`, and a virtual machine behind its bridge: a namespace.

use crate::host::Netns;
use crate::topology::{Container, Topology, sends};
use anyhow::Result;
use std::net::{IpAddr, Ipv4Addr};

pub const BRIDGE: &str = "virbr0";
pub const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 122, 1));
pub const VM: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 122, 100));

/// As virtnetworkd's networkAddFirewallRules writes them (src/network/network_iptables.c), for `forward mode='nat'`.
const RULES: &str = "\
*filter
:LIBVIRT_INP - [0:0]
:LIBVIRT_OUT - [0:0]
:LIBVIRT_FWO - [0:0]
:LIBVIRT_FWI - [0:0]
:LIBVIRT_FWX - [0:0]
-I INPUT -j LIBVIRT_INP
-I OUTPUT -j LIBVIRT_OUT
-I FORWARD -j LIBVIRT_FWO
-I FORWARD -j LIBVIRT_FWI
-I FORWARD -j LIBVIRT_FWX
-A LIBVIRT_INP -i virbr0 -p udp -m udp --dport 53 -j ACCEPT
-A LIBVIRT_INP -i virbr0 -p tcp -m tcp --dport 53 -j ACCEPT
-A LIBVIRT_INP -i virbr0 -p udp -m udp --dport 67 -j ACCEPT
-A LIBVIRT_INP -i virbr0 -p tcp -m tcp --dport 67 -j ACCEPT
-A LIBVIRT_OUT -o virbr0 -p udp -m udp --dport 53 -j ACCEPT
-A LIBVIRT_OUT -o virbr0 -p tcp -m tcp --dport 53 -j ACCEPT
-A LIBVIRT_OUT -o virbr0 -p udp -m udp --dport 68 -j ACCEPT
-A LIBVIRT_OUT -o virbr0 -p tcp -m tcp --dport 68 -j ACCEPT
-A LIBVIRT_FWO -s 192.168.122.0/24 -i virbr0 -j ACCEPT
-A LIBVIRT_FWO -i virbr0 -j REJECT --reject-with icmp-port-unreachable
-A LIBVIRT_FWI -d 192.168.122.0/24 -o virbr0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A LIBVIRT_FWI -o virbr0 -j REJECT --reject-with icmp-port-unreachable
-A LIBVIRT_FWX -i virbr0 -o virbr0 -j ACCEPT
COMMIT
*nat
:LIBVIRT_PRT - [0:0]
-I POSTROUTING -j LIBVIRT_PRT
-A LIBVIRT_PRT -s 192.168.122.0/24 -d 224.0.0.0/24 -j RETURN
-A LIBVIRT_PRT -s 192.168.122.0/24 -d 255.255.255.255/32 -j RETURN
-A LIBVIRT_PRT -s 192.168.122.0/24 ! -d 192.168.122.0/24 -p tcp -j MASQUERADE --to-ports 1024-65535
-A LIBVIRT_PRT -s 192.168.122.0/24 ! -d 192.168.122.0/24 -p udp -j MASQUERADE --to-ports 1024-65535
-A LIBVIRT_PRT -s 192.168.122.0/24 ! -d 192.168.122.0/24 -j MASQUERADE
COMMIT
*mangle
:LIBVIRT_PRT - [0:0]
-I POSTROUTING -j LIBVIRT_PRT
-A LIBVIRT_PRT -o virbr0 -p udp -m udp --dport 68 -j CHECKSUM --checksum-fill
COMMIT
";

/// The rules, with forwarding enabled.
///
/// # Errors
/// iptables rejects them.
pub fn rules(host: &Netns) -> Result<()> {
    host.set_sysctl("net/ipv4/ip_forward", "1")?;
    host.feed("iptables-restore", &["--noflush"], RULES).map(drop)
}

/// A machine behind the bridge.
///
/// # Errors
/// The kernel rejects a namespace or a link.
pub fn vm(topology: &Topology) -> Result<Container> {
    let vm = topology.container("vm")?;
    topology.host.ip(&format!(
        "link add {BRIDGE} type bridge\n\
         addr add {GATEWAY}/24 dev {BRIDGE}\n\
         link set {BRIDGE} up\n\
         link add vnet0 type veth peer name eth0 netns {}\n\
         link set vnet0 master {BRIDGE} up\n",
        vm.path().display()
    ))?;
    vm.ip(&format!("link set lo up\nlink set eth0 up\naddr add {VM}/24 dev eth0\nroute add default via {GATEWAY}\n"))?;
    sends(&topology.host, BRIDGE)?;
    sends(&vm, "eth0")?;
    Ok(vm)
}
