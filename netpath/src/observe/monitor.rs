//! Program logs, live. The programs in place say nothing and have no code that could; while a monitor runs,
//! others of the same object that speak take their place, link by link and without a gap.
//!
//! A lock on the pins tells other commands that this one is alive. When it is gone, in whatever way, the next of them
//! puts the quiet programs back (`datapath/ebpf/attach.rs`).

use super::flows::{origin, protocol};
use super::{Host, interface};
use crate::datapath::ebpf::{attach, loader};
use crate::model::HostView;
use crate::model::error::{Context, Error, Result};
use aya_log::EbpfLogger;
use netpath_common::reason::Reason;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};

/// Programs attached since are given the speaking ones this often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// Drops.
    Drops,
    /// Drops and new flows.
    Flows,
    /// All that the programs can say.
    All,
}

impl Level {
    /// As aya-log counts: 3 = info, 4 = debug, 5 = trace.
    fn number(self) -> u8 {
        match self {
            Level::Drops => 3,
            Level::Flows => 4,
            Level::All => 5,
        }
    }
}

/// Prints until a signal comes or the reader closes the pipe.
///
/// # Errors
/// Another monitor runs, or the programs cannot be loaded or replaced.
pub fn run(host: &Host, level: Level, as_json: bool) -> Result<()> {
    let what = || "cannot watch the programs".to_owned();
    if !host.pins.exist() {
        return Err(Error::new(what())
            .because("no container of this host uses eBPF")
            .next("netpath status shows which datapath is in use"));
    }
    let Some(lock) = attach::MonitorLock::take(&host.pins)? else {
        return Err(Error::new(what()).because("another monitor is running").next("stop it first"));
    };
    let mut ebpf = loader::load(&host.pins, level.number())?;
    loader::load_programs(&mut ebpf.programs_mut().collect::<Vec<_>>())?;
    let printer = Printer { view: host.view()?, as_json, closed: AtomicBool::new(false) };
    let logger = EbpfLogger::init_with_logger(&mut ebpf, &printer).context(what)?;
    let mut speaking = HashMap::new();
    for (name, program) in ebpf.programs() {
        speaking.insert(name.to_owned(), program.fd().context(what)?.as_fd());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context(what)?;
    let watched = runtime.block_on(watch(host, &lock, logger, &speaking, &printer));
    // Whatever ended it, the quiet ones go back.
    let restored = if lock.holds() { restore(host) } else { Ok(()) };
    watched.and(restored)
}

async fn watch(
    host: &Host,
    lock: &attach::MonitorLock,
    logger: EbpfLogger<&Printer>,
    speaking: &HashMap<String, BorrowedFd<'_>>,
    printer: &Printer,
) -> Result<()> {
    let what = || "cannot watch the programs".to_owned();
    let mut stop = signal(SignalKind::interrupt()).context(what)?;
    let mut end = signal(SignalKind::terminate()).context(what)?;
    let mut hangup = signal(SignalKind::hangup()).context(what)?;
    let mut again = tokio::time::interval(LOOK_AGAIN);
    // SAFETY: the logger's descriptor is its map's, one and the same and open for as long as the logger lives.
    let ring = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
    let mut ring = ring.map_err(std::io::Error::from).context(what)?;
    while !printer.closed.load(Ordering::Relaxed) && !reader_is_gone() {
        tokio::select! {
            _ = stop.recv() => break,
            _ = end.recv() => break,
            _ = hangup.recv() => break,
            _ = again.tick() => {
                if !lock.holds() {
                    eprintln!("the last container is gone");
                    break;
                }
                swap(host, speaking)?;
            }
            ready = ring.readable_mut() => {
                let mut ready = ready.context(what)?;
                ready.get_inner_mut().flush();
                ready.clear_ready();
            }
        }
    }
    Ok(())
}

fn swap(host: &Host, speaking: &HashMap<String, BorrowedFd<'_>>) -> Result<()> {
    for hook in attach::attached(&host.pins)?.iter().filter(|h| h.pinned) {
        if let Some(program) = speaking.get(&hook.program) {
            attach::replace(&host.pins, hook, program)?;
        }
    }
    Ok(())
}

fn restore(host: &Host) -> Result<()> {
    for hook in attach::attached(&host.pins)?.iter().filter(|h| !h.pinned) {
        let (program, _) = loader::program(&host.pins, &hook.program)?;
        attach::replace(&host.pins, hook, program)?;
    }
    Ok(())
}

/// Whether the other end of the pipe at standard output is closed.
fn reader_is_gone() -> bool {
    let mut out = libc::pollfd { fd: std::io::stdout().as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one pollfd, for the length of a call that does not wait.
    unsafe { libc::poll(&raw mut out, 1, 0) > 0 && out.revents & libc::POLLERR != 0 }
}

struct Printer {
    view: HostView,
    as_json: bool,
    closed: AtomicBool,
}

impl log::Log for Printer {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let text = record.args().to_string();
        let line = match event(&text, &self.view) {
            event if self.as_json => event.to_string(),
            event => sentence(&event),
        };
        let mut out = std::io::stdout().lock();
        if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
            self.closed.store(true, Ordering::Relaxed);
        }
    }

    fn flush(&self) {}
}

