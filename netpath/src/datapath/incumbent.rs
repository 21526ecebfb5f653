//! What Netavark has in netfilter for a container that netpath removes in its place. Otherwise its rules would precede those of the next
//! container with the same ports.

use super::netfilter::{iptables, nftables};
use crate::model::Record;
use crate::model::error::{Context, Result};
use ipnet::IpNet;

/// Removes Netavark's rules of a container on one network. `is_last_of_network`: no other container is on it, `is_last`: Netavark has no
/// other container at all. Returns whether there was something.
///
/// # Errors
/// Rules cannot be read or written.
pub fn forget(record: &Record, is_last_of_network: bool, is_last: bool) -> Result<bool> {
    let what = || format!("cannot remove Netavark's rules of {}", record.container.label());
    let by_nft = nftables::incumbent::forget(&record.network.id, &record.publishes, is_last).context(what)?;
    let subnets: Vec<IpNet> = record.network.subnets.iter().map(|s| s.net).collect();
    let leaving = iptables::incumbent::Leaving {
        container: &record.container.id,
        publishes: &record.publishes,
        subnets: if is_last_of_network { &subnets } else { &[] },
    };
    let by_iptables = iptables::incumbent::forget(&leaving).map_err(|e| e.within(what()))?;
    Ok(by_nft || by_iptables)
}
