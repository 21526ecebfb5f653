//! `cargo xtask vm wire`: faults of links and hosts, and whether traffic is right within a second after each.
//!
//! Right means: from the client to the published port and from the container to the client, TCP and UDP, IPv4 and IPv6, the
//! bytes come back and each server has seen the expected source address.

mod cases;

use super::image::Programs;
use super::kernel::{self, Kernel};
use super::qemu::{Acceleration, Qemu};
use super::three_vms::{CLIENT, HOST, ThreeVms, VmSetup, ip};
use crate::setup::{self, Part};
use crate::steps::{Steps, seconds};
use crate::test::run_cargo;
use crate::{build_ebpf, workspace};
use anyhow::{Context, Result, bail, ensure};
use cases::{CASES, Moment};
use report::variants::{Place, Program, Variant, chosen};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub(super) struct Args {
    /// 6.1, 6.12, 7.2, all (these three), or a directory with an unpacked kernel package (`/`: this machine's own)
    #[arg(long, default_value = "7.2", value_name = "KERNEL", num_args = 1..)]
    kernel: Vec<String>,
    /// Only these cases: reboot, flap, down, dhcp, mtu, uplink
    #[arg(long, value_name = "CASE", num_args = 1..)]
    only: Vec<String>,
    /// Only these: netpath-offload, netpath-xdp, netpath-nftables, netpath-iptables
    #[arg(long, value_name = "VARIANT", num_args = 1..)]
    variants: Vec<String>,
    /// If all cases pass, write the times into this page, between `<!-- vm wire: begin -->` and `<!-- vm wire: end -->`
    #[arg(long, value_name = "PAGE", conflicts_with_all = ["only", "variants"])]
    write: Option<PathBuf>,
    /// How guests run [default: KVM if one comes up under it, else TCG]
    #[arg(long, value_enum)]
    acceleration: Option<Acceleration>,
}

