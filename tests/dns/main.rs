//! The DNS server behind the command line of aardvark-dns, asked by clients in namespaces: names, forwarding, its life, and what
//! hostile clients send.

#![allow(unused_crate_dependencies, reason = "checked in support/lib.rs, for all targets of the package")]

#[macro_use]
extern crate support;

mod answers;
mod forwarding;
mod hostile;
mod life;
mod rig;

fn main() -> std::process::ExitCode {
    support::harness::run()
}
