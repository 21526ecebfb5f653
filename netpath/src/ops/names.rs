//! Has the names of containers served: by the agent, or where there is to be none, by a process of its own.

use super::agent;
use crate::dns::process::Process;
use crate::model::error::{Error, Result};
use crate::state::Store;
use crate::state::agent_socket::{self, Answer};
use crate::state::dns_places::DnsPlace;
use std::net::IpAddr;
use std::time::Duration;

/// For the agent, which takes milliseconds.
const LIMIT: Duration = Duration::from_secs(3);

/// Makes the present content of the network files visible to clients of the addresses `listen`. At those of `led` port 53 stays
/// free, if the agent serves them.
///
/// # Errors
/// An address cannot be listened on, or nothing can be started.
pub(super) fn serve(store: &Store, process: &Process<'_>, listen: &[IpAddr], led: Vec<IpAddr>) -> Result<()> {
    let what = || "error while applying dns entries".to_owned();
    let running = process.running();
    if agent::is_off() && !agent::is_running(store) {
        match running {
            Some(running) if running.is_here && !running.is_agent => return process.reload().map(drop),
            // In a namespace that no container of this host is in.
            Some(_) => process.stop(),
            None => {}
        }
        return process.start();
    }
    if running.is_some_and(|r| !(r.is_agent && r.is_here)) {
        process.stop();
    }
    let forwards = std::env::var_os("AARDVARK_NO_PROXY").is_none();
    let place = DnsPlace { dir: process.dir.to_owned(), port: process.port, forwards, led };
    agent::start_if_missing(store)?;
    let answer = agent_socket::names(store.dir(), &place, LIMIT).or_else(|e| {
        tracing::warn!(error = %e, "the agent does not answer, and is replaced");
        agent::kill(store)?;
        agent::start_if_missing(store)?;
        let again = agent_socket::names(store.dir(), &place, LIMIT);
        again.map_err(|e| Error::new(what()).because(format!("the agent does not answer: {e}")))
    })?;
    match answer {
        Answer::Names { failed } => match failed.into_iter().find(|(address, _)| listen.contains(address)) {
            // The texts are netavark's and aardvark-dns's.
            Some((_, cause)) => Err(Error::new(what())
                .because(format!("aardvark-dns failed to start: {cause}"))
                .next("free the address, or set dns_bind_port in containers.conf to another port")),
            None => Ok(()),
        },
        Answer::Error { text } => Err(Error::new(what()).because(text)),
        other => Err(Error::new(what()).because(format!("the agent has answered {other:?}"))),
    }
}
