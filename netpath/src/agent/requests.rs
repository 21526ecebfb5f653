//! Serves the agent's socket, whose protocol is described in [`agent_socket`].
//!
//! Each connection is a task with a time limit, and their number has a limit too: a client that sends garbage, too much, or nothing
//! at all only costs itself its connection.

use super::names::Names;
use crate::datapath::promote;
use crate::state::agent::AgentLock;
use crate::state::agent_socket::{self, Answer, MAX_LINE, Request};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{sleep, timeout};

/// Further ones wait in the queue of the socket.
const CONNECTIONS: usize = 16;
/// For a request, and for a client to take an answer.
const TIME_LIMIT: Duration = Duration::from_secs(1);
/// After an error, which is mostly a lack of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Creates the socket and serves it in the background. The result is notified when a command asks for a look.
///
/// # Errors
/// The socket cannot be created.
pub(super) fn serve(lock: &AgentLock, dir: &Path, names: Arc<Names>) -> io::Result<Arc<Notify>> {
    let listener = UnixListener::from_std(agent_socket::listen(lock, dir)?)?;
    let look = Arc::new(Notify::new());
    tokio::spawn(accept(listener, Arc::clone(&look), names));
    Ok(look)
}

async fn accept(listener: UnixListener, look: Arc<Notify>, names: Arc<Names>) {
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    // The semaphore is never closed.
    while let Ok(permit) = Arc::clone(&free).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (look, names) = (Arc::clone(&look), Arc::clone(&names));
                tokio::spawn(async move {
                    if let Err(e) = answer(stream, &look, &names).await {
                        tracing::debug!(error = %e, "a client of the agent's socket has disconnected");
                    }
                    drop(permit);
                });
            }
            Err(e) => {
                tracing::debug!(error = %e, "cannot accept a connection");
                sleep(PAUSE).await;
            }
        }
    }
}

async fn answer(stream: UnixStream, look: &Notify, names: &Names) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        if timeout(TIME_LIMIT, (&mut stream).take(MAX_LINE).read_until(b'\n', &mut line)).await?? == 0 {
            return Ok(());
        }
        let answer = match serde_json::from_slice(&line) {
            Ok(Request::Look) => {
                look.notify_one();
                continue;
            }
            Ok(Request::Ping) => Answer::Pong { pid: std::process::id() },
            Ok(Request::Names(place)) => match names.serve(place).await {
                Ok(loaded) => Answer::Names { failed: loaded.failed },
                Err(e) => Answer::Error { text: e.to_string() },
            },
            Ok(Request::Promotions) => Answer::Promotions { flows: serde_json::to_value(promote::shown())? },
            Ok(Request::Counts) => Answer::Counts { servers: names.counts().await },
            Err(e) => {
                let error = Answer::Error { text: e.to_string() };
                return stream.write_all(&agent_socket::line(&error)?).await;
            }
        };
        timeout(TIME_LIMIT, stream.write_all(&agent_socket::line(&answer)?)).await??;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream as Client;
    use std::path::PathBuf;
    use std::thread::JoinHandle;
    use std::time::Instant;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
    }

    /// An agent's socket in a directory of its own, served by a thread.
    struct Agent {
        dir: PathBuf,
        look: Arc<Notify>,
        end: Arc<Notify>,
        thread: Option<JoinHandle<()>>,
    }

    impl Agent {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("netpath-requests-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&dir).expect("a directory");
            let end = Arc::new(Notify::new());
            let (served, ended, place) = (std::sync::mpsc::channel(), Arc::clone(&end), dir.clone());
            let thread = std::thread::spawn(move || {
                let lock = Arc::new(AgentLock::take(&place).expect("a lock").expect("a free lock"));
                let names = Arc::new(Names::new(Arc::clone(&lock), place.clone()));
                runtime().block_on(async {
                    served.0.send(serve(&lock, &place, names).expect("a socket")).expect("a test that waits");
                    ended.notified().await;
                });
            });
            let look = served.1.recv().expect("an agent");
            Self { dir, look, end, thread: Some(thread) }
        }

        fn client(&self) -> Client {
            let client = Client::connect(self.dir.join("agent.sock")).expect("a connection");
            client.set_read_timeout(Some(Duration::from_secs(10))).expect("a time limit");
            client
        }

        fn answers(&self) -> bool {
            agent_socket::answers(&self.dir, Duration::from_secs(10))
        }

        /// The answer to `bytes`, up to the end of the connection.
        fn says(&self, bytes: &[u8]) -> String {
            let mut client = self.client();
            // The agent may close the connection before it has read all.
            let _ = client.write_all(bytes);
            let _ = client.shutdown(std::net::Shutdown::Write);
            let mut answer = Vec::new();
            let _ = client.read_to_end(&mut answer);
            String::from_utf8_lossy(&answer).into_owned()
        }
    }

    impl Drop for Agent {
        fn drop(&mut self) {
            self.end.notify_one();
            self.thread.take().map(JoinHandle::join);
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }

    #[test]
    fn a_command_is_answered_and_its_request_for_a_look_is_passed_on() {
        let agent = Agent::new("look");
        assert!(agent.answers());
        agent_socket::look(&agent.dir);
        let look = async { timeout(Duration::from_secs(10), agent.look.notified()).await };
        runtime().block_on(look).expect("a look");
        let both = agent.says(b"{\"request\":\"look\"}\n{\"request\":\"ping\"}\n");
        assert_eq!(format!("{{\"answer\":\"pong\",\"pid\":{}}}\n", std::process::id()), both);
    }

    #[test]
    fn garbage_is_answered_with_an_error_and_ends_its_connection() {
        let agent = Agent::new("garbage");
        for bytes in [&b"\n"[..], b"ping\n", b"{\"request\":\"reboot\"}\n", b"\xff\xfe\0\n", b"{", &[b'['; 100_000]] {
            let says = agent.says(bytes);
            // A connection that is closed before all was read may lose the answer.
            assert!(says.starts_with("{\"answer\":\"error\"") || (says.is_empty() && bytes.len() > 4096), "{says}");
            assert!(agent.answers(), "after {:?}", bytes.get(..8));
        }
    }

    #[test]
    fn many_silent_clients_do_not_keep_a_command_out() {
        let agent = Agent::new("many");
        let begun = Instant::now();
        let silent: Vec<Client> = (0..CONNECTIONS * 3).map(|_| agent.client()).collect();
        assert!(agent.answers(), "after {:?}", begun.elapsed());
        drop(silent);
    }
}
