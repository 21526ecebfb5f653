//! Runs plans, and undoes one that fails.

use super::step::{Done, Host, Step};
use crate::model::error::{Error, Result};

/// A plan that failed. The changes of its steps have been undone.
#[derive(Debug)]
pub struct Failed {
    /// From 1.
    pub number: usize,
    pub of: usize,
    pub step: Step,
    pub cause: Error,
    /// Steps that had changed something and were undone.
    pub undone: usize,
    /// What could not be undone.
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

/// Runs the steps in order. On the first failure it undoes their changes, last first.
///
/// # Errors
/// The step that failed, and what was undone.
pub fn run(plan: &[Step], host: &mut impl Host) -> std::result::Result<(), Box<Failed>> {
    let mut undo = Vec::new();
    let mut covered = 0;
    for (at, step) in plan.iter().enumerate() {
        let applied = if host.interrupted() {
            Err(Error::new("interrupted by a signal"))
        } else {
            tracing::debug!(step = at + 1, of = plan.len(), "{step}");
            host.apply(step)
        };
        match applied {
            Ok(Done::AlreadySo) => {}
            Ok(Done::ChangedCovered) => covered += 1,
            Ok(Done::Changed(back)) => undo.push(back),
            Err(cause) => {
                let mut left = Vec::new();
                let mut undone = covered;
                for back in undo.iter().rev() {
                    tracing::debug!(?back, "undo");
                    if let Err(e) = host.undo(back) {
                        left.push(e);
                    }
                    // The lock is not counted as a change of the host.
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

/// Runs all steps, also after one has failed: teardown removes as much as it can. It stops only if it cannot take the lock.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Container, Record, fixtures};
    use crate::plan::step::Undo;
    use crate::plan::{self, Steps, connect, detach};

    /// Records each change by its undo.
    #[derive(Default)]
    struct Recorder {
        applied: Vec<String>,
        changes: Vec<Undo>,
        locked: bool,
        fail_at: Option<usize>,
        interrupt_at: Option<usize>,
        undo_fails: bool,
        already: bool,
    }

    impl Host for Recorder {
        fn apply(&mut self, step: &Step) -> Result<Done> {
            self.applied.push(step.to_string());
            if self.fail_at == Some(self.applied.len()) {
                return Err(Error::new("network is unreachable").next("look"));
            }
            let back = match step {
                Step::Lock => {
                    assert!(!self.locked, "the lock is taken twice");
                    self.locked = true;
                    return Ok(Done::Changed(Undo::Unlock));
                }
                Step::Unlock => {
                    assert!(self.locked, "the lock is not held");
                    self.locked = false;
                    return Ok(Done::Changed(Undo::Lock));
                }
                Step::Keep(r) => Undo::Forget(r.clone()),
                Step::Share { at, .. } => Undo::Unshare { at: *at },
                Step::Connect { at, .. } => Undo::Disconnect { at: *at },
                Step::Route { route, .. } if route.gateway.is_none() => Undo::RemoveRoute(route.clone()),
                Step::Datapath => Undo::Withdraw,
                Step::Names => Undo::Unname,
                _ => return Ok(Done::ChangedCovered),
            };
            if matches!(step, Step::Keep(_) | Step::Share { .. } | Step::Datapath | Step::Link { .. }) {
                assert!(self.locked, "{step} without the lock");
            }
            if self.already && matches!(back, Undo::Unshare { .. }) {
                return Ok(Done::AlreadySo);
            }
            self.changes.push(back.clone());
            Ok(Done::Changed(back))
        }

        fn undo(&mut self, undo: &Undo) -> Result<()> {
            match undo {
                Undo::Lock => self.locked = true,
                Undo::Unlock => self.locked = false,
                Undo::Forget(_) | Undo::Unshare { .. } | Undo::Withdraw => {
                    assert!(self.locked, "{undo:?} without the lock");
                }
                _ => {}
            }
            if self.undo_fails && matches!(undo, Undo::Disconnect { .. }) {
                return Err(Error::new("cannot delete interface 7"));
            }
            self.changes.retain(|t| t != undo);
            Ok(())
        }

        fn interrupted(&self) -> bool {
            self.interrupt_at.is_some_and(|at| self.applied.len() >= at)
        }
    }

    fn record(network: &str, internal: bool) -> Record {
        let mut record = fixtures::plain(1, network, &format!("br-{network}"), &["10.89.7.5/24", "fd41:7::5/64"]);
        record.container = Container { id: "5d2f0c1b7a9e".into(), name: "web".into() };
        record.network.internal = internal;
        record.network.routes = vec![crate::model::network::Route {
            destination: "172.20.0.0/16".parse().expect("a subnet"),
            gateway: None,
            metric: 50,
            kind: crate::model::network::RouteKind::Blackhole,
        }];
        record.endpoint.interface = format!("eth-{network}").parse().expect("a name");
        record
    }

    /// The steps of a driver whose endpoints share a link.
    fn attach(records: &[Record]) -> Vec<Step> {
        let steps = |(at, r): (usize, &Record)| {
            let what = format!("br-{}", r.network.name);
            Steps { shared: vec![Step::Share { at, what: what.clone() }], own: connect(at, r, what) }
        };
        plan::attach(records, records.iter().enumerate().map(steps).collect())
    }

    #[test]
    fn a_failure_at_any_step_leaves_nothing() {
        let plan = attach(&[record("front", false), record("back", true)]);
        for step in 1..=plan.len() {
            let mut host = Recorder { fail_at: Some(step), ..Recorder::default() };
            let failed = run(&plan, &mut host).expect_err("told to fail");
            assert_eq!(Vec::<Undo>::new(), host.changes, "after a failure at {step}");
            assert!(!host.locked, "locked after a failure at {step}");
            assert_eq!(step, failed.number);
            assert_eq!(step, host.applied.len(), "nothing runs after the failure");
        }
        assert!(run(&plan, &mut Recorder::default()).is_ok());
    }

    #[test]
    fn a_signal_between_any_two_steps_leaves_nothing() {
        let plan = attach(&[record("front", false)]);
        for step in 0..plan.len() {
            let mut host = Recorder { interrupt_at: Some(step), ..Recorder::default() };
            let failed = run(&plan, &mut host).expect_err("interrupted");
            assert!(failed.cause.to_string().contains("signal"));
            assert_eq!(Vec::<Undo>::new(), host.changes, "after a signal at {step}");
            assert!(!host.locked);
        }
    }

    #[test]
    fn an_undo_keeps_what_existed_before() {
        let plan = attach(&[record("front", false)]);
        let mut host = Recorder { fail_at: Some(plan.len()), already: true, ..Recorder::default() };
        host.changes.push(Undo::Unshare { at: 0 });
        run(&plan, &mut host).expect_err("told to fail");
        assert_eq!(1, host.changes.len(), "the bridge was not this plan's");
    }

    #[test]
    fn a_failure_names_step_object_cause_and_the_undone_steps() {
        let plan = attach(&[record("front", false)]);
        let at = plan.iter().position(|s| matches!(s, Step::Route { .. })).expect("a route") + 1;
        let mut host = Recorder { fail_at: Some(at), ..Recorder::default() };
        let error = run(&plan, &mut host).expect_err("told to fail").into_error("setup of web (5d2f0c1b7a9e)");
        let text = format!(
            "setup of web (5d2f0c1b7a9e) failed at step {at} of {}, add route default via 10.89.7.1 metric 100 of \
             eth-front: network is unreachable; 8 steps undone, none left behind",
            plan.len()
        );
        assert_eq!(text, error.to_string());
        assert_eq!(Some("look"), error.next_step());

        let mut host = Recorder { fail_at: Some(at), undo_fails: true, ..Recorder::default() };
        let error = run(&plan, &mut host).expect_err("told to fail").into_error("setup of web");
        assert!(error.to_string().ends_with("left behind: cannot delete interface 7"), "{error}");
    }

    #[test]
    fn an_internal_network_has_no_default_route() {
        let routes =
            |r: &Record| attach(std::slice::from_ref(r)).iter().filter(|s| matches!(s, Step::Route { .. })).count();
        assert_eq!(3, routes(&record("front", false)), "two default routes and its own");
        assert_eq!(1, routes(&record("back", true)), "its own");
    }

    #[test]
    fn a_teardown_goes_on_after_a_failure() {
        let plan = detach(true);
        let mut host = Recorder { fail_at: Some(1), locked: true, ..Recorder::default() };
        assert_eq!(1, run_on(&plan, &mut host).len());
        assert_eq!(plan.len(), host.applied.len());
    }
}
