//! The control plane of netpath. Rooms and the direction of their imports: docs/architecture.md.

pub mod agent;
pub mod cli;
pub mod datapath;
pub mod dhcp;
pub mod dns;
pub mod driver;
pub mod face;
pub mod link;
pub mod model;
pub mod netlink;
pub mod observe;
pub mod ops;
pub mod plan;
pub mod state;
