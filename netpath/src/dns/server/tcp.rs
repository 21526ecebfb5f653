//! Queries over TCP (RFC 7766): many on one connection, answered as soon as each answer is there, in whatever order.

use super::core::{Core, Destination, Handled};
use crate::dns::stats::Stats;
use bytes::{Buf, BytesMut};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// For the next whole query, and for a client to take its answers.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections of all clients, and of one.
const MOST: usize = 2048;
const MOST_OF_CLIENT: usize = 1024;
/// Forwarded queries of a connection at a time; further ones wait in its socket.
const LATER: usize = 8;
/// Bytes of a query.
const LONGEST_QUERY: usize = 4096;
/// Bytes of answers that are sent at once.
const OUTPUT: usize = 16 * 1024;
/// After an error, which is mostly a lack of descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// The connections of a server, oldest first.
#[derive(Default)]
pub(super) struct Connections(RefCell<VecDeque<(u64, IpAddr, AbortHandle)>>);

impl Connections {
    /// Ends the oldest connection where there are too many: one of the same client, or of any.
    fn make_room(&self, client: IpAddr) {
        let mut all = self.0.borrow_mut();
        let own = || all.iter().filter(|(_, of, _)| *of == client);
        let oldest = if own().count() >= MOST_OF_CLIENT {
            all.iter().position(|(_, of, _)| *of == client)
        } else {
            (all.len() >= MOST).then_some(0)
        };
        if let Some((_, _, connection)) = oldest.and_then(|at| all.remove(at)) {
            connection.abort();
        }
    }

    fn add(&self, number: u64, client: IpAddr, connection: AbortHandle) {
        self.0.borrow_mut().push_back((number, client, connection));
    }

    fn remove(&self, number: u64) {
        let mut all = self.0.borrow_mut();
        if let Some(at) = all.iter().position(|(n, _, _)| *n == number) {
            all.remove(at);
        }
    }
}

pub(super) async fn accept(core: Rc<Core>, connections: Rc<Connections>, listener: TcpListener, at: IpAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                connections.make_room(client.ip());
                let number = core.stats.tcp_connections.fetch_add(1, Relaxed);
                let (core, all) = (Rc::clone(&core), Rc::clone(&connections));
                let task = spawn_local(async move {
                    if let Err(e) = serve(&core, stream, client, at).await {
                        tracing::trace!(%client, error = %e, "a TCP client has disconnected");
                    }
                    all.remove(number);
                });
                connections.add(number, client.ip(), task.abort_handle());
            }
            Err(e) => {
                tracing::debug!(error = %e, "cannot accept a TCP client");
                // Without a descriptor: the oldest one makes room.
                connections.make_room(IpAddr::from([0, 0, 0, 0]));
                sleep(PAUSE).await;
            }
        }
    }
}

async fn serve(core: &Rc<Core>, mut stream: TcpStream, client: SocketAddr, at: IpAddr) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (sender, mut later) = mpsc::unbounded_channel();
    let (mut input, mut out) = (BytesMut::new(), Vec::new());
    let (mut waiting, mut has_ended) = (0, false);
    let mut end = Instant::now() + PATIENCE;
    loop {
        while waiting < LATER
            && out.len() < OUTPUT
            && let Some(message) = next_message(&mut input)?
        {
            end = Instant::now() + PATIENCE;
            let begin = start_message(&mut out);
            let begun = std::time::Instant::now();
            let destination = || Destination::Tcp(sender.clone());
            match core.handle(&message, client.ip(), at, destination, false, &mut out) {
                Handled::Answered => {
                    end_message(&mut out, begin);
                    core.stats.took(begun.elapsed(), 1);
                }
                Handled::Later => waiting += 1,
                Handled::Never => {}
            }
            if out.len() == begin + 2 {
                out.truncate(begin);
            }
            Stats::add(&core.stats.tcp_queries, 1);
        }
        if !out.is_empty() {
            timeout(PATIENCE, stream.write_all(&out)).await??;
            out.clear();
            out.shrink_to(OUTPUT);
            continue;
        }
        if has_ended && waiting == 0 {
            return Ok(());
        }
        if input.is_empty() {
            // An idle connection keeps no memory.
            input = BytesMut::new();
        }
        tokio::select! {
            Some(answer) = later.recv(), if waiting > 0 => {
                waiting -= 1;
                let begin = start_message(&mut out);
                out.extend_from_slice(&answer);
                end_message(&mut out, begin);
            }
            read = read(&mut stream, &mut input), if !has_ended && waiting < LATER => has_ended = read? == 0,
            () = sleep_until(end), if waiting == 0 => return Ok(()),
        }
    }
}

/// Waits with memory only for what has arrived.
async fn read(stream: &mut TcpStream, input: &mut BytesMut) -> io::Result<usize> {
    stream.readable().await?;
    input.reserve(1024);
    stream.read_buf(input).await
}

/// The next whole message.
///
/// # Errors
/// It is longer than any query.
fn next_message(input: &mut BytesMut) -> io::Result<Option<BytesMut>> {
    let Some(length) = input.first_chunk::<2>() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes(*length));
    if length > LONGEST_QUERY {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a query is too long"));
    }
    if input.len() < 2 + length {
        return Ok(None);
    }
    input.advance(2);
    Ok(Some(input.split_to(length)))
}

fn start_message(out: &mut Vec<u8>) -> usize {
    out.extend_from_slice(&[0; 2]);
    out.len() - 2
}

fn end_message(out: &mut [u8], begin: usize) {
    // The writer keeps answers below this.
    let length = (out.len() - begin - 2) as u16;
    out[begin..begin + 2].copy_from_slice(&length.to_be_bytes());
}
