//! Commands start the agent of their host with the first container, and end it with the last, unless it has to remove later
//! what stays loaded.

use crate::datapath::IdleState;
use crate::datapath::{keep_loaded, ladder};
use crate::dns::files::has_networks;
use crate::dns::inherited;
use crate::dns::process::own_program;
use crate::model::error::{Context, Error, Result};
use crate::state::ProcessId;
use crate::state::Store;
use crate::state::agent::{self, AgentLock, Holder};
use crate::state::agent_socket;
use crate::state::dns_places;
use crate::state::pidfd;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// `off`: no command starts one.
const SWITCH: &str = "NETPATH_AGENT";
/// An agent in the middle of a look takes milliseconds.
const END_LIMIT: Duration = Duration::from_secs(2);
/// Between the lock and the name of its holder in it.
const NAMING_LIMIT: Duration = Duration::from_millis(200);
/// The DNS sockets of an agent that this command has ended, for the next one.
static HANDED_OVER: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());

/// Identifies this binary: commands of one build do not leave the host to an agent of another.
pub fn build() -> String {
    let size = std::fs::metadata("/proc/self/exe").map_or(0, |m| m.len());
    format!("{}-{}-{size}", env!("CARGO_PKG_VERSION"), crate::datapath::BUILD)
}

/// Whether commands start none.
pub fn is_off() -> bool {
    std::env::var(SWITCH).is_ok_and(|v| v == "off")
}

pub(super) fn is_running(store: &Store) -> bool {
    agent::holder(store.dir()).is_some()
}

/// # Errors
/// It cannot be started.
pub(super) fn start_if_missing(store: &Store) -> Result<()> {
    if is_running(store) { Ok(()) } else { start(store) }
}

/// Ends an agent that hangs.
///
/// # Errors
/// It cannot be ended.
pub(super) fn kill(store: &Store) -> Result<()> {
    match agent::holder(store.dir()) {
        Some(holder) => end_by(holder.process, &[libc::SIGKILL], &[]),
        None => Ok(()),
    }
}

/// After a command has changed the host: tells the agent to look at it, or starts one if the host has containers. A host is served
/// without an agent too, so that a failure is only logged.
pub fn ensure(store: &Store) {
    if agent::holder(store.dir()).is_some() {
        agent_socket::look(store.dir());
        return;
    }
    if is_off() {
        return;
    }
    if store.is_empty().unwrap_or(true) {
        return;
    }
    if let Err(e) = start(store) {
        tracing::warn!(error = %e, "no agent is running: the next command notices changes of links and addresses");
    }
}

fn start(store: &Store) -> Result<()> {
    let Some(lock) = AgentLock::take(store.dir())? else { return Ok(()) };
    let started = Instant::now();
    lock.clear()?;
    let child = command(&lock)?.spawn().context(|| "cannot start the agent".to_owned())?;
    lock.write(&Holder { process: ProcessId::of(child.id()), build: build() })?;
    tracing::debug!(pid = child.id(), took_us = started.elapsed().as_micros(), "the agent is started");
    Ok(())
}

/// The lock is its standard input; it inherits the DNS sockets of an agent that this command has ended.
fn command(lock: &AgentLock) -> Result<Command> {
    let level = tracing::level_filters::LevelFilter::current().max(tracing::level_filters::LevelFilter::INFO);
    let mut command = detached(&level.to_string().to_lowercase());
    let sockets = std::mem::take(&mut *HANDED_OVER.lock().unwrap_or_else(PoisonError::into_inner));
    let numbers: Vec<String> = sockets.iter().map(|s| s.as_raw_fd().to_string()).collect();
    command.arg("agent").env(inherited::VARIABLE, numbers.join(",")).stdin(Stdio::from(lock.hand_over()?));
    // SAFETY: only bare system calls on numbers; nothing is allocated or locked between fork and exec.
    unsafe {
        // After that of `detached`, which closes everything.
        command.pre_exec(move || {
            for socket in &sockets {
                libc::fcntl(socket.as_raw_fd(), libc::F_SETFD, 0);
            }
            Ok(())
        });
    }
    Ok(command)
}

