//! A controlled guest: it boots, receives commands over a control port (tests/vm_node), and is powered off.

use super::qemu::{Acceleration, Qemu, READY, Running};
use crate::steps::{seconds, tail};
use crate::workspace;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

const MEMORY_MIB: u32 = 1024;
/// Time limit of one command, also under emulation.
const PATIENCE: Duration = Duration::from_secs(240);
/// Time limit for QEMU to open its sockets.
const OPENING: Duration = Duration::from_secs(20);

/// Boot files of all guests of a wire, and the directory of their sockets.
pub(super) struct Boot<'a> {
    pub qemu: &'a Qemu,
    pub kernel: &'a Path,
    pub initramfs: &'a Path,
    pub directory: &'a Path,
}

/// A guest's name and the hardware addresses of its links, `eth0` and so on.
pub(super) struct Part {
    pub name: &'static str,
    pub macs: &'static [&'static str],
}

pub(super) struct Machine {
    name: &'static str,
    qemu: Running,
    control: UnixStream,
    /// Number of the last command.
    number: u64,
    /// Bytes of the incomplete line.
    read: Vec<u8>,
    monitor: UnixStream,
    /// Everything received from the control port, and the kernel's messages.
    log: File,
    console: PathBuf,
    /// `uname -r`
    pub release: String,
}

