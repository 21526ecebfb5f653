//! A process that stays the same one when its number is used again.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProcessId {
    pub pid: u32,
    /// Ticks since boot: field 22 of `/proc/<pid>/stat`.
    pub started: u64,
}

impl ProcessId {
    pub fn this_process() -> Self {
        Self::of(std::process::id())
    }

    /// A child of this process.
    pub fn of(pid: u32) -> Self {
        Self { pid, started: started(pid).unwrap_or(0) }
    }

    pub fn is_alive(self) -> bool {
        started(self.pid) == Some(self.started)
    }
}

fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, and may itself hold blanks and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    // It has ended, and its parent has not waited for it yet.
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_identified_by_number_and_start_time() {
        let here = ProcessId::this_process();
        assert!(here.is_alive());
        assert!(!ProcessId { started: here.started + 1, ..here }.is_alive(), "another process of the same number");
    }
}
