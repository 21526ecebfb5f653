//! Malformed input: documents mutated from the worked example. None makes the program panic or hang, none leaves anything
//! behind, and each refusal names the change (`error_oracle.rs`).

use crate::error_oracle::{Change, differences, names_the_change, path};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use support::example::worked_example;
use support::host::at_once;
use support::need;
use support::netavark::{Answer, Document, Netavark, Network, Shape};
use support::residue::{Residue, Snapshot};
use support::rng::Rng;
use support::topology::{Container, Topology};

/// With NETPATH_SOAK=full, and in every run.
const DOCUMENTS: [u64; 2] = [10_000, 400];
/// Time limit of a call; on a fully loaded machine one has taken 14 s.
const HANG: Duration = Duration::from_secs(60);

/// The generator for one document of a run: different from that of any other seed.
fn of_document(seed: u64, n: u64) -> Rng {
    Rng::of(seed.wrapping_mul(1_000_000).wrapping_add(n))
}

#[derive(Default)]
struct Tally {
    refused: AtomicU64,
    accepted: AtomicU64,
    longest_us: AtomicU64,
}

#[test]
fn mutated_documents_are_refused_or_served_and_leave_nothing() -> Result<()> {
    need!(need::root(), need::netpath());
    let rng = Rng::new();
    let seed = rng.seed();
    let documents = DOCUMENTS[usize::from(!need::is_full())];
    let (tally, next) = (Tally::default(), AtomicU64::new(0));
    let wrong = Mutex::new(Vec::new());
    let begun = Instant::now();
    // Each rung undoes differently; on none, most documents run per second.
    let rungs = ["ebpf", "none", "iptables", "none"].into_iter().filter(|r| *r != "ebpf" || need::bpf().is_ok());
    let rungs: Vec<&str> = rungs.collect();
    at_once(rungs.len(), &rungs, |rung| {
        let topology = Topology::new()?;
        let mut worker = Worker::new(&topology, rung)?;
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= documents || wrong.lock().unwrap_or_else(PoisonError::into_inner).len() >= 10 {
                return worker.end();
            }
            if let Err(e) = worker.one(&of_document(seed, n), &tally) {
                wrong.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{rung}, document {n}: {e:#}"));
                worker.begin_again()?;
            }
        }
    })?;
    let wrong = wrong.into_inner().unwrap_or_else(PoisonError::into_inner);
    let count = |c: &AtomicU64| c.load(Ordering::Relaxed);
    need::say(&format!(
        "{documents} mutated documents ({rng}): {} refused, {} served, {} wrong; longest call {} ms; {} s",
        count(&tally.refused),
        count(&tally.accepted),
        wrong.len(),
        count(&tally.longest_us) / 1_000,
        begun.elapsed().as_secs()
    ));
    ensure!(wrong.is_empty(), "{rng}\n{}", wrong.join("\n\n"));
    Ok(())
}

/// One host with a permanent container, which keeps bridges and programs, and one that the documents are tried on.
struct Worker<'t> {
    topology: &'t Topology,
    netavark: Netavark<'t>,
    residue: Residue,
    keeper: Container,
    stays: Document,
    shop: Container,
    /// With the permanent container.
    usual: Snapshot,
    links: Vec<String>,
    done: u64,
}

impl<'t> Worker<'t> {
    fn new(topology: &'t Topology, rung: &str) -> Result<Self> {
        let residue = Residue::watch(topology)?;
        let netavark = Netavark::with(topology, &[("NETPATH_DATAPATH", rung)])?;
        let keeper = topology.container("keeper")?;
        let stays = Document::new().on_dual(&Network::dual(33), "eth0", 33, 9).publish("", 33_000, 80, "tcp");
        netavark.setup(&keeper, &stays)?;
        let shop = topology.container("shop")?;
        shop.ip("link set lo up\n")?;
        let usual = Snapshot::take(topology, &[&shop])?;
        let links = links(topology, &shop)?;
        Ok(Self { topology, netavark, residue, keeper, stays, shop, usual, links, done: 0 })
    }

    fn one(&mut self, rng: &Rng, tally: &Tally) -> Result<()> {
        let (input, changes) = mutation(rng, &self.shop.id);
        self.try_it(&input, &changes, tally).with_context(|| {
            let what: Vec<&str> = changes.iter().map(|c| c.what.as_str()).collect();
            format!("{}\n{}", what.join(" + "), String::from_utf8_lossy(&input))
        })
    }

