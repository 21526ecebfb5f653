//! A filter for forwarded packets in nftables, as an administrator or a firewall daemon has.

use crate::host::Netns;
use anyhow::Result;

const TABLE: &str = "inet administrator";

/// Removed on drop.
pub struct Filter<'n> {
    netns: &'n Netns,
}

impl<'n> Filter<'n> {
    /// A chain at the forward hook that accepts all packets that these rules do not match.
    ///
    /// # Errors
    /// `nft` fails.
    pub fn forward(netns: &'n Netns, rules: &[&str]) -> Result<Self> {
        let filter = Self { netns };
        let rules = rules.join("\n");
        let table = format!(
            "table {TABLE} {{\nchain forward {{\ntype filter hook forward priority 10; policy accept;\n{rules}\n}}\n}}\n"
        );
        netns.feed("nft", &["-f", "-"], &table)?;
        Ok(filter)
    }

    /// A filter that tracks connections, and drops packets that belong to none.
    ///
    /// # Errors
    /// `nft` fails.
    pub fn stateful(netns: &'n Netns) -> Result<Self> {
        Self::forward(netns, &["ct state invalid drop", "ct state established,related,new accept"])
    }
}

impl Drop for Filter<'_> {
    fn drop(&mut self) {
        let table: Vec<&str> = ["delete", "table"].into_iter().chain(TABLE.split(' ')).collect();
        let _ = self.netns.command("nft", &table);
    }
}
