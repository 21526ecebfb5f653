//! One of the machines of `cargo xtask vm wire` and `vm perf`: executes commands, one line of JSON at a time, and returns the
//! results. The guest's init (tests/guest) starts it with the control port as standard input and output; the controller is
//! xtask/src/vm/machine.rs.
//!
//! It runs in the guest's own network namespace, which is a host or a client; it creates a namespace per container.

#![allow(unused_crate_dependencies, reason = "checked in support/lib.rs, for all targets of the package")]

mod commands;
mod dhcp;
mod ethtool;
mod machine;
mod measure;
mod probes;

use anyhow::{Context, Result};
use commands::Command;
use machine::Machine;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use serde_json::{Value, json};
use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let (input, mut output) = (std::io::stdin().lock(), std::io::stdout());
    if input.is_terminal() {
        let mut mode = tcgetattr(&input).context("cannot read the mode of the control port")?;
        cfmakeraw(&mut mode);
        tcsetattr(&input, SetArg::TCSANOW, &mode).context("cannot set the mode of the control port")?;
    }
    let mut machine = Machine::new()?;
    say(&mut output, &json!({"ok": "vm_node"}))?;
    for line in input.lines() {
        let line = line.context("cannot read the control port")?;
        if line.trim().is_empty() {
            continue;
        }
        say(&mut output, &answer(&mut machine, &line))?;
    }
    Ok(())
}

/// The answer has the command's number: after a time-out, the caller must not take it for the answer to the next command.
fn answer(machine: &mut Machine, line: &str) -> Value {
    let command = serde_json::from_str::<Value>(line);
    let number = command.as_ref().map_or(Value::Null, |command| command["n"].clone());
    let done =
        command.and_then(serde_json::from_value).context("no command").and_then(|command| follow(machine, command));
    match done {
        Ok(value) => json!({"n": number, "ok": value}),
        Err(error) => json!({"n": number, "error": format!("{error:#}")}),
    }
}

fn say(output: &mut impl Write, answer: &Value) -> Result<()> {
    writeln!(output, "{answer}").and_then(|()| output.flush()).context("cannot write to the control port")
}

fn follow(machine: &mut Machine, command: Command) -> Result<Value> {
    match command {
        Command::Ip { lines } => machine.own.ip(&lines).map(|()| Value::Null),
        Command::Sysctl { name, value } => machine.own.set_sysctl(&name, &value).map(|()| Value::Null),
        Command::Run { program, arguments } => {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            machine.own.command(&program, &arguments).map(Value::from)
        }
        Command::Up(container) => machine.up(container).map(|took| json!(took.as_secs_f64() * 1e3)),
        Command::Down { name } => machine.down(&name).map(|took| json!(took.as_secs_f64() * 1e3)),
        Command::Echo { container, port, name } => {
            machine.echo(container.as_deref(), port, &name).map(|()| Value::Null)
        }
        Command::Probe { probes, within_ms } => probes::probe(machine, &probes, within_ms),
        Command::Silent { probe, within_ms } => probes::silent(machine, &probe, within_ms).map(|()| Value::Null),
        Command::LongLived { name, probe } => machine.long_lived(name, &probe).map(|()| Value::Null),
        Command::GoesOn { name } => machine.goes_on(&name).map(|()| Value::Null),
        Command::Finish { name } => machine.finish(&name).map(|()| Value::Null),
        Command::Carrier { link, up, within_ms } => machine.carrier(&link, up, within_ms).map(|()| Value::Null),
        Command::Unplug { link } => machine.unplug(&link).map(Value::from),
        Command::Plug { device, link, within_ms } => machine.plug(&device, &link, within_ms).map(|()| Value::Null),
        Command::Narrow { link, mtu } => machine.narrow(&link, mtu).map(|()| Value::Null),
        Command::Lease { link, mac, address, router } => dhcp::lease(machine, &link, &mac, address, router),
        Command::Dhcp { link } => dhcp::begin(machine, &link).map(|()| Value::Null),
        Command::Renew => dhcp::renew(machine).map(|()| Value::Null),
        Command::Has { link, address, within_ms } => machine.has(&link, address, within_ms).map(|()| Value::Null),
        Command::Status => machine.status(),
        Command::Left => machine.left().map(Value::from),
        Command::End { name } => machine.end(&name).map(|()| Value::Null),
        Command::Serve { container } => machine.serve(container.as_deref()).map(|()| Value::Null),
        Command::Measure { what, container } => measure::measure(machine, container.as_deref(), what),
    }
}
