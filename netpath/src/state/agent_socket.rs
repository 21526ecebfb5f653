//! The agent's socket and its protocol: commands tell the agent to look at the host, and ask whether it answers.
//!
//! `agent.sock` is a stream socket beside the records, for root alone (mode 0600, in a directory of mode 0700). A client sends
//! requests, each a JSON object on a line of at most [`MAX_LINE`] bytes. The agent sends one line for each request that has an
//! answer, in the order of the requests, and closes a connection after a line that it does not understand, and a second after the
//! last one.
//!
//! | request | answer |
//! | --- | --- |
//! | `{"request":"look"}`: a command has changed the host | none; the agent looks without waiting for further changes |
//! | `{"request":"ping"}` | `{"answer":"pong","pid":42}` |
//! | `{"request":"names","dir":"…","port":53,"forwards":true,"led":["10.88.0.1"]}`: the network files in this directory have changed | `{"answer":"names","failed":[["10.88.0.1","…"]]}`, when clients see the change; addresses that are not listened on |
//! | `{"request":"counts"}` | `{"answer":"counts","servers":[…]}`: what the DNS servers have counted |
//! | `{"request":"promotions"}` | `{"answer":"promotions","flows":{…}}`: flows that programs carry, and those that they do not (`datapath/promote/shown.rs`) |
//! | another line | `{"answer":"error","text":"…"}` |
//!
//! Unknown fields are ignored on both sides: the other one may be of another build. The agent is the only process that creates the
//! socket, under its lock, so that it can replace the one that a killed agent has left.

use super::agent::AgentLock;
use super::dns_places::DnsPlace;
use super::files::File;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use serde::{Deserialize, Serialize};
use std::fs::{Permissions, remove_file, set_permissions};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// Bytes of a line, with its end.
pub const MAX_LINE: u64 = 4096;
/// Of an answer.
const MAX_ANSWER: u64 = 1024 * 1024;
const POLL: Duration = Duration::from_millis(2);

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "lowercase")]
pub enum Request {
    Look,
    Ping,
    Names(DnsPlace),
    Counts,
    Promotions,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "lowercase")]
pub enum Answer {
    Pong { pid: u32 },
    Names { failed: Vec<(IpAddr, String)> },
    Counts { servers: serde_json::Value },
    Promotions { flows: serde_json::Value },
    Error { text: String },
}

/// Creates the socket. It does not block.
///
/// # Errors
/// It cannot be created.
pub fn listen(_lock: &AgentLock, dir: &Path) -> io::Result<UnixListener> {
    let path = File::AgentSocket.path(dir);
    match remove_file(&path) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    set_permissions(&path, Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Tells the agent to look at the host. Does not wait for the agent, and a failure is ignored: the agent then notices the change by
/// itself, only later.
pub fn look(dir: &Path) {
    if let Err(e) = send(dir, &Request::Look) {
        tracing::debug!(error = %e, "the agent is not told of the change");
    }
}

/// Whether the agent answers within this time. It may have been started at this moment.
pub fn answers(dir: &Path, limit: Duration) -> bool {
    matches!(ask(dir, &Request::Ping, limit), Ok(Answer::Pong { .. }))
}

/// Tells the agent that the network files in a directory have changed. Returns when clients see the change.
///
/// # Errors
/// It does not answer within this time.
pub fn names(dir: &Path, place: &DnsPlace, limit: Duration) -> io::Result<Answer> {
    ask(dir, &Request::Names(place.clone()), limit)
}

/// What the agent's DNS servers have counted; `None`: it does not answer.
pub fn counts(dir: &Path, limit: Duration) -> Option<serde_json::Value> {
    match ask(dir, &Request::Counts, limit) {
        Ok(Answer::Counts { servers }) => Some(servers),
        _ => None,
    }
}

/// What the agent tells of promoted flows; `None`: it does not answer.
pub fn promotions(dir: &Path, limit: Duration) -> Option<serde_json::Value> {
    match ask(dir, &Request::Promotions, limit) {
        Ok(Answer::Promotions { flows }) => Some(flows),
        _ => None,
    }
}

/// Repeated while the agent is being started.
fn ask(dir: &Path, request: &Request, limit: Duration) -> io::Result<Answer> {
    let begun = Instant::now();
    loop {
        let left = limit.saturating_sub(begun.elapsed());
        let answer = send(dir, request).and_then(|stream| receive(&stream, left.max(POLL)));
        if answer.is_ok() || left.is_zero() {
            return answer;
        }
        std::thread::sleep(left.min(POLL));
    }
}

/// Without blocking: not even where the queue of the socket is full, because the agent hangs.
fn send(dir: &Path, request: &Request) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(&File::AgentSocket.path(dir))?)?;
    let mut stream = UnixStream::from(fd);
    stream.write_all(&line(request)?)?;
    Ok(stream)
}

