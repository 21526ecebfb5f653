//! Names that are no container's: upstream servers, their failures, and the cache.

use crate::rig::{FRONT, Rig};
use anyhow::{Result, ensure};
use std::fs;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use support::dns::{Answerer, Code, Type, Upstream, answer_with, data, query, says, with_edns};
use support::host::{SOON, wait_for};
use support::need;
use support::topology::{CLIENT4, OUTSIDE4, OUTSIDE6};

/// Routed to the client, which drops it.
const DEAD: &str = "203.0.113.77";

fn rig(resolv_conf: &str) -> Result<Rig> {
    let rig = Rig::new()?;
    rig.topology.client.ip("route add blackhole 203.0.113.77\n")?;
    fs::write(rig.resolv_conf(), resolv_conf)?;
    rig.write("front", FRONT)?;
    Ok(rig)
}

fn upstream(rig: &Rig, address: IpAddr, answer: Answerer) -> Result<Upstream> {
    Upstream::start(&rig.topology.client, address, answer)
}

fn one(text: &str) -> std::collections::BTreeSet<String> {
    [text.to_owned()].into()
}

#[test]
fn an_answer_is_kept_as_long_as_it_says_and_asked_for_once() -> Result<()> {
    need!(need::root(), need::netpath());
    let rig = rig(&format!("nameserver {OUTSIDE4}\n"))?;
    let server = upstream(&rig, OUTSIDE4, says("198.51.100.7", 2))?;
    rig.start(&[])?;
    let client = rig.client();
    for name in ["example.org.", "EXAMPLE.org."] {
        let answer = client.ask(name, Type::A)?;
        ensure!(data(&answer) == one("198.51.100.7") && answer.answers[0].ttl <= 2, "{answer:?}");
    }
    ensure!(server.asked() == 1, "asked {} times", server.asked());
    let answer = client.send(&with_edns(query("example.org.", Type::A)?, 1232))?;
    ensure!(answer.edns.is_some() && server.asked() == 1, "{answer:?}");
    let aaaa = client.ask("example.org.", Type::AAAA)?;
    ensure!(aaaa.answers.is_empty() && server.asked() == 2, "{aaaa:?}");
    std::thread::sleep(Duration::from_millis(2100));
    client.ask("example.org.", Type::A)?;
    ensure!(server.asked() == 3, "asked {} times", server.asked());
    // By TCP, many at once: the same questions are asked once.
    let names: Vec<_> = (0..40).map(|n| query(&format!("n{}.example.org.", n % 20), Type::A)).collect::<Result<_>>()?;
    let answers = client.pipelined(&names)?;
    ensure!(answers.iter().all(|a| data(a) == one("198.51.100.7")), "{answers:?}");
    ensure!(server.asked() == 23, "asked {} times", server.asked());
    Ok(())
}

#[test]
fn a_dead_server_costs_a_moment_once_and_without_any_the_client_is_told() -> Result<()> {
    need!(need::root(), need::netpath());
    let rig = rig(&format!("nameserver {DEAD}\nnameserver {OUTSIDE4}\n"))?;
    let server = upstream(&rig, OUTSIDE4, says("198.51.100.7", 0))?;
    rig.start(&[])?;
    let client = rig.client();
    let mut slowest = Vec::new();
    for n in 0..12 {
        let begun = Instant::now();
        client.ask(&format!("n{n}.example.org."), Type::A)?;
        slowest.push(begun.elapsed());
        // Longer than an attempt, so that the dead one is known.
        std::thread::sleep(Duration::from_millis(if n < 2 { 1500 } else { 1 }));
    }
    need::say(&format!("behind a dead server: {:.1?}, then {:.1?}", slowest[0], slowest[11]));
    ensure!(slowest[0] < Duration::from_secs(1) * support::host::patience(), "{slowest:?}");
    ensure!(slowest[4..].iter().all(|t| *t < Duration::from_millis(100) * support::host::patience()), "{slowest:?}");
    drop(server);
    let begun = Instant::now();
    let failure = client.ask("other.example.org.", Type::A)?;
    ensure!(failure.metadata.response_code == Code::ServFail, "{failure:?}");
    ensure!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    ensure!(client.addresses("web.", Type::A)? == one("10.89.7.3"), "local names");
    Ok(())
}

