//! One of the machines of `cargo xtask vm wire` and `vm perf`: does what it is told, one line of JSON at a time, and says
//! how it went. The guest's init (tests/guest) starts it with the control port as standard input and output; who conducts
//! is xtask/src/vm/machine.rs.
//!
//! It runs in the guest's own network namespace, which is a host or a client; containers are namespaces that it makes.

mod asks;
mod dhcp;
mod ethtool;
mod machine;
mod measure;
mod orders;

use anyhow::{Context, Result};
use machine::Machine;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use orders::Order;
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
    say(&mut output, &json!({"ok": "station"}))?;
    for line in input.lines() {
        let line = line.context("cannot read the control port")?;
        if line.trim().is_empty() {
            continue;
        }
        say(&mut output, &answer(&mut machine, &line))?;
    }
    Ok(())
}

/// It has the order's number: who has given up waiting does not take it for the answer to what was asked next.
fn answer(machine: &mut Machine, line: &str) -> Value {
    let order = serde_json::from_str::<Value>(line);
    let number = order.as_ref().map_or(Value::Null, |order| order["n"].clone());
    let done = order.and_then(serde_json::from_value).context("no order").and_then(|order| follow(machine, order));
    match done {
        Ok(value) => json!({"n": number, "ok": value}),
        Err(error) => json!({"n": number, "error": format!("{error:#}")}),
    }
}

fn say(output: &mut impl Write, answer: &Value) -> Result<()> {
    writeln!(output, "{answer}").and_then(|()| output.flush()).context("cannot write to the control port")
}

fn follow(machine: &mut Machine, order: Order) -> Result<Value> {
    match order {
        Order::Ip { lines } => machine.own.ip(&lines).map(|()| Value::Null),
        Order::Sysctl { name, value } => machine.own.set_sysctl(&name, &value).map(|()| Value::Null),
        Order::Run { program, arguments } => {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            machine.own.command(&program, &arguments).map(Value::from)
        }
        Order::Up(container) => machine.up(container).map(|took| json!(took.as_secs_f64() * 1e3)),
        Order::Down { name } => machine.down(&name).map(|took| json!(took.as_secs_f64() * 1e3)),
        Order::Echo { container, port, name } => machine.echo(container.as_deref(), port, &name).map(|()| Value::Null),
        Order::Ask { asks, within_ms } => asks::ask(machine, &asks, within_ms),
        Order::Silent { ask, within_ms } => asks::silent(machine, &ask, within_ms).map(|()| Value::Null),
        Order::Steady { name, ask } => machine.steady(name, &ask).map(|()| Value::Null),
        Order::GoesOn { name } => machine.goes_on(&name).map(|()| Value::Null),
        Order::Finish { name } => machine.finish(&name).map(|()| Value::Null),
        Order::Carrier { link, up, within_ms } => machine.carrier(&link, up, within_ms).map(|()| Value::Null),
        Order::Unplug { link } => machine.unplug(&link).map(Value::from),
        Order::Plug { device, link, within_ms } => machine.plug(&device, &link, within_ms).map(|()| Value::Null),
        Order::Narrow { link, mtu } => machine.narrow(&link, mtu).map(|()| Value::Null),
        Order::Lease { link, mac, address, router } => dhcp::lease(machine, &link, &mac, address, router),
        Order::Dhcp { link } => dhcp::begin(machine, &link).map(|()| Value::Null),
        Order::Renew => dhcp::renew(machine).map(|()| Value::Null),
        Order::Has { link, address, within_ms } => machine.has(&link, address, within_ms).map(|()| Value::Null),
        Order::Status => machine.status(),
        Order::Left => machine.left().map(Value::from),
        Order::End { name } => machine.end(&name).map(|()| Value::Null),
        Order::Serve { container } => machine.serve(container.as_deref()).map(|()| Value::Null),
        Order::Measure { what, container } => measure::measure(machine, container.as_deref(), what),
    }
}
