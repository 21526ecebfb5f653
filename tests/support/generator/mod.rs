//! Generators of load: servers that are as cheap as can be, and clients that count.
//!
//! All are threads of this process inside namespaces, each with a table of open files of its own: a table shared by
//! clients and servers would be what short connections wait for.

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
/// How often a server that has nothing to do looks whether it is to stop.
const GLANCE: Duration = Duration::from_millis(200);
/// No answer for so long is a failure.
const PATIENCE: Duration = Duration::from_secs(2);
/// Not counted at the beginning of a measurement.
const WARM_UP: Duration = Duration::from_millis(100);

/// Starts `work` on a thread inside `netns`, and returns when the thread has its own table of open files: a pipe that the
/// caller opens afterwards is in nobody else's table.
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

/// Threads that serve until this is dropped.
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

/// A socket whose patience has ended says something about blocking.
fn spoken(error: std::io::Error) -> anyhow::Error {
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EINPROGRESS) => anyhow!("no answer in {} s", PATIENCE.as_secs()),
        _ => error.into(),
    }
}

/// Keeps the calling thread on one processor: two that take turns are measured as a path, and not by whether an idle
/// processor had to be woken up, which comes and goes and costs more than the path.
fn stay_together() {
    let mut set = CpuSet::new();
    // Refused, the figure is less steady and nothing else.
    let _ = set.set(0).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
}

/// Round trips that one client saw, one after the other.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Latency {
    pub median_us: f64,
    pub p99_us: f64,
}

/// On the processor of the servers, asks again and again for `time` after a warm-up.
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
