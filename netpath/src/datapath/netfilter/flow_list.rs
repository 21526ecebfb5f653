//! The connections of netpath's containers in conntrack, as a list.

use super::adopt::{self, Tracked};
use crate::datapath::connection::{Connection, Transport};
use crate::datapath::inspect::Flow;
use crate::model::Desired;
use crate::model::error::{Context, Result};
use std::collections::HashSet;
use std::net::IpAddr;

/// The connections of TCP and UDP with a container of a bridge, those with the longest time to live first. Who carries them is not
/// known here: `kernel`.
///
/// # Errors
/// A kernel without ctnetlink.
pub(super) fn flows(desired: &Desired) -> Result<Option<Vec<Flow>>> {
    let containers: HashSet<IpAddr> =
        desired.bridged().flat_map(|(record, _)| &record.endpoint.addresses).map(ipnet::IpNet::addr).collect();
    if containers.is_empty() {
        return Ok(Some(Vec::new()));
    }
    let tracked = adopt::tracked().context(|| "cannot read connection tracking".to_owned())?;
    let mut flows: Vec<Flow> = tracked.iter().filter_map(|tracked| flow(tracked, &containers)).collect();
    flows.sort_by_key(|f| (std::cmp::Reverse(f.expires_s), f.source, f.destination));
    Ok(Some(flows))
}

/// `None`: no container has a part in it.
fn flow(tracked: &Tracked, containers: &HashSet<IpAddr>) -> Option<Flow> {
    let connection = &tracked.connection;
    let [source, destination] = connection.original.ends();
    let [translated_source, translated_destination] = connection.translated.ends();
    Some(Flow {
        protocol: if connection.transport == Transport::Tcp { "tcp" } else { "udp" },
        origin: origin(connection, containers)?,
        source,
        destination,
        translated_source,
        translated_destination,
        state: tracked.state(),
        idle_s: None,
        expires_s: connection.timeout_s,
        whole: true,
        carrier: "kernel",
        why: None,
    })
}

fn origin(connection: &Connection, containers: &HashSet<IpAddr>) -> Option<&'static str> {
    let Connection { original, translated, .. } = connection;
    let of_container = containers.contains(&original.source);
    let is_moved =
        (original.destination, original.destination_port) != (translated.destination, translated.destination_port);
    match (containers.contains(&translated.destination), of_container) {
        (false, false) => None,
        (true, _) if is_moved && original.source.is_loopback() => Some("loopback"),
        (true, true) if is_moved => Some("hairpin"),
        (true, false) if is_moved => Some("published"),
        (false, true) if original.source != translated.source => Some("masqueraded"),
        _ => Some("direct"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::connection::Direction;

    #[test]
    fn the_kind_of_a_connection_is_that_of_its_translation() {
        let containers = ["10.88.0.2", "fd00::2", "10.88.0.3"].map(|a| a.parse().expect("an address")).into();
        for (kind, source, destination, to_source, to_destination) in [
            (Some("published"), "192.0.2.9:40000", "192.0.2.1:8080", "192.0.2.9:40000", "10.88.0.2:80"),
            (Some("published"), "[fd01::9]:40000", "[fd01::1]:8080", "[fd01::9]:40000", "[fd00::2]:80"),
            (Some("masqueraded"), "10.88.0.2:40000", "192.0.2.9:53", "192.0.2.1:40000", "192.0.2.9:53"),
            (Some("hairpin"), "10.88.0.3:40000", "192.0.2.1:8080", "10.88.0.1:40000", "10.88.0.2:80"),
            (Some("loopback"), "127.0.0.1:40000", "127.0.0.1:8080", "10.88.0.1:40000", "10.88.0.2:80"),
            (Some("direct"), "192.0.2.9:40000", "10.88.0.2:80", "192.0.2.9:40000", "10.88.0.2:80"),
            (Some("direct"), "10.88.0.2:40000", "10.88.0.1:53", "10.88.0.2:40000", "10.88.0.1:53"),
            (None, "192.0.2.9:40000", "192.0.2.1:22", "192.0.2.9:40000", "192.0.2.1:22"),
        ] {
            let direction = |from: &str, to: &str| {
                Direction::of(from.parse().expect("an address"), to.parse().expect("an address"))
            };
            let connection = Connection {
                transport: Transport::Tcp,
                original: direction(source, destination),
                translated: direction(to_source, to_destination),
                replied: true,
                timeout_s: 9,
            };
            assert_eq!(kind, origin(&connection, &containers), "{source} > {destination}");
        }
    }
}
