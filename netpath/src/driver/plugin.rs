//! A program that makes and removes the interface of an endpoint: netavark's plugin API 1.0.0.
//!
//! `PROGRAM setup NETNS` and `PROGRAM teardown NETNS` read a document from standard input. `setup` prints a status block, which is
//! handed on as it is. A failure is `{"error": …}` on standard output and an exit code other than 0. Standard error is the engine's.

use super::{Driver, Found, Made, Site, limited};
use crate::model::attachment::Plugin as Attachment;
use crate::model::error::{Context, Error, Result};
use crate::model::{HostView, IfName, Links, Record};
use crate::plan::{Step, Steps};
use crate::state::StoredEndpoint;
use nix::sys::signal::{SigHandler, Signal, signal};
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// When the first program of this command was run. An engine waits for a command with its locks held, so none may take longer than 10 s.
static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);
/// Until when a program has to end, and the least time that it gets.
const DONE: (Duration, Duration) = (Duration::from_secs(6), Duration::ZERO);
const UNDONE: (Duration, Duration) = (Duration::from_secs(9), Duration::from_millis(500));

/// The program of driver `name` in the first of `dirs` that has one. A name with a slash is none: it would lead out of them.
pub fn find(dirs: &[OsString], name: &str) -> Option<PathBuf> {
    if name.is_empty() || name.contains('/') || name == "." || name == ".." {
        return None;
    }
    let is_program =
        |p: &PathBuf| p.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    dirs.iter().map(|dir| Path::new(dir).join(name)).find(is_program)
}

/// Runs the program and returns what it prints.
///
/// # Errors
/// It cannot be run, fails, with its own error text, or does not end in time.
pub fn run(program: &Path, words: &[&OsStr], input: &str) -> Result<String> {
    // What undoes a setup needs some of the time that a command has.
    let (until, least) = if words.first().is_some_and(|w| *w == "teardown") { UNDONE } else { DONE };
    let limit = until.saturating_sub(BEGUN.elapsed()).max(least);
    let name = program.file_name().unwrap_or(program.as_os_str());
    // The words are netavark's.
    let what = || format!("plugin {name:?} failed");
    let next = || format!("see what {} prints on standard error", program.display());
    let mut command = Command::new(program);
    command.args(words).stderr(Stdio::inherit());
    // SAFETY: between fork and exec only bare system calls are made.
    unsafe {
        command.pre_exec(|| {
            // Ignored signals stay ignored after exec, and the program could not be stopped.
            for each in [Signal::SIGTERM, Signal::SIGINT] {
                signal(each, SigHandler::SigDfl)?;
            }
            Ok(())
        });
    }
    let Some((status, printed)) = limited::run(&mut command, input, limit).context(what)? else {
        let cause = format!("plugin {name:?} did not end within {:.1} s and was killed", limit.as_secs_f32());
        return Err(Error::new(what()).because(cause).next(next()));
    };
    match status.code() {
        Some(0) => Ok(printed),
        None => Err(Error::new(what()).because(format!("plugin {name:?} killed by signal ({status})")).next(next())),
        Some(code) => {
            let told = serde_json::from_str::<serde_json::Value>(&printed).ok();
            let told = told.and_then(|v| Some(v.get("error")?.as_str()?.to_owned()));
            let cause = match told {
                Some(text) => format!("exit code {code}, message: {text}"),
                None => format!("exit code {code}, parse error: it printed no {{\"error\": …}}"),
            };
            Err(Error::new(what()).because(cause).next(next()))
        }
    }
}

pub struct Plugin(Attachment);

impl Plugin {
    pub fn new(attachment: Attachment) -> Self {
        Self(attachment)
    }

    fn run(&self, verb: &str, netns: &Path) -> Result<String> {
        run(&self.0.program, &[verb.as_ref(), netns.as_os_str()], &self.0.input)
    }
}

impl Driver for Plugin {
    fn validate(&mut self, _site: &Site, _record: &Record, _stored: &[StoredEndpoint]) -> Result<()> {
        Ok(())
    }

    fn steps(&self, at: usize, record: &Record) -> Steps {
        let interface = record.endpoint.interface.clone();
        let to = format!("plugin {}", self.0.program.display());
        Steps { own: vec![Step::Connect { at, interface, to }], ..Steps::default() }
    }

    fn connect(&mut self, _site: &Site, record: &Record) -> Result<Made> {
        match self.run("setup", &record.netns) {
            Ok(status) => Ok(Made { status: Some(status), ..Made::default() }),
            Err(e) => {
                // It may have failed half-way.
                if let Err(worse) = self.disconnect(&record.netns) {
                    tracing::debug!(error = %worse, "teardown after a failed setup");
                }
                Err(e)
            }
        }
    }

    /// Also in a namespace that is gone: the plugin may have made something on the host.
    fn disconnect(&self, netns: &Path) -> Result<()> {
        match self.0.program.metadata() {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let program = self.0.program.display();
                tracing::warn!("plugin {program} is gone; what it has made stays");
                Ok(())
            }
            _ => self.run("teardown", netns).map(drop),
        }
    }

    fn configure(&self, _site: &Site, _record: &Record) -> Result<()> {
        Ok(())
    }

    fn up(&self, _site: &Site, _record: &Record, _made: &Made) -> Result<()> {
        Ok(())
    }

    fn has_no_links(&self) -> bool {
        true
    }

    fn is_alive(&self, _site: &Site, _record: &Record, _links: &Links, _view: &HostView) -> Result<bool> {
        Ok(true)
    }

    fn recorded(&self, _site: &Site, _interface: &IfName, _links: &Links) -> Result<Option<Found>> {
        Ok(None)
    }

    fn inside(&self, _site: &Site, _interface: &IfName) -> Result<Option<Found>> {
        Ok(None)
    }
}
