//! netpath, the control plane. Rooms and who may use whom: docs/architecture.md.

pub mod datapath;
pub mod model;
