//! `cargo xtask vm perf`: speed of a published port for clients on other machines, on netpath's paths and on Netavark.
//!
//! The host has one variant up at a time. Each round runs all variants in a new order, so that a slow period of the machine
//! affects all, and ratios are computed within a round. Under TCG speed depends on the number of instructions: ratios are
//! meaningful there, absolute figures are not.

use super::image::Programs;
use super::in_use;
use super::kernel::Kernel;
use super::machine::Machine;
use super::qemu::{Acceleration, Qemu};
use super::three_vms::{CLIENT, HOST, HOST_FAR, ThreeVms, VmSetup};
use crate::bench::{self, Options};
use crate::setup::{self, Part};
use crate::steps::{Steps, seconds};
use crate::test::run_cargo;
use crate::{build_ebpf, need, workspace};
use anyhow::{Context, Result, bail};
use report::ratios::Ratios;
use report::results::{Better, Figure, Results};
use report::run::{self, Files, Run, is_compared};
use report::variants::{PEER_IN_GUESTS, Place, Variant, chosen, keys};
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
#[command(after_help = help())]
pub(super) struct Args {
    #[command(flatten)]
    common: Options,
    /// 6.1, 6.12, 7.2, or a directory with an unpacked kernel package (`/`: this machine's own)
    #[arg(long, default_value = "7.2", value_name = "KERNEL")]
    kernel: String,
    /// How guests run [default: KVM if one comes up under it, else TCG]
    #[arg(long, value_enum)]
    acceleration: Option<Acceleration>,
}

fn help() -> String {
    format!(
        "Figures: {}.\n\nVariants: {}.\n\n--write requires all figures, all variants and two rounds; JSON is written beside the \
         page, too.\n\nResults are printed as Markdown and kept in target/vm/perf: perf.json, perf.md, vm-perf.svg.",
        JOBS.map(|(name, _)| name).join(", "),
        keys(Place::Guests)
    )
}

impl Args {
    fn rounds(&self) -> usize {
        self.common.rounds.unwrap_or(3).max(1)
    }

    /// Whether figures or variants are missing, or there are no medians.
    fn is_partial(&self) -> bool {
        !self.common.only.is_empty() || !self.common.variants.is_empty() || self.rounds() < 2
    }
}

/// Duration of each sample of traffic. iperf3 takes whole seconds.
const SAMPLE: Duration = Duration::from_secs(2);
/// Maximum number of idle checks, one per second, and the processor share of an idle host: under emulation its timer tick alone
/// uses some.
const SETTLING: usize = 20;
const IDLE: f64 = 0.15;
/// Maximum number of checks for the end of a flood, ten per second.
const DRAINING: usize = 100;
/// Buckets and maximum of the host's conntrack table. By a guest's memory both would be 8,192: an entry stays for two minutes
/// after its end, so a few turns fill the table, and new connections are dropped.
const TRACKED: [(&str, &str); 2] = [("buckets", "65536"), ("max", "262144")];
/// Uplinks of the host.
const UPLINKS: [&str; 2] = ["eth0", "eth1"];
/// Ports of the container's servers (tests/vm_node/measure.rs); the published ports are greater by [`SHIFT`].
const ONCE: u16 = 80;
const ECHO: u16 = 81;
const BULK: u16 = 82;
const SHIFT: u16 = 8000;
/// Payload of a datagram that nearly fills a frame.
const LARGE: u16 = 1_400;

