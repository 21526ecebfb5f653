//! The names of containers: who is known by which name where, and what a container would be told.

use super::Host;
use crate::dns::inspect::{self, NameLine, NamedNetwork, Told};
use crate::model::error::{Context, Error, Result};
use crate::state::agent_socket;
use crate::state::dns_places::{self, DnsPlace};
use serde::Serialize;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Where Podman keeps the files.
const USUAL: &str = "/run/containers/networks/aardvark-dns";
const ANSWER_LIMIT: Duration = Duration::from_millis(500);

#[derive(Debug, Serialize)]
pub struct Names {
    pub version: u32,
    pub networks: Vec<NamedNetwork>,
    pub names: Vec<NameLine>,
    /// What the agent's servers have counted; absent: the agent does not serve names.
    pub servers: Option<serde_json::Value>,
}

/// The directories that the agent serves, or the one that is named, or the usual one.
fn places(host: &Host, dir: Option<PathBuf>) -> Vec<DnsPlace> {
    let forwards = std::env::var_os("AARDVARK_NO_PROXY").is_none();
    let at = |dir| vec![DnsPlace { dir, port: 53, forwards, led: Vec::new() }];
    match dir {
        Some(dir) => at(dir),
        None => Some(dns_places::read(host.store.dir())).filter(|p| !p.is_empty()).unwrap_or_else(|| at(USUAL.into())),
    }
}

/// # Errors
/// A directory cannot be read.
pub fn names(host: &Host, dir: Option<PathBuf>) -> Result<Names> {
    let (mut networks, mut names) = (Vec::new(), Vec::new());
    for place in places(host, dir) {
        let (more_networks, more_names) = inspect::list(&place.dir).context(|| "cannot list names".to_owned())?;
        networks.extend(more_networks);
        names.extend(more_names);
    }
    Ok(Names { version: 1, networks, names, servers: agent_socket::counts(host.store.dir(), ANSWER_LIMIT) })
}

/// What a container is told when it looks up `name`. `client`: one of its names, the beginning of its id, or its address.
///
/// # Errors
/// There is no such container; name or type are none.
pub fn ask(host: &Host, dir: Option<PathBuf>, name: &str, kind: &str, client: &str) -> Result<Told> {
    let what = || format!("cannot look up {name} as {client}");
    for place in places(host, dir) {
        let (_, lines) = inspect::list(&place.dir).context(what)?;
        let address: Option<IpAddr> = client.parse().ok().or_else(|| {
            let client = client.to_ascii_lowercase();
            let is_client = |l: &&NameLine| l.names.contains(&client) || l.container.starts_with(&client);
            lines.iter().filter(is_client).find_map(|l| l.addresses.first().copied())
        });
        if let Some(address) = address
            && let Some(told) = inspect::ask(&place.dir, place.forwards, address, name, kind).context(what)?
        {
            return Ok(told);
        }
    }
    Err(Error::new(what()).because("no container with DNS has this name, id or address").next("see `netpath dns`"))
}
