//! Servers on a thread of their own, so that nothing else in the process delays an answer.

use super::inherited::Inherited;
use super::server::{Loaded, Place, Server};
use super::stats::Counts;
use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

/// Between attempts to listen on addresses that are in use or do not exist yet.
const RETRY: Duration = Duration::from_secs(1);

/// Ends when it is dropped.
pub struct Service(mpsc::UnboundedSender<Command>);

enum Command {
    Serve(Place, oneshot::Sender<io::Result<Loaded>>),
    Count(oneshot::Sender<Vec<(PathBuf, Counts)>>),
    /// No further server is restored.
    Restored,
}

impl Service {
    /// With the sockets of an earlier server.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(inherited: Inherited) -> io::Result<Self> {
        let (sender, commands) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new()
            .name("netpath-dns".into())
            .spawn(move || LocalSet::new().block_on(&runtime, serve(commands, Rc::new(inherited))))?;
        Ok(Self(sender))
    }

    /// Reads the files of this directory, and answers from them until it has none left. Returns when the change is visible.
    ///
    /// # Errors
    /// The directory cannot be read; what was known before still counts.
    pub async fn serve(&self, place: Place) -> io::Result<Loaded> {
        self.call(|done| Command::Serve(place, done)).await?
    }

    /// Closes the inherited sockets that no server has taken.
    pub fn restored(&self) {
        let _ = self.0.send(Command::Restored);
    }

    /// What each server has counted.
    ///
    /// # Errors
    /// The thread has ended.
    pub async fn counts(&self) -> io::Result<Vec<(PathBuf, Counts)>> {
        self.call(Command::Count).await
    }

    async fn call<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> io::Result<T> {
        let (done, answer) = oneshot::channel();
        let ended = || io::Error::other("the DNS server has ended");
        self.0.send(command(done)).map_err(|_| ended())?;
        answer.await.map_err(|_| ended())
    }
}

async fn serve(mut commands: mpsc::UnboundedReceiver<Command>, inherited: Rc<Inherited>) {
    let mut servers: HashMap<PathBuf, Server> = HashMap::new();
    let mut is_complete = true;
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(Command::Serve(place, done)) => {
                    let loaded = load(&mut servers, place, &inherited).await;
                    is_complete &= loaded.as_ref().is_ok_and(|l| l.failed.is_empty());
                    // The command may not wait for it.
                    let _ = done.send(loaded);
                }
                Some(Command::Count(done)) => {
                    let counts = servers.iter().map(|(dir, server)| (dir.clone(), server.counts()));
                    let _ = done.send(counts.collect());
                }
                Some(Command::Restored) => inherited.clear(),
                None => return,
            },
            () = tokio::time::sleep(RETRY), if !is_complete => {
                is_complete = servers.values_mut().map(Server::retry).filter(|has_all| !has_all).count() == 0;
            }
        }
    }
}

async fn load(servers: &mut HashMap<PathBuf, Server>, place: Place, inherited: &Rc<Inherited>) -> io::Result<Loaded> {
    let dir = place.dir.clone();
    if servers.get(&dir).is_some_and(|server| server.port() != place.port) {
        servers.remove(&dir);
    }
    let led = place.led.clone();
    let server = servers.entry(dir.clone()).or_insert_with(|| Server::new(place, Rc::clone(inherited)));
    server.lead(led);
    let loaded = server.reload().await?;
    if loaded.networks == 0 {
        servers.remove(&dir);
    }
    Ok(loaded)
}
