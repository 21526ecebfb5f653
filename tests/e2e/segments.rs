//! Merged packets. UDP datagrams that the host's GRO chains into a list (`rx-gro-list`): a program sees the first one's
//! headers, and each datagram must arrive as if alone. TCP segments left to the network card (TSO): they must pass in one
//! piece.

use crate::rig::{Rig, Way, rig_on};
use anyhow::{Context, Result, ensure};
use netpath_common::reason::Reason;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use support::host::{Netns, SOON};
use support::load::{bulk, bulk_server};
use support::netavark::Document;
use support::offload::{Lengths, send_segments, switch};
use support::topology::{Family, Topology};
use support::traffic::{ANY, again, free};

on_every_way!(a_list_of_datagrams_arrives_whole, bulk_traffic_stays_in_large_packets);

const EACH: u16 = 700;
const MANY: usize = 20;

fn any(family: Family) -> IpAddr {
    if family == Family::V4 { IpAddr::from([0; 4]) } else { IpAddr::from([0_u16; 8]) }
}

fn bound(netns: &Netns, family: Family, port: u16) -> Result<UdpSocket> {
    let socket = netns.run(|| free(|| UdpSocket::bind((any(family), port))))?;
    socket.set_read_timeout(Some(SOON))?;
    Ok(socket)
}

/// `from` sends that many datagrams in one burst; each must arrive once, all from one sender, whose address is returned.
fn burst(from: &UdpSocket, to: &UdpSocket) -> Result<SocketAddr> {
    let data: Vec<u8> = (0..MANY).flat_map(|n| [n as u8; EACH as usize]).collect();
    send_segments(from, &data, EACH)?;
    let (mut came, mut senders) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..MANY {
        let mut datagram = [0; 2 * EACH as usize];
        let (len, sender) = again(|| to.recv_from(&mut datagram)).with_context(|| format!("{came:?} came"))?;
        let n = datagram[0];
        ensure!(datagram[..len] == [n; EACH as usize], "{len} bytes from {sender}: not a datagram that was sent");
        ensure!(came.insert(n), "{n} came twice");
        senders.insert(sender);
    }
    ensure!(senders.len() == 1, "from {senders:?}");
    senders.pop_first().context("no sender")
}

fn a_list_of_datagrams_arrives_whole(way: Way) -> Result<()> {
    rig_on(Topology::new(), way, |rig| {
        let Topology { client, host, .. } = rig.topology;
        // The client's device sends datagrams one by one in a burst, and the host's device merges them.
        switch(client, "eth0", "tx-udp-segmentation", false)?;
        for feature in ["rx-gro", "rx-gro-list"] {
            switch(host, "eth0", feature, true)?;
        }
        let document = Document::new().on_dual(&way.network(7), "eth0", 7, 5).publish("", 8080, 80, "udp");
        let web = rig.up("web", document)?;
        for family in Family::BOTH {
            let (inside, outside) = (bound(&web.0, family, 80)?, bound(client, family, 9001)?);
            let asks = bound(client, family, 40_000)?;
            asks.connect((family.host(), 8080))?;
            let app = bound(&web.0, family, 40_001)?;
            app.connect((family.client(), 9001))?;
            let lengths = Lengths::of(host)?;
            // Twice: the first creates the flow.
            for _ in 0..2 {
                let seen = burst(&asks, &inside).with_context(|| format!("{family:?}, published"));
                if let Some(seen) = rig.met("in", seen) {
                    rig.note(seen == SocketAddr::new(family.client(), 40_000), || format!("seen as {seen}"));
                }
                // And answers to a container's flow.
                app.send(b"begin")?;
                let (_, seen) = again(|| outside.recv_from(&mut [0; 10])).context("a datagram out")?;
                outside.connect(seen)?;
                let by = burst(&outside, &app).with_context(|| format!("{family:?}, answers"));
                if let Some(by) = rig.met("back", by) {
                    rig.note(by == SocketAddr::new(family.client(), 9001), || format!("answered by {by}"));
                }
            }
            let longest = lengths.longest();
            rig.note(longest > 2 * usize::from(EACH), || {
                format!("{family:?}: no packets were merged: {longest} bytes")
            });
        }
        Ok(vec![web])
    })
}

/// Bytes per transfer; TCP's packets reach their maximum size long before.
const BULK: u64 = 16 << 20;
/// Minimum length for a merged TCP packet; the maximum is 64 KiB with headers.
const LARGE: u32 = 60_000;

/// A transfer in both directions; at both ends packets as large as sent must arrive.
fn large_both_ways(rig: &Rig<'_>, what: &str, from: &Netns, to: &Netns, dial: SocketAddr) -> Result<()> {
    let (there, back) = (Lengths::arriving_above(to, LARGE)?, Lengths::arriving_above(from, LARGE)?);
    let mut came = [false; 2];
    // Repeated where a busy machine let no packet grow.
    for _ in 0..5 {
        bulk(from, dial, BULK).with_context(|| format!("{what}, {dial}"))?;
        came = [came[0] || there.longest() > 0, came[1] || back.longest() > 0];
        if came == [true; 2] {
            break;
        }
    }
    rig.note(came == [true; 2], || format!("{what}, {dial}: packets above {LARGE} bytes, there and back: {came:?}"));
    Ok(())
}

fn bulk_traffic_stays_in_large_packets(way: Way) -> Result<()> {
    rig_on(Topology::new(), way, |rig| {
        let web = rig.up("web", way.published(7, 5))?;
        let client = &rig.topology.client;
        let _servers = (bulk_server(&web.0, ANY, 80)?, bulk_server(client, ANY, 9000)?);
        let counts = || -> Result<[u64; 2]> { Ok([rig.counted(Reason::StackMtu)?, rig.counted(Reason::Redirected)?]) };
        let before = if way.rung.is_ebpf() { counts()? } else { [0; 2] };
        for family in Family::BOTH {
            large_both_ways(rig, "published", client, &web.0, SocketAddr::new(family.host(), 8080))?;
            large_both_ways(rig, "masqueraded", &web.0, client, SocketAddr::new(family.client(), 9000))?;
        }
        if way.rung.is_ebpf() {
            let after = counts()?;
            rig.note(after[0] == before[0], || format!("{} packets were too large for the way", after[0] - before[0]));
            let past = after[1] - before[1];
            rig.note(past > 0, || "no packet went past the stack".to_owned());
        }
        Ok(vec![web])
    })
}
