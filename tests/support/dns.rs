//! DNS clients and servers of the tests: queries as any resolver sends them, read by hickory-proto, and upstream servers that do
//! what a test wants.

use crate::host::Netns;
use anyhow::{Context, Result, ensure};
use hickory_proto::op::{Edns, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

pub use hickory_proto::op::{Message, ResponseCode as Code};
pub use hickory_proto::rr::RecordType as Type;

/// # Errors
/// It is no name.
pub fn query(name: &str, kind: RecordType) -> Result<Message> {
    static ID: AtomicU16 = AtomicU16::new(1);
    let mut message = Message::new(ID.fetch_add(1, Ordering::Relaxed), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name)?, kind));
    Ok(message)
}

/// With room for an answer of this size.
#[must_use]
pub fn with_edns(mut message: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    message.set_edns(edns);
    message
}

/// A resolver in a namespace, with an address of its own.
pub struct Resolver<'n> {
    pub netns: &'n Netns,
    pub address: IpAddr,
    pub server: SocketAddr,
    pub limit: Duration,
}

impl<'n> Resolver<'n> {
    pub fn new(netns: &'n Netns, address: IpAddr, server: SocketAddr) -> Self {
        Self { netns, address, server, limit: Duration::from_secs(6) }
    }

    /// # Errors
    /// There is no answer.
    pub fn ask(&self, name: &str, kind: RecordType) -> Result<Message> {
        self.send(&query(name, kind)?)
    }

    /// By UDP.
    ///
    /// # Errors
    /// There is no answer, or one to another question.
    pub fn send(&self, message: &Message) -> Result<Message> {
        let bytes = message.to_vec()?;
        let answer = self.netns.run(|| -> Result<Vec<u8>> {
            let socket = UdpSocket::bind((self.address, 0))?;
            socket.set_read_timeout(Some(self.limit))?;
            socket.connect(self.server)?;
            socket.send(&bytes)?;
            let mut answer = vec![0; 65_535];
            let length = crate::traffic::again(|| socket.recv(&mut answer))
                .with_context(|| format!("no answer about {}", message.queries[0]))?;
            answer.truncate(length);
            Ok(answer)
        })?;
        check(message, &answer)
    }

    /// All of them on one TCP connection, before the first answer is read. Answers are in the order of the queries.
    ///
    /// # Errors
    /// An answer is missing.
    pub fn pipelined(&self, messages: &[Message]) -> Result<Vec<Message>> {
        let mut out = Vec::new();
        for message in messages {
            out.extend_from_slice(&framed(&message.to_vec()?));
        }
        let answers = self.netns.run(|| -> Result<Vec<Vec<u8>>> {
            let mut stream = self.connect()?;
            stream.write_all(&out)?;
            messages.iter().map(|_| read_framed(&mut stream)).collect()
        })?;
        messages
            .iter()
            .map(|m| {
                let id = m.metadata.id.to_be_bytes();
                let answer = answers.iter().find(|a| a.starts_with(&id)).context("an answer is missing")?;
                check(m, answer)
            })
            .collect()
    }

    /// A TCP connection, made by the calling thread, which has to be inside.
    ///
    /// # Errors
    /// It is refused.
    pub fn connect(&self) -> Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&self.server, self.limit)?;
        stream.set_read_timeout(Some(self.limit))?;
        Ok(stream)
    }

    /// The addresses of a name.
    ///
    /// # Errors
    /// There is no answer, or an error.
    pub fn addresses(&self, name: &str, kind: RecordType) -> Result<BTreeSet<String>> {
        let answer = self.ask(name, kind)?;
        ensure!(answer.metadata.response_code == ResponseCode::NoError, "{name}: {}", answer.metadata.response_code);
        Ok(data(&answer))
    }
}

