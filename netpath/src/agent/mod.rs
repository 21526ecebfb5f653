//! The one resident process: it answers DNS queries of containers, follows links, addresses, filters and routes of the host (on eBPF
//! those with metrics), expires flows, and logs drops.
//!
//! A host is served without it: the agent only does sooner what the next command would do, and may be killed at any moment. It never
//! waits for the lock, so that a command which ends it under the lock does not wait for long.

pub mod dhcp_proxy;
mod drop_log;
mod events;
mod names;
mod rate_limiter;
mod requests;
pub mod standby;

use crate::datapath::filter;
use crate::dns::inherited::Inherited;
use crate::link;
use crate::model::error::{Context, Error, Result};
use crate::ops::agent::build;
use crate::ops::host_watch::{HostWatch, Look, LookResult};
use crate::state::ProcessId;
use crate::state::agent::{AgentLock, Holder, LogFile, holder};
use drop_log::DropLog;
use events::Events;
use names::Names;
use rate_limiter::RateLimiter;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};
use tracing_subscriber::EnvFilter;

/// From the first event to the look: changes come in groups.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// The same for links and addresses: until the look, a new uplink serves no published port.
const LINK_DEBOUNCE: Duration = Duration::from_millis(10);
/// After a look that found the lock taken.
const RETRY: Duration = Duration::from_millis(50);
/// Between two full looks, each with an expiry of flows.
const ROUND: Duration = Duration::from_secs(30);
/// Between two reports of drops, in rounds.
const REPORT: u32 = 2;

/// Runs until no container is left or a signal arrives. In the background it logs to a file beside the records.
///
/// # Errors
/// It cannot watch the host.
pub fn run(foreground: bool) -> Result<()> {
    let inherited = Inherited::of_this_process();
    let host_watch = HostWatch::here()?;
    let dir = host_watch.store.dir().to_owned();
    let handed_over = if foreground { None } else { AgentLock::handed_over(&dir)? };
    let lock = match handed_over {
        Some(lock) => lock,
        None if host_watch.store.is_empty()? => {
            return Err(Error::new("there is nothing to watch")
                .because("no container uses netpath on this host")
                .next("start a container: the first one starts the agent"));
        }
        None => AgentLock::take(&dir)?.ok_or_else(|| {
            let pid = holder(&dir).map_or_else(String::new, |h| format!(" (pid {})", h.process.pid));
            Error::new(format!("the agent of this host runs already{pid}"))
        })?,
    };
    if !foreground {
        close_inherited_output();
        let log = LogFile::open(&lock, &dir)?;
        let _ =
            tracing_subscriber::fmt().with_env_filter(level()).with_ansi(false).with_writer(Mutex::new(log)).try_init();
    } else {
        let ansi = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let _ =
            tracing_subscriber::fmt().with_env_filter(level()).with_ansi(ansi).with_writer(std::io::stderr).try_init();
    }
    // As `ps` and `top` show it; a name that is too long is cut.
    let _ = nix::sys::prctl::set_name(c"netpath-agent");
    let lock = Arc::new(lock);
    lock.write(&Holder { process: ProcessId::this_process(), build: build() })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.context(|| "cannot start the agent".to_owned())?.block_on(watch(host_watch, lock, inherited));
    match &ended {
        Ok(why) => tracing::info!("{why}"),
        Err(e) => tracing::error!("{e}"),
    }
    ended.map(drop)
}

fn level() -> EnvFilter {
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("netpath=info"))
}

/// Standard input and output of the process that started the agent: an engine may wait until they are closed.
fn close_inherited_output() {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null");
    if let Ok(null) = null {
        let _ = nix::unistd::dup2_stdin(&null);
        let _ = nix::unistd::dup2_stdout(&null);
        let _ = nix::unistd::dup2_stderr(&null);
    }
}

