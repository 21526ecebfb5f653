//! Container DNS: netpath's server and aardvark-dns, each started by the command line of aardvark-dns over the same files, asked by
//! dnsperf as four clients. Beside that load another client measures how long its own queries take.

use crate::plan::Plan;
use crate::progress::Progress;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use report::results::{Figure, Results};
use report::variants::{PEER, Program, Variant};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::dns::{Resolver, Type, Upstream, query, says};
use support::host::{SOON, wait_for};
use support::topology::{CLIENT4, HOST4, OUTSIDE4, Topology};

const COUNTS: [u32; 2] = [100, 5_000];
const NAMES: usize = 2_000;
/// Of the names that are forwarded, which the cache holds.
const FORWARDED: usize = 100;
const CHANGES: u32 = 15;

/// One server each: which datapath netpath has makes no difference.
fn servers(plan: &Plan) -> Vec<&'static Variant> {
    let netpath = plan.variants.iter().find(|v| v.program() == Some(Program::Netpath));
    plan.variants.iter().filter(|v| v.key == PEER).chain(netpath).copied().collect()
}

fn seconds(plan: &Plan) -> f64 {
    plan.sample().as_secs_f64() * 4.0 + 3.0
}

pub(crate) fn planned(plan: &Plan) -> Duration {
    if !plan.wants("dns") {
        return Duration::ZERO;
    }
    Duration::from_secs_f64((COUNTS.len() * servers(plan).len() * plan.rounds) as f64 * seconds(plan))
}

pub(crate) fn run(plan: &Plan, progress: &mut Progress, results: &mut Results) {
    if !plan.wants("dns") {
        return;
    }
    for count in COUNTS {
        for round in 0..plan.rounds {
            for variant in servers(plan) {
                progress.now(&format!("DNS, {count} containers, {}, round {}", variant.title, round + 1));
                match measure(plan, variant, count) {
                    Ok(sample) => sample.add(results, variant, count, round),
                    Err(e) => results.note(format!("{}, DNS of {count} containers: {e:#}", variant.title)),
                }
                progress.advance(Duration::from_secs_f64(seconds(plan)));
            }
        }
        progress.say(&format!("DNS of {count} containers: measured"));
    }
}

struct Load {
    per_second: f64,
    p99: Duration,
}

struct Sample {
    local: Load,
    cached: Load,
    memory: u64,
    change: Duration,
}

impl Sample {
    fn add(self, results: &mut Results, variant: &Variant, count: u32, round: usize) {
        let (us, ms) = (|d: Duration| d.as_secs_f64() * 1e6, |d: Duration| d.as_secs_f64() * 1e3);
        let key = |name: &str| format!("{name}.{count}");
        let title = |what: &str| format!("DNS, {count} containers: {what}");
        let figures = [
            (Figure::more(key("dns"), title("local names"), "queries/s"), self.local.per_second),
            (Figure::less(key("dns-p99"), title("another client beside that, p99"), "µs"), us(self.local.p99)),
            (
                Figure::more(key("dns-cached"), title("names that are forwarded, again and again"), "queries/s"),
                self.cached.per_second,
            ),
            (Figure::less(key("dns-cached-p99"), title("another client beside that, p99"), "µs"), us(self.cached.p99)),
            (Figure::less(key("dns-memory"), title("resident memory"), "MB"), self.memory as f64 / 1e3),
            (Figure::less(key("dns-change"), title("a change until it is visible"), "ms"), ms(self.change)),
        ];
        for (figure, value) in figures {
            results.add(&figure, variant.key, round, value);
        }
    }
}

struct Server {
    topology: Topology,
    dir: PathBuf,
    count: u32,
    pid: Pid,
}

fn measure(plan: &Plan, variant: &'static Variant, count: u32) -> Result<Sample> {
    let program = match variant.program() {
        Some(Program::Netpath) => plan.places.netpath.clone(),
        _ => plan.places.netavark.with_file_name("aardvark-dns"),
    };
    let server = Server::start(&program, count)?;
    let settled = server.memory()?;
    let local = server.load(plan, &(0..NAMES as u32).map(|n| format!("name{}", n % count)).collect::<Vec<_>>())?;
    // What it has needed for both, with the cache still empty.
    let memory = server.memory()?.max(settled);
    let change = server.change()?;
    let _upstream = Upstream::start(&server.topology.client, OUTSIDE4, says("198.51.100.7", 3600))?;
    let forwarded: Vec<_> = (0..FORWARDED).map(|n| format!("n{n}.example.org")).collect();
    server.load_for(Duration::from_millis(200), &forwarded)?;
    let cached = server.load(plan, &forwarded)?;
    Ok(Sample { local, cached, memory, change })
}

