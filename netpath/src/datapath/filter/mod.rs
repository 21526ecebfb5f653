//! What else on this host filters forwarded packets: nftables, iptables in nf_tables, legacy iptables. An administrator's
//! filter is never passed by without a word, so that packets of networks without another wish take the way through it.

mod legacy;
mod nf;
mod watch;

#[cfg(test)]
mod tests;

pub use watch::watch;

use std::fmt;
use std::io;

/// Where a chain sees packets that are forwarded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum At {
    /// The forward hook.
    Forward,
    /// A chain that filters at the prerouting hook (raw, mangle), or at a device's ingress.
    Before,
}

/// A base chain that filters what is forwarded, is not netpath's, and does something.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Filter {
    /// `table inet firewalld`, or `legacy iptables table filter`.
    pub table: String,
    pub chain: String,
    pub at: At,
    /// It drops what no rule of it takes.
    pub drops: bool,
}

/// `table inet firewalld chain filter_FORWARD filters forwarded packets`
impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let does = match (self.at, self.drops) {
            (At::Forward, false) => "filters forwarded packets",
            (At::Forward, true) => "drops forwarded packets unless told otherwise",
            (At::Before, false) => "filters packets before they are forwarded",
            (At::Before, true) => "drops packets before they are forwarded unless told otherwise",
        };
        write!(f, "{} chain {} {does}", self.table, self.chain)
    }
}

/// All of them, in the network namespace of the calling thread. A kernel that has no nf_tables or no legacy tables has none
/// there; asking loads no module of the latter.
///
/// # Errors
/// The kernel cannot be asked.
pub fn foreign() -> io::Result<Vec<Filter>> {
    let mut found = nf::foreign()?;
    found.extend(legacy::foreign()?);
    Ok(found)
}
