//! Events of the datapath, live: printed until a signal comes.

use super::Host;
use crate::datapath::inspect::{Event, Level, Monitor};
use crate::model::HostView;
use crate::model::error::{Context, Error, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};

/// Between two looks for what was attached meanwhile.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

fn what() -> String {
    "cannot watch the programs".to_owned()
}

/// Prints until a signal comes or the reader closes the pipe.
///
/// # Errors
/// Another monitor runs, or reporting cannot be switched on or off.
pub fn run(host: &Host, level: Level, as_json: bool) -> Result<()> {
    let printer = Arc::new(Printer { view: host.view()?, as_json, closed: AtomicBool::new(false) });
    let sink = {
        let printer = Arc::clone(&printer);
        Box::new(move |event| printer.print(event))
    };
    let Some(mut monitor) = host.inspect()?.monitor(level, sink)? else {
        return Err(Error::new(what())
            .because("no container of this host uses a datapath that reports packets")
            .next("netpath status shows which datapath is in use"));
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context(what);
    let watched = runtime.and_then(|runtime| runtime.block_on(watch(monitor.as_mut(), &printer)));
    watched.and(monitor.end())
}

async fn watch(monitor: &mut dyn Monitor, printer: &Printer) -> Result<()> {
    let mut stop = signal(SignalKind::interrupt()).context(what)?;
    let mut end = signal(SignalKind::terminate()).context(what)?;
    let mut hangup = signal(SignalKind::hangup()).context(what)?;
    let mut again = tokio::time::interval(LOOK_AGAIN);
    let events = monitor.fd().try_clone_to_owned().context(what)?;
    // SAFETY: the descriptor is open, is owned here alone, and stays the same until it is dropped.
    let events = unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) };
    let events = events.map_err(std::io::Error::from).context(what)?;
    while !printer.closed.load(Ordering::Relaxed) && !reader_is_gone() {
        tokio::select! {
            _ = stop.recv() => break,
            _ = end.recv() => break,
            _ = hangup.recv() => break,
            _ = again.tick() => {
                if !monitor.extend()? {
                    eprintln!("the last container is gone");
                    break;
                }
            }
            ready = events.readable() => {
                let mut ready = ready.context(what)?;
                monitor.deliver();
                ready.clear_ready();
            }
        }
    }
    Ok(())
}

/// Whether the other end of the pipe at standard output is closed.
fn reader_is_gone() -> bool {
    let out = std::io::stdout();
    let mut asked = [PollFd::new(out.as_fd(), PollFlags::empty())];
    let answered = poll(&mut asked, PollTimeout::ZERO).is_ok_and(|n| n > 0);
    answered && asked[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR))
}

struct Printer {
    view: HostView,
    as_json: bool,
    closed: AtomicBool,
}

impl Printer {
    fn print(&self, event: Event) {
        let event = named(event, &self.view);
        let line = if self.as_json { event.to_string() } else { sentence(&event) };
        let mut out = std::io::stdout().lock();
        if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
            self.closed.store(true, Ordering::Relaxed);
        }
    }
}

/// With the name of its interface.
fn named(mut event: Event, view: &HostView) -> Value {
    if let Some(index) = event.get("ifindex").and_then(Value::as_u64) {
        event.insert("interface".into(), view.interface(index as u32).into());
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

    fn event(fields: &[(&str, Value)]) -> Value {
        let fields = fields.iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
        named(fields.collect(), &HostView::default())
    }

    #[test]
    fn a_drop_is_printed_with_its_reason_and_addresses() {
        let event = event(&[
            ("event", "drop".into()),
            ("reason", "drop_isolated".into()),
            ("proto", "tcp".into()),
            ("src", "10.89.0.2".into()),
            ("sport", 40_000.into()),
            ("dst", "10.90.0.2".into()),
            ("dport", 80.into()),
            ("ifindex", 7.into()),
        ]);
        assert_eq!("drop isolated tcp 10.89.0.2:40000 > 10.90.0.2:80 on #7", sentence(&event));
    }

    #[test]
    fn a_flow_is_printed_before_and_after_translation() {
        let event = event(&[
            ("event", "flow".into()),
            ("origin", "published".into()),
            ("proto", "udp".into()),
            ("src", "fd00::9".into()),
            ("sport", 5000.into()),
            ("dst", "fd00::1".into()),
            ("dport", 53.into()),
            ("to_src", "fd00::9".into()),
            ("to_sport", 5000.into()),
            ("to_dst", "fd01::2".into()),
            ("to_dport", 53.into()),
        ]);
        let line = "flow published udp [fd00::9]:5000 > [fd00::1]:53 as [fd00::9]:5000 > [fd01::2]:53";
        assert_eq!(line, sentence(&event));
    }

    #[test]
    fn a_line_of_another_form_is_passed_on() {
        let event = event(&[("event", "log".into()), ("text", "something else".into())]);
        assert_eq!("something else", sentence(&event));
    }
}
