//! netpath shown to somebody who has never seen it: a container, a published port, a page fetched through it, what
//! carried the page, and a host as clean afterwards as before.
//!
//! `demo` wires a namespace by hand, as an engine would; `demo --engine podman` lets a real Podman do it.

mod namespaces;
mod podman;
mod steps;

use std::process::ExitCode;

const USAGE: &str = "demo [--engine podman] [--keep]";

fn main() -> ExitCode {
    let (mut engine, mut keep) = (false, false);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--engine" if args.next().as_deref() == Some("podman") => engine = true,
            "--keep" => keep = true,
            _ => {
                eprintln!("usage: {USAGE}");
                return ExitCode::from(2);
            }
        }
    }
    let shown = if engine { podman::run(keep) } else { namespaces::run(keep) };
    match shown {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nthe demo failed: {error:#}\n  next: netpath doctor tells what this host can do");
            ExitCode::FAILURE
        }
    }
}
