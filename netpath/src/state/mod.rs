//! State on disk of one host namespace: records, the rung in use, sysctl values to restore, the locks, the agent's log and socket.
//!
//! All of it is in `/run/netpath/<cookie>/`, which is created with the first record and removed with the last. A file is written
//! under a temporary name, synced and renamed, so that a reader without the lock always finds a whole one.

pub mod agent;
pub mod agent_socket;
pub mod dns_places;
mod files;
pub mod incumbent;
pub mod installed;
pub mod lock;
pub mod names;
pub mod process;
pub mod proxy_dir;
mod record_file;
pub mod store;

pub use lock::Lock;
pub use process::{ProcessId, pidfd};
pub use record_file::{Key, Phase, StoredEndpoint};
pub use store::Store;
