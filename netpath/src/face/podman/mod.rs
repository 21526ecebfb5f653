//! Podman's face: netavark's command line and JSON.

use std::ffi::OsString;
use std::process::ExitCode;

/// Answers one call of Podman's. `args` begins with the program's name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().skip(1).collect();
    if args.iter().any(|a| a == "--version" || a == "-V") {
        println!("netavark {} (netpath)", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    println!("{}", serde_json::json!({ "error": format!("unknown command {args:?}") }));
    ExitCode::FAILURE
}
