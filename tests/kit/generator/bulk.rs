//! Bulk transfers by iperf3.

use crate::host::{Netns, SOON, wait_for};
use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// An `iperf3 -s` until this is dropped.
pub struct Iperf(Child);

impl Drop for Iperf {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// To be called on the main thread: the server ends with the thread that started it, so that a bench which is killed leaves
/// none behind.
///
/// # Errors
/// It does not start, or does not listen soon.
pub fn server(netns: &Netns, port: u16) -> Result<Iperf> {
    let mut command = Command::new("iperf3");
    command.args(["-s", "-p", &port.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let namespace = File::open(netns.path()).with_context(|| format!("cannot open {}", netns.path().display()))?;
    let prepare = move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        Ok(set_pdeathsig(Signal::SIGKILL)?)
    };
    // SAFETY: between fork and exec two bare system calls are made, and no memory is taken.
    unsafe { command.pre_exec(prepare) };
    let child = command.spawn().context("cannot start iperf3")?;
    let server = Iperf(child);
    // Without a connection, which it would take for a client.
    let listens = || ["tcp", "tcp6"].iter().any(|table| listening(&netns.run(|| sockets(table)), port));
    wait_for("iperf3 -s that listens", SOON, || listens().then_some(()))?;
    Ok(server)
}

fn sockets(table: &str) -> String {
    std::fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default()
}

/// Has a table of the kernel a socket in state LISTEN on `port`?
fn listening(table: &str, port: u16) -> bool {
    let end = format!(":{port:04X}");
    table.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        words.next().is_some_and(|local| local.ends_with(&end)) && words.nth(1) == Some("0A")
    })
}

/// What went through.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    pub bytes: f64,
    pub gbit_per_second: f64,
}

/// What arrived of datagrams.
#[derive(Clone, Copy, Debug)]
pub struct Datagrams {
    pub gbit_per_second: f64,
    /// Of those that were sent.
    pub lost_percent: f64,
}

/// `streams` connections for `seconds`; `back`: the server sends.
///
/// # Errors
/// iperf3 fails.
pub fn transfer(netns: &Netns, to: SocketAddr, streams: u8, back: bool, seconds: u64) -> Result<Transfer> {
    let streams = streams.to_string();
    let direction: &[&str] = if back { &["-R"] } else { &[] };
    iperf(netns, to, seconds, &[&["-P", &streams], direction].concat(), read)
}

/// Datagrams of `bytes` each as fast as they go, for `seconds`.
///
/// # Errors
/// iperf3 fails.
pub fn datagrams(netns: &Netns, to: SocketAddr, bytes: u16, seconds: u64) -> Result<Datagrams> {
    let bytes = bytes.to_string();
    iperf(netns, to, seconds, &["-u", "-b", "0", "-l", &bytes], read_datagrams)
}

fn iperf<T>(
    netns: &Netns,
    to: SocketAddr,
    seconds: u64,
    more: &[&str],
    read: impl FnOnce(&Value) -> Result<T>,
) -> Result<T> {
    let mut command = Command::new("iperf3");
    command.args(["-J", "-c", &to.ip().to_string(), "-p", &to.port().to_string(), "--connect-timeout", "3000"]);
    command.args(["-t", &seconds.to_string()]).args(more);
    let out = netns.output(command, b"")?;
    report(&String::from_utf8_lossy(&out.stdout)).and_then(|r| read(&r)).with_context(|| format!("iperf3 to {to}"))
}

fn report(text: &str) -> Result<Value> {
    let report: Value = serde_json::from_str(text).context("no JSON")?;
    match report["error"].as_str() {
        Some(error) => bail!("{error}"),
        None => Ok(report),
    }
}

fn read(report: &Value) -> Result<Transfer> {
    let sum = &report["end"]["sum_received"];
    let field = |name: &str| sum[name].as_f64().with_context(|| format!("no end.sum_received.{name}"));
    Ok(Transfer { bytes: field("bytes")?, gbit_per_second: field("bits_per_second")? / 1e9 })
}

/// The sum of a sender of datagrams holds what its receiver has told it; bytes there are those that were sent.
fn read_datagrams(report: &Value) -> Result<Datagrams> {
    let sum = &report["end"]["sum"];
    let field = |name: &str| sum[name].as_f64().with_context(|| format!("no end.sum.{name}"));
    let (packets, lost, bits) = (field("packets")?, field("lost_packets")?, field("bits_per_second")?);
    let arrived = 1.0 - lost / packets.max(1.0);
    Ok(Datagrams { gbit_per_second: bits * arrived / 1e9, lost_percent: 100.0 * (1.0 - arrived) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_receivers_sum_is_what_counts() {
        let text = r#"{"end":{"sum_sent":{"bytes":9,"bits_per_second":9e9},"sum_received":{"bytes":8,"bits_per_second":4e9}}}"#;
        let read = report(text).and_then(|r| read(&r)).expect("a report");
        assert_eq!((8.0, 4.0), (read.bytes, read.gbit_per_second));
    }

    #[test]
    fn of_datagrams_those_that_arrived_count() {
        let text = r#"{"end":{"sum":{"bits_per_second":4e9,"packets":200,"lost_packets":50}}}"#;
        let read = report(text).and_then(|r| read_datagrams(&r)).expect("a report");
        assert_eq!((3.0, 25.0), (read.gbit_per_second, read.lost_percent));
    }

    #[test]
    fn a_listening_socket_is_found_by_its_port() {
        let table = "sl local_address rem_address st\n 0: 00000000:1451 00000000:0000 0A 0 0\n 1: 0100007F:0050 0100007F:9C40 01";
        assert!(listening(table, 5201) && !listening(table, 80) && !listening(table, 22));
    }

    #[test]
    fn an_error_of_iperf_is_said() {
        let error = report(r#"{"start":{},"error":"unable to connect"}"#).expect_err("an error").to_string();
        assert!(error.contains("unable to connect"), "{error}");
    }
}
