//! What all sockets of a server share: the table, the cache, and the queries that are being forwarded.

use super::batch::Batch;
use super::udp::Udp;
use crate::dns::answer::{self, Client, Decision, Scratch, Settings};
use crate::dns::cache::{self, Cache, Key, Reply};
use crate::dns::forward;
use crate::dns::stats::Stats;
use crate::dns::table::Table;
use crate::dns::upstream::{Health, Upstreams};
use crate::dns::wire::{self, Query, Reject, Writer, code};
use crate::model::network::DNS_PORT;
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc::UnboundedSender;

/// Queries that are forwarded at a time.
const FLIGHTS: usize = 512;
/// Of these, for one client.
const FLIGHTS_OF_CLIENT: usize = 128;
/// Queries that wait for the answer of one.
const WAITERS: usize = 32;

/// Used by one thread only.
pub(super) struct Core {
    pub table: RefCell<Arc<Table>>,
    pub settings: Settings,
    /// The servers of the host.
    pub host: RefCell<Upstreams>,
    pub cache: RefCell<Cache>,
    pub stats: Arc<Stats>,
    pub batch: RefCell<Batch>,
    scratch: RefCell<Scratch>,
    health: Rc<Health>,
    flights: RefCell<HashMap<Key, Vec<Waiter>>>,
    port: u16,
}

/// Where a later answer goes.
pub(super) enum Destination {
    Udp(Rc<Udp>, SocketAddr),
    Tcp(UnboundedSender<Vec<u8>>),
}

struct Waiter {
    message: Rc<[u8]>,
    client: Client,
    destination: Destination,
    since: Instant,
}

/// What became of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Handled {
    Answered,
    /// The answer is sent later.
    Later,
    /// There is none.
    Never,
}

impl Core {
    pub(super) fn new(settings: Settings, port: u16) -> Self {
        Self {
            table: RefCell::default(),
            settings,
            host: RefCell::new(Upstreams::new(Vec::new())),
            cache: RefCell::default(),
            stats: Arc::default(),
            batch: RefCell::new(Batch::new()),
            scratch: RefCell::default(),
            health: Rc::default(),
            flights: RefCell::default(),
            port,
        }
    }

    /// Writes the answer to a message behind what `out` holds, if there is one at once. Also returns the size limit that counts.
    pub(super) fn handle(
        self: &Rc<Self>,
        message: &[u8],
        client: IpAddr,
        listener: IpAddr,
        destination: impl FnOnce() -> Destination,
        is_udp: bool,
        out: &mut Vec<u8>,
    ) -> Handled {
        let query = match Query::parse(message) {
            Ok(query) => query,
            Err(reject) => {
                Stats::add(&self.stats.malformed, 1);
                let Reject::Code(code) = reject else { return Handled::Never };
                wire::put_error(message, code, out);
                return Handled::Answered;
            }
        };
        let limit = if is_udp { query.udp_limit() } else { usize::from(u16::MAX) };
        let client = Client { address: client, listener, limit };
        let table = self.table.borrow();
        let forward = match answer::answer(&table, &self.settings, &query, client, &mut self.scratch.borrow_mut(), out)
        {
            Decision::Answered(kind) => {
                self.stats.answered(kind);
                return Handled::Answered;
            }
            Decision::Forward(upstreams) => upstreams.cloned().unwrap_or_else(|| self.host.borrow().clone()),
        };
        let (key, now) = (cache::key(&query, forward.id()), Instant::now());
        if let Some(reply) = self.cache.borrow_mut().get(&key, now) {
            Stats::add(&self.stats.cached, 1);
            reply.write(&query, limit, now, out);
            return Handled::Answered;
        }
        let waiter = || Waiter { message: message.into(), client, destination: destination(), since: now };
        if self.start_or_join(key, waiter, forward, &table) {
            return Handled::Later;
        }
        Stats::add(&self.stats.overload, 1);
        Writer::new(&query, code::SERVER_FAILURE, limit, out).finish();
        Handled::Answered
    }

    /// `false`: there are too many.
    fn start_or_join(
        self: &Rc<Self>,
        key: Key,
        waiter: impl FnOnce() -> Waiter,
        upstreams: Upstreams,
        table: &Table,
    ) -> bool {
        let mut flights = self.flights.borrow_mut();
        if let Some(waiters) = flights.get_mut(&key) {
            if waiters.len() >= WAITERS {
                return false;
            }
            waiters.push(waiter());
            Stats::add(&self.stats.joined, 1);
            return true;
        }
        if flights.len() >= FLIGHTS {
            return false;
        }
        let waiter = waiter();
        // Counted only when it matters.
        let is_own = |w: &&Vec<Waiter>| w.first().is_some_and(|w| w.client.address == waiter.client.address);
        if flights.len() >= FLIGHTS_OF_CLIENT && flights.values().filter(is_own).count() >= FLIGHTS_OF_CLIENT {
            return false;
        }
        // The host's resolv.conf may name a gateway: the query would come back.
        let is_own = |port| port == self.port || port == DNS_PORT;
        let is_other = |s: &&SocketAddr| !is_own(s.port()) || !table.listens_on(&s.ip());
        let others: Vec<SocketAddr> = upstreams.list().iter().filter(is_other).copied().collect();
        let upstreams = if others.len() == upstreams.list().len() { upstreams } else { Upstreams::new(others) };
        let message = Rc::clone(&waiter.message);
        flights.insert(key.clone(), vec![waiter]);
        Stats::add(&self.stats.forwarded, 1);
        let core = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let reply = forward::ask(message, upstreams, Rc::clone(&core.health)).await;
            core.land(key, reply);
        });
        true
    }

    /// Answers all who wait for this reply.
    fn land(&self, key: Key, reply: Option<Reply>) {
        let now = Instant::now();
        let reply = reply.unwrap_or_else(|| Reply::failure(now));
        if reply.is_inferior() {
            Stats::add(&self.stats.failed, 1);
        }
        let waiters = self.flights.borrow_mut().remove(&key).unwrap_or_default();
        for waiter in waiters {
            let Ok(query) = Query::parse(&waiter.message) else { continue };
            let mut out = Vec::with_capacity(512);
            reply.write(&query, waiter.client.limit, now, &mut out);
            self.stats.took(now.saturating_duration_since(waiter.since), 1);
            match waiter.destination {
                Destination::Udp(socket, client) => socket.send(&out, client),
                // The connection may have ended.
                Destination::Tcp(connection) => drop(connection.send(out)),
            }
        }
        self.cache.borrow_mut().put(key, reply, now);
    }

    /// Answers the messages of the batch that have been received on this socket.
    pub(super) fn answer_batch(self: &Rc<Self>, received: usize, socket: &Rc<Udp>, listener: IpAddr) {
        let begun = Instant::now();
        let mut batch = self.batch.borrow_mut();
        let mut answers = 0;
        for at in 0..received {
            let Some(client) = batch.sender(at) else { continue };
            let (message, out) = batch.message(at);
            let later = || Destination::Udp(Rc::clone(socket), client);
            if self.handle(message, client.ip(), listener, later, true, out) == Handled::Answered {
                batch.answered(at);
                answers += 1;
            }
        }
        batch.send(socket);
        Stats::add(&self.stats.udp_queries, received as u64);
        self.stats.took(begun.elapsed(), answers);
    }
}
