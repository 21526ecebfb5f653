//! Foreign rules that forwarded packets meet: nftables, iptables in nf_tables, legacy iptables. They decide which rung serves
//! a host, so that no rule of an administrator or of other software is bypassed silently.

mod legacy;
mod nf;
pub(super) mod own_tc;
mod watch;

#[cfg(test)]
mod tests;

pub use watch::{concerns_rules, watch};

use crate::model::Rung;
use std::cell::OnceCell;
use std::fmt;
use std::io;

/// Where a chain sees packets that the host forwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum At {
    /// Before routing, or at a device's ingress.
    Before,
    Forward,
    /// After routing, or at a device's egress.
    After,
    /// A hook of the bridge family: frames of bridge ports.
    Bridge,
}

/// A base chain that forwarded packets meet, is not netpath's, and has a rule or drops by policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chain {
    /// `table inet firewalld`, or `legacy iptables table filter`.
    pub table: String,
    pub name: String,
    pub at: At,
    /// It is of type nat.
    pub translates: bool,
    /// It drops by policy.
    pub drops: bool,
    /// netpath has a rule at its end that accepts.
    pub accepted: bool,
}

impl Chain {
    /// Whether it drops what netpath forwards: an accept in one table does not keep another from dropping.
    pub fn closes_forwarding(&self) -> bool {
        self.drops && self.at == At::Forward && !self.accepted
    }

    /// The commands that make it accept what containers need.
    pub fn remedy(&self) -> String {
        if self.is_of_iptables() {
            return "let it accept what goes to and comes from the bridges of containers: iptables -A FORWARD -i BRIDGE -j ACCEPT, \
                    and the same with -o; or stop all containers, and the next one that starts accepts it"
                .to_owned();
        }
        let (table, name) = (self.table.trim_start_matches("table "), &self.name);
        format!(
            "let it accept what containers need, for each bridge: nft add rule {table} {name} iifname BRIDGE accept; \
             nft add rule {table} {name} oifname BRIDGE ct state established,related accept; \
             nft add rule {table} {name} oifname BRIDGE ct status dnat accept"
        )
    }

    /// Whether it is a built-in chain of iptables, at whose end netpath can accept with the iptables tools.
    pub fn is_of_iptables(&self) -> bool {
        self.table.starts_with("legacy ")
            || (matches!(self.table.as_str(), "table ip filter" | "table ip6 filter") && self.name == "FORWARD")
    }
}

/// `table inet firewalld chain filter_FORWARD filters forwarded packets`
impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, unless) = match (self.translates, self.drops) {
            (true, _) => ("translates", ""),
            (false, false) => ("filters", ""),
            (false, true) => ("drops", " unless a rule accepts them"),
        };
        let packets = match self.at {
            At::Before => "packets before they are forwarded",
            At::Forward => "forwarded packets",
            At::After => "packets after they are forwarded",
            At::Bridge => "frames of bridges",
        };
        write!(f, "{} chain {} {verb} {packets}{unless}", self.table, self.name)
    }
}

/// The foreign chains of this host, listed when they are first needed and then kept, so that one command lists them once.
#[derive(Default)]
pub struct Foreign(OnceCell<io::Result<Vec<Chain>>>);

impl Foreign {
    /// In the network namespace of the thread that asks first.
    pub fn chains(&self) -> &io::Result<Vec<Chain>> {
        self.0.get_or_init(list)
    }

    /// What a rung bypasses that does not send packets through netfilter: the first chain, or that they cannot be listed.
    pub fn bypassed(&self) -> Option<String> {
        match self.chains() {
            Ok(chains) => chains.first().map(ToString::to_string),
            Err(e) => Some(format!("rules of others cannot be listed: {e}")),
        }
    }
}

/// All foreign chains, in the network namespace of the calling thread. Without nf_tables or legacy tables in the kernel there
/// are none of them; listing loads no module of the latter.
fn list() -> io::Result<Vec<Chain>> {
    let mut found = nf::foreign()?;
    found.extend(legacy::foreign()?);
    Ok(found)
}

/// Why a rung that bypasses netfilter is not taken beside this chain.
pub fn rejection(rung: Rung, chain: &str) -> String {
    format!("{chain}, which it would bypass; NETPATH_DATAPATH={rung} takes it all the same")
}
