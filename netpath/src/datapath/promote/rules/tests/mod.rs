//! Rules that real tools write into the kernel, in a network namespace of the test thread's own.

mod matters;
mod neighbours;
mod sources;

use super::*;
use nix::sched::{CloneFlags, unshare};
use std::io::Write;
use std::process::{Command, Stdio};

/// A fresh namespace; false where the test cannot run.
fn alone(test: &str) -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root || !is_there("nft") {
        println!("skip {test}: needs root and nft");
        return false;
    }
    unshare(CloneFlags::CLONE_NEWNET).expect("own network namespace");
    true
}

fn is_there(tool: &str) -> bool {
    Command::new(tool).arg("--version").output().is_ok()
}

/// Gives a tool its input. What the tool says, if it fails.
fn feed(command: &str, input: &str) -> Result<(), String> {
    let mut words = command.split(' ');
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("input");
    let out = child.wait_with_output().expect("its end");
    if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
}

fn nft(ruleset: &str) -> Result<(), String> {
    // Each block ends its line.
    feed("nft -f -", &format!("flush ruleset\n{}", ruleset.replace("} }", "}\n}")))
}

fn tuple(source: &str, destination: &str) -> Tuple {
    Tuple { source: source.parse().expect("an address"), destination: destination.parse().expect("an address") }
}

/// A client outside is connected to a published port.
fn published() -> Flow<'static> {
    Flow {
        protocol: 6,
        original: tuple("198.51.100.7:40000", "192.0.2.1:8080"),
        reply: tuple("10.89.7.5:80", "198.51.100.7:40000"),
        ingress: "eth0",
        ingress_port: None,
        egress: "podman7",
        egress_port: Some("veth1"),
        mark: 0,
    }
}

/// A container is connected to a server outside, masqueraded.
fn outbound() -> Flow<'static> {
    Flow {
        protocol: 6,
        original: tuple("10.89.7.5:50000", "198.51.100.7:443"),
        reply: tuple("198.51.100.7:443", "192.0.2.1:50000"),
        ingress: "podman7",
        ingress_port: Some("veth1"),
        egress: "eth0",
        egress_port: None,
        mark: 0,
    }
}

/// The first over IPv6.
fn published6() -> Flow<'static> {
    Flow {
        original: tuple("[2001:db8::7]:40000", "[2001:db8:1::1]:8080"),
        reply: tuple("[fd41:7::5]:80", "[2001:db8::7]:40000"),
        ..published()
    }
}

fn flows() -> [Flow<'static>; 3] {
    [published(), outbound(), published6()]
}

fn judged(flow: &Flow<'_>) -> Judgement {
    Ruleset::read().expect("the rules").judge(flow)
}

fn is_forbidden(judgement: &Judgement) -> bool {
    matches!(judgement, Judgement::Forbidden { .. })
}
