//! DNS names of containers. `docs/architecture.md` has an overview.
//!
//! The files that aardvark-dns reads are the truth: commands write them ([`aardvark`], `zone.rs`), and a [`server::Server`]
//! answers from them, in the agent ([`service`]) or in a process of its own ([`process`]).

pub mod aardvark;
mod answer;
mod cache;
pub mod files;
mod forward;
pub mod inherited;
pub mod inspect;
pub mod pid_file;
mod pointer;
pub mod process;
mod resolv;
pub mod server;
pub mod service;
mod stats;
mod table;
mod upstream;
mod wire;
mod zone;

pub use answer::Settings;

/// Of all containers, as engines know it.
pub const SEARCH_DOMAIN: &str = "dns.podman";