/// Returns why it ended.
async fn watch(mut host_watch: HostWatch, lock: Arc<AgentLock>, inherited: Inherited) -> Result<&'static str> {
    let names = Arc::new(Names::new(Arc::clone(&lock), host_watch.store.dir().to_owned()));
    let what = || "cannot watch this host".to_owned();
    let mut terminate = signal(SignalKind::terminate()).context(what)?;
    let mut interrupt = signal(SignalKind::interrupt()).context(what)?;
    let mut hang_up = signal(SignalKind::hangup()).context(what)?;
    // First: containers may be waiting for it.
    names.restore(inherited).await;
    let links = Events::all(link::watch().context(what)?).context(what)?;
    // A kernel without nf_tables has no rules in it.
    let filters = filter::watch().and_then(|socket| Events::matching(socket, filter::concerns_rules));
    let mut routes: Option<Events> = None;
    // Without it the agent notices changes of commands a little later.
    let commands = requests::serve(&lock, host_watch.store.dir(), Arc::clone(&names)).unwrap_or_else(|e| {
        tracing::warn!(error = %e, "commands cannot reach the agent");
        Arc::default()
    });
    let mut drops = DropLog::start();
    let mut rounds = interval_at(Instant::now() + ROUND, ROUND);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut round = 0_u32;
    let mut due = Some((Instant::now(), Look::IfChanged));
    let mut rate_limiter = RateLimiter::new(Instant::now());
    let mut not_before = Instant::now();
    let mut next_look = None;
    tracing::info!(pid = std::process::id(), "watching this host");
    let ended = loop {
        let when = due.map_or_else(Instant::now, |(when, _)| when);
        tokio::select! {
            biased;
            _ = terminate.recv() => break "ended by a signal",
            _ = interrupt.recv() => break "ended by a signal",
            _ = hang_up.recv() => {
                names.reload().await;
                // It may have been the last name.
                due = due.or(Some((Instant::now(), Look::IfChanged)));
            }
            () = sleep_until(when), if due.is_some() => {
                let look = due.take().map_or(Look::IfChanged, |(_, look)| look);
                // This look sees what these events report.
                links.drain();
                routes.iter().for_each(Events::drain);
                filters.iter().for_each(Events::drain);
                match (&mut routes, host_watch.follows_routes()) {
                    (None, Some(matters)) => {
                        routes = Some(Events::matching(link::watch_routes().context(what)?, matters).context(what)?);
                    }
                    (Some(routes), Some(matters)) => routes.matters = matters,
                    (_, None) => routes = None,
                }
                let started = Instant::now();
                let (back, followed) = look_once(host_watch, look).await?;
                host_watch = back;
                return_memory();
                let was_busy = matches!(followed, Ok(LookResult::Busy));
                // After an error the next look is that of the next change or round.
                next_look = followed.is_ok().then(|| host_watch.next_look()).flatten().map(Instant::from_std);
                match followed {
                    Ok(LookResult::NoContainer) => break "the last container is gone",
                    Ok(LookResult::Idle(until)) => next_look = Some(until.into()),
                    Ok(LookResult::Busy) => due = Some((Instant::now() + RETRY, look)),
                    Ok(LookResult::Changed(objects)) => tracing::info!(objects, "the host has changed, the datapath follows"),
                    Ok(LookResult::Same | LookResult::Names) => {}
                    Err(e) => tracing::warn!("{e}"),
                }
                if !was_busy {
                    not_before = rate_limiter.looked(started.elapsed(), Instant::now());
                }
            }
            // Once a look is due, further events stay in the sockets until then.
            pause = changed([(Some(&links), LINK_DEBOUNCE), (filters.as_ref().ok(), DEBOUNCE), (routes.as_ref(), DEBOUNCE)]),
                if due.is_none() =>
            {
                due = Some(((Instant::now() + pause).max(not_before), Look::IfChanged));
            }
            () = commands.notified() => {
                let at = Instant::now().max(not_before);
                due = Some(due.map_or((at, Look::IfChanged), |(when, look)| (when.min(at), look)));
            }
            () = sleep_until(next_look.unwrap_or_else(Instant::now)), if next_look.is_some() && due.is_none() => {
                next_look = None;
                due = Some((Instant::now().max(not_before), Look::IfChanged));
            }
            _ = rounds.tick() => {
                round = round.wrapping_add(1);
                due = Some((Instant::now(), Look::Full));
                host_watch = expire(host_watch).await?;
                if round.is_multiple_of(REPORT) {
                    drops.report();
                }
            }
        }
    };
    names.close().await;
    Ok(ended)
}

/// Waits for the next change. Returns the pause until the look.
async fn changed([one, other, third]: [(Option<&Events>, Duration); 3]) -> Duration {
    let any = async |(events, pause): (Option<&Events>, Duration)| match events {
        Some(events) => {
            events.changed().await;
            pause
        }
        None => std::future::pending().await,
    };
    tokio::select! {
        pause = any(one) => pause,
        pause = any(other) => pause,
        pause = any(third) => pause,
    }
}

/// In a thread of its own, so that signals are noticed; the process ends after the look has ended.
async fn look_once(mut host_watch: HostWatch, look: Look) -> Result<(HostWatch, Result<LookResult>)> {
    in_thread(move || {
        let followed = host_watch.look(look);
        (host_watch, followed)
    })
    .await
}

/// Gives free memory back to the kernel: that of the programs' object, which a look may have loaded, is ten times what stays.
fn return_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number only, and has no conditions.
    unsafe {
        libc::malloc_trim(0);
    }
}

async fn expire(host_watch: HostWatch) -> Result<HostWatch> {
    in_thread(move || {
        match host_watch.expire() {
            Ok(0) => {}
            Ok(entries) => tracing::debug!(entries, "flows have expired"),
            Err(e) => tracing::warn!("{e}"),
        }
        host_watch
    })
    .await
}

async fn in_thread<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(job).await.context(|| "the agent has a bug".to_owned())
}
