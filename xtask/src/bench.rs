//! Builds the bench (`tests/bench/`) and its peers, and runs it.

use crate::need::PEER;
use crate::setup::{self, Part};
use crate::steps::Steps;
use crate::{apt, build_ebpf, workspace};
use anyhow::{Context, Result, bail};
use report::variants::{Place, keys};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Releases that netpath is compared with.
const PEERS: [(&str, &str); 2] = [("netavark", "2.1.0"), ("aardvark-dns", "2.1.0")];
/// The distribution's netavark, for its iptables driver.
const OLD_NETAVARK: [&str; 2] = ["/usr/lib/podman/netavark", "/usr/libexec/podman/netavark"];

/// Figures for `--only`: all of one kind, or one way of it, as in `conn.published`.
const FIGURES: [(&str, &str); 13] = [
    ("tcp", "bulk TCP, 1 and 4 streams (iperf3), and the processor time per GB"),
    ("tcp-back", "the same, the server sends"),
    ("udp", "UDP, 64 bytes, packets per second"),
    ("conn", "connect, request, answer, close by 4 clients, and the processor time per 10,000"),
    ("tcp-rr", "TCP request and answer: median and p99"),
    ("udp-rr", "UDP request and answer: median and p99"),
    ("setup", "setup and teardown of one container"),
    ("lone", "setup and teardown of a container that is alone, not for the first time"),
    ("range", "setup of one container with a range of 10,000 ports"),
    ("many", "60 containers, 8 at a time"),
    ("ports", "1 to 60,000 published ports: setup, and connections per second beside them"),
    ("dns", "container DNS by 4 clients (dnsperf): queries per second, p99, memory, and how soon a change is visible"),
    ("programs", "time per packet of the eBPF programs, by BPF_PROG_TEST_RUN"),
];

fn help() -> String {
    let figures: String = FIGURES.iter().map(|(name, what)| format!("  {name:<9} {what}\n")).collect();
    format!(
        "Figures for `--only`: all of one kind, or one way of it, as in `conn.published`\n\n{figures}\n\
         Ways: published, masqueraded, localhost, address, hairpin.\n\n\
         Variants: {}; netpath: as it chooses, with --beside.\n\n\
         Results are printed as Markdown and kept in target/bench: bench.json, bench.md, charts as SVG.",
        keys(Place::Host)
    )
}

/// Of both ways to measure: in namespaces of this host, and between virtual machines (`cargo xtask vm perf`).
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only these figures
    #[arg(long, value_name = "FIGURE", num_args = 1.., value_delimiter = ',')]
    pub only: Vec<String>,
    /// Only these variants
    #[arg(long, value_name = "VARIANT", num_args = 1.., value_delimiter = ',')]
    pub variants: Vec<String>,
    /// How often each sample is taken; medians are shown [default: 3]
    #[arg(long)]
    pub rounds: Option<usize>,
    /// Also write the results into this page, between the marks of the command, and charts beside it
    #[arg(long, value_name = "PAGE")]
    pub write: Option<PathBuf>,
}

impl Options {
    /// # Errors
    /// A figure is none of these; `has_ways`: one may have a way behind a full stop.
    pub(crate) fn check(&self, figures: &[&str], has_ways: bool) -> Result<()> {
        let name =
            |o: &'_ String| if has_ways { o.split('.').next().unwrap_or_default().to_owned() } else { o.clone() };
        match self.only.iter().find(|o| !figures.contains(&name(o).as_str())) {
            Some(other) => bail!("--only {other}: there is {}", figures.join(", ")),
            None => Ok(()),
        }
    }
}

