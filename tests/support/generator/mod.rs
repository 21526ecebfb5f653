//! Load generators: servers of minimal cost, and clients that count.
//!
//! All are threads of this process inside namespaces, each with a file table of its own: contention on a shared table would
//! dominate short connections.

pub mod bulk;
pub mod cpu;
pub mod tcp;
pub mod udp;

use crate::host::Netns;
use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::unistd::Pid;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes of a request, of an answer, of a datagram.
pub const MESSAGE: usize = 64;
/// How often an idle server checks whether to stop.
const GLANCE: Duration = Duration::from_millis(200);
/// Time-out of an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Excluded from the start of a measurement.
const WARM_UP: Duration = Duration::from_millis(100);

/// Starts `work` on a thread inside `netns`, and returns once the thread has its own file table: a pipe that the caller opens
/// afterwards is in no other table.
fn spawn<T: Send + 'static>(netns: &Netns, work: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>> {
    let (ready, begun) = channel();
    let thread = netns.spawn(move || {
        let own = unshare(CloneFlags::CLONE_FILES);
        let _ = ready.send(own);
        work()
    })?;
    begun.recv().context("a thread of the load ended early")?.context("cannot unshare the table of open files")?;
    Ok(thread)
}

fn join<T>(thread: JoinHandle<T>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread of the load panicked"))
}

/// Threads that serve until dropped.
#[derive(Default)]
pub struct Servers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Servers {
    fn add(&mut self, netns: &Netns, work: impl FnOnce(&AtomicBool) + Send + 'static) -> Result<()> {
        let stop = Arc::clone(&self.stop);
        self.threads.push(spawn(netns, move || work(&stop))?);
        Ok(())
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Names the time-out of a socket, which is reported as "would block".
fn spoken(error: std::io::Error) -> anyhow::Error {
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EINPROGRESS) => anyhow!("no answer in {} s", PATIENCE.as_secs()),
        _ => error.into(),
    }
}

/// Pins the calling thread to one processor: two alternating threads then measure the path, and not the wake-up of an idle
/// processor, which varies and costs more.
fn stay_together() {
    let mut set = CpuSet::new();
    // If denied, the figure varies more.
    let _ = set.set(0).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
}

/// Sequential round trips of one client.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Latency {
    pub median_us: f64,
    pub p99_us: f64,
}

/// On the servers' processor, calls `ask` repeatedly for `time` after a warm-up.
fn latency(to: SocketAddr, time: Duration, mut ask: impl FnMut() -> std::io::Result<()>) -> Result<Latency> {
    stay_together();
    let begun = Instant::now();
    let mut took = Vec::with_capacity(1 << 17);
    loop {
        let start = Instant::now();
        ask().map_err(spoken).with_context(|| format!("request and answer, {to}"))?;
        let end = Instant::now();
        if end - begun > WARM_UP {
            took.push((end - start).as_nanos() as f64 / 1e3);
        }
        if end - begun > WARM_UP + time {
            break;
        }
    }
    Ok(Latency {
        median_us: report::stats::quantile(&took, 0.5).unwrap_or_default(),
        p99_us: report::stats::quantile(&took, 0.99).unwrap_or_default(),
    })
}
