//! Events of the programs. The installed programs report nothing and have no code for it; while a monitor runs, others
//! of the same object that report replace them, link by link and without a gap.
//!
//! A lock on the pins tells other commands that a monitor is alive. When the lock is gone, in whatever way, the next of
//! them restores the installed programs (`monitor_lock.rs`).

use super::attached::{attached, replace};
use super::flow_list::{origin, protocol};
use super::loader;
use super::monitor_lock::MonitorLock;
use super::pins::Pins;
use crate::datapath::inspect::{Event, Level, Monitor, Sink};
use crate::model::error::{Context, Error, Result};
use aya::Ebpf;
use aya_log::EbpfLogger;
use netpath_common::reason::Reason;
use serde_json::Value;
use std::os::fd::{AsFd, BorrowedFd};

/// As aya-log counts: 3 = info, 4 = debug, 5 = trace.
fn number(level: Level) -> u8 {
    match level {
        Level::Drops => 3,
        Level::Flows => 4,
        Level::All => 5,
    }
}

fn what() -> String {
    "cannot watch the programs".to_owned()
}

/// # Errors
/// Another monitor runs, or the programs cannot be loaded.
pub(super) fn start(pins: &Pins, level: Level, sink: Sink) -> Result<Box<dyn Monitor>> {
    let Some(lock) = MonitorLock::take(pins)? else {
        return Err(Error::new(what()).because("another monitor is running").next("stop it first"));
    };
    let mut programs = loader::load(pins, number(level), loader::Families::Both)?;
    loader::load_programs(&mut programs.programs_mut().collect::<Vec<_>>())?;
    let logger = EbpfLogger::init_with_logger(&mut programs, Parser(sink)).context(what)?;
    Ok(Box::new(Reporting { pins: pins.clone(), lock, programs, logger }))
}

struct Reporting {
    pins: Pins,
    lock: MonitorLock,
    programs: Ebpf,
    logger: EbpfLogger<Parser>,
}

impl Monitor for Reporting {
    fn fd(&self) -> BorrowedFd<'_> {
        self.logger.as_fd()
    }

    fn deliver(&mut self) {
        self.logger.flush();
    }

    fn extend(&mut self) -> Result<bool> {
        if !self.lock.holds() {
            return Ok(false);
        }
        for hook in attached(&self.pins)?.iter().filter(|h| h.pinned) {
            if let Some(program) = self.programs.program(&hook.program) {
                replace(&self.pins, hook, program.fd().context(what)?)?;
            }
        }
        Ok(true)
    }

    fn end(self: Box<Self>) -> Result<()> {
        if !self.lock.holds() {
            return Ok(());
        }
        for hook in attached(&self.pins)?.iter().filter(|h| !h.pinned) {
            let (program, _) = loader::program(&self.pins, &hook.program)?;
            replace(&self.pins, hook, program)?;
        }
        Ok(())
    }
}

/// Parses what the programs log.
struct Parser(Sink);

impl log::Log for Parser {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        (self.0)(event(&record.args().to_string()));
    }

    fn flush(&self) {}
}

/// The programs write `kind key=value …` with numbers for reasons and protocols, which are replaced by their names.
fn event(text: &str) -> Event {
    let mut words = text.split(' ');
    let mut event = Event::new();
    event.insert("event".into(), words.next().unwrap_or_default().into());
    for word in words {
        let Some((key, value)) = word.split_once('=') else {
            return [("event", "log"), ("text", text)]
                .map(|(k, v)| (k.to_owned(), Value::from(v)))
                .into_iter()
                .collect();
        };
        let number = value.parse::<u32>().ok();
        let name = match (key, number) {
            ("reason", Some(n)) => Reason::ALL.iter().find(|r| **r as u32 == n).map(|r| r.word()),
            ("origin", Some(n)) => Some(origin(n as u8)),
            ("proto", Some(n)) => Some(protocol(n as u8)),
            _ => None,
        };
        let value = name.map_or_else(|| number.map_or_else(|| value.into(), Value::from), Value::from);
        event.insert(key.into(), value);
    }
    event
}

#[cfg(test)]
mod tests {
    use super::event;

    #[test]
    fn numbers_become_names_and_a_line_of_another_form_is_passed_on() {
        let drop = event("drop reason=10 proto=6 src=10.89.0.2 sport=40000 ifindex=7");
        assert_eq!("drop", drop["event"]);
        assert_eq!("drop_isolated", drop["reason"]);
        assert_eq!("tcp", drop["proto"]);
        assert_eq!((40000, 7), (drop["sport"].as_u64().unwrap_or(0), drop["ifindex"].as_u64().unwrap_or(0)));
        let other = event("something else");
        assert_eq!(
            ("log", "something else"),
            (other["event"].as_str().unwrap_or(""), other["text"].as_str().unwrap_or(""))
        );
    }
}
