//! Asks upstream servers: the healthiest first, a further one as soon as that one is slow or fails, and the first good answer is
//! taken. An answer counts only if it comes from the server's address to a port chosen at random for this query, with the query's
//! random id, and with the name in the random case in which it was sent.

use super::cache::Reply;
use super::upstream::{Health, Upstreams};
use super::wire::{self, HEADER, Query, code};
use rand::RngExt;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout, timeout_at};

/// Shorter than the five seconds after which the C libraries ask again.
const LIMIT: Duration = Duration::from_secs(4);
/// For one server, before it is asked once more.
const ATTEMPT: Duration = Duration::from_millis(1_300);
/// The largest message over TCP.
const MOST: usize = 65_535;

/// The answer of one of `upstreams` to the query in `message`, of which `None` is none within [`LIMIT`].
pub(super) async fn ask(message: Rc<[u8]>, upstreams: Upstreams, health: Rc<Health>) -> Option<Reply> {
    let end = tokio::time::Instant::now() + LIMIT;
    // Refused, or a failure of the server: only if no other one answers.
    let mut last = None;
    loop {
        let mut servers = health.order(&upstreams, Instant::now()).into_iter();
        let mut asked = JoinSet::new();
        // Of these, those that have not answered yet.
        let mut silent: Vec<SocketAddr> = Vec::new();
        let mut next = servers.next();
        let mut next_at = tokio::time::Instant::now();
        // Until all have failed.
        while next.is_some() || !asked.is_empty() {
            let answer = tokio::select! {
                biased;
                () = sleep_until(end) => return last,
                () = sleep_until(next_at), if next.is_some() => {
                    if let Some(server) = next.take() {
                        next_at = tokio::time::Instant::now() + health.patience(server);
                        let attempt = attempt(Rc::clone(&message), server, Rc::clone(&health));
                        asked.spawn_local(async move { (server, attempt.await) });
                        silent.push(server);
                        next = servers.next();
                    }
                    continue;
                }
                Some(answer) = asked.join_next() => answer,
            };
            let Ok((server, reply)) = answer else { continue };
            let others = silent.iter().position(|s| *s == server).unwrap_or(0);
            match reply {
                Some(reply) if !reply.is_inferior() => {
                    // They have had their time, and this one was sooner.
                    silent[..others].iter().for_each(|slow| health.failed(*slow, Instant::now()));
                    return Some(reply);
                }
                Some(reply) => last = Some(reply),
                None => {}
            }
            silent.retain(|s| *s != server);
            // Without waiting for its turn.
            next_at = tokio::time::Instant::now();
        }
        // All have answered, if none of them well: asking again changes nothing.
        if last.is_some() || upstreams.list().is_empty() {
            return last;
        }
        // A network that is unreachable says so at once.
        if timeout_at(end, tokio::time::sleep(Duration::from_millis(200))).await.is_err() {
            return None;
        }
    }
}

/// Asks one server once.
async fn attempt(message: Rc<[u8]>, server: SocketAddr, health: Rc<Health>) -> Option<Reply> {
    let query = Query::parse(&message).ok()?;
    let begun = Instant::now();
    let answer =
        timeout(ATTEMPT, exchange(&query, server, &health)).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
    match answer.map(|bytes| Reply::read(&bytes, &query, Instant::now())) {
        Ok(Some(reply)) => {
            health.answered(server, begun.elapsed());
            Some(reply)
        }
        Ok(None) => {
            tracing::debug!(%server, "an upstream server has sent a malformed answer");
            health.failed(server, Instant::now());
            None
        }
        Err(e) => {
            tracing::debug!(%server, error = %e, "an upstream server does not answer");
            health.failed(server, Instant::now());
            None
        }
    }
}

async fn exchange(query: &Query<'_>, server: SocketAddr, health: &Health) -> io::Result<Vec<u8>> {
    let mut edns = true;
    loop {
        let labels =
            if health.folds_case(server) { query.labels().to_ascii_lowercase() } else { random_case(query.labels()) };
        let question = Question { id: rand::rng().random(), labels };
        let sent = query.upstream(question.id, &question.labels, edns);
        let answer = match by_udp(&sent, server, &question).await? {
            Some(answer) if !wire::is_truncated(&answer) => answer,
            by_udp => {
                // Cut off; or in another case, which a server may send or an attacker who does not see the query.
                let answer = by_tcp(&sent, server).await?;
                match question.is_of(&answer) {
                    Match::Exact => {}
                    Match::OtherCase if by_udp.is_none() => health.set_folds_case(server),
                    Match::OtherCase => {}
                    Match::No => return Err(ErrorKind::InvalidData.into()),
                }
                answer
            }
        };
        let rejects_edns = matches!(wire::response_code(&answer), code::FORMAT_ERROR | code::NOT_IMPLEMENTED);
        if !(edns && rejects_edns) {
            return Ok(answer);
        }
        edns = false;
    }
}

/// `None`: the name of the answer is in another case.
async fn by_udp(sent: &[u8], server: SocketAddr, question: &Question) -> io::Result<Option<Vec<u8>>> {
    let any =
        if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)) };
    let socket = UdpSocket::bind(any).await?;
    // The kernel takes a port at random, and passes on what comes from this server only.
    socket.connect(server).await?;
    socket.send(sent).await?;
    let mut answer = vec![0; usize::from(wire::MAX_UDP) + 1];
    loop {
        let length = socket.recv(&mut answer).await?;
        match question.is_of(&answer[..length]) {
            Match::Exact => {
                answer.truncate(length);
                return Ok(Some(answer));
            }
            Match::OtherCase => return Ok(None),
            Match::No => {}
        }
    }
}

async fn by_tcp(sent: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let mut framed = (sent.len() as u16).to_be_bytes().to_vec();
    framed.extend_from_slice(sent);
    stream.write_all(&framed).await?;
    let length = usize::from(stream.read_u16().await?).min(MOST);
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// What an answer must repeat.
struct Question {
    id: u16,
    labels: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Match {
    Exact,
    OtherCase,
    No,
}

impl Question {
    fn is_of(&self, answer: &[u8]) -> Match {
        let is_answer = answer.len() > HEADER && answer[..2] == self.id.to_be_bytes() && answer[2] & 0x80 != 0;
        let labels = answer.get(HEADER..HEADER + self.labels.len());
        match labels {
            Some(labels) if is_answer && answer[4..6] == [0, 1] => {
                if labels == self.labels {
                    Match::Exact
                } else if labels.eq_ignore_ascii_case(&self.labels) {
                    Match::OtherCase
                } else {
                    Match::No
                }
            }
            _ => Match::No,
        }
    }
}

/// draft-vixie-dnsext-dns0x20: one more bit for each letter that an attacker has to guess. Lengths of labels are below the letters.
fn random_case(labels: &[u8]) -> Vec<u8> {
    let mut random = rand::rng();
    let flipped = labels.iter().map(|b| if b.is_ascii_alphabetic() && random.random() { b ^ 0x20 } else { *b });
    flipped.collect()
}
