//! A process that keeps namespaces alive for a test, and the way into them.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

/// Ends when its standard input is closed: also when this process is killed.
pub struct Holder {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Holder {
    /// Starts `command`, and waits until it prints `ready`.
    ///
    /// # Errors
    /// It ended instead; the error holds its standard error.
    pub fn start(mut command: Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let mut line = String::new();
        if let Some(stdout) = stdout {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        if line.trim() == "ready" {
            return Ok(Self { child, stdin });
        }
        drop(stdin);
        bail!("{}", String::from_utf8_lossy(&child.wait_with_output()?.stderr).trim_end());
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// # Errors
    /// The process has ended.
    pub fn namespace(&self, kind: &str) -> Result<File> {
        let path = self.namespace_path(kind);
        File::open(&path).with_context(|| path)
    }

    fn namespace_path(&self, kind: &str) -> String {
        let file = if kind == "pid" { "pid_for_children" } else { kind };
        format!("/proc/{}/ns/{file}", self.pid())
    }

    /// An nsenter command into `kinds` of its namespaces, without the program to run.
    pub fn enter(&self, kinds: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        for kind in kinds {
            let option = if *kind == "mnt" { "mount" } else { kind };
            command.arg(format!("--{option}={}", self.namespace_path(kind)));
        }
        command
    }

    /// The first process of the PID namespace, as numbered here.
    pub fn init(&self) -> Option<u32> {
        let pid = self.pid();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// Waits until all processes of its PID namespace are gone.
    pub fn end(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let deadline = Instant::now() + Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        // `--kill-child`: the namespace's first process ends with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