fn check(message: &Message, answer: &[u8]) -> Result<Message> {
    let answer = Message::from_vec(answer)?;
    let is_same = answer.metadata.id == message.metadata.id
        && answer.queries.len() == 1
        && answer.queries[0].name().eq_case(message.queries[0].name());
    ensure!(is_same && answer.metadata.message_type == MessageType::Response, "another question: {answer:?}");
    Ok(answer)
}

/// What the records of the answer section hold.
pub fn data(answer: &Message) -> BTreeSet<String> {
    answer.answers.iter().map(|r| r.data.to_string()).collect()
}

pub fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes(), message].concat()
}

/// # Errors
/// The connection has ended.
pub fn read_framed(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message)?;
    Ok(message)
}

/// What an upstream server makes of a query: the answer, or silence. `true`: it came by TCP.
pub type Answerer = Arc<dyn Fn(&Message, bool) -> Option<Vec<u8>> + Send + Sync>;

/// An upstream server at port 53 of an address.
pub struct Upstream {
    ends: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Upstream {
    /// # Errors
    /// The address cannot be used.
    pub fn start(netns: &Netns, address: IpAddr, answer: Answerer) -> Result<Self> {
        let (ends, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (udp, tcp) = netns.run(|| -> Result<_> {
            let (udp, tcp) = (UdpSocket::bind((address, 53))?, TcpListener::bind((address, 53))?);
            udp.set_read_timeout(Some(Duration::from_millis(20)))?;
            tcp.set_nonblocking(true)?;
            Ok((udp, tcp))
        })?;
        let by_udp = {
            let (ends, asked, answer) = (Arc::clone(&ends), Arc::clone(&asked), Arc::clone(&answer));
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while !ends.load(Ordering::Relaxed) {
                    let Ok((length, from)) = udp.recv_from(&mut buffer) else { continue };
                    let Ok(query) = Message::from_vec(&buffer[..length]) else { continue };
                    asked.fetch_add(1, Ordering::Relaxed);
                    if let Some(bytes) = answer(&query, false) {
                        let _ = udp.send_to(&bytes, from);
                    }
                }
            })
        };
        let by_tcp = {
            let ends = Arc::clone(&ends);
            std::thread::spawn(move || {
                while !ends.load(Ordering::Relaxed) {
                    match tcp.accept() {
                        Ok((mut stream, _)) => {
                            let _ = stream.set_nonblocking(false);
                            let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
                            if let Ok(bytes) = read_framed(&mut stream)
                                && let Ok(query) = Message::from_vec(&bytes)
                                && let Some(bytes) = answer(&query, true)
                            {
                                let _ = stream.write_all(&framed(&bytes));
                            }
                        }
                        Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(5)),
                        Err(_) => return,
                    }
                }
            })
        };
        Ok(Self { ends, asked, threads: vec![by_udp, by_tcp] })
    }

    /// Queries by UDP so far.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|t| drop(t.join()));
    }
}

/// The usual answer: this address, with this TTL.
pub fn says(address: &str, ttl: u32) -> Answerer {
    let address: IpAddr = address.parse().unwrap_or(IpAddr::from([192, 0, 2, 99]));
    Arc::new(move |query, _| answer_with(query, &[address], ttl).to_vec().ok())
}

pub fn answer_with(query: &Message, addresses: &[IpAddr], ttl: u32) -> Message {
    let mut answer = Message::response(query.metadata.id, OpCode::Query);
    answer.metadata.recursion_desired = true;
    answer.metadata.recursion_available = true;
    answer.queries = query.queries.clone();
    for address in addresses {
        let data = match address {
            IpAddr::V4(a) => RData::A((*a).into()),
            IpAddr::V6(a) => RData::AAAA((*a).into()),
        };
        if query.queries.first().is_some_and(|q| q.query_type() == data.record_type()) {
            answer.add_answer(Record::from_rdata(query.queries[0].name().clone(), ttl, data));
        }
    }
    if query.edns.is_some() {
        answer.set_edns(Edns::new());
    }
    answer
}
