//! Programs without IPv6 for networks without IPv6.

use crate::chosen::says;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use support::long_lived::LongLived;
use support::need;
use support::netavark::{Document, Netavark, Network, Rung};
use support::residue::Residue;
use support::topology::{CLIENT6, Family, HOST4, HOST6, Topology};
use support::traffic::{ANY, Dial, Proto, Server};

on_every_rung!(ipv6_comes_with_the_first_network_that_has_it);

/// Programs of this host by name, as in `netpath status`.
fn programs(topology: &Topology) -> Result<BTreeSet<u32>> {
    let tree = format!("{:x}/prog", topology.host.cookie());
    let versions = std::fs::read_dir("/sys/fs/bpf/netpath").into_iter().flatten().flatten();
    let pins = versions.flat_map(|v| std::fs::read_dir(v.path().join(&tree)).into_iter().flatten().flatten());
    pins.map(|pin| Ok(aya::programs::ProgramInfo::from_pin(pin.path())?.id())).collect()
}

fn spoofed(topology: &Topology) -> Result<u64> {
    let counters = says(topology, "status")?["counters"].clone();
    let of = |c: &serde_json::Value| (c["reason"] == "drop_spoofed").then(|| c["packets"].as_u64()).flatten();
    Ok(counters.as_array().context("no counters")?.iter().filter_map(of).sum())
}

fn ipv6_comes_with_the_first_network_that_has_it(rung: Rung) -> Result<()> {
    need!(need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::on(&topology, rung)?;
    let (plain, dual) = (topology.container("plain")?, topology.container("dual")?);
    let network = Network::new("net9", "podman9").subnet("10.89.9.0/24", "10.89.9.1");
    let first = Document::new().on(&network, "eth0", &["10.89.9.5"]).publish("", 8080, 80, "tcp");
    netavark.setup(&plain, &first)?;
    let _server = Server::echo_for(&plain, 8, ANY, 80, "plain")?;
    let _outside = [Server::echo(&topology.client, Proto::Udp, ANY, 9000, "outside")?];
    let dial = Dial::new(Proto::Tcp, HOST4, 8080);
    ensure!(dial.ask(&topology.client)?.server == "plain");
    let lasting = LongLived::start(&topology.client, &dial)?;
    let loaded = programs(&topology)?;

    // A router for IPv6, and a container that gives itself an address.
    topology.host.set_sysctl("net/ipv6/conf/all/forwarding", "1")?;
    let bridge = topology.host.ip_json(&["link", "show", "podman9"])?;
    let mac = bridge[0]["address"].as_str().context("no address")?.to_owned();
    plain.ip(&format!(
        "address add 2001:db8:77::5/64 dev eth0 nodad\n\
         route add 2001:db8:1::/64 dev eth0\n\
         neigh add {CLIENT6} lladdr {mac} dev eth0\n"
    ))?;
    topology.client.ip(&format!("route add 2001:db8:77::/64 via {HOST6}\n"))?;
    if rung.is_ebpf() {
        let before = spoofed(&topology)?;
        let forged = Dial::new(Proto::Udp, CLIENT6, 9000);
        forged.must_fail(&plain)?;
        ensure!(spoofed(&topology)? > before, "the packet is not dropped by the programs");
    }

    let second = Document::new().on_dual(&Network::dual(8), "eth0", 8, 5).publish("", 8081, 80, "tcp");
    netavark.setup(&dual, &second)?;
    let _other = Server::echo_for(&dual, 8, ANY, 80, "dual")?;
    for family in Family::BOTH {
        ensure!(Dial::new(Proto::Tcp, family.host(), 8081).ask(&topology.client)?.server == "dual", "{family:?}");
        ensure!(Dial::new(Proto::Udp, family.client(), 9000).ask(&dual)?.server == "outside", "{family:?}");
    }
    lasting.goes_on()?;
    lasting.finish()?;
    if rung.is_ebpf() {
        ensure!(loaded.is_disjoint(&programs(&topology)?), "the programs without IPv6 are still there");
    }
    netavark.teardown(&dual, &second)?;
    ensure!(dial.ask(&topology.client)?.server == "plain");
    netavark.teardown(&plain, &first)?;
    topology.host.set_sysctl("net/ipv6/conf/all/forwarding", "0")?;
    residue.nothing_left(&topology, &[&plain, &dual])
}
