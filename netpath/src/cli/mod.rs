//! netpath's own verbs, for people.

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs one verb. `args` begins with the program's name.
pub fn run(args: Vec<OsString>) -> ExitCode {
    eprintln!("netpath: unknown command {:?}", args.get(1));
    ExitCode::from(2)
}