    fn try_it(&mut self, input: &[u8], changes: &[Change], tally: &Tally) -> Result<()> {
        let path = self.shop.path().to_string_lossy().into_owned();
        let answer = self.call("setup", &path, input, tally)?;
        if answer.status.success() {
            tally.accepted.fetch_add(1, Ordering::Relaxed);
            ensure!(answer.json()?.is_object(), "expected status blocks: {answer}");
            self.call("teardown", &path, input, tally)?.done().context("teardown of what was served")?;
        } else {
            tally.refused.fetch_add(1, Ordering::Relaxed);
            names_the_change(&answer.error()?, input, changes)?;
            // As an engine that retries.
            if self.done.is_multiple_of(4) {
                let _ = self.call("teardown", &path, input, tally)?;
            }
        }
        self.done += 1;
        let now = links(self.topology, &self.shop)?;
        ensure!(now == self.links, "links changed from {:?} to {now:?}: {answer}", self.links);
        if self.done.is_multiple_of(100) {
            self.as_usual()?;
        }
        Ok(())
    }

    /// Runs a call that must end in time, by itself, without a panic.
    fn call(&self, verb: &str, path: &str, input: &[u8], tally: &Tally) -> Result<Answer> {
        let answer = self.netavark.call(&[verb, path], input)?;
        tally.longest_us.fetch_max(answer.took.as_micros() as u64, Ordering::Relaxed);
        ensure!(answer.took < HANG, "{verb} hung: {answer}");
        ensure!(matches!(answer.status.code(), Some(0 | 1)), "{verb}: {answer}");
        ensure!(!answer.stderr.contains("panicked"), "{verb}: {answer}");
        Ok(answer)
    }

    fn as_usual(&self) -> Result<()> {
        let mut left = Vec::new();
        support::host::wait_for("a host as usual", Duration::from_secs(2), || {
            left = match Snapshot::take(self.topology, &[&self.shop]) {
                Ok(now) => self.usual.difference(&now),
                Err(e) => vec![e.to_string()],
            };
            left.is_empty().then_some(())
        })
        .with_context(|| format!("left behind or missing:\n  {}", left.join("\n  ")))
    }

    /// After a leftover: takes another container, and the present state as the new reference.
    fn begin_again(&mut self) -> Result<()> {
        self.shop = self.topology.container("shop")?;
        self.shop.ip("link set lo up\n")?;
        self.usual = Snapshot::take(self.topology, &[&self.shop])?;
        self.links = links(self.topology, &self.shop)?;
        Ok(())
    }

    fn end(self) -> Result<()> {
        self.as_usual()?;
        self.netavark.teardown(&self.keeper, &self.stays)?;
        self.residue.nothing_left(self.topology, &[&self.shop, &self.keeper])
    }
}

/// The names of the links of host and container: cheap enough for each document.
fn links(topology: &Topology, shop: &Container) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for netns in [&topology.host, &shop.netns] {
        let text = netns.run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))?;
        names.extend(text.lines().filter_map(|l| l.split_once(':')).map(|(name, _)| name.trim().to_owned()));
    }
    names.sort();
    Ok(names)
}

/// One to three changes to the worked example, and their description.
fn mutation(rng: &Rng, id: &str) -> (Vec<u8>, Vec<Change>) {
    let mut document = worked_example(*rng.pick(&[Shape::Map, Shape::Array]), id);
    // Mostly without DNS: otherwise starting and stopping a server would dominate the run.
    document["network_info"]["front"]["dns_enabled"] = (rng.below(20) == 0).into();
    let mut changes: Vec<Change> = (0..=rng.below(3)).map(|_| change(&mut document, rng)).collect();
    let mut bytes = document.to_string().into_bytes();
    if rng.below(10) == 0 {
        let what = damage(&mut bytes, rng);
        // Where it is still JSON, the changed fields count like any others.
        let now = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        changes.push(Change { paths: differences(&document, &now), values: Vec::new(), what });
    }
    (bytes, changes)
}

fn pointers(value: &Value, at: &str, all: &mut Vec<String>) {
    let mut below = |key: &str, value: &Value| {
        let path = format!("{at}/{key}");
        pointers(value, &path, all);
        all.push(path);
    };
    match value {
        Value::Object(object) => object.iter().for_each(|(k, v)| below(k, v)),
        Value::Array(array) => array.iter().enumerate().for_each(|(i, v)| below(&i.to_string(), v)),
        _ => {}
    }
}