type Sample = Vec<(Figure, f64)>;
type Job = fn(&mut ThreeVms<'_>) -> Result<Sample>;

/// Jobs by the name of their first figure.
const JOBS: [(&str, Job); 10] = [
    ("tcp", tcp),
    ("tcp-back", tcp_back),
    ("udp", udp),
    ("udp64", udp64),
    ("udp64-both", udp64_both),
    ("conn", conn),
    ("conn-both", conn_both),
    ("conn-out", conn_out),
    ("tcp-rr", |vms| round_trips(vms, false)),
    ("udp-rr", |vms| round_trips(vms, true)),
];

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let Options { only, variants, write, .. } = &args.common;
    args.common.check(&JOBS.map(|(name, _)| name), false)?;
    if write.is_some() && args.is_partial() {
        bail!(
            "--write: the table of a page is of all figures and variants, and of medians\n  \
             next: leave out --only and --variants, and take two --rounds or more"
        );
    }
    let jobs: Vec<_> = JOBS.into_iter().filter(|(n, _)| only.is_empty() || only.iter().any(|o| o == n)).collect();
    let begun = Instant::now();
    setup::ensure(&[Part::Toolchain, Part::Tests])?;
    let peers = bench::install_peers()?;
    build_ebpf::build()?;
    let binary = workspace::released()?;
    // The tests package is optimized in every profile.
    run_cargo(workspace::cargo().args(["build", "--quiet", "-p", "netpath-tests", "--bins"]))?;
    let variants = chosen(Place::Guests, variants, |_| true)?;
    let more = vec![
        ("netavark", peers.join("netavark")),
        ("aardvark-dns", peers.join("aardvark-dns")),
        ("iperf3", need::program("iperf3").context("iperf3 is missing")?),
    ];
    let programs = Programs { init: workspace::built("guest"), netpath: binary, more };
    let mut steps = Steps::of(0);
    let kernel = Kernel::get(&args.kernel, &mut steps)?;
    let setup = VmSetup::new(Qemu::get(&mut steps)?, kernel, &programs, workspace::built("vm_node"))?;
    let mut vms = ThreeVms::boot(&setup, args.acceleration)?;
    prepare(&mut vms)?;
    let (mut results, mut failed) = (Results::default(), Vec::new());
    let rounds = args.rounds();
    for round in 0..rounds {
        for turn in 0..variants.len() {
            let variant = variants[(turn + round) % variants.len()];
            let since = Instant::now();
            if let Err(error) = measure(&mut vms, variant, &jobs, round, &mut results) {
                let wrong = format!("{}, round {}: {error:#}", variant.title, round + 1);
                results.note(wrong.clone());
                failed.push(wrong);
            }
            let done = round * variants.len() + turn + 1;
            println!("[{done}/{}] {} … {}", rounds * variants.len(), variant.title, seconds(since.elapsed()));
        }
    }
    let run = Run {
        variants,
        results: &results,
        rounds,
        bases: &[(PEER_IN_GUESTS, "netavark 2.1", "of_netavark")],
        head: head(&vms, rounds),
        facts: json!({
            "netpath": workspace::version(), "kernel": vms.host.release, "acceleration": vms.acceleration.name(),
            "instruction_bound": is_emulated(&vms), "sample_ms": SAMPLE.as_millis() as u64,
        }),
    };
    let files = Files {
        directory: &workspace::target().join("vm/perf"),
        stem: "perf",
        page: write.as_deref().map(|page| (page, "vm perf".to_owned())),
        data: Some("vm-perf.json"),
        charts: vec![("vm-perf.svg", chart(&run, is_emulated(&vms)))],
    };
    run.keep(&files, "")?;
    println!("measured in {}", seconds(begun.elapsed()));
    failed.iter().for_each(|wrong| println!("FAILED {wrong}"));
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn is_emulated(vms: &ThreeVms<'_>) -> bool {
    vms.acceleration == Acceleration::Tcg
}

/// Machine and conditions.
fn head(vms: &ThreeVms<'_>, rounds: usize) -> String {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let caution = if is_emulated(vms) {
        " **Emulated (TCG): speed depends on the number of instructions, so only the ratios are meaningful.**"
    } else {
        ""
    };
    format!(
        "{}, Linux {} in three guests under {} on {processors} processors, virtio-net without offloads; {}, {} s per sample, \
         IPv4.{caution}\n\n",
        workspace::version(),
        vms.host.release,
        vms.acceleration.name(),
        run::rounds(rounds),
        SAMPLE.as_secs()
    )
}

