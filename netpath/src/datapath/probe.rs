//! Probes of the kernel: each tries the feature itself. A version number explains an answer and never gives one.

use std::fmt;
use std::io;

/// The mainline kernel that brought a feature; distributions carry many of them further back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kernel(pub u8, pub u8);

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

#[derive(Debug)]
pub enum Answer {
    Yes,
    No(String),
    /// The probe itself failed.
    Unknown(io::Error),
}

#[derive(Clone, Copy)]
pub struct Probe {
    pub name: &'static str,
    pub since: Kernel,
    /// The substitute where the answer is no.
    pub without: &'static str,
    pub run: fn() -> Answer,
}

impl Probe {
    /// # Errors
    /// The kernel does not have it, or cannot be asked.
    pub fn require(&self) -> Result<(), String> {
        match (self.run)() {
            Answer::Yes => Ok(()),
            Answer::No(why) => Err(format!("no {}: {why} (since Linux {})", self.name, self.since)),
            Answer::Unknown(e) => Err(format!("cannot tell whether there is {}: {e}", self.name)),
        }
    }
}
