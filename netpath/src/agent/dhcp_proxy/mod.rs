//! The DHCP proxy in netavark's place: it gets addresses for containers, extends their leases, and gives them back.
//!
//! It is a process of its own, which systemd starts with its socket, or the first setup that needs it. Leases are on disk: whatever ends
//! the proxy, the next one goes on with them.

mod interface;
mod keeper;
mod service;

use crate::dhcp::rpc;
use crate::model::error::{Context, Error, Result};
use crate::ops::agent::end;
use crate::state::agent::LogFile;
use crate::state::proxy_dir::{ProxyDir, ProxyLock};
use service::Proxy;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener as Listener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Between two looks whether the proxy is idle.
const LOOK: Duration = Duration::from_millis(500);
/// Until a proxy that was told to end has given up its lock.
const HANDOVER: Duration = Duration::from_secs(3);

#[derive(clap::Args, Debug, Clone)]
pub struct Options {
    /// Directory of the leases and of the socket [default: /run/podman]
    #[arg(short, long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Directory of the socket, if it is another one
    #[arg(short, long, value_name = "DIR")]
    uds: Option<PathBuf>,
    /// Seconds to wait for an address
    #[arg(short, long, default_value_t = 8)]
    timeout: u32,
    /// Seconds without a call or a lease after which the proxy ends; 0: it does not
    #[arg(short, long, default_value_t = 300)]
    activity_timeout: u64,
    /// The socket is standard input
    #[arg(long, hide = true)]
    on_stdin: bool,
}

/// Runs until a signal arrives, or until nothing has needed it for a while.
///
/// # Errors
/// It cannot listen, or another proxy cannot be ended.
pub fn run(options: &Options) -> Result<()> {
    let dir = ProxyDir::new(options.dir.as_deref());
    dir.create()?;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("netpath=info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
    // Fails if the face has set up logs.
    let _ = match options.on_stdin {
        true => log.with_writer(std::sync::Mutex::new(LogFile::at(&dir.log())?)).try_init(),
        false => log.with_writer(std::io::stderr).try_init(),
    };
    let _ = nix::sys::prctl::set_name(c"netpath-dhcp");
    let lock = take_over(&dir)?;
    let path = options.uds.as_ref().map_or_else(|| dir.socket(), |uds| uds.join("nv-proxy.sock"));
    let socket = Socket::open(options, &dir, &path)?;
    let what = || "cannot start the DHCP proxy".to_owned();
    let proxy = Proxy::load(dir, lock, Duration::from_secs(options.timeout.into()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context(what)?;
    let limit = Some(Duration::from_secs(options.activity_timeout)).filter(|limit| !limit.is_zero());
    let served = runtime.block_on(serve(&socket.listener, &proxy, limit));
    // Without waiting for calls.
    runtime.shutdown_background();
    drop(socket);
    proxy.close();
    served
}

/// The lock, after an older proxy has ended: its leases are on disk.
fn take_over(dir: &ProxyDir) -> Result<ProxyLock> {
    let begun = Instant::now();
    loop {
        if let Some(lock) = dir.lock()? {
            return Ok(lock);
        }
        if begun.elapsed() > HANDOVER {
            return Err(Error::new(format!("cannot serve {}", dir.path().display()))
                .because("another DHCP proxy does not end")
                .next("end that process"));
        }
        match dir.holder() {
            Some(older) => end(older)?,
            // It has not named itself yet.
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

struct Socket {
    listener: Listener,
    /// The file that is removed with it, and its inode.
    own: Option<(PathBuf, u64)>,
}

impl Socket {
    fn open(options: &Options, dir: &ProxyDir, path: &Path) -> Result<Self> {
        let what = || format!("cannot listen on {}", path.display());
        let inode = || std::fs::symlink_metadata(path).map(|m| (path.to_owned(), m.ino()));
        let (listener, own) = if options.on_stdin {
            (std::io::stdin().as_fd().try_clone_to_owned().context(what)?.into(), Some(inode().context(what)?))
        } else if let Some(listener) = activated()? {
            (listener, None)
        } else {
            let _held = dir.hold()?;
            remove_dead(path)?;
            let listener = Listener::bind(path).context(what)?;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).context(what)?;
            (listener, Some(inode().context(what)?))
        };
        listener.set_nonblocking(true).context(what)?;
        Ok(Self { listener, own })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let Some((path, inode)) = &self.own else { return };
        // systemd may have made another one there.
        if std::fs::symlink_metadata(path).is_ok_and(|m| m.ino() == *inode) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The socket of a process that has ended without removing it.
fn remove_dead(path: &Path) -> Result<()> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    if is_socket && UnixStream::connect(path).is_err() {
        std::fs::remove_file(path).context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// The socket that systemd hands over.
fn activated() -> Result<Option<Listener>> {
    let is_for_another = std::env::var("LISTEN_PID").is_ok_and(|pid| pid != std::process::id().to_string());
    match std::env::var("LISTEN_FDS") {
        Err(_) => Ok(None),
        Ok(_) if is_for_another => Ok(None),
        Ok(count) if count != "1" => {
            // The text is netavark's.
            Err(Error::new("Received more than one FD from systemd").because(format!("LISTEN_FDS={count}")))
        }
        Ok(_) => {
            // SAFETY: the protocol of socket activation: descriptor 3 is this process's and used for nothing else.
            Ok(Some(Listener::from(unsafe { OwnedFd::from_raw_fd(3) })))
        }
    }
}

async fn serve(listener: &Listener, proxy: &Arc<Proxy>, limit: Option<Duration>) -> Result<()> {
    let what = || "cannot serve DHCP".to_owned();
    let listener = UnixListener::from_std(listener.try_clone().context(what)?).context(what)?;
    let mut terminate = signal(SignalKind::terminate()).context(what)?;
    let mut interrupt = signal(SignalKind::interrupt()).context(what)?;
    tracing::info!(pid = std::process::id(), leases = proxy.count(), "serving DHCP");
    loop {
        tokio::select! {
            connection = listener.accept() => match connection {
                Ok((stream, _)) => {
                    let service = proxy.clone();
                    tokio::spawn(async move {
                        if let Err(e) = rpc::serve(stream, service).await {
                            tracing::debug!(error = %e, "a connection ended");
                        }
                    });
                }
                // No descriptor is left, for example.
                Err(e) => {
                    tracing::warn!(error = %e, "cannot accept a connection");
                    tokio::time::sleep(LOOK).await;
                }
            },
            () = tokio::time::sleep(LOOK) => {
                if limit.is_some_and(|limit| proxy.is_idle(limit)) {
                    let _ = std::fs::remove_file(proxy.dir.log());
                    tracing::info!("nothing needs DHCP any more");
                    return Ok(());
                }
            }
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
    }
}
