//! Flows that go on while the host's addresses and routes change, and what a container hears of a neighbour that is not there.

use crate::rig::{Rig, Way, rig_on};
use anyhow::{Context, Result};
use kit::host::{Netns, patience};

use kit::topology::{CLIENT4, CLIENT6, Family, HOST4, HOST6, Topology, answers_for};
use kit::traffic::{ANY, Proto, Server, again};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

on_every_way!(
    a_sender_that_never_stops_gets_the_hosts_new_address,
    a_sender_that_never_stops_follows_the_route,
    nobody_at_an_address_is_told_to_who_dials_it,
);

/// Between two datagrams; no flow would end of itself.
const BEAT: Duration = Duration::from_millis(100);
/// A second for the host or the programs to see the change, and the time of a slow host.
const FOLLOWS: Duration = Duration::from_secs(4);

/// A socket of a container that keeps its port.
struct Sender(UdpSocket);

impl Sender {
    fn new(netns: &Netns, to: SocketAddr) -> Result<Self> {
        let any: IpAddr = if to.is_ipv4() { "0.0.0.0" } else { "::" }.parse()?;
        let socket = netns.run(|| UdpSocket::bind((any, 0)))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(BEAT))?;
        Ok(Self(socket))
    }

    /// Who answers, and as whom it has seen this.
    fn ask(&self) -> Result<(String, IpAddr)> {
        let mut answer = [0; 200];
        // What came too late for the last question.
        self.0.set_nonblocking(true)?;
        while self.0.recv(&mut answer).is_ok() {}
        self.0.set_nonblocking(false)?;
        self.0.send(b"beat").context("send")?;
        let len = again(|| self.0.recv(&mut answer)).context("receive")?;
        let line = String::from_utf8_lossy(&answer[..len]).into_owned();
        let mut words = line.split([' ', '\n']);
        let server = words.next().context("a server")?.to_owned();
        let seen: SocketAddr = words.next().context("an address")?.parse()?;
        Ok((server, seen.ip()))
    }

    /// Asks until `server` has seen this as `source`, without a longer pause than [`BEAT`].
    fn is_seen(&self, rig: &Rig<'_>, what: &str, server: &str, source: IpAddr) {
        let begun = Instant::now();
        let limit = FOLLOWS * patience();
        let mut last = None;
        while begun.elapsed() < limit {
            let answer = self.ask();
            if answer.as_ref().is_ok_and(|(s, ip)| s == server && *ip == source) {
                return;
            }
            last = Some(answer);
            std::thread::sleep(BEAT);
        }
        rig.note(false, || {
            format!("{what}: {server} has not seen {source} in {limit:?}, the last answer was {last:?}")
        });
    }
}

fn a_sender_that_never_stops_gets_the_hosts_new_address(way: Way) -> Result<()> {
    rig_on(Topology::new(), way, |rig| {
        let app = rig.up("app", way.published(7, 5))?;
        let Topology { client, host, .. } = rig.topology;
        let _near = Server::echo(client, Proto::Udp, ANY, 9001, "near")?;
        let change = |family: Family, gone: &[IpAddr], come: &[IpAddr]| -> Result<()> {
            let (len, nodad, gateway) = if family == Family::V4 { (24, "", CLIENT4) } else { (64, " nodad", CLIENT6) };
            let gone = gone.iter().map(|a| format!("addr del {a}/{len} dev eth0\n"));
            let come_lines = come.iter().map(|a| format!("addr add {a}/{len} dev eth0{nodad}\n"));
            host.ip(&gone.chain(come_lines).collect::<String>())?;
            come.iter().try_for_each(|a| answers_for(host, *a))?;
            // In IPv4 the kernel takes the routes by an address with it.
            host.ip(&format!("route replace default via {gateway} dev eth0\n"))
        };
        for (family, old, new) in [(Family::V4, HOST4, "192.0.2.77"), (Family::V6, HOST6, "2001:db8:1::77")] {
            let new: IpAddr = new.parse()?;
            let sender = Sender::new(&app.0, SocketAddr::new(family.client(), 9001))?;
            sender.is_seen(rig, "before", "near", old);
            change(family, &[old], &[new])?;
            sender.is_seen(rig, &format!("{family:?}, another address"), "near", new);
            // The second address went with the first.
            let both = [old, family.host_second()];
            change(family, &[new], if family == Family::V4 { &both } else { &both[..1] })?;
            sender.is_seen(rig, &format!("{family:?}, the first again"), "near", old);
        }
        Ok(vec![app])
    })
}

fn a_sender_that_never_stops_follows_the_route(way: Way) -> Result<()> {
    rig_on(Topology::with_far(), way, |rig| {
        let app = rig.up("app", way.published(7, 5))?;
        for (family, len) in [(Family::V4, "/32"), (Family::V6, "/128 nodad")] {
            let address = family.outside();
            rig.topology.far().ip(&format!("addr add {address}{len} dev lo\n"))?;
            answers_for(rig.topology.far(), address)?;
            let _outside = Server::echo(&rig.topology.client, Proto::Udp, family.outside(), 9001, "outside")?;
            let _far = Server::echo(rig.topology.far(), Proto::Udp, family.outside(), 9001, "far")?;
            let sender = Sender::new(&app.0, SocketAddr::new(family.outside(), 9001))?;
            sender.is_seen(rig, "by the first uplink", "outside", family.host());
            let by = family.far();
            rig.topology.host.ip(&format!("route add {address} via {by} dev eth1\n"))?;
            sender.is_seen(rig, &format!("{family:?}, by the other"), "far", family.host_far());
            rig.topology.host.ip(&format!("route del {address} via {by} dev eth1\n"))?;
            sender.is_seen(rig, &format!("{family:?}, by the first again"), "outside", family.host());
        }
        Ok(vec![app])
    })
}

/// After three seconds in which the kernel asks for its hardware address (RFC 1122 §2.3.2.2, RFC 4861 §7.2.2).
fn nobody_at_an_address_is_told_to_who_dials_it(way: Way) -> Result<()> {
    rig_on(Topology::new(), way, |rig| {
        let app = rig.up("app", way.published(7, 5))?;
        for nobody in ["192.0.2.200", "2001:db8:1::200"] {
            let to = SocketAddr::new(nobody.parse()?, 80);
            let begun = Instant::now();
            let dialled = app.0.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(20)));
            let told = dialled.as_ref().is_err_and(|e| e.kind() == ErrorKind::HostUnreachable);
            rig.note(told, || format!("{to}: {dialled:?} after {:?}", begun.elapsed()));
        }
        Ok(vec![app])
    })
}