/// The programs write `kind key=value …` with numbers for reasons, protocols and interfaces; here they get their words.
fn event(text: &str, view: &HostView) -> Value {
    let mut words = text.split(' ');
    let mut event = serde_json::Map::new();
    event.insert("event".into(), words.next().unwrap_or_default().into());
    for word in words {
        let Some((key, value)) = word.split_once('=') else {
            return json!({ "event": "log", "text": text });
        };
        let number = value.parse::<u32>().ok();
        let said = match (key, number) {
            ("reason", Some(n)) => Reason::ALL.iter().find(|r| **r as u32 == n).map(|r| r.word().into()),
            ("origin", Some(n)) => Some(origin(n as u8).into()),
            ("proto", Some(n)) => Some(protocol(n as u8).into()),
            ("ifindex", Some(n)) => {
                event.insert("interface".into(), interface(view, n).into());
                None
            }
            _ => None,
        };
        event.insert(key.into(), said.unwrap_or_else(|| number.map_or_else(|| value.into(), Value::from)));
    }
    Value::Object(event)
}

/// `drop isolated tcp 10.89.0.2:40000 > 10.90.0.2:80 on podman1`
fn sentence(event: &Value) -> String {
    let word = |key: &str| event[key].as_str().unwrap_or_default();
    let end = |address: &str, port: &str| match event[port].as_u64() {
        Some(port) if word(address).contains(':') => format!("[{}]:{port}", word(address)),
        Some(port) => format!("{}:{port}", word(address)),
        None => word(address).to_owned(),
    };
    if event["src"].is_null() {
        return if word("event") == "log" { word("text").to_owned() } else { event.to_string() };
    }
    let mut line = word("event").to_owned();
    let cause = word("reason").strip_prefix("drop_").unwrap_or(word("reason"));
    for part in [cause, word("origin"), word("proto")].into_iter().filter(|p| !p.is_empty()) {
        line = format!("{line} {part}");
    }
    line = format!("{line} {} > {}", end("src", "sport"), end("dst", "dport"));
    if !event["to_src"].is_null() {
        line = format!("{line} as {} > {}", end("to_src", "to_sport"), end("to_dst", "to_dport"));
    }
    if !event["interface"].is_null() {
        line = format!("{line} on {}", word("interface"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drop_is_said_with_its_reason_and_addresses() {
        let text = "drop reason=10 proto=6 src=10.89.0.2 sport=40000 dst=10.90.0.2 dport=80 ifindex=7";
        let event = event(text, &HostView::default());
        assert_eq!("drop isolated tcp 10.89.0.2:40000 > 10.90.0.2:80 on #7", sentence(&event));
        assert_eq!("drop_isolated", event["reason"]);
    }

    #[test]
    fn a_flow_is_said_before_and_after_translation() {
        let text = "flow origin=1 proto=17 src=fd00::9 sport=5000 dst=fd00::1 dport=53 to_src=fd00::9 to_sport=5000 \
                    to_dst=fd01::2 to_dport=53";
        let said = sentence(&event(text, &HostView::default()));
        assert_eq!("flow published udp [fd00::9]:5000 > [fd00::1]:53 as [fd00::9]:5000 > [fd01::2]:53", said);
    }

    #[test]
    fn a_line_of_another_form_is_passed_on() {
        assert_eq!("something else", sentence(&event("something else", &HostView::default())));
    }
}
