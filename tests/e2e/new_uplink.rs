//! An uplink that has just come, on a host whose engine listens on published ports as Podman's conmon does: no client is connected
//! to that socket.

use crate::rig::{rig, web};
use anyhow::Result;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::Duration;
use support::agent::watching;
use support::host::patience;
use support::need;
use support::netavark::{Document, Network, Rung};
use support::topology::{Family, Topology};
use support::traffic::{Dial, Proto, free};

on_every_rung!(a_client_on_it_is_served_by_the_container_or_waits);

/// The host's address and the client's, of uplink `n`.
fn ends(family: Family, n: u8) -> [IpAddr; 2] {
    let v6 = |host| IpAddr::from([0x2001, 0xdb8, 0x50, n.into(), 0, 0, 0, host]);
    family.pick([IpAddr::from([198, 51, n, 1]), IpAddr::from([198, 51, n, 2])], [v6(1), v6(2)])
}

fn a_client_on_it_is_served_by_the_container_or_waits(rung: Rung) -> Result<()> {
    need!(need::netpath());
    rig(Topology::new(), rung, |rig| {
        let Topology { client, host, .. } = rig.topology;
        let (web, _servers) =
            web(rig, Document::new().on_dual(&Network::dual(7), "eth0", 7, 5).publish("", 8080, 80, "tcp"))?;
        // Nothing reads what clients send there.
        let unspecified = SocketAddr::from(([0_u16; 8], 8080));
        let conmon = host.run(|| free(|| TcpListener::bind(unspecified)))?;
        conmon.set_nonblocking(true)?;
        watching(rig.topology)?;
        // The agent loads the program after its first look.
        std::thread::sleep(Duration::from_secs(1) * patience());
        for n in 101..107 {
            let family = if n % 2 == 0 { Family::V4 } else { Family::V6 };
            let ([own, peer], link) = (ends(family, n), format!("up{n}"));
            let (len, nodad) = (family.pick(24, 64), family.pick("", " nodad"));
            client.ip(&format!(
                "link add {link} type veth peer name {link} netns {}\naddress add {peer}/{len} dev {link}{nodad}\nlink set {link} up\n",
                host.path().display()
            ))?;
            host.ip(&format!("link set {link} up\naddress add {own}/{len} dev {link}{nodad}\n"))?;
            // The client repeats its SYN after a second, two and four more.
            let dial = Dial::new(Proto::Tcp, own, 8080).patience(Duration::from_secs(8));
            rig.sees(&link, client, &dial, "web", peer);
            host.ip(&format!("link del {link}\n"))?;
        }
        let taken = conmon.accept().map_err(|e| e.kind());
        rig.note(matches!(taken, Err(ErrorKind::WouldBlock)), || {
            format!("the engine's socket got a client: {taken:?}")
        });
        Ok(vec![web])
    })
}