#[test]
fn a_failure_of_every_server_is_told_at_once_and_a_lost_question_is_asked_again() -> Result<()> {
    need!(need::root(), need::netpath());
    let rig = rig(&format!("nameserver {OUTSIDE4}\n"))?;
    let questions = AtomicUsize::new(0);
    // Names of `lost.` have no answer to the first question, those of `bad.` never a good one.
    let server = upstream(
        &rig,
        OUTSIDE4,
        Arc::new(move |question, _| {
            let name = question.queries.first()?.name().to_ascii().to_ascii_lowercase();
            let mut answer = answer_with(question, &["198.51.100.7".parse().ok()?], 60);
            if name.ends_with("bad.") {
                answer = answer_with(question, &[], 60);
                answer.metadata.response_code = Code::ServFail;
            } else if questions.fetch_add(1, Ordering::SeqCst) == 0 {
                return None;
            }
            answer.to_vec().ok()
        }),
    )?;
    rig.start(&[])?;
    let client = rig.client();
    let begun = Instant::now();
    let failure = client.ask("name.bad.", Type::A)?;
    ensure!(failure.metadata.response_code == Code::ServFail, "{failure:?}");
    ensure!(begun.elapsed() < Duration::from_millis(500) * support::host::patience(), "{:?}", begun.elapsed());
    ensure!(client.addresses("name.lost.", Type::A)? == one("198.51.100.7"), "asked {} times", server.asked());
    Ok(())
}

#[test]
fn servers_of_containers_and_networks_come_before_those_of_the_host() -> Result<()> {
    need!(need::root(), need::netpath());
    let rig = rig("nameserver 192.0.2.2\n")?;
    let _host = upstream(&rig, CLIENT4, says("198.51.100.1", 60))?;
    let _own = upstream(&rig, OUTSIDE4, says("198.51.100.2", 60))?;
    rig.start(&[])?;
    let client = rig.client();
    ensure!(client.addresses("example.org.", Type::A)? == one("198.51.100.1"), "the host's");
    rig.write("front", &FRONT.replace("2001:db8:1::1\n", &format!("2001:db8:1::1 {OUTSIDE4}\n")))?;
    rig.signal(nix::sys::signal::Signal::SIGHUP)?;
    wait_for("the network's server", SOON, || {
        (client.addresses("example.org.", Type::A).ok()? == one("198.51.100.2")).then_some(())
    })?;
    rig.write("front", &FRONT.replace("Client,aaaaaaaaaaaa", &format!("client {OUTSIDE4}")))?;
    rig.signal(nix::sys::signal::Signal::SIGHUP)?;
    wait_for("the container's server", SOON, || {
        (client.addresses("example.org.", Type::A).ok()? == one("198.51.100.2")).then_some(())
    })?;
    Ok(())
}

#[test]
fn an_internal_network_and_a_switch_forward_nothing() -> Result<()> {
    need!(need::root(), need::netpath());
    let first = rig(&format!("nameserver {OUTSIDE4}\n"))?;
    let server = upstream(&first, OUTSIDE4, says("198.51.100.7", 60))?;
    fs::remove_file(first.dir.join("front"))?;
    first.write("front%int", FRONT)?;
    first.start(&[])?;
    let refused = first.client().ask("example.org.", Type::A)?;
    ensure!(refused.metadata.response_code == Code::NXDomain && server.asked() == 0, "{refused:?}");
    ensure!(first.client().addresses("web.", Type::A)? == one("10.89.7.3"), "local names");
    let second = rig(&format!("nameserver {OUTSIDE4}\n"))?;
    let server = upstream(&second, OUTSIDE4, says("198.51.100.7", 60))?;
    second.start(&[("AARDVARK_NO_PROXY", "1")])?;
    let refused = second.client().ask("example.org.", Type::A)?;
    ensure!(refused.metadata.response_code == Code::NXDomain && server.asked() == 0, "{refused:?}");
    Ok(())
}

#[test]
fn forged_and_malformed_answers_are_not_taken() -> Result<()> {
    need!(need::root(), need::netpath());
    let rig = rig(&format!("nameserver {OUTSIDE4}\nnameserver {OUTSIDE6}\n"))?;
    // A wrong id; the right one in lower case; and one that ends in the middle.
    let forger: Answerer = Arc::new(|query, by_tcp| {
        let mut bytes = answer_with(query, &[IpAddr::from([198, 51, 100, 66])], 60).to_vec().ok()?;
        if by_tcp {
            return None;
        }
        let name = query.queries[0].name().to_string();
        if name.to_ascii_lowercase().starts_with("id") {
            bytes[0] ^= 1;
        } else if name.to_ascii_lowercase().starts_with("case") {
            bytes[12..40].make_ascii_lowercase();
        } else {
            bytes.truncate(bytes.len() - 2);
        }
        Some(bytes)
    });
    let _forger = upstream(&rig, OUTSIDE4, forger)?;
    let _good = upstream(&rig, OUTSIDE6, says("198.51.100.7", 60))?;
    rig.start(&[])?;
    for name in ["id-0123456789.example.org.", "case-0123456789-abcdefghij.example.org.", "short.example.org."] {
        ensure!(rig.client().addresses(name, Type::A)? == one("198.51.100.7"), "{name}");
    }
    Ok(())
}

