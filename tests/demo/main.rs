//! A demonstration of netpath for newcomers: a container, a published port, a page fetched through it, the objects that carried
//! it, and a host as clean afterwards as before.
//!
//! `demo` wires a namespace by hand, as an engine would; `demo --engine podman` lets a real Podman do it.

#![allow(unused_crate_dependencies, reason = "checked in support/lib.rs, for all targets of the package")]

mod namespaces;
mod podman;
mod steps;

use std::process::ExitCode;

const USAGE: &str = "demo [--engine podman] [--keep]";

fn main() -> ExitCode {
    support::harness::keep_nothing_loaded();
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
            eprintln!("\nthe demo failed: {error:#}\n  next: netpath doctor shows the capabilities of this host");
            ExitCode::FAILURE
        }
    }
}