fn change(document: &mut Value, rng: &Rng) -> Change {
    let mut all = Vec::new();
    pointers(document, "", &mut all);
    if all.is_empty() {
        return Change::default();
    }
    let at = rng.pick(&all).clone();
    let other = rng.pick(&all).clone();
    let from_elsewhere = document.pointer(&other).cloned().unwrap_or(Value::Null);
    let (parent, key) = at.rsplit_once('/').unwrap_or(("", &at));
    let here = path(document, &at);
    let changed = |paths, what: String| Change { paths, values: Vec::new(), what: what.chars().take(300).collect() };
    let new = match rng.below(8) {
        0 | 1 => {
            match document.pointer_mut(parent) {
                Some(Value::Object(object)) => drop(object.remove(key)),
                Some(Value::Array(array)) => drop(key.parse().map(|i: usize| array.remove(i))),
                _ => {}
            }
            return changed(vec![here], format!("{at} removed"));
        }
        2 => {
            let list = path(document, parent);
            if let Some(Value::Array(array)) = document.pointer_mut(parent) {
                let again = array[key.parse().unwrap_or(0)].clone();
                array.push(again);
                return changed(vec![list], format!("{at} doubled"));
            }
            if let Some(Value::Object(object)) = document.pointer_mut(parent) {
                let value = object.remove(key).unwrap_or(Value::Null);
                object.insert(format!("{key}_"), value);
            }
            return changed(vec![here, path(document, &format!("{at}_"))], format!("{at} renamed"));
        }
        3 => from_elsewhere,
        4 => {
            let any = [json!(null), json!(true), json!(-1), json!(1.5), json!(""), json!([]), json!({}), json!([[]])];
            rng.pick(&any).clone()
        }
        _ => match document.pointer(&at) {
            Some(Value::Number(_)) => number(rng),
            Some(Value::String(s)) => string(s, rng),
            Some(Value::Bool(b)) => json!(!b),
            _ => number(rng),
        },
    };
    let mut change = changed(vec![here], format!("{at} = {new}"));
    change.values.extend(new.as_str().map(str::to_owned));
    if let Some(value) = document.pointer_mut(&at) {
        *value = new;
    }
    change
}

fn number(rng: &Rng) -> Value {
    let all =
        [json!(-1), json!(0), json!(1), json!(53), json!(65_535), json!(65_536), json!(u32::MAX), json!(u64::MAX)];
    rng.pick(&all).clone()
}

fn string(old: &str, rng: &Rng) -> Value {
    const STRINGS: [&str; 36] = [
        "",
        " ",
        ".",
        "..",
        "/",
        "a/b",
        "a b",
        "lo",
        "eth0",
        "eth1",
        "podman33",
        "\u{0}",
        "\n",
        "é",
        "0",
        "-1",
        "1e9",
        "true",
        "99999999999999999999",
        "0.0.0.0",
        "255.255.255.255",
        "127.0.0.1",
        "224.0.0.1",
        "10.89.7.1",
        "10.89.7.255",
        "::",
        "::1",
        "fe80::1",
        "ff02::1",
        "::ffff:10.89.7.5",
        "0.0.0.0/0",
        "::/0",
        "10.89.7.0/31",
        "10.89.0.0/16",
        "sctp",
        "ff:ff:ff:ff:ff:ff",
    ];
    match rng.below(4) {
        0 | 1 => (*rng.pick(&STRINGS)).into(),
        2 => old.repeat(1 + rng.below(300) as usize).into(),
        _ => {
            let mut bytes = old.as_bytes().to_vec();
            if bytes.is_empty() {
                bytes.push(b'x');
            }
            let at = rng.below(bytes.len() as u64) as usize;
            match rng.below(3) {
                0 => drop(bytes.remove(at)),
                1 => bytes.insert(at, b"0f:./- "[rng.below(7) as usize]),
                _ => bytes[at] ^= 1 << rng.below(7),
            }
            String::from_utf8_lossy(&bytes).into_owned().into()
        }
    }
}

/// In the text itself, so it may no longer be JSON.
fn damage(bytes: &mut Vec<u8>, rng: &Rng) -> String {
    let at = rng.below(bytes.len() as u64) as usize;
    match rng.below(3) {
        0 => {
            bytes.truncate(at);
            format!("cut at byte {at}")
        }
        1 => {
            bytes[at] = rng.below(256) as u8;
            format!("byte {at} = {}", bytes[at])
        }
        _ => {
            bytes.insert(at, rng.below(256) as u8);
            format!("a byte put in at {at}")
        }
    }
}
