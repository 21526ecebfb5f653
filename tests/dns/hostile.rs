//! Clients that send nonsense, nothing, or slowly: the server lives, its memory has a limit, and others are served in time.

use crate::rig::{FRONT, Rig};
use anyhow::{Result, ensure};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};
use support::dns::{Type, framed, query, with_edns};
use support::host::patience;
use support::need;
use support::rng::Rng;

/// Of 20 queries of a well-behaved client. As any resolver it asks again: a flood fills the queue of the socket for a moment.
fn slowest(rig: &Rig) -> Result<Duration> {
    let mut client = rig.client();
    client.limit = Duration::from_millis(300) * patience();
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let begun = Instant::now();
        let mut tries = (0..3).map(|_| client.addresses("web.", Type::A));
        tries.find(Result::is_ok).unwrap_or_else(|| client.addresses("web.", Type::A))?;
        slowest = slowest.max(begun.elapsed());
    }
    Ok(slowest)
}

#[test]
fn a_hundred_thousand_malformed_queries_change_nothing() -> Result<()> {
    need!(need::root(), need::netpath());
    let rig = Rig::serving(FRONT)?;
    let (pid, rng) = (rig.pid()?, Rng::new());
    let good: Vec<Vec<u8>> = [
        query("web.", Type::A)?,
        with_edns(query("pool.dns.podman.", Type::AAAA)?, 4096),
        query("3.7.89.10.in-addr.arpa.", Type::PTR)?,
        query("a.rather.long.name.with.many.labels.example.org.dns.podman.", Type::TXT)?,
    ]
    .iter()
    .map(|m| Ok(m.to_vec()?))
    .collect::<Result<_>>()?;
    let message = || {
        let mut bytes = rng.pick(&good).clone();
        match rng.below(5) {
            0 => bytes = (0..rng.below(600)).map(|_| rng.below(256) as u8).collect(),
            1 => bytes.truncate(rng.below(bytes.len() as u64) as usize),
            2 => bytes.extend((0..rng.below(3000)).map(|_| rng.below(256) as u8)),
            // Forwarding is not the point of this test.
            _ => {}
        }
        for _ in 0..rng.below(4) {
            let (at, len) = (rng.below(bytes.len().max(1) as u64) as usize, bytes.len());
            if at < len {
                bytes[at] = rng.below(256) as u8;
            }
        }
        bytes
    };
    let client = rig.client();
    let settled = rig.memory()?;
    let messages: Vec<_> = (0..100_000).map(|_| message()).collect();
    let streams: Vec<_> = (0..500).map(|_| if rng.below(2) == 0 { framed(&message()) } else { message() }).collect();
    client.netns.run(|| -> Result<()> {
        let socket = UdpSocket::bind((client.address, 0))?;
        socket.connect(client.server)?;
        for (n, message) in messages.iter().enumerate() {
            let _ = socket.send(message);
            // So that the queue of the server does not drop most of them.
            if n % 64 == 0 {
                std::thread::sleep(Duration::from_micros(500));
            }
        }
        for bytes in &streams {
            let mut stream = client.connect()?;
            let _ = stream.write_all(bytes);
        }
        Ok(())
    })?;
    let took = slowest(&rig)?;
    ensure!(rig.pid()? == pid && rig.is_running(pid), "{rng}: the server has ended");
    ensure!(took < Duration::from_secs(1) * patience(), "{rng}: {took:?}");
    let more = rig.memory()?.saturating_sub(settled);
    need::say(&format!("slowest answer after it {took:.1?}, memory {settled} kB and {more} more"));
    ensure!(more < 16 * 1024, "{rng}: {more} kB more");
    Ok(())
}

#[test]
fn a_thousand_idle_connections_and_slow_clients_delay_no_other_client() -> Result<()> {
    need!(need::root(), need::netpath());
    let rig = Rig::serving(FRONT)?;
    let settled = rig.memory()?;
    let client = rig.client();
    let idle: Vec<TcpStream> = client.netns.run(|| (0..1000).map(|_| client.connect()).collect::<Result<Vec<_>>>())?;
    let with_idle = slowest(&rig)?;
    let memory = rig.memory()?.saturating_sub(settled);
    need::say(&format!("with 1,000 idle connections: slowest answer {with_idle:.1?}, {memory} kB more"));
    ensure!(with_idle < Duration::from_secs(1) * patience(), "{with_idle:?}");
    ensure!(memory < 16 * 1024, "{memory} kB");
    let answers = client.pipelined(&[query("web.", Type::A)?])?;
    ensure!(answers.len() == 1, "a new connection");
    // A client that sends one byte at a time, and one that takes no answers.
    let (mut slow, mut greedy) = client.netns.run(|| -> Result<_> { Ok((client.connect()?, client.connect()?)) })?;
    slow.write_all(&[0])?;
    let many = framed(&query("pool.", Type::A)?.to_vec()?).repeat(1000);
    greedy.set_nonblocking(true)?;
    for _ in 0..500 {
        if greedy.write(&many).is_err() {
            break;
        }
    }
    let with_slow = slowest(&rig)?;
    ensure!(with_slow < Duration::from_secs(1) * patience(), "{with_slow:?}");
    // All of them end, the slow ones too.
    let begun = Instant::now();
    for (what, mut stream) in idle.into_iter().map(|s| ("idle", s)).chain([("slow", slow)]) {
        stream.set_read_timeout(Some(Duration::from_secs(20) * patience()))?;
        let ended = matches!(stream.read(&mut [0; 16]), Ok(0));
        ensure!(ended, "a {what} connection goes on after {:?}", begun.elapsed());
    }
    let left = rig.memory()?.saturating_sub(settled);
    ensure!(left < 16 * 1024, "{left} kB");
    Ok(())
}

#[test]
fn one_client_with_many_names_does_not_take_all_upstream_queries() -> Result<()> {
    need!(need::root(), need::netpath());
    let rig = Rig::new()?;
    // Nothing answers there.
    std::fs::write(rig.resolv_conf(), "nameserver 203.0.113.77\n")?;
    rig.topology.client.ip("route add blackhole 203.0.113.77\n")?;
    rig.write("front", FRONT)?;
    rig.start(&[])?;
    let client = rig.client();
    let settled = rig.memory()?;
    client.netns.run(|| -> Result<()> {
        let socket = UdpSocket::bind(SocketAddr::new(client.address, 0))?;
        socket.connect(client.server)?;
        for n in 0..20_000 {
            let _ = socket.send(&query(&format!("n{n}.example.org."), Type::A)?.to_vec()?);
        }
        Ok(())
    })?;
    let took = slowest(&rig)?;
    let memory = rig.memory()?.saturating_sub(settled);
    need::say(&format!("with 20,000 names for a dead server: slowest answer {took:.1?}, {memory} kB more"));
    ensure!(took < Duration::from_secs(1) * patience() && memory < 24 * 1024, "{took:?}, {memory} kB");
    Ok(())
}
