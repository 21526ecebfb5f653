//! Builds the bench (`tests/bench/`) and its peers, and runs it.

use crate::need::PEER;
use crate::setup::{self, Part};
use crate::steps::Steps;
use crate::test::{executable, run_cargo};
use crate::{apt, build_ebpf, workspace};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Releases that netpath is compared with.
const PEERS: [(&str, &str); 2] = [("netavark", "2.1.0"), ("aardvark-dns", "2.1.0")];
/// The distribution's netavark, for its iptables driver.
const OLD_NETAVARK: [&str; 2] = ["/usr/lib/podman/netavark", "/usr/libexec/podman/netavark"];

const HELP: &str = "\
Figures for `--only`: all of one kind, or one way of it, as in `conn.published`

  tcp       bulk TCP, 1 and 4 streams (iperf3), and the processor time per GB
  tcp-back  the same, the server sends
  udp       UDP, 64 bytes, packets per second
  conn      connect, request, answer, close by 4 clients, and the processor time per 10,000
  tcp-rr    TCP request and answer: median and p99
  udp-rr    UDP request and answer: median and p99
  setup     setup and teardown of one container
  range     setup of one container with a range of 10,000 ports
  many      60 containers, 8 at a time
  ports     1 to 60,000 published ports: setup, and connections per second beside them
  programs  time per packet of the eBPF programs, by BPF_PROG_TEST_RUN

Ways: published, masqueraded, localhost, address, hairpin.

Variants: direct, routed, hop, netavark-nft, netavark-iptables, netpath-tcx, netpath-edge, netpath-xdp, netpath-clsact,
netpath-clsact-edge, netpath-iptables; netpath (as it chooses, with --beside).

Results are printed as Markdown and kept in target/bench: bench.json, bench.md, charts as SVG.";

#[derive(clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// Only these figures
    #[arg(long, value_name = "FIGURE[,…]", value_delimiter = ',')]
    only: Vec<String>,
    /// Only these variants
    #[arg(long, value_name = "VARIANT[,…]", value_delimiter = ',')]
    variants: Vec<String>,
    /// How often each sample is taken; medians are shown [default: 3, with --quick 1]
    #[arg(long)]
    rounds: Option<usize>,
    /// Short samples, one round: a check of the bench and the order of magnitude, in about two minutes
    #[arg(long)]
    quick: bool,
    /// Run beside this software on the same host; compares netpath's own choice with Netavark and the wire
    #[arg(long, value_name = "firewalld|ufw|docker")]
    beside: Option<String>,
    /// Also write the results into this page, between `<!-- bench: begin -->` and `<!-- bench: end -->` (`bench beside ufw`),
    /// and charts beside it
    #[arg(long, value_name = "PAGE")]
    write: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
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
    let mut bench = Command::new(release.join("bench"));
    bench.arg("--out").arg(workspace::target().join("bench"));
    bench.arg("--netpath").arg(release.join("netpath")).arg("--netavark").arg(peers.join("netavark"));
    let old = OLD_NETAVARK.iter().find(|p| Path::new(p).exists()).unwrap_or(&OLD_NETAVARK[0]);
    bench.args(["--old-netavark", old]);
    if args.only.is_empty() || args.only.iter().any(|o| o == "programs") {
        bench.arg("--packet-tests").arg(packet_tests()?);
    }
    for (name, list) in [("--only", &args.only), ("--variants", &args.variants)] {
        if !list.is_empty() {
            bench.args([name, &list.join(",")]);
        }
    }
    if let Some(rounds) = args.rounds {
        bench.args(["--rounds", &rounds.to_string()]);
    }
    if args.quick {
        bench.arg("--quick");
    }
    if let Some(kind) = &args.beside {
        bench.args(["--beside", kind]);
    }
    if let Some(page) = &args.write {
        bench.arg("--write").arg(page);
    }
    let status = bench.status().context("cannot start the bench")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The suite that measures the programs, in the release profile.
fn packet_tests() -> Result<PathBuf> {
    let mut build = workspace::cargo();
    build.args(["test", "--release", "--quiet", "--package", "netpath-tests", "--test", "packet", "--no-run"]);
    let out = run_cargo(build.arg("--message-format=json-render-diagnostics"))?;
    let found = out.lines().filter_map(executable).find(|e| e.target == "packet");
    Ok(found.context("cargo has built no suite packet")?.path)
}

/// Builds Netavark and aardvark-dns from their crates, below `target/tools`; returns the directory.
///
/// # Errors
/// A crate cannot be installed.
pub fn install_peers() -> Result<PathBuf> {
    let root = workspace::tools().join("peer");
    let bin = root.join("bin");
    let missing: Vec<_> = PEERS.into_iter().filter(|(name, version)| !is_version(&bin.join(name), version)).collect();
    if missing.is_empty() {
        return Ok(bin);
    }
    let lacks: Vec<_> = PEER.iter().filter(|n| !n.is_met()).collect();
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
    fn another_release_is_not_the_one_that_is_compared_with() {
        assert!(!is_version(Path::new("/no/such/netavark"), "2.1.0"));
        assert!(!is_version(Path::new(env!("CARGO")), "2.1.0-rc9"));
    }
}