/// Improvement as a factor: where less is better, the inverse of the ratio.
fn chart(run: &Run<'_>, is_emulated: bool) -> String {
    let judged: Vec<_> = run.variants.iter().filter(|v| v.key != PEER_IN_GUESTS).collect();
    let rows = run.results.figures.iter().filter(|f| is_compared(&f.key)).map(|figure| {
        let good = |v: &&&Variant| {
            let ratio = run.ratio(&figure.key, v.key, PEER_IN_GUESTS)?;
            Some(if figure.better == Better::Less { 1.0 / ratio } else { ratio })
        };
        (figure.title.as_str(), judged.iter().map(good).collect())
    });
    let emulated = if is_emulated { " (emulated)" } else { "" };
    Ratios {
        title: &format!("Times as good as netavark 2.1, between virtual machines{emulated}"),
        base: "netavark 2.1",
        variants: judged.iter().map(|v| v.title).collect(),
        rows: rows.collect(),
    }
    .svg()
}

/// Sets up both uplinks, and keeps bridged packets out of netfilter, as on a host without br_netfilter.
fn prepare(vms: &mut ThreeVms<'_>) -> Result<()> {
    vms.second_uplink()?;
    for family in ["iptables", "ip6tables"] {
        let name = format!("net/bridge/bridge-nf-call-{family}");
        vms.host.ask(&json!({"do": "sysctl", "name": name, "value": "0"}))?;
    }
    for (name, value) in TRACKED {
        vms.host.ask(&json!({"do": "sysctl", "name": format!("net/netfilter/nf_conntrack_{name}"), "value": value}))?;
    }
    vms.client.ask(&json!({"do": "serve"})).map(drop)
}

/// Removes what variants leave behind: ended connections, and the peer's table, whose chains keep conntrack active for all
/// packets.
fn tidied(vms: &mut ThreeVms<'_>) -> Result<()> {
    const LEFT: [&str; 4] =
        ["conntrack -F", "nft add table inet netavark", "nft delete table inet netavark", "nft list ruleset"];
    let mut rules = Value::Null;
    for words in LEFT {
        let mut words = words.split(' ');
        let program = words.next();
        rules = vms.host.ask(&json!({"do": "run", "program": program, "arguments": words.collect::<Vec<_>>()}))?;
    }
    match rules.as_str() {
        None | Some("") => Ok(()),
        Some(rules) => bail!("rules left behind:\n{rules}"),
    }
}

/// One turn of one variant.
///
/// # Errors
/// The setup fails, or some figures cannot be measured; the others are in `results` nevertheless.
fn measure(
    vms: &mut ThreeVms<'_>,
    variant: &Variant,
    jobs: &[(&str, Job)],
    round: usize,
    results: &mut Results,
) -> Result<()> {
    let measured = figures_of(vms, variant, jobs, round, results);
    // Always, also after a setup whose answer came too late: the next variant uses the same names and ports.
    let down = vms.down();
    let tidy = tidied(vms);
    measured.and(down.map(drop)).and(tidy)
}

fn figures_of(
    vms: &mut ThreeVms<'_>,
    variant: &Variant,
    jobs: &[(&str, Job)],
    round: usize,
    results: &mut Results,
) -> Result<()> {
    vms.up(variant, &[ONCE, ECHO, BULK].map(|port| (port + SHIFT, port)))?;
    in_use::check(variant, &vms.host.ask(&json!({"do": "status"}))?, &UPLINKS)?;
    vms.host.ask(&json!({"do": "serve", "container": "web"}))?;
    if !settles(vms)? {
        results.note(format!("{}, round {}: the host was not idle when it began", variant.title, round + 1));
    }
    let mut failed = Vec::new();
    for (name, job) in jobs {
        match job(vms) {
            Ok(sample) => sample.iter().for_each(|(figure, value)| results.add(figure, variant.key, round, *value)),
            Err(error) => failed.push(format!("{name}: {error:#}")),
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("; ")) }
}

/// Waits until the host is idle: work that a setup leaves behind, such as an agent that starts, must not count for the path.
/// `false`: it never was.
fn settles(vms: &mut ThreeVms<'_>) -> Result<bool> {
    for _ in 0..SETTLING {
        let begun = Instant::now();
        let ((), used) = with_cost(vms, |_| {
            std::thread::sleep(Duration::from_secs(1));
            Ok(())
        })?;
        if used < begun.elapsed().as_secs_f64() * IDLE {
            return Ok(true);
        }
    }
    Ok(false)
}

fn to(host: [&str; 2], port: u16) -> String {
    format!("{}:{}", host[0], port + SHIFT)
}

