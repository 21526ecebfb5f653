//! Another masquerade to the same address on the host, as by libvirt: its flows and those of containers are kept apart,
//! whatever ports they use.

use crate::rig::{Rig, beside, dial, possible, published};
use anyhow::Result;
use std::net::IpAddr;
use support::host::Netns;
use support::need;
use support::neighbour::libvirt::{self, VM};
use support::topology::{CLIENT4, Family, HOST4, Topology};
use support::traffic::Proto;

#[test]
fn beside_libvirt_a_machine_and_a_container_use_the_same_source_ports() -> Result<()> {
    need!(possible());
    let topology = Topology::new()?;
    let vm = libvirt::vm(&topology)?;
    libvirt::rules(&topology.host)?;
    told_apart(&topology, &vm)
}

#[test]
fn where_another_network_is_masqueraded_it_and_a_container_use_the_same_source_ports() -> Result<()> {
    need!(possible(), need::program("nft"));
    let topology = Topology::new()?;
    let vm = libvirt::vm(&topology)?;
    topology.host.set_sysctl("net/ipv4/ip_forward", "1")?;
    let rules = "table ip administrator {\nchain out {\ntype nat hook postrouting priority 100; policy accept;\n\
                 ip saddr 192.168.122.0/24 oifname eth0 masquerade\n}\n}\n";
    topology.host.feed("nft", &["-f", "-"], rules)?;
    told_apart(&topology, &vm)
}

fn told_apart(topology: &Topology, vm: &Netns) -> Result<()> {
    beside(topology, &[], |rig| {
        let web = rig.up("web", published())?;
        let _servers = rig.serve(&web.0)?;
        rig.served("beside a machine", &web.0);
        let container = Family::V4.container(7, 5);
        for proto in Proto::BOTH {
            answered(rig, "from the published port", vm, proto, VM, 8080);
            answered(rig, "from the published port", &web.0, proto, container, 8080);
            // One after the other, the second from a taken port, and the first continues.
            for port in [123, 4500, 40_000] {
                answered(rig, "from one port, first", &web.0, proto, container, port);
                answered(rig, "from one port, second", vm, proto, VM, port);
                answered(rig, "from one port, again", &web.0, proto, container, port + 1);
                answered(rig, "from one port, the other way round", vm, proto, VM, port + 2);
                answered(rig, "from one port, the other way round", &web.0, proto, container, port + 2);
            }
        }
        rig.reached("after that", 8080, "web");
        Ok(vec![web])
    })
}

fn answered(rig: &Rig<'_>, what: &str, from: &Netns, proto: Proto, own: IpAddr, port: u16) {
    let to = dial(proto, CLIENT4, 9000).from(own, port);
    rig.sees(what, from, &to, "outside", HOST4);
}
