//! Runs a suite on libtest-mimic, so that a test that cannot run here is shown as ignored, with the reason.
//!
//! A suite imports `#[test]` by `#[macro_use] extern crate support`, and its `main` is [`run`].

use anyhow::Error;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use std::panic::set_hook;
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

pub use inventory;

/// A function with `#[test]`, registered by the attribute.
pub struct Test {
    /// With the name of the crate in front.
    pub path: &'static str,
    pub run: fn() -> Result<(), Error>,
}

inventory::collect!(Test);

#[macro_export]
macro_rules! register_test {
    ($name:ident) => {
        $crate::harness::inventory::submit! {
            $crate::harness::Test {
                path: concat!(module_path!(), "::", stringify!($name)),
                run: || $crate::harness::Outcome::outcome($name()),
            }
        }
    };
}

/// `tcx::name`, `clsact::name`, `nftables::name` and `iptables::name` for each function `name(rung) -> anyhow::Result<()>`.
#[macro_export]
macro_rules! on_every_rung {
    ($($name:ident),* $(,)?) => {
        on_every_rung!(@ tcx Tcx $($name)*);
        on_every_rung!(@ clsact Clsact $($name)*);
        on_every_rung!(@ nftables Nftables $($name)*);
        on_every_rung!(@ iptables Iptables $($name)*);
    };
    (@ $module:ident $rung:ident $($name:ident)*) => {
        mod $module {
            const GROUP: &[&str] = &[$(stringify!($name)),*];
            $(#[test]
            fn $name() -> anyhow::Result<()> {
                let rung = support::netavark::Rung::$rung;
                support::need!(support::need::rung(rung), support::need::turn(rung, stringify!($name), GROUP));
                super::$name(rung)
            })*
        }
    };
}

/// Return types of tests.
pub trait Outcome {
    /// # Errors
    /// The test has failed, or was skipped.
    fn outcome(self) -> Result<(), Error>;
}

impl Outcome for () {
    fn outcome(self) -> Result<(), Error> {
        Ok(())
    }
}

impl Outcome for Result<(), Error> {
    fn outcome(self) -> Result<(), Error> {
        self
    }
}

/// The error of a test that cannot run: what it needs.
#[derive(Debug)]
pub struct Skipped(pub String);

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "needs {}", self.0)
    }
}

impl std::error::Error for Skipped {}

/// libtest's arguments; like libtest, and unlike libtest-mimic, with any number of filters.
#[derive(clap::Parser)]
struct Args {
    #[command(flatten)]
    common: Arguments,
    #[arg(hide = true)]
    filters: Vec<String>,
}

/// Tests that took this long are listed at the end.
const SLOW: Duration = Duration::from_secs(2);

static SLOWEST: Mutex<Vec<(Duration, &str)>> = Mutex::new(Vec::new());

/// Panics with their places, by name of the thread: those that a test starts inherit its name (host.rs).
static PANICS: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

/// Seconds that programs stay loaded without a container.
pub const KEEP_LOADED: &str = "NETPATH_KEEP_LOADED";

/// For this process and all that it starts: they leave nothing loaded, which would hide leftovers. Before any thread starts.
pub fn keep_nothing_loaded() {
    // SAFETY: called at the start of main, while no other thread runs.
    unsafe { std::env::set_var(KEEP_LOADED, "0") };
}

/// Runs the tests that the command line asks for.
pub fn run() -> ExitCode {
    keep_nothing_loaded();
    let Args { mut common, filters } = clap::Parser::parse();
    let filters: Vec<String> = common.filter.take().into_iter().chain(filters).collect();
    let is_meant = |name: &str, filter: &String| if common.exact { name == filter } else { name.contains(filter) };
    let named = |test: &'static Test| (test.path.split_once("::").map_or(test.path, |(_, name)| name), test.run);
    let mut tests: Vec<_> = inventory::iter::<Test>().map(named).collect();
    tests.retain(|(name, _)| filters.is_empty() || filters.iter().any(|filter| is_meant(name, filter)));
    tests.sort_by_key(|(name, _)| *name);
    set_hook(Box::new(|panic| match thread::current().name() {
        Some(name) if name != "main" => locked(&PANICS).push((name.to_owned(), panic.to_string())),
        _ => eprintln!("{panic}"),
    }));
    let trial = |(name, test)| Trial::ignorable_test(name, move || run_one(name, test));
    let conclusion = libtest_mimic::run(&common, tests.into_iter().map(trial).collect());
    let mut slowest = locked(&SLOWEST);
    slowest.sort();
    slowest.iter().rev().for_each(|(took, name)| println!("took {:.1} s: {name}", took.as_secs_f64()));
    conclusion.exit_code()
}

fn locked<T>(list: &Mutex<T>) -> MutexGuard<'_, T> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

/// In a thread of its own, as some tests change the namespaces of their thread.
fn run_one(name: &'static str, test: fn() -> Result<(), Error>) -> Result<Completion, Failed> {
    let begun = Instant::now();
    let thread = thread::Builder::new().name(name.to_owned()).spawn(test).map_err(|e| format!("no thread: {e}"))?;
    let ended = thread.join();
    let took = begun.elapsed();
    if took >= SLOW {
        locked(&SLOWEST).push((took, name));
    }
    let mut failed = Vec::new();
    match ended {
        Ok(Ok(())) => return Ok(Completion::Completed),
        Ok(Err(error)) => match error.downcast_ref::<Skipped>() {
            Some(skipped) => return Ok(Completion::ignored_with(skipped)),
            None => failed.push(format!("{error:?}")),
        },
        Err(_) => {}
    }
    let panics = locked(&PANICS);
    failed.extend(panics.iter().filter(|(thread, _)| thread == name).map(|(_, panic)| panic.clone()));
    Err(failed.join("\n").into())
}
