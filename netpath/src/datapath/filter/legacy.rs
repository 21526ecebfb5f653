//! Legacy iptables, as its own tool lists it.

use super::{At, Chain};
use crate::datapath::netfilter::iptables;
use std::io;

/// The built-in chains that forwarded packets meet.
const CHAINS: [(&str, At); 3] = [("PREROUTING", At::Before), ("FORWARD", At::Forward), ("POSTROUTING", At::After)];

pub(super) fn foreign() -> io::Result<Vec<Chain>> {
    let mut found = Vec::new();
    for (tool, listing) in iptables::legacy_tables().map_err(io::Error::other)? {
        for (name, table) in &listing.tables {
            let chain = |(chain, at): (&str, At)| {
                let drops = table.drops(chain);
                (drops || table.has_foreign_rules(chain)).then(|| Chain {
                    table: format!("legacy {tool} table {name}"),
                    name: chain.to_owned(),
                    at,
                    translates: name == "nat",
                    drops,
                    accepted: table.accepts(chain),
                })
            };
            found.extend(CHAINS.into_iter().filter_map(chain));
        }
    }
    Ok(found)
}
