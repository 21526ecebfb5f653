//! An administrator's own translations of container traffic.

use crate::rig::{beside, dial, each, possible, published};
use anyhow::Result;
use support::need;
use support::topology::{Family, Topology};
use support::traffic::{ANY, Proto, Server};

#[test]
fn an_administrators_translations_of_containers_traffic_hold() -> Result<()> {
    need!(possible(), need::program("nft"));
    let topology = Topology::new()?;
    let rules = |of: &str, family: Family| {
        let (container, second) = (family.container(7, 5), family.host_second());
        let bracketed = if container.is_ipv4() { container.to_string() } else { format!("[{container}]") };
        format!(
            "table {of} administrator {{\n\
             chain in {{\ntype nat hook prerouting priority -100; policy accept;\n\
             iifname eth0 udp dport 5140 dnat to {bracketed}:514\n\
             iifname podman7 tcp dport 80 redirect to :3128\n}}\n\
             chain out {{\ntype nat hook postrouting priority 90; policy accept;\n\
             {of} saddr {container} tcp dport 9001 snat to {second}\n}}\n}}\n"
        )
    };
    topology.host.feed("nft", &["-f", "-"], &(rules("ip", Family::V4) + &rules("ip6", Family::V6)))?;
    beside(&topology, &[], |rig| {
        let web = rig.up("web", published())?;
        let mut servers = rig.serve(&web.0)?;
        servers.push(Server::echo(&web.0, Proto::Udp, ANY, 514, "log")?);
        servers.push(Server::echo(&topology.host, Proto::Tcp, ANY, 3128, "proxy")?);
        servers.push(Server::echo(&topology.client, Proto::Tcp, ANY, 9001, "outside")?);
        rig.served("beside translations", &web.0);
        for family in Family::BOTH {
            let own = family.container(7, 5);
            let log = dial(Proto::Udp, family.host(), 5140);
            rig.sees("a port of the administrator's", &topology.client, &log, "log", family.client());
            let page = dial(Proto::Tcp, family.client(), 80);
            rig.sees("redirected to a proxy", &web.0, &page, "proxy", own);
            let chosen = dial(Proto::Tcp, family.client(), 9001);
            rig.sees("from another address", &web.0, &chosen, "outside", family.host_second());
        }
        for (family, proto) in each() {
            let to = dial(proto, family.host(), 8080);
            rig.sees("after that", &topology.client, &to, "web", family.client());
        }
        Ok(vec![web])
    })
}
