//! Bulk transfers by iperf3.

use crate::host::{Netns, SOON, wait_for};
use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// An `iperf3 -s`, ended on drop.
pub struct Iperf(Child);

impl Drop for Iperf {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Call it on the main thread: the server ends with the thread that started it, so that a killed bench leaves none behind.
///
/// # Errors
/// It does not start, or does not listen in time.
pub fn server(netns: &Netns, port: u16) -> Result<Iperf> {
    let server = Iperf(start(netns, &["-s", "-p", &port.to_string()], Stdio::null())?);
    // Without connecting, which it would take for a client.
    let listens = || ["tcp", "tcp6"].iter().any(|table| listening(&netns.run(|| sockets(table)), port));
    wait_for("iperf3 -s that listens", SOON, || listens().then_some(()))?;
    Ok(server)
}

/// Ends with the calling thread.
fn start(netns: &Netns, args: &[&str], stdout: Stdio) -> Result<Child> {
    let mut command = Command::new("iperf3");
    command.args(args).stdin(Stdio::null()).stdout(stdout).stderr(Stdio::null());
    let namespace = File::open(netns.path()).with_context(|| format!("cannot open {}", netns.path().display()))?;
    let prepare = move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        Ok(set_pdeathsig(Signal::SIGKILL)?)
    };
    // SAFETY: between fork and exec only two bare system calls are made, without allocation.
    unsafe { command.pre_exec(prepare) };
    command.spawn().context("cannot start iperf3")
}

/// One connection that sends at a limited rate until [`Stream::finish`]; as with [`server`], the thread that starts it has to
/// stay.
pub struct Stream {
    name: String,
    client: Iperf,
}

impl Stream {
    /// # Errors
    /// iperf3 does not start, or does not connect in time.
    pub fn start(netns: &Netns, to: SocketAddr) -> Result<Self> {
        let (ip, port) = (to.ip().to_string(), to.port().to_string());
        let args = ["-J", "-c", &ip, "-p", &port, "--connect-timeout", "3000", "-t", "0", "-i", "1", "-b", "100M"];
        let stream = Self { name: format!("iperf3 to {to}"), client: Iperf(start(netns, &args, Stdio::piped())?) };
        // One connection for control, and one for the test.
        let connected = || ["tcp", "tcp6"].iter().any(|t| connections(&netns.run(|| sockets(t)), to.port()) >= 2);
        wait_for(&format!("two connections of {}", stream.name), SOON, || connected().then_some(()))?;
        Ok(stream)
    }

    /// Ends it, and returns the bytes of each second.
    ///
    /// # Errors
    /// It had ended by itself, or has no report.
    pub fn finish(mut self) -> Result<Vec<f64>> {
        let ended = self.client.0.try_wait()?;
        if ended.is_none() {
            kill(Pid::from_raw(self.client.0.id() as i32), Signal::SIGINT)?;
        }
        let mut text = String::new();
        self.client.0.stdout.take().context("no output")?.read_to_string(&mut text)?;
        read_stream(&text, ended.is_some()).with_context(|| self.name.clone())
    }
}

/// The bytes of each interval. An interrupted client reports that as an error.
fn read_stream(text: &str, ended: bool) -> Result<Vec<f64>> {
    let report: Value = serde_json::from_str(text).context("no JSON")?;
    let error = report["error"].as_str().unwrap_or("no error");
    if ended || !error.contains("interrupt") {
        bail!("it has ended by itself: {error}");
    }
    let intervals = report["intervals"].as_array().context("no intervals")?;
    intervals.iter().map(|i| i["sum"]["bytes"].as_f64().context("no intervals.sum.bytes")).collect()
}

fn sockets(table: &str) -> String {
    std::fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default()
}

/// Whether a socket table of the kernel has a socket in state LISTEN on `port`.
fn listening(table: &str, port: u16) -> bool {
    let end = format!(":{port:04X}");
    table.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        words.next().is_some_and(|local| local.ends_with(&end)) && words.nth(1) == Some("0A")
    })
}

/// Result of a transfer.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    pub bytes: f64,
    pub gbit_per_second: f64,
}

/// Received datagrams.
#[derive(Clone, Copy, Debug)]
pub struct Datagrams {
    pub gbit_per_second: f64,
    /// Percentage of those sent.
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

/// Datagrams of `bytes` each at full speed, for `seconds`.
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

/// The sender's sum contains the receiver's report; its bytes are the sent ones.
fn read_datagrams(report: &Value) -> Result<Datagrams> {
    let sum = &report["end"]["sum"];
    let field = |name: &str| sum[name].as_f64().with_context(|| format!("no end.sum.{name}"));
    let (packets, lost, bits) = (field("packets")?, field("lost_packets")?, field("bits_per_second")?);
    let arrived = 1.0 - lost / packets.max(1.0);
    Ok(Datagrams { gbit_per_second: bits * arrived / 1e9, lost_percent: 100.0 * (1.0 - arrived) })
}

/// Number of sockets in a table of the kernel in state ESTABLISHED with `port` at the other end.
fn connections(table: &str, port: u16) -> usize {
    let end = format!(":{port:04X}");
    let is_one = |line: &&str| {
        let mut words = line.split_whitespace().skip(2);
        words.next().is_some_and(|peer| peer.ends_with(&end)) && words.next() == Some("01")
    };
    table.lines().filter(is_one).count()
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
    fn received_datagrams_are_counted() {
        let text = r#"{"end":{"sum":{"bits_per_second":4e9,"packets":200,"lost_packets":50}}}"#;
        let read = report(text).and_then(|r| read_datagrams(&r)).expect("a report");
        assert_eq!((3.0, 25.0), (read.gbit_per_second, read.lost_percent));
    }

    #[test]
    fn a_stream_that_was_interrupted_has_intervals_and_one_that_broke_has_not() {
        let interrupted = r#"{"intervals":[{"sum":{"bytes":7}},{"sum":{"bytes":0}}],"error":"interrupt - the client has terminated"}"#;
        assert_eq!(vec![7.0, 0.0], read_stream(interrupted, false).expect("intervals"));
        let broke = r#"{"intervals":[{"sum":{"bytes":7}}],"error":"unable to write to stream socket"}"#;
        let error = read_stream(broke, false).expect_err("an error").to_string();
        assert!(error.contains("stream socket"), "{error}");
        read_stream(interrupted, true).expect_err("it was not interrupted by us");
    }

    #[test]
    fn a_listening_socket_is_found_by_its_port() {
        let table = "sl local_address rem_address st\n 0: 00000000:1451 00000000:0000 0A 0 0\n 1: 0100007F:0050 0100007F:9C40 01";
        assert!(listening(table, 5201) && !listening(table, 80) && !listening(table, 22));
        assert_eq!([0, 1], [5201, 40_000].map(|port| connections(table, port)));
    }

    #[test]
    fn an_error_of_iperf_is_reported() {
        let error = report(r#"{"start":{},"error":"unable to connect"}"#).expect_err("an error").to_string();
        assert!(error.contains("unable to connect"), "{error}");
    }
}