impl Machine {
    /// Starts the guest; [`Machine::is_up`] waits for it. `ends`: its ends of the wires, at most two, in the order of
    /// `part.macs`.
    ///
    /// # Errors
    /// QEMU cannot be started or ends at once.
    pub(super) fn start(boot: &Boot<'_>, part: &Part, ends: Vec<OwnedFd>, acceleration: Acceleration) -> Result<Self> {
        let log = |what: &str| workspace::logs().join(format!("vm-wire-{}-{what}.log", part.name));
        fs::create_dir_all(workspace::logs()).context("cannot create the directory of logs")?;
        let console = log("console");
        let listen = |what: &str| -> Result<(UnixListener, PathBuf)> {
            let path = boot.directory.join(format!("{}-{what}", part.name));
            // Left by the previous boot.
            let _ = fs::remove_file(&path);
            let listener = UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
            listener.set_nonblocking(true)?;
            Ok((listener, path))
        };
        let ((control, control_at), (monitor, monitor_at)) = (listen("control")?, listen("monitor")?);
        let mut command = boot.qemu.machine(acceleration, MEMORY_MIB);
        command.arg("-serial").arg(format!("file:{}", console.display()));
        for (id, path) in [("control", &control_at), ("monitor", &monitor_at)] {
            command.arg("-chardev").arg(format!("socket,id={id},path={}", path.display()));
        }
        command.args(["-serial", "chardev:control", "-mon", "chardev=monitor,mode=readline"]);
        // A pair of datagram sockets is a wire that preserves frames, applies backpressure, and outlives both machines.
        // Standard input and output are the two descriptors that every child inherits.
        for (n, mac) in part.macs.iter().enumerate() {
            command.arg("-netdev").arg(format!("socket,id=wire{n},fd={n}"));
            command.arg("-device").arg(format!("virtio-net-pci,netdev=wire{n},mac={mac},romfile="));
        }
        command.arg("-kernel").arg(boot.kernel).arg("-initrd").arg(boot.initramfs).args(acceleration.append());
        let mut ends = ends.into_iter().map(Stdio::from);
        let words = log("qemu");
        command.stdin(ends.next().unwrap_or_else(Stdio::null)).stdout(ends.next().unwrap_or_else(Stdio::null));
        command.stderr(File::create(&words).with_context(|| format!("cannot write {}", words.display()))?);
        let mut qemu = Running::new(command.spawn().context("cannot start QEMU")?);
        let mut accept = |listener: UnixListener| -> Result<UnixStream> {
            let begun = Instant::now();
            loop {
                match listener.accept() {
                    Ok((stream, _)) => {
                        return stream.set_nonblocking(false).map(|()| stream).context("a socket of QEMU");
                    }
                    Err(e) if e.kind() != ErrorKind::WouldBlock => return Err(e).context("a socket of QEMU"),
                    Err(_) => {}
                }
                if qemu.0.try_wait()?.is_some() || begun.elapsed() > OPENING {
                    bail!("QEMU did not start: {}", tail(fs::read_to_string(&words).unwrap_or_default().trim_end(), 5));
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        let (control, monitor) = (accept(control)?, accept(monitor)?);
        control.set_read_timeout(Some(Duration::from_millis(200)))?;
        let log = log("control");
        Ok(Self {
            name: part.name,
            qemu,
            control,
            number: 0,
            read: Vec::new(),
            monitor,
            log: File::create(&log).with_context(|| format!("cannot write {}", log.display()))?,
            console,
            release: String::new(),
        })
    }

    /// Waits until its node is ready; `false`: not within `patience`.
    ///
    /// # Errors
    /// The guest has ended, or its init has given up.
    pub(super) fn is_up(&mut self, patience: Duration) -> Result<bool> {
        let begun = Instant::now();
        loop {
            let Some(line) = self.line(patience.saturating_sub(begun.elapsed()))? else { return Ok(false) };
            if let Some(release) = line.strip_prefix(READY) {
                self.release = release.to_owned();
            } else if let Some(why) = line.strip_prefix("::broken ") {
                bail!("{}: {why}", self.name);
            } else if line.starts_with('{') {
                return Ok(true);
            }
        }
    }

    /// Sends a command and returns the answer.
    ///
    /// # Errors
    /// The command fails, or there is no answer.
    pub(super) fn ask(&mut self, command: &Value) -> Result<Value> {
        self.send(command)?;
        self.answer()
    }

    /// Sends a command; [`Machine::answer`] waits for its end.
    ///
    /// # Errors
    /// The machine has ended.
    pub(super) fn send(&mut self, command: &Value) -> Result<()> {
        self.number += 1;
        let mut command = command.clone();
        command["n"] = self.number.into();
        let _ = writeln!(self.log, "> {command}");
        self.control.write_all(format!("{command}\n").as_bytes()).with_context(|| format!("{}: {command}", self.name))
    }

    /// The answer to the last command. Late answers to earlier commands are ignored.
    ///
    /// # Errors
    /// The command failed, or there is no answer.
    pub(super) fn answer(&mut self) -> Result<Value> {
        loop {
            let Some(line) = self.line(PATIENCE)? else {
                bail!("{} does not answer within {}\n{}", self.name, seconds(PATIENCE), self.last_words());
            };
            match said(&line, self.number) {
                None => {}
                Some(Ok(value)) => return Ok(value),
                Some(Err(error)) => bail!("{}: {error}", self.name),
            }
        }
    }

    /// Removes or restores the carrier of link `n`.
    ///
    /// # Errors
    /// The machine has ended.
    pub(super) fn carrier(&mut self, n: usize, up: bool) -> Result<()> {
        let state = if up { "on" } else { "off" };
        writeln!(self.monitor, "set_link wire{n} {state}").with_context(|| format!("{}: the monitor", self.name))?;
        self.ask(&json!({"do": "carrier", "link": format!("eth{n}"), "up": up, "within_ms": 10_000})).map(drop)
    }

    /// The next line from the control port, if complete in time.
    fn line(&mut self, patience: Duration) -> Result<Option<String>> {
        let begun = Instant::now();
        loop {
            if let Some(end) = self.read.iter().position(|b| *b == b'\n') {
                let rest = self.read.split_off(end + 1);
                let line = std::mem::replace(&mut self.read, rest);
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                let _ = writeln!(self.log, "{line}");
                return Ok(Some(line));
            }
            if begun.elapsed() > patience {
                return Ok(None);
            }
            let mut some = [0; 4096];
            match self.control.read(&mut some) {
                Ok(0) => bail!("{} has ended\n{}", self.name, self.last_words()),
                Ok(n) => self.read.extend(&some[..n]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
                Err(e) => return Err(e).with_context(|| format!("{}: the control port", self.name)),
            }
        }
    }

    fn last_words(&self) -> String {
        tail(String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).trim_end(), 12)
    }

    /// Powers the machine off without a shutdown.
    ///
    /// # Errors
    /// QEMU cannot be ended.
    pub(super) fn cut(&mut self) -> Result<()> {
        self.qemu.0.kill().context("cannot end QEMU")?;
        self.qemu.0.wait().map(drop).context("cannot wait for QEMU")
    }
}

/// The result in a line from the node for the command `number`. `None`: the line answers an older command, or is not JSON, as
/// the message of init when the node has ended. An answer without a number belongs to input that was not parsed as a command.
fn said(line: &str, number: u64) -> Option<Result<Value, String>> {
    let answer: Value = serde_json::from_str(line).ok()?;
    if answer["n"].as_u64().is_some_and(|n| n < number) {
        return None;
    }
    Some(answer["error"].as_str().map_or_else(|| Ok(answer["ok"].clone()), |error| Err(error.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_answer_is_not_taken_for_the_next_command() {
        assert_eq!(None, said(r#"{"n":6,"ok":1}"#, 7));
        assert_eq!(None, said(r#"{"n":6,"error":"late"}"#, 7));
        assert_eq!(None, said("::end vm_node 0 12", 7));
        assert_eq!(Some(Ok(json!(2))), said(r#"{"n":7,"ok":2}"#, 7));
        assert_eq!(Some(Err("why".to_owned())), said(r#"{"n":7,"error":"why"}"#, 7));
        assert_eq!(Some(Err("no command".to_owned())), said(r#"{"n":null,"error":"no command"}"#, 7));
    }
}
