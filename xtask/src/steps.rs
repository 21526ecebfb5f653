//! Progress of long work: the step, its number, and its duration. On a terminal the line is redrawn; elsewhere one line per
//! finished step.

use crate::workspace;
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) struct Steps {
    total: usize,
    done: usize,
    terminal: bool,
}

impl Steps {
    pub(crate) fn of(total: usize) -> Self {
        Self { total, done: 0, terminal: std::io::stdout().is_terminal() }
    }

    /// Adds a step to the planned number.
    pub(crate) fn one_more(&mut self) {
        self.total += 1;
    }

    /// Counts a step that has nothing to do.
    pub(crate) fn nothing_to_do(&mut self, what: &str) {
        self.done += 1;
        println!("[{}/{}] {what} … there already", self.done, self.total);
    }

    /// Runs a program as the next step; its output goes to a file, whose end is shown if the program fails.
    ///
    /// # Errors
    /// The program cannot be started or fails.
    pub(crate) fn run(&mut self, what: &str, command: &mut Command) -> Result<()> {
        self.done += 1;
        let head = format!("[{}/{}] {what} …", self.done, self.total);
        let log = workspace::logs().join(format!("{}.log", file_name(what)));
        fs::create_dir_all(workspace::logs()).context("cannot create the directory of logs")?;
        let out = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let begun = Instant::now();
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let mut child =
            command.spawn().with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if self.terminal {
                print!("\r{head} {} s", begun.elapsed().as_secs());
                std::io::stdout().flush()?;
            }
            std::thread::sleep(Duration::from_millis(if self.terminal { 200 } else { 20 }));
        };
        let redraw = if self.terminal { "\r" } else { "" };
        println!("{redraw}{head} {}", seconds(begun.elapsed()));
        if !status.success() {
            bail!(
                "{what} failed ({status}): {}\n{}\nthe whole output is in {}",
                line(command),
                tail(&fs::read_to_string(&log).unwrap_or_default(), 25),
                log.display()
            );
        }
        Ok(())
    }
}

/// `41 s`, or `0.3 s` below ten seconds.
pub(crate) fn seconds(took: Duration) -> String {
    if took.as_secs() < 10 { format!("{:.1} s", took.as_secs_f64()) } else { format!("{} s", took.as_secs()) }
}

/// A command as typed in a shell.
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|w| w.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn file_name(what: &str) -> String {
    what.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_step_shows_its_command_and_the_end_of_its_output() {
        let mut steps = Steps::of(1);
        let error = steps.run("unit test of steps", Command::new("sh").args(["-c", "echo why; exit 3"]));
        let text = error.expect_err("exit 3 is a failure").to_string();
        assert!(text.contains("why") && text.contains("sh -c"), "{text}");
    }

    #[test]
    fn the_tail_of_a_short_text_is_the_text() {
        assert_eq!("a\nb", tail("a\nb\n", 5));
        assert_eq!("b", tail("a\nb\n", 1));
    }
}
