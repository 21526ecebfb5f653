//! Long-lived connections: one that is always busy, and many idle ones.

use crate::host::{Netns, SOON, patience, wait_for};
use crate::traffic::{Dial, exchange};
use anyhow::{Context, Result, anyhow};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes of each exchange: enough for large segments.
const BYTES: usize = 200_000;

/// One busy connection to an echo server, until [`LongLived::finish`].
pub struct LongLived {
    name: String,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: JoinHandle<Result<()>>,
}

impl LongLived {
    /// Connects from `netns` and starts.
    ///
    /// # Errors
    /// No connection.
    pub fn start(netns: &Netns, dial: &Dial) -> Result<Self> {
        let name = dial.to_string();
        let mut stream = netns.run(|| dial.connect_stream()).with_context(|| name.clone())?;
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&done));
        let data: Vec<u8> = (0..BYTES).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let thread = netns.spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let (before, begun) = (counted.load(Ordering::Relaxed), Instant::now());
                exchange(&mut stream, &data).with_context(|| format!("after {before} exchanges"))?;
                counted.fetch_add(1, Ordering::Relaxed);
                // Leaves processor time to other work, and more on a slow machine: several busy connections would keep an
                // emulated one from ever loading a program.
                std::thread::sleep(Duration::from_millis(2) + begun.elapsed() * patience().saturating_sub(1));
            }
            Ok(())
        })?;
        let long_lived = Self { name, stop, done, thread };
        long_lived.goes_on()?;
        Ok(long_lived)
    }

    /// Waits until more bytes have returned than were in flight at the time of the call.
    ///
    /// # Errors
    /// It does not continue, or the connection is broken.
    pub fn goes_on(&self) -> Result<()> {
        let before = self.done.load(Ordering::Relaxed);
        let moved = || {
            let now = self.done.load(Ordering::Relaxed);
            (now >= before + 3 || self.thread.is_finished()).then_some(())
        };
        wait_for(&format!("{}: three exchanges more than {before}", self.name), SOON * 2, moved)?;
        if self.thread.is_finished() {
            return Err(anyhow!("{}: the connection broke", self.name));
        }
        Ok(())
    }

    /// Ends it; returns its error, if any.
    ///
    /// # Errors
    /// The connection broke, or different bytes returned.
    pub fn finish(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let name = self.name;
        let ended = self.thread.join().map_err(|_| anyhow!("{name}: the thread panicked"))?;
        ended.with_context(|| name)
    }
}

/// `count` connections from `netns` with one exchange each.
///
/// # Errors
/// One of them cannot be made.
pub fn idle(netns: &Netns, dial: &Dial, count: usize) -> Result<Vec<TcpStream>> {
    let mut streams = Vec::new();
    for n in 0..count {
        let mut stream = netns.run(|| dial.connect_stream()).with_context(|| format!("{dial}, number {n}"))?;
        exchange(&mut stream, b"first")?;
        streams.push(stream);
    }
    Ok(streams)
}

/// Checks that each is still alive at both ends.
///
/// # Errors
/// The connections that are not.
pub fn all_answer(streams: &mut [TcpStream]) -> Result<()> {
    let broken: Vec<String> = streams
        .iter_mut()
        .enumerate()
        .filter_map(|(n, stream)| exchange(stream, b"again").err().map(|e| format!("number {n}: {e:#}")))
        .collect();
    if broken.is_empty() { Ok(()) } else { Err(anyhow!("{} connections broke: {}", broken.len(), broken.join("; "))) }
}
