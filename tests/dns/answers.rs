//! What clients are told about containers.

use crate::rig::{FRONT, Rig};
use anyhow::{Result, ensure};
use std::collections::BTreeSet;
use support::dns::{Code, Type, data, query, with_edns};
use support::need;
use support::topology::{CLIENT4, CLIENT6, OUTSIDE4};

fn set<const N: usize>(items: [&str; N]) -> BTreeSet<String> {
    items.into_iter().map(str::to_owned).collect()
}

#[test]
fn names_are_answered_in_every_form_by_udp_and_tcp_and_both_families() -> Result<()> {
    need!(need::root(), need::netpath());
    let rig = Rig::serving(FRONT)?;
    for address in [CLIENT4, CLIENT6] {
        let client = rig.client_at(address);
        let names = ["web.", "WWW.", "web.dns.podman.", "bbbbbbbbbbbb.DNS.Podman.", "web.front."];
        for name in names {
            ensure!(client.addresses(name, Type::A)? == set(["10.89.7.3"]), "{name} for {address}");
            ensure!(client.addresses(name, Type::AAAA)? == set(["fd41:7::3"]), "{name} for {address}");
        }
        let queries: Vec<_> = names.iter().map(|n| query(n, Type::A)).collect::<Result<_>>()?;
        for answer in client.pipelined(&queries)? {
            ensure!(data(&answer) == set(["10.89.7.3"]) && answer.answers[0].ttl == 0, "{answer:?}");
        }
        ensure!(client.addresses("pool.", Type::A)? == set(["10.89.7.3", "10.89.7.4"]), "pool");
        ensure!(client.addresses("3.7.89.10.in-addr.arpa.", Type::PTR)?.contains("web."), "PTR");
        ensure!(client.addresses("host.containers.internal.", Type::A)? == set(["192.0.2.1"]), "the host");
    }
    let client = rig.client();
    for (name, kind) in [("db.", Type::AAAA), ("db.", Type::MX), ("web.", Type::HTTPS), ("web.dns.podman.", Type::TXT)]
    {
        let answer = client.ask(name, kind)?;
        let has_soa = answer.authorities.iter().any(|r| r.record_type() == Type::SOA);
        ensure!(answer.metadata.response_code == Code::NoError && answer.answers.is_empty() && has_soa, "{answer:?}");
    }
    let unknown = client.ask("nothing.dns.podman.", Type::A)?;
    ensure!(unknown.metadata.response_code == Code::NXDomain, "{unknown:?}");
    // Not a container: it sees the network that it asks.
    ensure!(rig.client_at(OUTSIDE4).addresses("web.", Type::A)? == set(["10.89.7.3"]), "from outside");
    Ok(())
}

#[test]
fn a_large_answer_is_truncated_by_udp_and_whole_by_tcp() -> Result<()> {
    need!(need::root(), need::netpath());
    let lines: String = (1..=250).map(|n| format!("{n:012} 10.89.7.{n}  all\n")).collect();
    let rig = Rig::serving(&format!("192.0.2.1\n{lines}"))?;
    let client = rig.client();
    for (message, most) in [(query("all.", Type::A)?, 512), (with_edns(query("all.", Type::A)?, 4096), 1232)] {
        let answer = client.send(&message)?;
        ensure!(answer.metadata.truncation && !answer.answers.is_empty(), "{:?}", answer.metadata);
        ensure!(answer.to_vec()?.len() <= most && answer.answers.len() > most / 20, "{}", answer.answers.len());
    }
    let whole = client.pipelined(&[query("all.", Type::A)?])?;
    ensure!(data(&whole[0]).len() == 250 && !whole[0].metadata.truncation, "{}", whole[0].answers.len());
    Ok(())
}

#[test]
fn a_client_on_two_networks_sees_both_whichever_it_asks() -> Result<()> {
    need!(need::root(), need::netpath());
    let rig = Rig::new()?;
    rig.write("front", FRONT)?;
    rig.write(
        "back%int",
        "192.0.2.10\naaaaaaaaaaaa1111 203.0.113.5  client\neeeeeeeeeeee1111 10.89.8.3  hidden,web\n",
    )?;
    rig.write("alien", "198.51.100.1\nffffffffffff1111 10.89.9.3  alien\n")?;
    let failed = rig.try_start(&[])?;
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    ensure!(!failed.status.success() && said.contains("failed to bind udp listener on 198.51.100.1:53"), "{said}");
    rig.write("alien", "192.0.2.10\nffffffffffff1111 10.89.9.3  alien\n")?;
    rig.start(&[])?;
    for address in [CLIENT4, OUTSIDE4] {
        let client = rig.client_at(address);
        ensure!(client.addresses("hidden.", Type::A)? == set(["10.89.8.3"]), "{address}");
        ensure!(client.addresses("db.", Type::A)? == set(["10.89.7.4"]), "{address}");
        ensure!(client.addresses("web.", Type::A)? == set(["10.89.7.3", "10.89.8.3"]), "{address}");
        ensure!(client.addresses("web.back.", Type::A)? == set(["10.89.8.3"]), "{address}");
        let alien = client.ask("alien.dns.podman.", Type::A)?;
        ensure!(alien.metadata.response_code == Code::NXDomain, "{alien:?}");
    }
    Ok(())
}
