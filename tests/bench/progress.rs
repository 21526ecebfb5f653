//! What is running, how far it is, and when it will end. On a terminal the line is redrawn with every sample; elsewhere
//! there is one line per finished figure.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

pub struct Progress {
    begun: Instant,
    /// Planned seconds: all, and of what is done.
    total: f64,
    done: f64,
    terminal: bool,
}

impl Progress {
    pub fn of(total: Duration) -> Self {
        let terminal = std::io::stdout().is_terminal();
        Self { begun: Instant::now(), total: total.as_secs_f64(), done: 0.0, terminal }
    }

    /// What begins now.
    pub fn now(&self, what: &str) {
        if self.terminal {
            print!("\r\x1b[K{} {what}", self.place());
            let _ = std::io::stdout().flush();
        }
    }

    /// A part that was planned to take so long is over.
    pub fn advance(&mut self, planned: Duration) {
        self.done += planned.as_secs_f64();
    }

    /// A line that stays.
    pub fn say(&self, text: &str) {
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

/// Seconds that are left, if the rest goes as slow as what is done; nothing to go by at the beginning but the plan.
fn remaining(total: f64, done: f64, elapsed: f64) -> Option<f64> {
    let left = (total - done).max(0.0);
    if done <= 0.0 {
        return (left > 0.0).then_some(left);
    }
    Some(left * elapsed / done)
}

pub fn clock(seconds: f64) -> String {
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
    fn times_are_said_as_people_say_them() {
        assert_eq!(("59 s", "2 min 05 s"), (clock(59.4).as_str(), clock(125.0).as_str()));
    }
}
