//! Flows that continue while the host's addresses and routes change, and the errors that a container gets for an absent
//! neighbour.

use crate::rig::{Rig, Way, rig_on};
use anyhow::{Context, Result, anyhow};
use nix::sys::socket::{setsockopt, sockopt};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::host::{Netns, SOON, patience, wait_for};
use support::need;
use support::netavark::{Document, Netavark};
use support::topology::{CLIENT4, CLIENT6, Family, HOST4, HOST6, HOST6_SECOND, Topology, answers_for, sends};
use support::traffic::{ANY, Dial, Proto, Server, again};

on_every_way!(
    a_sender_that_never_stops_gets_the_hosts_new_address,
    without_an_agent_any_command_brings_a_sender_the_hosts_new_address,
    a_sender_that_never_stops_follows_the_route,
    a_sender_with_the_source_of_a_route_follows_that_route,
    a_sender_with_the_source_of_a_route_gets_another_when_that_goes,
    an_unused_address_is_reported_to_its_client,
    a_sender_gets_an_error_when_its_peer_disappears,
    an_uplink_serves_ipv6_before_its_link_local_address_is_sure,
    a_solicitation_lost_without_a_carrier_is_repeated_with_it,
);

/// Between two datagrams; short enough that no flow expires.
const BEAT: Duration = Duration::from_millis(100);
/// A second for the host or the programs to see the change, plus the time of a slow host.
const FOLLOWS: Duration = Duration::from_secs(4);

/// A container's socket that keeps its port.
struct Sender(UdpSocket);

impl Sender {
    fn new(netns: &Netns, to: SocketAddr) -> Result<Self> {
        let any: IpAddr = if to.is_ipv4() { "0.0.0.0" } else { "::" }.parse()?;
        let socket = netns.run(|| UdpSocket::bind((any, 0)))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(BEAT))?;
        Ok(Self(socket))
    }

    /// The answering server, and the source address that it saw.
    fn ask(&self) -> Result<(String, IpAddr)> {
        let mut answer = [0; 200];
        // Discards late answers to the last question.
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

    /// Sends until `server` has seen this as `source`, without a longer pause than [`BEAT`].
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

/// Changes addresses of the host's uplink to the client.
fn change(host: &Netns, family: Family, gone: &[IpAddr], come: &[IpAddr]) -> Result<()> {
    let (len, nodad, gateway) = if family == Family::V4 { (24, "", CLIENT4) } else { (64, " nodad", CLIENT6) };
    let gone = gone.iter().map(|a| format!("addr del {a}/{len} dev eth0\n"));
    let come_lines = come.iter().map(|a| format!("addr add {a}/{len} dev eth0{nodad}\n"));
    // netfilter masquerades a packet sent without an address by another address of the host, for as long as its connection
    // exists (`nf_nat_masquerade_ipv6()`). In IPv4 its route is removed with the address.
    let lines: String =
        if family == Family::V4 { gone.chain(come_lines).collect() } else { come_lines.chain(gone).collect() };
    host.ip(&lines)?;
    come.iter().try_for_each(|a| answers_for(host, *a))?;
    // In IPv4 the kernel removes the routes of an address with it.
    host.ip(&format!("route replace default via {gateway} dev eth0\n"))
}

/// IPv4 removes the second address with the first.
fn change_back(host: &Netns, family: Family, gone: IpAddr) -> Result<()> {
    let both = [family.host(), family.host_second()];
    change(host, family, &[gone], if family == Family::V4 { &both } else { &both[..1] })
}

fn a_sender_that_never_stops_gets_the_hosts_new_address(way: Way) -> Result<()> {
    rig_on(Topology::new(), way, |rig| {
        let app = rig.up("app", way.published(7, 5))?;
        let Topology { client, host, .. } = rig.topology;
        let _near = Server::echo(client, Proto::Udp, ANY, 9001, "near")?;
        for (family, old, new) in [(Family::V4, HOST4, "192.0.2.77"), (Family::V6, HOST6, "2001:db8:1::77")] {
            let new: IpAddr = new.parse()?;
            let sender = Sender::new(&app.0, SocketAddr::new(family.client(), 9001))?;
            sender.is_seen(rig, "before", "near", old);
            change(host, family, &[old], &[new])?;
            sender.is_seen(rig, &format!("{family:?}, another address"), "near", new);
            change_back(host, family, new)?;
            sender.is_seen(rig, &format!("{family:?}, the first again"), "near", old);
        }
        Ok(vec![app])
    })
}

/// Sends numbers one by one while `work` runs, which is given the next one.
fn numbered<T>(socket: &UdpSocket, work: impl FnOnce(&AtomicU64) -> Result<T>) -> Result<T> {
    let (next, done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                // The send may fail while there is no route.
                let _ = socket.send(&next.fetch_add(1, Ordering::SeqCst).to_be_bytes());
                std::thread::sleep(BEAT / 10);
            }
        });
        let result = work(&next);
        done.store(true, Ordering::SeqCst);
        result
    })
}