#[derive(clap::Args)]
#[command(after_help = help())]
pub(crate) struct Args {
    #[command(flatten)]
    common: Options,
    /// Short samples, one round: a check of the bench and the order of magnitude, in about two minutes
    #[arg(long)]
    quick: bool,
    /// Run beside this software on the same host; compares netpath's own choice with Netavark and the wire
    #[arg(long, value_name = "firewalld|ufw|docker")]
    beside: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    args.common.check(&FIGURES.map(|(name, _)| name), true)?;
    if !apt::is_root() {
        bail!("the bench makes network namespaces and needs root\n  next: sudo -E cargo xtask bench");
    }
    let mut parts = vec![Part::Toolchain, Part::Tests, Part::Engine];
    parts.extend(args.beside.as_ref().map(|_| Part::Neighbours));
    setup::ensure(&parts)?;
    let peers = install_peers()?;
    build_ebpf::build()?;
    let mut steps = Steps::of(2);
    for (package, binary) in [("netpath", "netpath"), ("netpath-tests", "bench")] {
        let mut build = workspace::cargo();
        build.args(["build", "--release", "--quiet", "--package", package, "--bin", binary]);
        steps.run(&format!("{binary}, optimized"), &mut build)?;
    }

    let release = workspace::target().join("release");
    let old = OLD_NETAVARK.iter().find(|p| Path::new(p).exists()).unwrap_or(&OLD_NETAVARK[0]);
    let Options { only, variants, rounds, write } = &args.common;
    let options = json!({
        "only": only, "variants": variants, "rounds": rounds.unwrap_or(if args.quick { 1 } else { 3 }),
        "quick": args.quick, "beside": args.beside, "write": write, "out": workspace::target().join("bench"),
        "places": {"netpath": release.join("netpath"), "netavark": peers.join("netavark"), "old_netavark": old},
    });
    let status =
        Command::new(release.join("bench")).arg(options.to_string()).status().context("cannot start the bench")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds Netavark and aardvark-dns from their crates, below `target/tools`; returns the directory.
///
/// # Errors
/// A crate cannot be installed.
pub(crate) fn install_peers() -> Result<PathBuf> {
    let root = workspace::tools().join("peer");
    let bin = root.join("bin");
    let missing: Vec<_> = PEERS.into_iter().filter(|(name, version)| !is_version(&bin.join(name), version)).collect();
    let lacks: Vec<_> = PEER.iter().filter(|n| !n.is_met()).collect();
    if missing.is_empty() && lacks.is_empty() {
        return Ok(bin);
    }
    let mut steps = Steps::of(missing.len() + usize::from(!lacks.is_empty()));
    if !lacks.is_empty() {
        setup::install_needs(&mut steps, &lacks)?;
    }
    let build = workspace::tools().join("build");
    for (name, version) in missing {
        let mut install = workspace::cargo();
        workspace::clean_environment(&mut install);
        install.args(["install", name, "--version", version, "--locked", "--force", "--root"]).arg(&root);
        install.env("CARGO_TARGET_DIR", &build);
        steps.run(&format!("{name} {version}, from its crate"), &mut install)?;
    }
    let _ = std::fs::remove_dir_all(build);
    Ok(bin)
}

fn is_version(program: &Path, version: &str) -> bool {
    let out = Command::new(program).arg("--version").output();
    out.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).split_whitespace().any(|word| word == version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_figure_is_refused_with_those_there_are() {
        let options =
            |only: &str| Options { only: vec![only.to_owned()], variants: Vec::new(), rounds: None, write: None };
        let error = options("dhcp").check(&["conn", "tcp-rr"], true).expect_err("no such figure").to_string();
        assert!(error.contains("dhcp") && error.contains("tcp-rr"), "{error}");
        assert!(options("conn.local").check(&["conn"], true).is_ok());
        assert!(options("conn.local").check(&["conn"], false).is_err());
    }

    #[test]
    fn another_release_is_not_the_one_that_is_compared_with() {
        assert!(!is_version(Path::new("/no/such/netavark"), "2.1.0"));
        assert!(!is_version(Path::new(env!("CARGO")), "2.1.0-rc9"));
    }
}
