//! DHCP (RFC 2131) and DHCPv6 (RFC 8415) for containers, and the requests by which commands ask the proxy for it.
//!
//! A library without a process of its own: the proxy (`agent/dhcp_proxy`) keeps the leases, and commands reach it by [`rpc`], in the words
//! of netavark's proxy ([`wire`]).

mod client;
mod client6;
mod lease;
mod message;
pub mod rpc;
mod socket;
pub mod wire;

pub use client::{Answer, Client};
pub use lease::Lease;
pub use message::Identity;
