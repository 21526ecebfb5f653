//! The same documents through a real Netavark 2.1 and through netpath: links, addresses, routes, sysctls, DNS files and answers are the
//! same, but for the differences of [`known`], each with its reason.

mod generate;
mod known;
mod observe;

use anyhow::{Result, ensure};
use generate::{BRIDGE, Life};
use known::KNOWN;
use observe::{Eye, HOST, Values, dns_files};
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use support::host::{at_once, patience};
use support::incumbent::{built, version};
use support::need;
use support::netavark::{Answer, Netavark, Rung};
use support::topology::{Container, Topology};

/// Lives in every run, and with NETPATH_SOAK=full.
const LIVES: [u64; 2] = [60, 300];
/// What the kernel does later, such as routes of a link that gets its carrier.
const SETTLES: Duration = Duration::from_secs(1);

/// One of two hosts that are alike.
struct Side<'t> {
    netavark: Netavark<'t>,
    topology: &'t Topology,
    containers: Vec<Container>,
}

impl Side<'_> {
    fn prepare(&self) -> Result<()> {
        let [name, v4, v6] = BRIDGE;
        self.topology.host.ip(&format!(
            "link add {name} address 0a:99:99:99:99:99 type bridge\naddr add {v4} dev {name}\n\
             addr add {v6} dev {name} nodad\nlink set {name} up\n"
        ))
    }

    fn look(&self, eye: &Eye<'_>) -> Result<Values> {
        let mut all = Values::new();
        eye.look(&self.topology.host, HOST, &mut all)?;
        for (n, container) in self.containers.iter().enumerate() {
            eye.look(container, &format!("container {n}"), &mut all)?;
        }
        dns_files(&self.topology.config_dir(), &mut all);
        Ok(all)
    }
}

/// The places where two hosts differ, but for known differences; those that were met are added to `met`.
fn differences(netavark: &Values, netpath: &Values, met: &Mutex<BTreeSet<usize>>) -> Vec<String> {
    let places: BTreeSet<&String> = netavark.keys().chain(netpath.keys()).collect();
    let value = |of: &Values, place: &String| of.get(place).cloned().unwrap_or_default();
    let mut found = Vec::new();
    for place in places {
        let (a, b) = (value(netavark, place), value(netpath, place));
        if a == b {
            continue;
        }
        match KNOWN.iter().position(|k| (k.holds)(place, &a, &b)) {
            Some(at) => drop(met.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(at)),
            None => found.push(format!("{place}: netavark {a:?}, netpath {b:?}")),
        }
    }
    found
}

/// Returns how many containers were set up.
fn live(seed: u64, met: &Mutex<BTreeSet<usize>>) -> Result<usize> {
    let life = Life::of(seed);
    let topologies = [Topology::new()?, Topology::new()?];
    let [ours, theirs] = &topologies;
    let rung = if seed.is_multiple_of(3) { Rung::Nftables } else { Rung::best_hooks() };
    let programs = [Netavark::of(theirs, &built()?)?, Netavark::on(ours, rung)?];
    let mut sides = Vec::new();
    for (netavark, topology) in programs.into_iter().zip([theirs, ours]) {
        let containers = (0..life.documents.len()).map(|n| topology.container(&format!("box{n}")));
        let side = Side { netavark, topology, containers: containers.collect::<Result<_>>()? };
        side.prepare()?;
        sides.push(side);
    }
    let eye = Eye { pinned: &life.pinned };
    let compare = |what: &str, answers: [Answer; 2]| -> Result<bool> {
        let mut fixed: [Values; 2] = Default::default();
        for (answer, values) in answers.iter().zip(&mut fixed) {
            match answer.error() {
                // That both fail is the same; the texts are others' to test.
                Ok(text) => drop(values.insert("error".to_owned(), text)),
                Err(_) if answer.stdout.is_empty() => {}
                Err(_) => eye.answer(&answer.json()?, "answer", values),
            }
        }
        let failed = answers.iter().filter(|a| !a.status.success()).count();
        if failed == 2 {
            return Ok(false);
        }
        // Nothing else can be compared after what only one of them could do.
        if failed == 1 {
            fixed.iter_mut().for_each(|values| values.retain(|place, _| place == "error"));
        }
        let mut found = differences(&fixed[0], &fixed[1], met);
        if failed == 1 {
            ensure!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
            return Ok(false);
        }
        let begun = Instant::now();
        let hosts = loop {
            let hosts = differences(&sides[0].look(&eye)?, &sides[1].look(&eye)?, met);
            if hosts.is_empty() || begun.elapsed() > SETTLES * patience() {
                break hosts;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        found.extend(hosts);
        ensure!(found.is_empty(), "after {what}:\n  {}", found.join("\n  "));
        Ok(true)
    };
    let both = |call: &dyn Fn(&Side<'_>) -> Result<Answer>| -> Result<[Answer; 2]> {
        Ok([call(&sides[0])?, call(&sides[1])?])
    };
    let mut lasting = 0;
    for (n, document) in life.documents.iter().enumerate() {
        if !compare(&format!("setup of box{n}"), both(&|s| s.netavark.try_setup(&s.containers[n], document))?)? {
            // Netavark leaves what it has made of it.
            return Ok(lasting);
        }
        lasting += 1;
    }
    for (network, servers) in &life.updates {
        let verb = ["update", network, "--network-dns-servers", servers];
        compare(&format!("update of {network} to {servers:?}"), both(&|s| s.netavark.call(&verb, b"null"))?)?;
    }
    for (n, document) in life.documents.iter().enumerate() {
        if !compare(&format!("teardown of box{n}"), both(&|s| s.netavark.try_teardown(&s.containers[n], document))?)? {
            break;
        }
    }
    Ok(lasting)
}

#[test]
fn documents_have_the_same_result_as_by_netavark() -> Result<()> {
    need!(need::root(), need::netpath(), need::program("nft"), version(&built()?, 2));
    need!(need::accepted("ip", "link add link v0 name mv0 type macvlan mode bridge"));
    let only = std::env::var("NETPATH_SEED").ok().and_then(|s| s.parse().ok());
    let seeds: Vec<u64> = only.map_or_else(|| (1..=LIVES[usize::from(need::is_full())]).collect(), |seed| vec![seed]);
    let (met, failed, compared) = (Mutex::default(), Mutex::new(Vec::new()), AtomicUsize::new(0));
    at_once(3, &seeds, |seed| {
        match live(*seed, &met) {
            Ok(count) => drop(compared.fetch_add(count, Ordering::Relaxed)),
            Err(e) => {
                let mut failed = failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                failed.push(format!("NETPATH_SEED={seed}: {e}"));
                if only.is_some() {
                    failed.extend(Life::of(*seed).documents.iter().map(ToString::to_string));
                }
            }
        }
        Ok(())
    })?;
    let failed = failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    ensure!(failed.is_empty(), "{} of {} differ\n{}", failed.len(), seeds.len(), failed.join("\n"));
    let compared = compared.into_inner();
    need::say(&format!("{compared} containers of {} documents compared", seeds.len()));
    ensure!(only.is_some() || compared > seeds.len(), "only {compared} containers were set up by both");
    let met = met.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let missed: Vec<usize> = (0..KNOWN.len()).filter(|at| !met.contains(at)).collect();
    ensure!(
        only.is_some() || !need::is_full() || missed.is_empty(),
        "no document shows the known differences {missed:?}"
    );
    Ok(())
}