fn receive(stream: &UnixStream, limit: Duration) -> io::Result<Answer> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(limit))?;
    let mut line = Vec::new();
    BufReader::new(stream.take(MAX_ANSWER)).read_until(b'\n', &mut line)?;
    Ok(serde_json::from_slice(&line)?)
}

/// # Errors
/// `message` is no JSON.
pub fn line(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("netpath-socket-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&dir).expect("a directory");
            Self(dir)
        }

        fn listen(&self) -> UnixListener {
            let lock = AgentLock::take(&self.0).expect("a lock").expect("a free lock");
            listen(&lock, &self.0).expect("a socket")
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_lines_are_those_of_the_description() {
        let text =
            |message: &dyn Fn() -> io::Result<Vec<u8>>| String::from_utf8(message().expect("JSON")).expect("UTF-8");
        assert_eq!("{\"request\":\"look\"}\n", text(&|| line(&Request::Look)));
        assert_eq!("{\"request\":\"ping\"}\n", text(&|| line(&Request::Ping)));
        let place = DnsPlace { dir: "/x".into(), port: 53, forwards: true, led: Vec::new() };
        assert_eq!(
            "{\"request\":\"names\",\"dir\":\"/x\",\"port\":53,\"forwards\":true}\n",
            text(&|| line(&Request::Names(place.clone())))
        );
        assert_eq!("{\"answer\":\"pong\",\"pid\":42}\n", text(&|| line(&Answer::Pong { pid: 42 })));
        let later = r#"{"request":"look","why":"a field of another build"}"#;
        assert_eq!(Request::Look, serde_json::from_str(later).expect("an unknown field is ignored"));
    }

    #[test]
    fn the_socket_is_for_root_alone_and_replaces_the_one_of_a_killed_agent() {
        let place = Place::new("mode");
        drop(place.listen());
        let listener = place.listen();
        let mode = std::fs::metadata(File::AgentSocket.path(&place.0)).expect("a socket").permissions().mode();
        assert_eq!(0o600, mode & 0o777);
        look(&place.0);
        let mut told = String::new();
        listener.accept().expect("a connection").0.read_to_string(&mut told).expect("a request");
        assert_eq!("{\"request\":\"look\"}\n", told);
    }

    /// An agent that is stopped accepts nothing: its queue fills up.
    #[test]
    fn an_agent_that_hangs_delays_no_command() {
        let place = Place::new("hangs");
        look(&place.0);
        let _listener = place.listen();
        let begun = Instant::now();
        let mut waiting = Vec::new();
        let refused = loop {
            match send(&place.0, &Request::Look) {
                Ok(stream) => waiting.push(stream),
                Err(e) => break e,
            }
            assert!(waiting.len() < 100_000, "the queue has no end");
        };
        assert_eq!(ErrorKind::WouldBlock, refused.kind(), "after {} connections", waiting.len());
        look(&place.0);
        assert!(begun.elapsed() < Duration::from_secs(5), "it waits");
        assert!(!answers(&place.0, Duration::from_millis(20)));
    }
}