/// The port of the container's server, its published port, and the port of the clients' servers.
const SERVED: u16 = 80;
const PUBLISHED: u16 = 8080;
const OUTSIDE: u16 = 7000;
/// By the clock of the probing guest.
const LIMIT: Duration = Duration::from_secs(1);
/// Emulation slows each step by up to thirty times, also in the guests' kernels: this factor is tolerated on a busy machine. On
/// an idle one, all cases but those that wait for a peer's timer meet [`LIMIT`] even so.
const TCG_FACTOR: u32 = 5;
/// Maximum number of checks for leftovers, five per second: the agent ends by itself, and the kernel frees programs
/// asynchronously.
const LEAVING: u32 = 25;

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let names = CASES.map(|(name, ..)| name);
    if let Some(unknown) = args.only.iter().find(|o| !names.contains(&o.as_str())) {
        bail!("--only {unknown}: there is {}", names.join(", "));
    }
    let begun = Instant::now();
    setup::ensure(&[Part::Toolchain, Part::Tests])?;
    build_ebpf::build()?;
    let binary = workspace::released()?;
    run_cargo(workspace::cargo().args(["build", "--quiet", "-p", "netpath-tests", "--bins"]))?;
    let variants = chosen(Place::Guests, &args.variants, |v| v.program() == Some(Program::Netpath))?;
    let programs = Programs { init: workspace::built("guest"), netpath: binary, more: Vec::new() };
    let (mut passed, mut failed) = (0, Vec::new());
    let mut times = Times::default();
    for name in &kernel::expanded(&args.kernel) {
        let mut steps = Steps::of(0);
        let kernel = Kernel::get(name, &mut steps)?;
        let setup = VmSetup::new(Qemu::get(&mut steps)?, kernel, &programs, workspace::built("vm_node"))?;
        let mut vms = ThreeVms::boot(&setup, args.acceleration)?;
        let factor = if vms.acceleration == Acceleration::Tcg { TCG_FACTOR } else { 1 };
        let within = LIMIT * factor;
        println!(
            "Linux {}, three machines under {}: right within {}{}",
            vms.host.release,
            vms.acceleration.name(),
            seconds(within),
            if factor > 1 {
                format!(", {factor} times what it is on a real machine: emulation")
            } else {
                String::new()
            }
        );
        let acceleration = vms.acceleration.name();
        for (machine, name) in [(&mut vms.client, "client"), (&mut vms.second, "second")] {
            machine.ask(&json!({"do": "echo", "port": OUTSIDE, "name": name}))?;
        }
        for variant in &variants {
            let wanted = CASES.iter().filter(|(n, ..)| args.only.is_empty() || args.only.iter().any(|o| o == n));
            let mut wire = Wire { vms: &mut vms, variant, within, far: Value::Null, found: Vec::new() };
            let mut is_fresh = false;
            for (case, what, act) in wanted {
                let done = (if is_fresh { Ok(()) } else { wire.begin() }).and_then(|()| act(&mut wire));
                is_fresh = done.is_ok();
                match done {
                    Ok(moments) => {
                        passed += 1;
                        times.add(&setup.kernel.release, acceleration, variant.key, case, &moments);
                        println!("{:<17} {case:<7} ok    {what}: {}", variant.key, told(&moments));
                    }
                    Err(error) => {
                        println!("{:<17} {case:<7} FAILED {what}: {error:#}", variant.key);
                        println!(
                            "what was ordered and answered: {}",
                            workspace::logs().join("vm-wire-*.log").display()
                        );
                        failed.push(format!("{} {} {case}", setup.kernel.label, variant.key));
                    }
                }
            }
            if is_fresh {
                match wire.end() {
                    Ok(()) => passed += 1,
                    Err(error) => {
                        println!("{:<17} teardown FAILED: {error:#}", variant.key);
                        failed.push(format!("{} {} teardown", setup.kernel.label, variant.key));
                    }
                }
            }
        }
    }
    let (late, all) = times.later_than(LIMIT);
    println!("\n{late} of {all} times are above {}", seconds(LIMIT));
    if let Some(page) = args.write.as_ref().filter(|_| failed.is_empty()) {
        times.write(page)?;
    }
    println!("in {}", seconds(begun.elapsed()));
    // Only --only and --variants leave cases out.
    println!("{passed} passed, {} failed, 0 skipped", failed.len());
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Measured times, by kernel and moment: a row of the page's table, with a column for each variant.
#[derive(Default)]
struct Times(BTreeMap<(String, String, String), BTreeMap<&'static str, f64>>);

impl Times {
    fn add(&mut self, release: &str, how: &str, variant: &'static str, case: &str, moments: &[Moment]) {
        for (what, ms) in moments {
            let row = (format!("{release} ({how})"), case.to_owned(), (*what).to_owned());
            self.0.entry(row).or_default().insert(variant, *ms);
        }
    }

    fn later_than(&self, limit: Duration) -> (usize, usize) {
        let all: Vec<&f64> = self.0.values().flat_map(BTreeMap::values).collect();
        (all.iter().filter(|ms| ***ms > limit.as_secs_f64() * 1e3).count(), all.len())
    }

    fn write(&self, page: &Path) -> Result<()> {
        report::page::write(page, "vm wire", &self.table(), &[])
    }

    fn table(&self) -> String {
        let variants: BTreeSet<&str> = self.0.values().flat_map(BTreeMap::keys).copied().collect();
        let titles: Vec<&str> = variants.iter().copied().collect();
        let mut text = format!("| Linux | case | ms until all is right after | {} |\n", titles.join(" | "));
        text += &format!("|{}\n", " --- |".repeat(titles.len() + 3));
        for ((kernel, case, what), row) in &self.0 {
            let cell = |variant: &&str| row.get(*variant).map_or_else(|| "–".to_owned(), |ms| format!("{ms:.0}"));
            let cells: Vec<String> = variants.iter().map(cell).collect();
            text += &format!("| {kernel} | {case} | {what} | {} |\n", cells.join(" | "));
        }
        text
    }
}

fn told(moments: &[Moment]) -> String {
    moments.iter().map(|(what, ms)| format!("{what} {ms:.0} ms")).collect::<Vec<_>>().join(", ")
}

/// Three machines with a container of one variant.
struct Wire<'t, 'k> {
    vms: &'t mut ThreeVms<'k>,
    variant: &'t Variant,
    within: Duration,
    /// The device of the second uplink, while it has no driver.
    far: Value,
    /// State of the host before its container was set up.
    found: Vec<String>,
}

impl Wire<'_, '_> {
    /// Begins with a host that has just booted, with its container up and its second uplink unplugged.
    fn begin(&mut self) -> Result<()> {
        self.vms.client.ask(&json!({"do": "end", "name": "dhcp-server"}))?;
        self.vms.client.ask(&json!({"do": "narrow", "link": "eth0", "mtu": 0}))?;
        if !self.vms.is_fresh {
            self.vms.restart_host()?;
        }
        self.unplug()?;
        self.found = self.is_there()?;
        self.container()?;
        self.right(HOST[0]).map(drop).context("before anything has happened")
    }

    fn unplug(&mut self) -> Result<()> {
        self.far = self.vms.host.ask(&json!({"do": "unplug", "link": "eth1"}))?;
        Ok(())
    }

    fn container(&mut self) -> Result<()> {
        self.vms.up(self.variant, &[(PUBLISHED, SERVED)])?;
        // Positive control: otherwise the check for their absence at the end would prove nothing.
        for mark in [" /run/netpath/", " netpath-agent"] {
            let is_marked = |line: &String| format!(" {line}").contains(mark);
            ensure!(self.is_there()?.iter().any(is_marked), "no{mark} on a host with a container");
        }
        self.vms.host.ask(&json!({"do": "echo", "container": "web", "port": SERVED, "name": "web"})).map(drop)
    }

    /// Takes the container down; leftovers of netpath are an error.
    fn end(&mut self) -> Result<()> {
        self.vms.down()?;
        let mut left = Vec::new();
        for _ in 0..LEAVING {
            let now = self.is_there()?;
            let more = now.iter().filter(|line| !self.found.contains(line)).map(|line| format!("+ {line}"));
            let less = self.found.iter().filter(|line| !now.contains(line)).map(|line| format!("- {line}"));
            left = more.chain(less).collect();
            if left.is_empty() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        bail!("left behind or missing: {}", left.join(", "))
    }

    /// Objects that backends may leave on hosts.
    fn is_there(&mut self) -> Result<Vec<String>> {
        let lines = self.vms.host.ask(&json!({"do": "left"}))?;
        serde_json::from_value(lines).context("the objects on the host are not lines of text")
    }

    /// Milliseconds until traffic of the first uplink is right, for a host with the IPv4 address `host4`.
    fn right(&mut self, host4: &str) -> Result<f64> {
        self.right_with(host4, 1_000)
    }

    fn right_with(&mut self, host4: &str, bytes: usize) -> Result<f64> {
        let (inward, outward) = ways([host4, HOST[1]], CLIENT, "client", bytes);
        let [client, host] = [&inward, &outward].map(|probes| self.probing(probes));
        self.vms.client.send(&client)?;
        self.vms.host.send(&host)?;
        // Both answers are read, whatever the first one is: otherwise the next read would return the second.
        let answers = [self.vms.client.answer(), self.vms.host.answer()];
        slowest(answers)
    }

    fn probing(&self, probes: &Value) -> Value {
        json!({"do": "probe", "probes": probes, "within_ms": self.within.as_millis() as u64})
    }

    fn long_lived(&mut self) -> Result<()> {
        let probe = json!({"udp": false, "to": at(HOST[0], PUBLISHED)});
        self.vms.client.ask(&json!({"do": "long_lived", "name": "long_lived", "probe": probe})).map(drop)
    }

    /// The connection has noticed no more than a pause.
    fn long_lived_is_there(&mut self) -> Result<()> {
        self.vms.client.ask(&json!({"do": "goes_on", "name": "long_lived"})).map(drop)
    }

    fn long_lived_ends(&mut self) -> Result<()> {
        self.long_lived_is_there()?;
        self.vms.client.ask(&json!({"do": "finish", "name": "long_lived"})).map(drop)
    }

    fn host_ip(&mut self, lines: &str) -> Result<()> {
        self.vms.host.ask(&ip(lines)).map(drop)
    }
}

/// Probes from a machine at `outside` to the published port, and from the container to the server `name` there.
fn ways(host: [&str; 2], outside: [&str; 2], name: &str, bytes: usize) -> (Value, Value) {
    let mut inward = Vec::new();
    let mut outward = Vec::new();
    for (host, outside) in host.into_iter().zip(outside) {
        for udp in [false, true] {
            // A datagram that fits one frame, and one that does not.
            let bytes = if udp { bytes.min(1_400) } else { bytes };
            inward
                .push(json!({"udp": udp, "to": at(host, PUBLISHED), "server": "web", "seen": outside, "bytes": bytes}));
            outward.push(json!({
                "container": "web", "udp": udp, "to": at(outside, OUTSIDE), "server": name, "seen": host, "bytes": bytes,
            }));
        }
    }
    (inward.into(), outward.into())
}

fn at(ip: &str, port: u16) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

/// The largest value in all answers, in milliseconds.
fn slowest(answers: [Result<Value>; 2]) -> Result<f64> {
    let mut most = 0.0_f64;
    let mut failed = Vec::new();
    for answer in answers {
        match answer {
            Ok(took) => most = took.as_array().into_iter().flatten().filter_map(Value::as_f64).fold(most, f64::max),
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    if failed.is_empty() { Ok(most) } else { bail!("{}", failed.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_a_row_for_each_moment_and_a_column_for_each_variant() {
        let mut times = Times::default();
        times.add("7.2.12", "TCG", "offload", "flap", &[("once", 60.4), ("five times", 1_200.0)]);
        times.add("7.2.12", "TCG", "xdp", "flap", &[("once", 70.0)]);
        assert_eq!((1, 3), times.later_than(LIMIT));
        let table = times.table();
        assert!(table.contains("| 7.2.12 (TCG) | flap | five times | 1200 | – |"), "{table}");
        assert!(table.contains("| 7.2.12 (TCG) | flap | once | 60 | 70 |"), "{table}");
    }

    #[test]
    fn of_two_answers_the_slowest_counts_and_each_error_is_reported() {
        assert_eq!(7.0, slowest([Ok(json!([1.0, 7.0])), Ok(json!([3.0]))]).expect("right"));
        let error = slowest([Err(anyhow::anyhow!("a")), Err(anyhow::anyhow!("b"))]).expect_err("wrong").to_string();
        assert_eq!("a; b", error);
    }

    #[test]
    fn every_way_is_asked_in_both_families_and_protocols() {
        let (inward, outward) = ways(HOST, CLIENT, "client", 20_000);
        assert_eq!((4, 4), (inward.as_array().map_or(0, Vec::len), outward.as_array().map_or(0, Vec::len)));
        assert_eq!("[2001:db8:1::1]:8080", inward[3]["to"]);
        assert_eq!(
            ("192.0.2.1", 1_400),
            (outward[1]["seen"].as_str().unwrap_or(""), outward[1]["bytes"].as_i64().unwrap_or(0))
        );
    }
}
