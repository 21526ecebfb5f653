//! A neighbour that knows the host by its link-local address alone.

use crate::rig::{rig, web};
use anyhow::{Context, Result};
use std::net::{IpAddr, Ipv6Addr, SocketAddrV6};
use support::need;
use support::netavark::{Document, Network, Rung};
use support::raw::Probe;
use support::topology::{Family, Topology};
use support::traffic::{Dial, Proto};

on_every_rung!(a_published_port_answers_on_the_uplinks_link_local_address);

fn a_published_port_answers_on_the_uplinks_link_local_address(rung: Rung) -> Result<()> {
    need!(need::netpath());
    rig(Topology::new(), rung, |rig| {
        let document = Document::new().on_dual(&Network::dual(7), "eth0", 7, 5);
        let document =
            document.publish("", 8080, 80, "tcp").publish("", 8080, 80, "udp").publish("", 7000, 7000, "udp");
        let (web, _servers) = web(rig, document)?;
        let client = &rig.topology.client;
        let links = rig.topology.host.ip_json(&["address", "show", "dev", "eth0"])?;
        let addresses = links[0]["addr_info"].as_array().into_iter().flatten();
        let own = addresses.filter_map(|a| a["local"].as_str()).find(|a| a.starts_with("fe80:"));
        let own: Ipv6Addr = own.context("no link-local address")?.parse()?;
        let scope = client.run(|| nix::net::if_::if_nametoindex("eth0"))?;
        let at = |port| SocketAddrV6::new(own, port, 0, scope);
        for dial in [
            Dial::new(Proto::Tcp, IpAddr::V6(own), 8080).bytes(300_000),
            Dial::new(Proto::Udp, IpAddr::V6(own), 8080),
            Dial::new(Proto::Udp, IpAddr::V6(own), 8080).unconnected().bytes(4_000),
        ] {
            let dial = Dial { to: at(8080).into(), ..dial };
            if !rung.is_ebpf() {
                // A link-local source is not forwarded to another link, and netfilter translates it too late.
                rig.silent("netfilter", client, &dial);
                continue;
            }
            // Twice: the second uses the flow of the first, or one beside it.
            for _ in 0..2 {
                if let Some(seen) = rig.met("link-local", dial.ask(client)) {
                    let by_the_asked = seen.peer.ip() == IpAddr::V6(own) && seen.peer.port() == 8080;
                    let so = seen.server == "web" && seen.client.ip() == Family::V6.gateway(7) && by_the_asked;
                    rig.note(so, || format!("{dial}: {seen:?}"));
                }
            }
        }
        if rung.is_ebpf() {
            let told = rig.met("a port without a server", Probe::new(client, at(7000).into())?.error_of(100));
            let so = told.is_some_and(|t| t.errno == libc::ECONNREFUSED && t.offender == IpAddr::V6(own));
            rig.note(so, || format!("{told:?}"));
        }
        Ok(vec![web])
    })
}
