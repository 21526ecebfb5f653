//! Desired state → ordered steps, each with what takes it back. Knows only the model: the steps are done by a `Host`.

pub mod build;
pub mod run;
pub mod step;

pub use build::{Steps, attach, connect, detach};
pub use run::{Failed, all_of, run, run_on};
pub use step::{Done, Host, Step, Undo};
