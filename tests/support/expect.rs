//! A list of expectations that are all tried before the test fails.

use crate::host::{Netns, at_once};
use crate::traffic::{Dial, Seen};
use anyhow::{Result, ensure};
use std::cell::RefCell;
use std::fmt::Display;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

#[derive(Default)]
pub struct Expect {
    failed: RefCell<Vec<String>>,
}

impl Expect {
    /// Records the error of an expectation that is not met.
    pub fn met<T>(&self, what: &str, expectation: Result<T>) -> Option<T> {
        expectation.map_err(|e| self.note(false, || format!("{what}: {e:#}"))).ok()
    }

    pub fn note(&self, so: bool, otherwise: impl FnOnce() -> String) {
        if !so {
            self.failed.borrow_mut().push(otherwise());
        }
    }

    /// `dial` from `netns` is answered by `server`, which saw `source`; the client's socket reports the address it dialled.
    pub fn sees(&self, what: &str, netns: &Netns, dial: &Dial, server: &str, source: IpAddr) -> Option<Seen> {
        let seen = self.met(what, dial.ask(netns))?;
        let got = (seen.server.as_str(), seen.client.ip(), seen.peer);
        let expected = (server, source, dial.to);
        self.note(expected == got, || format!("{what}: {dial}: expected {expected:?}, got {got:?}"));
        Some(seen)
    }

    /// `dial` from `netns` gets no answer.
    pub fn silent(&self, what: &str, netns: &Netns, dial: &Dial) {
        self.met(what, dial.must_fail(netns));
    }

    /// As [`Expect::silent`] for each of these, at once: each waits for its time-out.
    pub fn all_silent<S: Display + Sync>(&self, dials: &[(S, &Netns, Dial)]) {
        let answered = Mutex::new(Vec::new());
        let one = |(what, netns, dial): &(S, &Netns, Dial)| {
            let failed = dial.must_fail(netns).map_err(|e| format!("{what}: {e:#}")).err();
            answered.lock().unwrap_or_else(PoisonError::into_inner).extend(failed);
            Ok(())
        };
        self.met("dials at once", at_once(dials.len().min(16), dials, one));
        self.failed.borrow_mut().extend(answered.into_inner().unwrap_or_else(PoisonError::into_inner));
    }

    /// Takes the errors recorded so far.
    pub fn take(&self) -> Vec<String> {
        self.failed.take()
    }

    /// # Errors
    /// All expectations that were not met.
    pub fn all_met(&self, where_: &str) -> Result<()> {
        let failed = self.take();
        ensure!(failed.is_empty(), "{} of the expectations {where_}:\n  {}", failed.len(), failed.join("\n  "));
        Ok(())
    }
}