fn of(machine: &mut Machine, what: Value) -> Result<Value> {
    machine.ask(&json!({"do": "measure", "what": what}))
}

/// Measures in the container on the host.
fn of_web(vms: &mut ThreeVms<'_>, what: Value) -> Result<Value> {
    vms.host.ask(&json!({"do": "measure", "container": "web", "what": what}))
}

fn field(value: &Value, name: &str) -> Result<f64> {
    value[name].as_f64().with_context(|| format!("{name} is missing in {value}"))
}

fn busy(vms: &mut ThreeVms<'_>) -> Result<f64> {
    of(&mut vms.host, json!("busy"))?.as_f64().context("no time of processors")
}

/// The result of `work`, and the seconds that the host's processors were busy with it.
fn with_cost<T>(vms: &mut ThreeVms<'_>, work: impl FnOnce(&mut ThreeVms<'_>) -> Result<T>) -> Result<(T, f64)> {
    let before = busy(vms)?;
    let done = work(vms)?;
    Ok((done, busy(vms)? - before))
}

/// Sends the same command to both clients at once, each with the host's address on its side.
fn both(vms: &mut ThreeVms<'_>, what: impl Fn(String) -> Value) -> Result<[Value; 2]> {
    let command = |host| json!({"do": "measure", "what": what(to(host, ONCE))});
    vms.client.send(&command(HOST))?;
    vms.second.send(&command(HOST_FAR))?;
    let answers = [vms.client.answer(), vms.second.answer()];
    let [first, second] = answers;
    Ok([first?, second?])
}

fn bulk(vms: &mut ThreeVms<'_>, back: bool) -> Result<(Value, f64)> {
    let what = json!({"tcp": {"to": to(HOST, BULK), "streams": 1, "back": back, "seconds": SAMPLE.as_secs()}});
    with_cost(vms, |vms| of(&mut vms.client, what))
}

fn tcp(vms: &mut ThreeVms<'_>) -> Result<Sample> {
    let (done, used) = bulk(vms, false)?;
    Ok(vec![
        (Figure::more("tcp", "TCP, iperf3", "Mb/s"), field(&done, "gbit_per_second")? * 1e3),
        (Figure::less("cpu-tcp", "host CPU, TCP", "ms/GB"), 1e3 * used / (field(&done, "bytes")? / 1e9)),
    ])
}

fn tcp_back(vms: &mut ThreeVms<'_>) -> Result<Sample> {
    let (done, _) = bulk(vms, true)?;
    Ok(vec![(Figure::more("tcp-back", "TCP, the container sends", "Mb/s"), field(&done, "gbit_per_second")? * 1e3)])
}

fn udp(vms: &mut ThreeVms<'_>) -> Result<Sample> {
    let what = json!({"udp": {"to": to(HOST, BULK), "bytes": LARGE, "seconds": SAMPLE.as_secs()}});
    let done = of(&mut vms.client, what)?;
    Ok(vec![
        (Figure::more("udp", "UDP 1,400 B, iperf3", "Mb/s"), field(&done, "gbit_per_second")? * 1e3),
        (Figure::less("udp-lost", "lost of it", "%"), field(&done, "lost_percent")?),
    ])
}

fn flood(to: String) -> Value {
    json!({"flood": {"to": to, "ms": SAMPLE.as_millis() as u64}})
}

/// Datagrams that reached the container while `send` ran.
fn sunk<T>(vms: &mut ThreeVms<'_>, send: impl FnOnce(&mut ThreeVms<'_>) -> Result<T>) -> Result<(T, f64, f64)> {
    let count = |vms: &mut ThreeVms<'_>| of_web(vms, json!("sunk"))?.as_f64().context("no count");
    let before = count(vms)?;
    let (sent, used) = with_cost(vms, send)?;
    let received = count(vms)? - before;
    // Datagrams still in flight count neither for this figure nor for the next.
    let mut last = before + received;
    for _ in 0..DRAINING {
        std::thread::sleep(Duration::from_millis(100));
        let now = count(vms)?;
        if now == last {
            return Ok((sent, received, used));
        }
        last = now;
    }
    bail!("datagrams come after all were sent, for {} s", DRAINING / 10)
}

