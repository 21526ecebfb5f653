//! Shows the running figure, progress and remaining time. On a terminal the line is redrawn with every sample; elsewhere there
//! is one line per finished figure.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

pub(crate) struct Progress {
    begun: Instant,
    /// Planned seconds: in total, and of the finished parts.
    total: f64,
    done: f64,
    terminal: bool,
}

impl Progress {
    pub(crate) fn of(total: Duration) -> Self {
        let terminal = std::io::stdout().is_terminal();
        Self { begun: Instant::now(), total: total.as_secs_f64(), done: 0.0, terminal }
    }

    /// Names the part that starts.
    pub(crate) fn now(&self, what: &str) {
        if self.terminal {
            print!("\r\x1b[K{} {what}", self.place());
            let _ = std::io::stdout().flush();
        }
    }

    /// Counts a finished part by its planned duration.
    pub(crate) fn advance(&mut self, planned: Duration) {
        self.done += planned.as_secs_f64();
    }

    /// Prints a permanent line.
    pub(crate) fn say(&self, text: &str) {
        let redraw = if self.terminal { "\r\x1b[K" } else { "" };
        println!("{redraw}{} {text}", self.place());
    }

    fn place(&self) -> String {
        let left = remaining(self.total, self.done, self.begun.elapsed().as_secs_f64());
        let percent = (100.0 * self.done / self.total.max(0.001)).min(100.0);
        match left {
            Some(left) => format!("[{percent:3.0} %, {} left]", clock(left)),
            None => format!("[{percent:3.0} %]"),
        }
    }
}

/// Remaining seconds, if the rest is as slow as the finished part; at the beginning the plan alone.
fn remaining(total: f64, done: f64, elapsed: f64) -> Option<f64> {
    let left = (total - done).max(0.0);
    if done <= 0.0 {
        return (left > 0.0).then_some(left);
    }
    Some(left * elapsed / done)
}

pub(crate) fn clock(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    if seconds < 60 { format!("{seconds} s") } else { format!("{} min {:02} s", seconds / 60, seconds % 60) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_is_as_slow_as_what_is_done() {
        assert_eq!(Some(100.0), remaining(100.0, 0.0, 0.0));
        assert_eq!(Some(180.0), remaining(100.0, 10.0, 20.0));
        assert_eq!(Some(0.0), remaining(100.0, 120.0, 300.0));
    }

    #[test]
    fn durations_are_readable() {
        assert_eq!(("59 s", "2 min 05 s"), (clock(59.4).as_str(), clock(125.0).as_str()));
    }
}