#[test]
fn a_server_that_folds_case_or_truncates_is_asked_by_tcp() -> Result<()> {
    need!(need::root(), need::netpath());
    let rig = rig(&format!("nameserver {OUTSIDE4}\n"))?;
    let by_tcp = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&by_tcp);
    let server: Answerer = Arc::new(move |query, tcp| {
        let many: Vec<IpAddr> = (1..=100).map(|n| IpAddr::from([198, 51, 100, n])).collect();
        let is_large = query.queries[0].name().to_string().to_ascii_lowercase().starts_with("large");
        counter.fetch_add(usize::from(tcp), Ordering::Relaxed);
        let mut answer = answer_with(query, if is_large { &many } else { &many[..1] }, 60);
        if is_large && !tcp {
            answer.answers.clear();
            answer.metadata.truncation = true;
        }
        let mut bytes = answer.to_vec().ok()?;
        if !is_large {
            let end = bytes.len().min(40);
            bytes[12..end].make_ascii_lowercase();
        }
        Some(bytes)
    });
    let _server = upstream(&rig, OUTSIDE4, server)?;
    rig.start(&[])?;
    let client = rig.client();
    let large = client.pipelined(&[query("large.example.org.", Type::A)?])?;
    ensure!(data(&large[0]).len() == 100, "{}", large[0].answers.len());
    let cut = client.ask("large.example.org.", Type::A)?;
    ensure!(cut.metadata.truncation, "{cut:?}");
    for n in 0..4 {
        let name = format!("folded-abcdefghijklmnop-{n}.example.org.");
        ensure!(client.addresses(&name, Type::A)? == one("198.51.100.1"), "{name}");
    }
    let by_tcp = by_tcp.load(Ordering::Relaxed);
    ensure!(by_tcp == 2, "{by_tcp} times by TCP: once for size, once to learn of the case");
    Ok(())
}

#[test]
fn resolv_conf_is_followed_whenever_it_is_replaced() -> Result<()> {
    need!(need::root(), need::netpath());
    let rig = rig("")?;
    // As systemd-resolved has it: a link to a file that is replaced by rename.
    let real = rig.topology.dir().join("run");
    fs::create_dir(&real)?;
    let replace = |server: IpAddr| -> Result<()> {
        fs::write(real.join("new"), format!("# comment\noptions edns0\nnameserver {server} # more\n"))?;
        Ok(fs::rename(real.join("new"), real.join("resolv.conf"))?)
    };
    replace(CLIENT4)?;
    fs::remove_file(rig.resolv_conf())?;
    std::os::unix::fs::symlink("run/resolv.conf", rig.resolv_conf())?;
    let _one = upstream(&rig, CLIENT4, says("198.51.100.1", 600))?;
    let _two = upstream(&rig, OUTSIDE4, says("198.51.100.2", 600))?;
    rig.start(&[])?;
    let client = rig.client();
    let becomes = |address: &str| {
        wait_for("the other server", SOON, || {
            (client.addresses("example.org.", Type::A).ok()? == one(address)).then_some(())
        })
    };
    becomes("198.51.100.1")?;
    for _ in 0..3 {
        replace(OUTSIDE4)?;
        becomes("198.51.100.2")?;
        replace(CLIENT4)?;
        becomes("198.51.100.1")?;
    }
    // Written in place, and replaced by a file.
    fs::write(real.join("resolv.conf"), format!("nameserver {OUTSIDE4}\n"))?;
    becomes("198.51.100.2")?;
    fs::write(rig.topology.dir().join("file"), "nameserver 192.0.2.2\n")?;
    fs::rename(rig.topology.dir().join("file"), rig.resolv_conf())?;
    becomes("198.51.100.1")
}

#[test]
fn a_link_local_server_with_its_zone_is_asked() -> Result<()> {
    need!(need::root(), need::netpath());
    let rig = rig("nameserver fe80::53%eth0\n")?;
    rig.topology.client.ip("addr add fe80::53/64 dev eth0 nodad\n")?;
    let index = rig.topology.client.run(|| nix::net::if_::if_nametoindex("eth0"))?;
    let address: std::net::Ipv6Addr = "fe80::53".parse()?;
    let socket =
        rig.topology.client.run(|| std::net::UdpSocket::bind(std::net::SocketAddrV6::new(address, 53, 0, index)))?;
    let server = std::thread::spawn(move || -> Result<()> {
        socket.set_read_timeout(Some(SOON))?;
        let mut buffer = [0; 2048];
        let (length, from) = support::traffic::again(|| socket.recv_from(&mut buffer))?;
        let query = support::dns::Message::from_vec(&buffer[..length])?;
        socket.send_to(&says("198.51.100.9", 60)(&query, false).unwrap_or_default(), from)?;
        Ok(())
    });
    rig.start(&[])?;
    ensure!(rig.client().addresses("example.org.", Type::A)? == one("198.51.100.9"), "through the zone");
    server.join().map_err(|_| anyhow::anyhow!("the server has panicked"))?
}
