//! For people: the names in a directory, and what a container would be told.

use super::answer::{self, Client, Decision, Scratch, Settings};
use super::files::Files;
use super::forward;
use super::resolv;
use super::table::Table;
use super::wire::Query;
use hickory_proto::op::{Message, MessageType, OpCode, Query as Question};
use hickory_proto::rr::{Name, RecordType};
use serde::Serialize;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tokio::task::LocalSet;

/// A container on a network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct NameLine {
    pub network: String,
    pub container: String,
    pub names: Vec<String>,
    pub addresses: Vec<IpAddr>,
}

/// A network with names.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct NamedNetwork {
    pub dir: PathBuf,
    pub name: String,
    pub internal: bool,
    pub listen: Vec<IpAddr>,
    pub ttl: u32,
}

/// # Errors
/// The directory cannot be read.
pub fn list(dir: &Path) -> io::Result<(Vec<NamedNetwork>, Vec<NameLine>)> {
    let table = Files::new(dir).read()?;
    let network = |z: &super::table::Zone| NamedNetwork {
        dir: dir.to_owned(),
        name: z.name.clone(),
        internal: z.internal,
        listen: z.listen.clone(),
        ttl: z.ttl,
    };
    let lines = table.zones.iter().flat_map(|zone| {
        zone.containers().map(|(id, names, addresses)| NameLine {
            network: zone.name.clone(),
            container: id.to_owned(),
            names: names.into_iter().map(str::to_owned).collect(),
            addresses: addresses.to_vec(),
        })
    });
    Ok((table.zones.iter().map(|z| network(z)).collect(), lines.collect()))
}

/// An answer as a client would see it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Told {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    /// Who asks.
    pub client: IpAddr,
    /// As `NoError` or `NXDomain`.
    pub code: String,
    pub records: Vec<ToldRecord>,
    /// The servers that were asked; empty: the answer is netpath's own.
    pub forwarded_to: Vec<IpAddr>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ToldRecord {
    pub name: String,
    pub ttl: u32,
    #[serde(rename = "type")]
    pub kind: String,
    pub data: String,
}

/// What `client`, an address of a container in this directory, is told; `None`: no container has it.
///
/// # Errors
/// The directory cannot be read, or name or type are none.
pub fn ask(dir: &Path, forwards: bool, client: IpAddr, name: &str, kind: &str) -> io::Result<Option<Told>> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
    let table = Files::new(dir).read()?;
    let zone = table.zones.iter().find(|z| z.containers().any(|(_, _, of)| of.contains(&client)));
    let Some(listener) = zone.and_then(|z| z.listen.first()) else { return Ok(None) };
    let kind: RecordType = kind.to_ascii_uppercase().parse().map_err(|_| invalid("it is no type of DNS records"))?;
    let mut full = Name::from_ascii(name).map_err(|_| invalid("it is no DNS name"))?;
    full.set_fqdn(true);
    let mut message = Message::new(1, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(full, kind));
    let bytes = message.to_vec().map_err(io::Error::other)?;
    let (answer, forwarded_to) = answer(&table, forwards, client, *listener, &bytes)?;
    let answer = Message::from_vec(&answer).map_err(io::Error::other)?;
    let records = answer.answers.iter().map(|r| ToldRecord {
        name: r.name.to_string(),
        ttl: r.ttl,
        kind: r.record_type().to_string(),
        data: r.data.to_string(),
    });
    Ok(Some(Told {
        name: name.to_owned(),
        kind: kind.to_string(),
        client,
        code: format!("{:?}", answer.metadata.response_code),
        records: records.collect(),
        forwarded_to,
    }))
}

/// Takes a message as a server does: as a query of a client, and as an upstream server's answer to a good query. For the fuzz
/// target and its test: whatever the message is, nothing panics, and an answer is well-formed and within its limit.
///
/// # Errors
/// An answer that hickory-proto cannot read, or a directory that cannot be read.
pub fn exercise(dir: &Path, message: &[u8]) -> io::Result<()> {
    exercise_on(&Files::new(dir).read()?, message)
}

pub(super) fn exercise_on(table: &Table, message: &[u8]) -> io::Result<()> {
    let Some((client, zone)) = table.zones.iter().find_map(|z| Some((*z.containers().next()?.2.first()?, z))) else {
        return Ok(());
    };
    let Some(listener) = zone.listen.first() else { return Ok(()) };
    if let Ok(query) = Query::parse(message) {
        let client = Client { address: client, listener: *listener, limit: query.udp_limit() };
        let mut out = Vec::new();
        answer::answer(
            table,
            &Settings::new(super::SEARCH_DOMAIN, true),
            &query,
            client,
            &mut Scratch::default(),
            &mut out,
        );
        if !out.is_empty() {
            Message::from_vec(&out).map_err(io::Error::other)?;
        }
        if out.len() > client.limit {
            return Err(io::Error::other("the answer is too large"));
        }
    }
    let good = b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\x01a\x07example\0\0\x01\0\x01";
    let now = std::time::Instant::now();
    if let Ok(query) = Query::parse(good)
        && let Some(reply) = super::cache::Reply::read(message, &query, now)
    {
        reply.write(&query, query.udp_limit(), now, &mut Vec::new());
    }
    Ok(())
}

/// With the servers that were asked.
fn answer(
    table: &Table,
    forwards: bool,
    client: IpAddr,
    listener: IpAddr,
    bytes: &[u8],
) -> io::Result<(Vec<u8>, Vec<IpAddr>)> {
    let query = Query::parse(bytes).map_err(|_| io::Error::other("the query is malformed"))?;
    let (settings, limit) = (Settings::new(super::SEARCH_DOMAIN, forwards), usize::from(u16::MAX));
    let client = Client { address: client, listener, limit };
    let mut out = Vec::new();
    let upstreams = match answer::answer(table, &settings, &query, client, &mut Scratch::default(), &mut out) {
        Decision::Answered(_) => return Ok((out, Vec::new())),
        Decision::Forward(upstreams) => upstreams.cloned().unwrap_or_else(|| resolv::read(&resolv::path())),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = upstreams.list().iter().map(std::net::SocketAddr::ip).collect();
    let reply = LocalSet::new().block_on(&runtime, forward::ask(bytes.into(), upstreams, Rc::default()));
    let now = std::time::Instant::now();
    reply.unwrap_or_else(|| super::cache::Reply::failure(now)).write(&query, limit, now, &mut out);
    Ok((out, asked))
}
