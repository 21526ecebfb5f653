use anyhow::Result;
use kit::need;
use kit::netavark::{Document, Netavark, Network, Rung};
use kit::topology::{CLIENT4, HOST4, Topology};
use kit::traffic::{ANY, Dial, Proto, Server};

#[test]
fn smoke() -> Result<()> {
    need!(kit::need::root());
    let topology = Topology::new()?;
    let netavark = Netavark::on(&topology, Rung::Iptables)?;
    let web = topology.container("web")?;
    let net = Network::new("front", "podman7").subnet("10.89.7.0/24", "10.89.7.1").subnet("fd41:7::/64", "fd41:7::1");
    let document = Document::new().on(&net, "eth0", &["10.89.7.5", "fd41:7::5"]).publish("", 8080, 80, "tcp");
    netavark.setup(&web, &document)?;
    let _server = Server::echo(&web, Proto::Tcp, ANY, 80, "web")?;
    let seen = Dial::new(Proto::Tcp, HOST4, 8080).ask(&topology.client)?;
    assert_eq!(CLIENT4, seen.client.ip());
    netavark.teardown(&web, &document)?;
    Ok(())
}