fn udp64(vms: &mut ThreeVms<'_>) -> Result<Sample> {
    let (sent, received, used) = sunk(vms, |vms| of(&mut vms.client, flood(to(HOST, ONCE))))?;
    Ok(vec![
        (Figure::more("udp64", "UDP 64 B", "kpps"), received / field(&sent, "seconds")? / 1e3),
        (Figure::less("cpu-udp64", "host CPU, UDP 64 B", "ms/100,000"), 1e3 * used / (received.max(1.0) / 1e5)),
    ])
}

fn udp64_both(vms: &mut ThreeVms<'_>) -> Result<Sample> {
    let ([one, two], received, _) = sunk(vms, |vms| both(vms, flood))?;
    let took = field(&one, "seconds")?.max(field(&two, "seconds")?);
    Ok(vec![(Figure::more("udp64-both", "UDP 64 B, both clients", "kpps"), received / took / 1e3)])
}

fn connections(to: String) -> Value {
    json!({"connections": {"to": to, "ms": SAMPLE.as_millis() as u64}})
}

/// Connections per second; a failed connection is an error.
fn rate(done: &Value) -> Result<f64> {
    let failed = field(done, "failed")?;
    if failed > 0.0 {
        bail!("{failed} of {} connections failed: {}", done["connections"], done["error"]);
    }
    field(done, "per_second")
}

fn conn(vms: &mut ThreeVms<'_>) -> Result<Sample> {
    let (done, used) = with_cost(vms, |vms| of(&mut vms.client, connections(to(HOST, ONCE))))?;
    Ok(vec![
        (Figure::more("conn", "connect, request, close", "conn/s"), rate(&done)?),
        (
            Figure::less("cpu-conn", "host CPU, connections", "ms/1,000"),
            1e3 * used / (field(&done, "connections")?.max(1.0) / 1e3),
        ),
    ])
}

fn conn_both(vms: &mut ThreeVms<'_>) -> Result<Sample> {
    let [one, two] = both(vms, connections)?;
    Ok(vec![(Figure::more("conn-both", "the same, both clients", "conn/s"), rate(&one)? + rate(&two)?)])
}

/// Masqueraded connections.
fn conn_out(vms: &mut ThreeVms<'_>) -> Result<Sample> {
    let done = of_web(vms, connections(format!("{}:{ONCE}", CLIENT[0])))?;
    Ok(vec![(Figure::more("conn-out", "the same, container → client", "conn/s"), rate(&done)?)])
}

fn round_trips(vms: &mut ThreeVms<'_>, udp: bool) -> Result<Sample> {
    let what = json!({"round_trips": {"to": to(HOST, ECHO), "udp": udp, "ms": SAMPLE.as_millis() as u64}});
    let done = of(&mut vms.client, what)?;
    let (key, name) = if udp { ("udp-rr", "UDP") } else { ("tcp-rr", "TCP") };
    Ok(vec![
        (Figure::less(key, format!("{name} request and answer"), "µs"), field(&done, "median_us")?),
        (Figure::less(format!("{key}-p99"), format!("{name} request and answer, p99"), "µs"), field(&done, "p99_us")?),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args as _, Command, FromArgMatches};

    fn parsed(arguments: &[&str]) -> Args {
        let command = Args::augment_args(Command::new("perf").no_binary_name(true));
        let matches = command.try_get_matches_from(arguments).expect("arguments");
        Args::from_arg_matches(&matches).expect("arguments")
    }

    #[test]
    fn a_list_has_commas_or_blanks() {
        for list in [["--only", "tcp,udp", "conn"], ["--only", "tcp", "udp,conn"]] {
            assert_eq!(["tcp", "udp", "conn"], *parsed(&list).common.only);
        }
    }

    #[test]
    fn a_part_of_the_run_does_not_replace_the_table_of_a_page() {
        assert!(!parsed(&[]).is_partial() && !parsed(&["--rounds", "2"]).is_partial());
        for part in [["--only", "tcp"], ["--variants", "netavark"], ["--rounds", "1"]] {
            let error = run(&parsed(&[&part[..], &["--write", "page"]].concat())).expect_err("refused").to_string();
            assert!(error.contains("--write") && error.contains("next: "), "{error}");
        }
    }
}
