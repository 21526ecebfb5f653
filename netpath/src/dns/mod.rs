//! Names for containers. Until netpath answers itself, the aardvark-dns that the engine names is driven as Netavark does.
//!
//! [`aardvark::Aardvark`] is the whole interface; the files it writes are in `zone.rs`, the process in `process.rs`.

pub mod aardvark;
mod process;
mod zone;

pub use process::scope_runner;
