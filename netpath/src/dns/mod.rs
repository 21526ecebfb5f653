//! DNS names of containers. Until netpath has its own server, it drives the engine's aardvark-dns as netavark does.
//!
//! [`aardvark::Aardvark`] is the interface, `zone.rs` has the format of the files, `process.rs` the server process.

pub mod aardvark;
mod process;
mod zone;

pub use process::scope_runner;