/// This binary, as a process that outlives the command: in a session of its own, without the caller's descriptors, since an
/// engine waits until every process has closed the command's output.
pub(super) fn detached(level: &str) -> Command {
    let mut command = own_program(false);
    command
        .current_dir("/")
        .env("RUST_LOG", format!("netpath={level}"))
        .env_remove("NOTIFY_SOCKET")
        // The last setup that had a value decides.
        .env_remove(keep_loaded::SWITCH)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // SAFETY: only bare system calls on numbers; nothing is allocated or locked between fork and exec.
    unsafe {
        command.pre_exec(|| {
            // A signal that is ignored here is ignored after exec too, and could not end the process.
            for signal in [libc::SIGTERM, libc::SIGINT] {
                libc::signal(signal, libc::SIG_DFL);
            }
            libc::setsid();
            // Inherited descriptors are closed by exec. Kernels before 5.11 refuse; then the process has them too.
            libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
            Ok(())
        });
    }
    command
}

/// Ends an agent of another build, which would change what this command writes.
///
/// # Errors
/// It cannot be ended.
pub fn stop_others(store: &Store) -> Result<()> {
    match agent::holder(store.dir()) {
        Some(holder) if holder.process != ProcessId::this_process() && holder.build != build() => {
            tracing::info!(pid = holder.process.pid, build = holder.build, "the agent of another build is replaced");
            let ports: Vec<u16> = dns_places::read(store.dir()).iter().map(|p| p.port).collect();
            end_by(holder.process, &[libc::SIGTERM, libc::SIGKILL], &ports)
        }
        _ => Ok(()),
    }
}

/// Whether an agent of this build lives, which removes later what a command leaves.
pub fn is_own(store: &Store) -> bool {
    agent::holder(store.dir()).is_some_and(|h| h.build == build())
}

/// Whether kernel objects stay loaded without a container, and an agent lives that removes them in time.
pub fn keeps_idle(store: &Store, cookie: u64) -> bool {
    let is_kept = matches!(ladder::idle(cookie), Some(IdleState::Until(when)) if when > SystemTime::now());
    is_kept && is_own(store)
}

/// Whether an agent of this build has names left to answer, of containers that a real Netavark has started.
pub fn serves_names(store: &Store) -> bool {
    is_own(store) && dns_places::read(store.dir()).iter().any(|place| has_networks(&place.dir))
}

/// Ends the agent and waits until it is gone. The caller holds the host's lock, for which an agent never waits.
///
/// # Errors
/// It cannot be ended.
pub fn stop(store: &Store) -> Result<()> {
    let started = Instant::now();
    loop {
        match agent::holder(store.dir()) {
            Some(holder) if holder.process == ProcessId::this_process() => return Ok(()),
            Some(holder) => return end(holder.process),
            // There is no agent, or its command has not named it yet.
            None if AgentLock::take(store.dir())?.is_some() || started.elapsed() > NAMING_LIMIT => return Ok(()),
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Ends a process of netpath's, and waits until it is gone.
///
/// # Errors
/// It cannot be ended.
pub fn end(process: ProcessId) -> Result<()> {
    end_by(process, &[libc::SIGTERM, libc::SIGKILL], &[])
}

/// Waits until a process of netpath's is gone.
///
/// # Errors
/// It cannot be waited for.
pub fn wait_end(process: ProcessId) -> Result<()> {
    let what = || format!("cannot wait for netpath's process {}", process.pid);
    match pidfd(process.pid).context(what)? {
        Some(pidfd) if process.is_alive() => ended(&pidfd, None).map(drop).context(what),
        _ => Ok(()),
    }
}

/// Whether the process ends within this time; `None` = without a limit.
fn ended(pidfd: &OwnedFd, limit: Option<Duration>) -> io::Result<bool> {
    let limit = limit.map_or(PollTimeout::NONE, |limit| limit.try_into().unwrap_or(PollTimeout::MAX));
    Ok(poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], limit)? > 0)
}

/// `ports`: its sockets there go to the next agent.
fn end_by(process: ProcessId, signals: &[i32], ports: &[u16]) -> Result<()> {
    let what = || format!("cannot end netpath's process {}", process.pid);
    let Some(pidfd) = pidfd(process.pid).context(what)? else { return Ok(()) };
    // After the descriptor is open: another process may have the number by now.
    if !process.is_alive() {
        return Ok(());
    }
    if !ports.is_empty() {
        let sockets = inherited::of_process(process.pid, pidfd.as_fd(), ports);
        HANDED_OVER.lock().unwrap_or_else(PoisonError::into_inner).extend(sockets);
    }
    for signal in signals {
        let nothing = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: takes numbers, and no information.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), *signal, nothing, 0) };
        if ended(&pidfd, Some(END_LIMIT)).unwrap_or(false) {
            return Ok(());
        }
    }
    Err(Error::new(what()).because("it ignores SIGKILL"))
}
