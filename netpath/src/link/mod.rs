//! The kernel's links, addresses, routes and sysctls behind typed calls. Netlink words stay in here, no child process
//! is ever started, and every call may be repeated.

pub mod bridge;
pub mod netns;
pub mod offload;
pub mod route;
pub mod rtnl;
pub mod sysctl;
pub mod veth;
pub mod view;
mod watch;

pub use netns::{Inside, Netns};
pub use rtnl::{Refused, Rtnl};
pub use veth::VethSpec;
pub use watch::watch;