/// Without an agent, the next command updates existing flows before it ends.
fn without_an_agent_any_command_brings_a_sender_the_hosts_new_address(way: Way) -> Result<()> {
    support::need!(need::netpath());
    rig_on(Topology::new(), way, |rig| {
        let Topology { client, host, .. } = rig.topology;
        let environment = [way.rung.environment(), vec![("NETPATH_AGENT", "off")]].concat();
        let netavark = Netavark::with(rig.topology, &environment)?;
        let (app, document) = (rig.topology.container("app")?, way.published(7, 5));
        netavark.setup(&app, &document)?;
        let mut up = vec![(app, document)];
        for (family, old, new, n) in [(Family::V4, HOST4, "192.0.2.77", 6), (Family::V6, HOST6, "2001:db8:1::77", 7)] {
            let new: IpAddr = new.parse()?;
            let server = client.run(|| UdpSocket::bind(SocketAddr::new(family.client(), 9001)))?;
            server.set_read_timeout(Some(BEAT))?;
            // The sender of the first received number from `number` on.
            let source_since = |number: u64| {
                let mut data = [0; 8];
                wait_for("a datagram", SOON, || {
                    let (_, from) = again(|| server.recv_from(&mut data)).ok()?;
                    (u64::from_be_bytes(data) >= number).then_some(from.ip())
                })
            };
            let sender = Sender::new(&up[0].0, SocketAddr::new(family.client(), 9001))?;
            let done = numbered(&sender.0, |next| {
                let before = source_since(0)?;
                rig.note(before == old, || format!("before: seen as {before}"));
                change(host, family, &[old], &[new])?;
                let other = rig.topology.container("other")?;
                let document = Document::new().on_dual(&way.wide_network(7), "eth0", 7, n);
                netavark.setup(&other, &document)?;
                up.push((other, document));
                let after = source_since(next.load(Ordering::SeqCst))?;
                rig.note(after == new, || format!("after the command: seen as {after}, expected {new}"));
                Ok(())
            });
            rig.met(&format!("{family:?}"), done);
            change_back(host, family, new)?;
        }
        let agents = support::agent::agents(rig.topology).len();
        rig.note(agents == 0, || format!("{agents} agents are running"));
        Ok(up)
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

/// The default route, with a source or without.
fn default_route(host: &Netns, family: Family, source: Option<IpAddr>) -> Result<()> {
    let gateway = if family == Family::V4 { CLIENT4 } else { CLIENT6 };
    let source = source.map_or_else(String::new, |s| format!(" src {s}"));
    host.ip(&format!("route replace default via {gateway} dev eth0{source}\n"))
}

fn a_sender_with_the_source_of_a_route_follows_that_route(way: Way) -> Result<()> {
    need!(need::netpath(), need::route_source(way.rung));
    rig_on(Topology::with_far(), way, |rig| {
        let app = rig.up("app", way.published(7, 5))?;
        let (host, far) = (&rig.topology.host, rig.topology.far());
        for (family, len) in [(Family::V4, "/32"), (Family::V6, "/128 nodad")] {
            let address = family.outside();
            far.ip(&format!("addr add {address}{len} dev lo\n"))?;
            answers_for(far, address)?;
            let _outside = Server::echo(&rig.topology.client, Proto::Udp, address, 9001, "outside")?;
            let _far = Server::echo(far, Proto::Udp, address, 9001, "far")?;
            default_route(host, family, Some(family.host_second()))?;
            // The first packet may be before the host is followed, and what has begun keeps its address.
            let begun = wait_for("the route's source", SOON, || {
                let sender = Sender::new(&app.0, SocketAddr::new(address, 9001)).ok()?;
                sender.ask().ok().filter(|(_, ip)| *ip == family.host_second()).map(|_| sender)
            });
            let Some(sender) = rig.met(&format!("{family:?}"), begun) else { continue };
            let by = family.far();
            host.ip(&format!("route add {address} via {by} dev eth1\n"))?;
            sender.is_seen(rig, &format!("{family:?}, by the other"), "far", family.host_far());
            host.ip(&format!("route del {address} via {by} dev eth1\n"))?;
            sender.is_seen(rig, &format!("{family:?}, by the first again"), "outside", family.host_second());
            default_route(host, family, None)?;
        }
        Ok(vec![app])
    })
}

fn a_sender_with_the_source_of_a_route_gets_another_when_that_goes(way: Way) -> Result<()> {
    need!(need::netpath(), need::route_source(way.rung));
    rig_on(Topology::new(), way, |rig| {
        let Topology { client, host, .. } = rig.topology;
        for family in Family::BOTH {
            default_route(host, family, Some(family.host_second()))?;
        }
        let app = rig.up("app", way.published(7, 5))?;
        for (family, back) in [(Family::V4, "/24"), (Family::V6, "/64 nodad preferred_lft 0")] {
            let second = family.host_second();
            let _outside = Server::echo(client, Proto::Udp, family.outside(), 9001, "outside")?;
            let sender = Sender::new(&app.0, SocketAddr::new(family.outside(), 9001))?;
            sender.is_seen(rig, &format!("{family:?}, before"), "outside", second);
            // A route by another source, and then that the first is gone.
            default_route(host, family, None)?;
            let began = wait_for("another source", SOON, || {
                let other = Sender::new(&app.0, SocketAddr::new(family.outside(), 9001)).ok()?;
                other.ask().ok().filter(|(_, ip)| *ip == family.host())
            });
            rig.met(&format!("{family:?}, a new sender"), began);
            sender.is_seen(rig, &format!("{family:?}, what has begun"), "outside", second);
            let len = if family == Family::V4 { 24 } else { 64 };
            host.ip(&format!("addr del {second}/{len} dev eth0\n"))?;
            sender.is_seen(rig, &format!("{family:?}, its address is gone"), "outside", family.host());
            host.ip(&format!("addr add {second}{back} dev eth0\n"))?;
            answers_for(host, second)?;
        }
        Ok(vec![app])
    })
}

/// As above, during a conversation.
fn a_sender_gets_an_error_when_its_peer_disappears(way: Way) -> Result<()> {
    rig_on(Topology::new(), way, |rig| {
        solicit_quickly(&rig.topology.host)?;
        let app = rig.up("app", way.published(7, 5))?;
        let Topology { client, host, .. } = rig.topology;
        for (family, gone, len) in [(Family::V4, "192.0.2.201", 24), (Family::V6, "2001:db8:1::201", 64)] {
            let nodad = if family == Family::V6 { " nodad" } else { "" };
            client.ip(&format!("addr add {gone}/{len} dev eth0{nodad}\n"))?;
            let address: IpAddr = gone.parse()?;
            answers_for(client, address)?;
            let server = Server::echo(client, Proto::Udp, address, 9001, "near")?;
            let sender = Sender::new(&app.0, SocketAddr::new(address, 9001))?;
            sender.is_seen(rig, "before", "near", family.host());
            // Otherwise only port errors are reported (net/ipv4/icmp.c, icmp_err_convert).
            match family {
                Family::V4 => setsockopt(&sender.0, sockopt::Ipv4RecvErr, &true)?,
                Family::V6 => setsockopt(&sender.0, sockopt::Ipv6RecvErr, &true)?,
            }
            drop(server);
            client.ip(&format!("addr del {gone}/{len} dev eth0\n"))?;
            // As after a while without an answer.
            host.ip(&format!("neigh del {gone} dev eth0\n"))?;
            let begun = Instant::now();
            let limit = Duration::from_secs(10) * patience();
            let told = loop {
                let failed = sender.0.send(b"beat").and_then(|_| sender.0.recv(&mut [0; 200])).err();
                let is_told = failed.is_some_and(|e| e.kind() == ErrorKind::HostUnreachable);
                if is_told || begun.elapsed() > limit {
                    break is_told;
                }
            };
            rig.note(told, || format!("{family:?}: no error within {limit:?}"));
        }
        Ok(vec![app])
    })
}

/// The kernel gives up on a neighbour after three solicitations (RFC 1122 §2.3.2.2, RFC 4861 §7.2.2), which take three seconds.
fn solicit_quickly(host: &Netns) -> Result<()> {
    ["ipv4", "ipv6"].iter().try_for_each(|ip| host.set_sysctl(&format!("net/{ip}/neigh/eth0/retrans_time_ms"), "200"))
}

fn an_unused_address_is_reported_to_its_client(way: Way) -> Result<()> {
    rig_on(Topology::new(), way, |rig| {
        solicit_quickly(&rig.topology.host)?;
        let app = rig.up("app", way.published(7, 5))?;
        for unused in ["192.0.2.200", "2001:db8:1::200"] {
            let to = SocketAddr::new(unused.parse()?, 80);
            let begun = Instant::now();
            let dialled = app.0.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(20)));
            let told = dialled.as_ref().is_err_and(|e| e.kind() == ErrorKind::HostUnreachable);
            rig.note(told, || format!("{to}: {dialled:?} after {:?}", begun.elapsed()));
        }
        Ok(vec![app])
    })
}

/// The kernel solicits a neighbour with the source of the waiting packet if the uplink has that address, else with the uplink's
/// link-local address (`net/ipv6/ndisc.c, ndisc_solicit()`), which is tentative for a second or two after the link comes up.
fn an_uplink_serves_ipv6_before_its_link_local_address_is_sure(way: Way) -> Result<()> {
    rig_on(Topology::new(), way, |rig| {
        let app = rig.up("app", way.published(7, 5))?;
        let Topology { client, host, .. } = rig.topology;
        let _near = Server::echo(client, Proto::Tcp, ANY, 9001, "near")?;
        if way.rung.is_ebpf() {
            // An agent that starts after the uplink would take it for an existing one.
            support::agent::watching(rig.topology)?;
        }
        for (key, value) in [("accept_dad", "1"), ("dad_transmits", "100")] {
            host.set_sysctl(&format!("net/ipv6/conf/eth0/{key}"), value)?;
        }
        host.ip("link set eth0 down\n")?;
        let has_local = |words: &[&str]| -> Result<bool> {
            let links = host.ip_json(&[&["-6", "addr", "show", "dev", "eth0", "scope", "link"], words].concat())?;
            Ok(links.to_string().contains("fe80"))
        };
        let is_unsure = || has_local(&["tentative"]);
        let dial = Dial::new(Proto::Tcp, CLIENT6, 9001).patience(Duration::from_millis(400));
        // Dialled from the beginning: later the agent leaves it to the kernel, which takes longer here.
        let (before, answer) = std::thread::scope(|scope| -> Result<_> {
            let asking = scope.spawn(|| wait_for("an answer", SOON * 2, || dial.ask(&app.0).ok()).map(drop));
            let come = host.ip(&format!("link set eth0 up\naddr replace {HOST6}/64 dev eth0 nodad\n"));
            // The address appears with the carrier, which a slow kernel sees later.
            let is_there = || has_local(&[]).ok().filter(|there| *there);
            let before = come.and_then(|()| wait_for("a link-local address", SOON, is_there)).and_then(|_| is_unsure());
            let answer = asking.join().unwrap_or_else(|_| Err(anyhow!("the thread panicked")));
            Ok((before?, answer))
        })?;
        if !before {
            need::say("the link-local address is sure at once here: an uplink that comes up is all that is seen");
        }
        rig.met("outwards", answer);
        let after = is_unsure()?;
        rig.note(before == after, || "the link-local address has become sure meanwhile".to_owned());
        // Settings lost with the link; the others may be there again.
        for (key, value) in [("accept_dad", "0"), ("dad_transmits", "1")] {
            host.set_sysctl(&format!("net/ipv6/conf/eth0/{key}"), value)?;
        }
        host.ip(&format!("addr replace {HOST6_SECOND}/64 dev eth0 nodad preferred_lft 0\n"))?;
        host.ip(&format!(
            "route replace default via {CLIENT4} dev eth0\nroute replace default via {CLIENT6} dev eth0\n"
        ))?;
        Ok(vec![app])
    })
}

/// The kernel's own retransmission is put off beyond the end of the test.
fn a_solicitation_lost_without_a_carrier_is_repeated_with_it(way: Way) -> Result<()> {
    need!(need::netpath());
    rig_on(Topology::new(), way, |rig| {
        let app = rig.up("app", way.published(7, 5))?;
        let Topology { client, host, .. } = rig.topology;
        let _near = Server::echo(client, Proto::Udp, ANY, 9001, "near")?;
        client.set_sysctl("net/ipv6/conf/eth0/keep_addr_on_down", "1")?;
        for (family, ip) in [(Family::V4, "ipv4"), (Family::V6, "ipv6")] {
            let repeat = format!("net/{ip}/neigh/eth0/retrans_time_ms");
            host.set_sysctl(&repeat, "600000")?;
            let sender = Sender::new(&app.0, SocketAddr::new(family.client(), 9001))?;
            client.ip("link set eth0 down\n")?;
            // A solicitation sent before the host has seen the carrier is lost, and repeated with the next packet.
            wait_for("the loss of the carrier", SOON, || {
                (host.ip_json(&["link", "show", "dev", "eth0"]).ok()?[0]["operstate"] != "UP").then_some(())
            })?;
            let asked = wait_for("a question that is lost", SOON, || {
                let _ = sender.ask();
                let address = family.client().to_string();
                let neighbours = host.ip_json(&["neigh", "show", "to", &address, "dev", "eth0"]).ok()?;
                neighbours.to_string().contains("INCOMPLETE").then_some(())
            });
            client.ip("link set eth0 up\n")?;
            sends(client, "eth0")?;
            answers_for(client, family.client())?;
            rig.met(&format!("{family:?}, without a carrier"), asked);
            sender.is_seen(rig, &format!("{family:?}, with a carrier again"), "near", family.host());
            host.set_sysctl(&repeat, "1000")?;
        }
        Ok(vec![app])
    })
}
