//! Decides what a client is told. Pure: a query, who asks where, and a table.

use super::pointer;
use super::table::{Table, View};
use super::upstream::Upstreams;
use super::wire::{self, Query, Writer, Zone, code};
use std::net::IpAddr;

/// Names of the host itself, as Podman writes them into /etc/hosts.
const HOST: [&[u8]; 2] = [b"host.containers.internal", b"host.docker.internal"];
/// Addresses in one answer, more of which no client tries.
const MOST: usize = 512;

/// How a server answers besides what is in its table.
pub struct Settings {
    /// In lower case, with a dot in front: `.dns.podman`; empty: none. It and names below it are never forwarded.
    search_domain: String,
    forwards: bool,
    /// Whether the gateways are the host's, so that they stand for it. Not in a rootless network namespace.
    knows_host: bool,
}

impl Settings {
    /// `search_domain`: with or without a dot in front.
    pub fn new(search_domain: &str, forwards: bool) -> Self {
        // The only line of the initial user namespace.
        let is_initial = |map: String| map.split_whitespace().eq(["0", "0", "4294967295"]);
        let knows_host = std::fs::read_to_string("/proc/self/uid_map").is_ok_and(is_initial);
        let domain = search_domain.trim_matches('.').to_ascii_lowercase();
        Self { search_domain: if domain.is_empty() { domain } else { format!(".{domain}") }, forwards, knows_host }
    }

    /// The part before the search domain.
    fn inner<'n>(&self, name: &'n [u8]) -> Option<&'n [u8]> {
        let domain = self.search_domain.as_bytes();
        if domain.is_empty() { None } else { name.strip_suffix(domain).or((name == &domain[1..]).then_some(b"")) }
    }
}

/// Who asks where.
#[derive(Clone, Copy)]
pub(super) struct Client {
    pub address: IpAddr,
    pub listener: IpAddr,
    /// Bytes of the largest answer.
    pub limit: usize,
}

/// Memory that is used again for each query.
#[derive(Default)]
pub(super) struct Scratch {
    addresses: Vec<IpAddr>,
    /// Which of several addresses comes first.
    turn: usize,
}

/// How a query was answered, for the metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Addresses,
    Pointers,
    NoData,
    NoSuchName,
    Refused,
}

pub(super) enum Decision<'t> {
    /// The answer is written.
    Answered(Kind),
    /// To the servers of the client's container or networks, else to those of the host.
    Forward(Option<&'t Upstreams>),
}

/// Writes the answer behind what `out` holds, or says where to get it.
pub(super) fn answer<'t>(
    table: &'t Table,
    settings: &Settings,
    query: &Query<'_>,
    client: Client,
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> Decision<'t> {
    let limit = client.limit;
    let refuse = |out: &mut Vec<u8>, code: u8| {
        Writer::new(query, code, limit, out).finish();
        Decision::Answered(Kind::Refused)
    };
    if query.has_unknown_version() {
        Writer::new(query, code::BAD_VERSION_LOW, limit, out).bad_version().finish();
        return Decision::Answered(Kind::Refused);
    }
    if query.class != wire::IN {
        return refuse(out, code::REFUSED);
    }
    let Some(view) = table.view(client.address, client.listener) else { return refuse(out, code::REFUSED) };
    let full = query.name.text();
    if query.kind == wire::PTR
        && let Some((names, ttl)) = pointer::address(query).and_then(|address| view.names_of(address))
    {
        pointer::write(query, limit, &names, ttl, out);
        return Decision::Answered(Kind::Pointers);
    }
    let inner = settings.inner(full);
    let name = inner.unwrap_or(full);
    scratch.addresses.clear();
    let found = if query.is_plain() { find(&view, settings, name, &mut scratch.addresses) } else { None };
    if let Some(ttl) = found {
        return Decision::Answered(known(query, limit, ttl, scratch, out));
    }
    if inner.is_none() && view.may_forward() && settings.forwards {
        return Decision::Forward(view.upstreams());
    }
    let ttl = view.zones().map(|z| z.ttl).min().unwrap_or(0);
    let zone = match inner {
        Some(b"") => Zone::Question,
        Some(inner) => Zone::Suffix(inner.len() + 1),
        None => Zone::Root,
    };
    let mut writer = Writer::new(query, code::NO_SUCH_NAME, limit, out).authoritative();
    writer.soa(zone, ttl);
    writer.finish();
    Decision::Answered(Kind::NoSuchName)
}

fn find(view: &View<'_>, settings: &Settings, name: &[u8], found: &mut Vec<IpAddr>) -> Option<u32> {
    let known = view.find(name, found);
    if known.is_none() && settings.knows_host && HOST.contains(&name) { view.host(found) } else { known }
}

/// The answer about a name that is known: its addresses of the wanted family, each once, in turns; otherwise that there is no data.
fn known(query: &Query<'_>, limit: usize, ttl: u32, scratch: &mut Scratch, out: &mut Vec<u8>) -> Kind {
    let found = &mut scratch.addresses;
    found.retain(|a| query.kind == if a.is_ipv4() { wire::A } else { wire::AAAA });
    if found.len() > 1 {
        // Large lists are sorted, which costs less than comparing each with each.
        found.sort_unstable();
        found.dedup();
        found.truncate(MOST);
        scratch.turn = scratch.turn.wrapping_add(1);
        let first = scratch.turn % found.len();
        found.rotate_left(first);
    }
    let mut writer = Writer::new(query, code::NO_ERROR, limit, out).authoritative();
    let kind = if found.is_empty() {
        writer.soa(Zone::Question, ttl);
        Kind::NoData
    } else {
        let _all_fit = found.iter().all(|address| writer.address(*address, ttl));
        Kind::Addresses
    };
    writer.finish();
    kind
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
