//! Desired state → ordered steps, each with its undo. Depends on the model alone: a `Host` performs the steps.

pub mod build;
pub mod run;
pub mod step;

pub use build::{Steps, attach, connect, detach};
pub use run::{Failed, all_of, run, run_on};
pub use step::{Done, Host, Step, Undo};
