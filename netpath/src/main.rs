//! Selects the face by the program's name: `netavark` is Podman's contract, `aardvark-dns` that of its DNS server, everything else
//! the verbs for people.

#![allow(unused_crate_dependencies, reason = "checked in the library")]

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let called = args.first().and_then(|a| Path::new(a).file_name()).unwrap_or(OsStr::new("netpath"));
    // Under any name: commands start the agent and the DNS server from their own binary.
    let agent = args.get(1).is_some_and(|a| a == "agent");
    if args.get(1).is_some_and(|a| a == "aardvark-dns") {
        return netpath::face::dns_cli::run(args.into_iter().skip(1));
    }
    if called == "aardvark-dns" {
        return netpath::face::dns_cli::run(args);
    }
    if called == "netavark" && !agent {
        return netpath::face::podman::run(args);
    }
    if args.get(1).is_some_and(|a| a == "podman") {
        // Clap takes the first argument as the program's name.
        return netpath::face::podman::run(args.into_iter().skip(1));
    }
    netpath::cli::run(args)
}
