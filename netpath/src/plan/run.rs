//! The one interpreter.

use super::step::{Done, Host, Step};
use crate::model::error::{Error, Result};

/// A plan that ended early. What its steps had changed has been taken back.
#[derive(Debug)]
pub struct Failed {
    /// From 1.
    pub number: usize,
    pub of: usize,
    pub step: Step,
    pub cause: Error,
    /// Steps that had changed something and were taken back.
    pub undone: usize,
    /// What could not be taken back.
    pub left: Vec<Error>,
}

impl Failed {
    /// `setup of web failed at step 7 of 12, add route …: network is unreachable; 6 steps undone, none left behind`
    pub fn into_error(self, what: &str) -> Error {
        let (number, of, step) = (self.number, self.of, &self.step);
        let undone = match (self.undone, self.left.is_empty()) {
            (0, true) => "nothing was changed".to_owned(),
            (n, true) => format!("{n} {} undone, none left behind", if n == 1 { "step" } else { "steps" }),
            (n, false) => {
                let left: Vec<String> = self.left.iter().map(ToString::to_string).collect();
                format!("{n} steps undone, left behind: {}", left.join("; "))
            }
        };
        let error = Error::new(format!("{what} failed at step {number} of {of}, {step}"))
            .because(format!("{}; {undone}", self.cause));
        match self.cause.next_step() {
            Some(next) => error.next(next),
            None => error,
        }
    }
}

/// Runs the steps in order; on the first failure takes back, last first, what they had changed.
///
/// # Errors
/// The step that failed, with what became of the others.
pub fn run(plan: &[Step], host: &mut impl Host) -> std::result::Result<(), Box<Failed>> {
    let mut undo = Vec::new();
    let mut within = 0;
    for (at, step) in plan.iter().enumerate() {
        let applied = if host.interrupted() {
            Err(Error::new("interrupted by a signal"))
        } else {
            tracing::debug!(step = at + 1, of = plan.len(), "{step}");
            host.apply(step)
        };
        match applied {
            Ok(Done::AlreadySo) => {}
            Ok(Done::Within) => within += 1,
            Ok(Done::Changed(back)) => undo.push(back),
            Err(cause) => {
                let mut left = Vec::new();
                let mut undone = within;
                for back in undo.iter().rev() {
                    tracing::debug!(?back, "undo");
                    if let Err(e) = host.undo(back) {
                        left.push(e);
                    }
                    // The lock is no change to the host.
                    if !matches!(back, super::Undo::Lock | super::Undo::Unlock) {
                        undone += 1;
                    }
                }
                return Err(Box::new(Failed {
                    number: at + 1,
                    of: plan.len(),
                    step: step.clone(),
                    cause,
                    undone,
                    left,
                }));
            }
        }
    }
    Ok(())
}

/// Runs all steps, also after one has failed: what a teardown cannot remove must not keep it from the rest. Only without
/// the lock it goes no further.
///
/// # Errors
/// Everything that failed, in order.
pub fn run_on(plan: &[Step], host: &mut impl Host) -> Vec<Error> {
    let mut failures = Vec::new();
    for (at, step) in plan.iter().enumerate() {
        tracing::debug!(step = at + 1, of = plan.len(), "{step}");
        if let Err(e) = host.apply(step) {
            tracing::debug!(error = %e, "{step} failed");
            failures.push(e);
            if *step == Step::Lock {
                break;
            }
        }
    }
    failures
}

/// All failures as one error, or none.
///
/// # Errors
/// If there is any.
pub fn all_of(what: &str, mut failures: Vec<Error>) -> Result<()> {
    match failures.len() {
        0 => Ok(()),
        1 => Err(failures.remove(0).within(what)),
        n => {
            let texts: Vec<String> = failures.iter().map(ToString::to_string).collect();
            Err(Error::new(format!("{what}: {n} failures")).because(texts.join("; ")))
        }
    }
}
