//! Command line, standard input and the format of errors.

use anyhow::{Context, Result, ensure};
use std::io::Write;
use std::process::{Command, Stdio};
use support::example::worked_example;
use support::host::{SOON, wait_for};
use support::need;
use support::netavark::{Netavark, Shape};
use support::residue::Residue;
use support::topology::Topology;

#[test]
fn version_is_printed_in_both_forms() -> Result<()> {
    need!(need::root());
    let topology = Topology::new()?;
    let netavark = Netavark::with(&topology, &[])?;
    let flag = netavark.call(&["--version"], b"")?;
    assert!(flag.status.success() && flag.stdout.starts_with("netavark "), "{flag}");
    if !support::netavark::is_incumbent() {
        assert!(flag.stdout.starts_with("netavark 2.1.0 (netpath ") && flag.stdout.ends_with(")\n"), "{flag}");
    }
    let verb = netavark.call(&["version"], b"")?.json()?;
    for key in ["version", "commit", "build_time", "target"] {
        assert!(verb[key].is_string(), "{key} in {verb}");
    }
    Ok(())
}

#[test]
fn default_fw_driver_is_printed() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let verb = Netavark::with(&topology, &[])?.call(&["version"], b"")?.json()?;
    assert_eq!(
        ("2.1.0", "nftables"),
        (verb["version"].as_str().unwrap_or(""), verb["default_fw_driver"].as_str().unwrap_or(""))
    );
    assert!(verb["build_time"].as_str().is_some_and(|t| t.starts_with("20") && t.ends_with('Z')), "{verb}");
    assert!(verb["netpath"].is_string(), "{verb}");
    Ok(())
}

#[test]
fn a_usage_error_is_text_on_stderr_and_exit_2() -> Result<()> {
    need!(need::root());
    let topology = Topology::new()?;
    let netavark = Netavark::with(&topology, &[])?;
    for verb in [&["frobnicate"][..], &["setup"], &["update", "front"]] {
        let answer = netavark.call(verb, b"")?;
        assert_eq!(Some(2), answer.status.code(), "{verb:?}: {answer}");
        assert!(answer.stdout.is_empty() && !answer.stderr.is_empty(), "{verb:?}: {answer}");
    }
    Ok(())
}

/// Podman writes its whole document before it waits for the end, into a pipe that stays open.
#[test]
fn a_large_document_is_read_before_an_error_is_reported() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let netavark = Netavark::with(&topology, &[])?;
    let mut document = worked_example(Shape::Array, "5d2f");
    document["networks"][0]["aliases"] = (0..40_000).map(|i| format!("alias-{i:05}")).collect();
    let input = document.to_string();
    ensure!(input.len() > 8 * 65_536);
    let missing = topology.dir().join("no-such-netns");
    for path in [missing.to_string_lossy().as_ref(), "/dev/null", ""] {
        let mut command = netavark.command(&["setup", path]);
        let (written, status, stdout) = topology.host.run(|| talk(&mut command, input.as_bytes()))?;
        ensure!(written, "setup {path:?} ended before it had read its input");
        assert_eq!(Some(1), status, "setup {path:?}: {stdout}");
        let error: serde_json::Value = serde_json::from_str(&stdout).with_context(|| stdout.clone())?;
        assert_eq!(1, error.as_object().map_or(0, serde_json::Map::len), "{stdout}");
        assert!(error["error"].is_string(), "{stdout}");
    }
    Ok(())
}

/// Whether all input was read, the exit code, and the output.
fn talk(command: &mut Command, input: &[u8]) -> Result<(bool, Option<i32>, String)> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut pipe = child.stdin.take().context("no pipe")?;
    let written = pipe.write_all(input).is_ok();
    drop(pipe);
    let out = child.wait_with_output()?;
    Ok((written, out.status.code(), String::from_utf8_lossy(&out.stdout).into_owned()))
}

#[test]
fn setup_without_a_config_directory_is_refused() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let netavark = Netavark::with(&topology, &[])?;
    let shop = topology.container("shop")?;
    let program = netavark.command(&[]).get_program().to_owned();
    let mut command = Command::new(program);
    command.arg("setup").arg(shop.path());
    let input = worked_example(Shape::Map, &shop.id).to_string();
    let out = topology.host.output(command, input.as_bytes())?;
    let text = String::from_utf8_lossy(&out.stdout);
    assert_eq!(Some(1), out.status.code(), "{text}");
    assert!(text.contains("--config"), "{text}");
    Ok(())
}

#[test]
fn the_document_may_come_from_a_file() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let shop = topology.container("shop")?;
    let mut document = worked_example(Shape::Map, &shop.id);
    document["network_info"]["front"]["dns_enabled"] = false.into();
    let file = topology.dir().join("document.json");
    std::fs::write(&file, document.to_string())?;
    let path = shop.path().to_string_lossy().into_owned();
    let file = file.to_string_lossy().into_owned();
    netavark.call(&["--file", &file, "setup", &path], b"")?.done()?;
    netavark.call(&["-f", &file, "teardown", &path], b"")?.done()?;
    residue.nothing_left(&topology, &[&shop])
}

#[test]
fn firewall_drivers_are_honoured_in_meaning() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    for driver in ["", "nftables", "iptables", "ebpf", "none", "NFTables"] {
        let netavark = Netavark::with(&topology, &[("NETAVARK_FW", driver)])?;
        let shop = topology.container("shop")?;
        let mut document = worked_example(Shape::Map, &shop.id);
        document["network_info"]["front"]["dns_enabled"] = false.into();
        netavark.try_setup(&shop, &document)?.json().with_context(|| format!("NETAVARK_FW={driver}"))?;
        let served =
            support::traffic::Server::echo(&shop, support::traffic::Proto::Tcp, support::traffic::ANY, 80, "http")?;
        let dial = support::traffic::Dial::new(support::traffic::Proto::Tcp, support::topology::HOST4, 8080);
        if driver == "none" {
            dial.must_fail(&topology.client)?;
        } else {
            dial.ask(&topology.client).with_context(|| format!("NETAVARK_FW={driver}"))?;
        }
        drop(served);
        netavark.try_teardown(&shop, &document)?.done()?;
        residue.nothing_left(&topology, &[&shop])?;
    }
    let netavark = Netavark::with(&topology, &[("NETAVARK_FW", "pf")])?;
    let shop = topology.container("shop")?;
    let error = netavark.try_setup(&shop, &worked_example(Shape::Map, &shop.id))?.error()?;
    assert!(error.contains("pf"), "{error}");
    residue.nothing_left(&topology, &[&shop])
}

/// With `podman --syslog` stderr is a pipe, and Podman waits until every process has closed it.
#[test]
fn nothing_that_stays_keeps_the_output_open() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let shop = topology.container("shop")?;
    let document = worked_example(Shape::Map, &shop.id);
    let call = topology.host.spawn({
        let mut command = netavark.command(&["setup", &shop.path().to_string_lossy()]);
        let input = document.to_string();
        move || -> Result<std::process::Output> {
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
            child.stdin.take().context("no pipe")?.write_all(input.as_bytes())?;
            Ok(child.wait_with_output()?)
        }
    })?;
    wait_for("the end of stdout and stderr, with the DNS server running", SOON, || call.is_finished().then_some(()))?;
    assert!(!topology.host.processes().is_empty(), "no DNS server is running");
    netavark.try_teardown(&shop, &document)?.done()?;
    residue.nothing_left(&topology, &[&shop])
}
