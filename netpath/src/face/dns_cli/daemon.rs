//! The server in the background: a parent that waits until it is ready, signals, and its pid file.

use super::{fail, syslog};
use crate::dns::pid_file;
use crate::dns::server::{Loaded, Place, Server};
use crate::model::error::{Context, Error, Result};
use nix::fcntl::OFlag;
use nix::unistd::{ForkResult, fork, pipe2, setsid};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

/// Between attempts to listen on addresses that are in use or do not exist yet.
const RETRY: Duration = Duration::from_secs(1);
/// Its writing end in the child.
const READY: i32 = 3;

pub(super) fn run(place: Place) -> ExitCode {
    match start(place) {
        Ok(code) => code,
        Err(e) => fail(&e),
    }
}

fn start(place: Place) -> Result<ExitCode> {
    let what = || "cannot start the server".to_owned();
    let (ready, is_ready) = pipe2(OFlag::O_CLOEXEC).context(what)?;
    // SAFETY: this process has one thread.
    match unsafe { fork() }.context(what)? {
        ForkResult::Parent { .. } => {
            drop(is_ready);
            // The end without a byte: the child has ended, and has said why.
            let code = match File::from(ready).read(&mut [0]) {
                Ok(1) => ExitCode::SUCCESS,
                _ => {
                    eprintln!("Error from child process");
                    ExitCode::FAILURE
                }
            };
            Ok(code)
        }
        ForkResult::Child => {
            drop(ready);
            let dir = place.dir.clone();
            let served = keep_only(is_ready).and_then(|is_ready| serve(place, is_ready));
            pid_file::remove_own(&dir);
            served.map(|()| ExitCode::SUCCESS)
        }
    }
}

/// Closes all descriptors of the caller but standard input, output and errors: an engine may wait for their end.
fn keep_only(is_ready: OwnedFd) -> Result<File> {
    let what = || "cannot close inherited descriptors".to_owned();
    if is_ready.as_raw_fd() != READY {
        // SAFETY: takes numbers only; whatever has this number is not used in this process.
        let moved = unsafe { libc::dup3(is_ready.as_raw_fd(), READY, libc::O_CLOEXEC) };
        if moved < 0 {
            return Err(Error::new(what()).because(std::io::Error::last_os_error()));
        }
        drop(is_ready);
    } else {
        std::mem::forget(is_ready);
    }
    // SAFETY: takes numbers only; this process has opened nothing else. Not before Linux 5.9, where they stay open.
    unsafe { libc::syscall(libc::SYS_close_range, READY + 1, u32::MAX, 0) };
    // SAFETY: the descriptor is open and owned here alone.
    Ok(unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(READY) })
}

fn serve(place: Place, mut is_ready: File) -> Result<()> {
    let what = || format!("cannot serve the names in {}", place.dir.display());
    let _ = nix::sys::prctl::set_name(c"aardvark-dns");
    if !place.dir.is_dir() {
        return Err(Error::new(what()).because("config directory must exist and be a directory"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context(what)?;
    let watched = what();
    LocalSet::new().block_on(&runtime, async {
        let what = || watched.clone();
        let mut hang_up = signal(SignalKind::hangup()).context(what)?;
        let mut terminate = signal(SignalKind::terminate()).context(what)?;
        // After the signals, which would end it: from now on it may get one.
        pid_file::write(&place.dir).context(what)?;
        let mut server = Server::new(place, Rc::default());
        let loaded = server.reload().await.context(what)?;
        if let Some((_, cause)) = loaded.failed.first() {
            return Err(Error::new(format!("Error starting server {cause}")));
        }
        syslog::init();
        detach(&mut is_ready).context(what)?;
        drop(is_ready);
        tracing::info!(networks = loaded.networks, containers = loaded.containers, "serving names");
        let mut is_complete = true;
        while server.is_needed() {
            tokio::select! {
                _ = terminate.recv() => return Ok(()),
                _ = hang_up.recv() => is_complete = match server.reload().await {
                    Ok(loaded) => log(&loaded),
                    Err(e) => {
                        tracing::error!("{e}");
                        true
                    }
                },
                () = tokio::time::sleep(RETRY), if !is_complete => is_complete = server.retry(),
            }
        }
        tracing::info!("no network is left");
        Ok(())
    })
}

/// Whether all addresses are listened on.
fn log(loaded: &Loaded) -> bool {
    tracing::debug!(networks = loaded.networks, containers = loaded.containers, "the files are read again");
    for (_, cause) in &loaded.failed {
        tracing::error!("{cause}");
    }
    loaded.failed.is_empty()
}

/// From the caller's session and terminal, and tells the parent.
fn detach(is_ready: &mut File) -> std::io::Result<()> {
    setsid()?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    is_ready.write_all(&[1])
}
