//! Published ports, their containers, and which of two containers with the same port is served.

use super::Host;
use crate::model::error::Result;
use crate::model::{HostBind, Publish, Record};
use serde::Serialize;

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PortLine {
    /// `*`, `0.0.0.0`, `::` or an address.
    pub host: String,
    pub protocol: String,
    pub first_port: u16,
    pub ports: u16,
    pub container: String,
    pub network: String,
    pub container_addresses: Vec<std::net::IpAddr>,
    pub container_port: u16,
    /// The container that is served on ports both publish; absent = it is served on all of its own.
    pub behind: Option<String>,
}

/// All published ports, by number.
///
/// # Errors
/// The state cannot be read.
pub fn ports(host: &Host) -> Result<Vec<PortLine>> {
    Ok(lines(&host.store.desired()?.records))
}

fn lines(records: &[Record]) -> Vec<PortLine> {
    let mut lines = Vec::new();
    for record in records {
        for publish in &record.publishes {
            let older = records.iter().filter(|o| o.order < record.order && o.links.is_some());
            let behind = older
                .filter(|o| shares_a_family(o, record))
                .find(|o| o.publishes.iter().any(|p| overlaps(p, publish)))
                .map(|o| o.container.label());
            lines.push(PortLine {
                host: shown(publish.bind),
                protocol: publish.proto.to_string(),
                first_port: publish.host_port(),
                ports: publish.count(),
                container: record.container.label(),
                network: record.network.name.clone(),
                container_addresses: record.endpoint.addresses.iter().map(ipnet::IpNet::addr).collect(),
                container_port: publish.container_port(),
                behind,
            });
        }
    }
    lines.sort_by(|a, b| (a.first_port, &a.protocol, &a.host).cmp(&(b.first_port, &b.protocol, &b.host)));
    lines
}

/// `*`, `0.0.0.0`, `::` or an address.
pub fn shown(bind: HostBind) -> String {
    match bind {
        HostBind::Any => "*".into(),
        HostBind::AnyV4 => "0.0.0.0".into(),
        HostBind::AnyV6 => "::".into(),
        HostBind::Address(a) => a.to_string(),
    }
}

fn shares_a_family(a: &Record, b: &Record) -> bool {
    a.endpoint.first_v4().is_some() && b.endpoint.first_v4().is_some()
        || a.endpoint.first_v6().is_some() && b.endpoint.first_v6().is_some()
}

/// Whether both publish the same ports of the same addresses.
fn overlaps(older: &Publish, younger: &Publish) -> bool {
    let range = |p: &Publish| (u32::from(p.host_port()), u32::from(p.host_port()) + u32::from(p.count()));
    let ((a, a_end), (b, b_end)) = (range(older), range(younger));
    let same_place = match (older.bind, younger.bind) {
        (HostBind::Address(x), HostBind::Address(y)) => x == y,
        (HostBind::Address(_), _) | (_, HostBind::Address(_)) => false,
        (x, y) => x.serves_v4() && y.serves_v4() || x.serves_v6() && y.serves_v6(),
    };
    older.proto == younger.proto && same_place && a < b_end && b < a_end
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixtures::{at, record, tcp};

    #[test]
    fn of_two_with_the_same_port_the_older_is_served() {
        let old = record(1, &["10.88.0.2/16"], vec![tcp(HostBind::AnyV4, 8000, 80, 100)]);
        let young =
            record(2, &["10.88.0.3/16"], vec![tcp(HostBind::Any, 8080, 80, 1), tcp(at("192.0.2.1"), 8081, 80, 1)]);
        let lines = lines(&[old, young]);
        let behind: Vec<_> = lines.iter().map(|l| (l.first_port, l.behind.is_some())).collect();
        assert_eq!(vec![(8000, false), (8080, true), (8081, false)], behind);
    }
}
