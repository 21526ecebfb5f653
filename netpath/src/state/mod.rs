//! What netpath keeps on disk of one host namespace: records, the rung in use, sysctl values to put back, the lock.
//!
//! All of it lies in `/run/netpath/<cookie>/`, made with the first record and removed with the last. A file is written
//! beside its place, synced and renamed, so that a reader without the lock always finds a whole one.

pub mod agent;
pub mod lock;
pub mod names;
pub mod store;

pub use lock::Lock;
pub use store::{Key, Phase, Store, StoredEndpoint};