impl Server {
    fn start(program: &Path, count: u32) -> Result<Self> {
        let topology = Topology::new()?;
        let dir = topology.dir().join("names");
        std::fs::create_dir(&dir)?;
        std::fs::write(dir.join("bench"), text(count, 0))?;
        let mut command = Command::new(program);
        command.arg0("aardvark-dns").arg("--config").arg(&dir).args(["-p", "53", "run"]).env("RUST_LOG", "error");
        let out = topology.host.output(command, b"")?;
        ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let pid = Pid::from_raw(std::fs::read_to_string(dir.join("aardvark.pid"))?.trim().parse()?);
        Ok(Self { topology, dir, count, pid })
    }

    fn memory(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    fn client(&self) -> Resolver<'_> {
        Resolver::new(&self.topology.client, CLIENT4, SocketAddr::new(HOST4, 53))
    }

    fn load(&self, plan: &Plan, names: &[String]) -> Result<Load> {
        self.load_for(plan.sample() * 2, names)
    }

    /// dnsperf, and beside it a client that asks every millisecond.
    fn load_for(&self, time: Duration, names: &[String]) -> Result<Load> {
        let input: String = names.iter().map(|name| format!("{name} A\n")).collect();
        let file = self.topology.dir().join("queries");
        std::fs::write(&file, input)?;
        let ends = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| self.latencies(&names[0], &ends));
            let mut command = Command::new("dnsperf");
            command.args([
                "-s",
                &HOST4.to_string(),
                "-a",
                &CLIENT4.to_string(),
                "-c",
                "4",
                "-T",
                "1",
                "-q",
                "100",
                "-d",
            ]);
            command.arg(&file).args(["-l", &time.as_secs().max(1).to_string()]);
            let out = self.topology.client.output(command, b"");
            ends.store(true, Ordering::Relaxed);
            let mut times = other.join().map_err(|_| anyhow::anyhow!("the other client has panicked"))??;
            let out = out?;
            let said = String::from_utf8_lossy(&out.stdout).into_owned();
            let value = |what: &str| -> Result<f64> {
                let line = said
                    .lines()
                    .find_map(|l| l.trim().strip_prefix(what))
                    .with_context(|| format!("dnsperf: {said}"))?;
                Ok(line.split_whitespace().next().unwrap_or_default().parse()?)
            };
            let (sent, completed) = (value("Queries sent:")?, value("Queries completed:")?);
            ensure!(completed > sent * 0.99, "of {sent} queries {completed} are answered");
            ensure!(said.contains("NOERROR") && !said.contains("SERVFAIL") && !said.contains("NXDOMAIN"), "{said}");
            times.sort_unstable();
            let p99 = times.get(times.len() * 99 / 100).copied().context("the other client has asked nothing")?;
            Ok(Load { per_second: value("Queries per second:")?, p99 })
        })
    }

    fn latencies(&self, name: &str, ends: &AtomicBool) -> Result<Vec<Duration>> {
        let client = self.client();
        client.netns.run(|| {
            let socket = UdpSocket::bind((client.address, 0))?;
            socket.connect(client.server)?;
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            let (mut times, mut answer) = (Vec::new(), [0; 2048]);
            let message = query(&format!("{name}."), Type::A)?.to_vec()?;
            while !ends.load(Ordering::Relaxed) {
                let begun = Instant::now();
                socket.send(&message)?;
                // A lost query counts with the time limit.
                let _ = socket.recv(&mut answer);
                times.push(begun.elapsed());
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(times)
        })
    }

    /// From the change of one container's line to its visibility: the median.
    fn change(&self) -> Result<Duration> {
        let client = self.client();
        let mut times = Vec::new();
        for change in 1..=CHANGES {
            let unfinished = self.topology.dir().join("unfinished");
            std::fs::write(&unfinished, text(self.count, change))?;
            let expected = BTreeSet::from([format!("10.99.0.{change}")]);
            let begun = Instant::now();
            std::fs::rename(&unfinished, self.dir.join("bench"))?;
            kill(self.pid, Signal::SIGHUP)?;
            wait_for("the change", SOON, || (client.addresses("changing.", Type::A).ok()? == expected).then_some(()))?;
            times.push(begun.elapsed());
        }
        times.sort_unstable();
        Ok(times[times.len() / 2])
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
    }
}

fn text(count: u32, change: u32) -> String {
    let mut text = format!("{HOST4} {OUTSIDE4}\n{:064x} {CLIENT4}  client\n", 1);
    for n in 0..count {
        let _ = writeln!(text, "{:064x} 10.90.{}.{}  name{n},alias{n},{n:012x}", n + 16, n / 250, n % 250);
    }
    let _ = writeln!(text, "{:064x} 10.99.0.{change}  changing", 2);
    text
}
