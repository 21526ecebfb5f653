//! Against a small firewalld at the other end of a socket.

use super::*;
use crate::model::HostBind;
use crate::model::fixtures::{record, tcp};
use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;
use zbus::{connection, fdo, interface};

const PATIENCE: Duration = Duration::from_secs(5);

/// What a firewalld holds, and how it behaves.
#[derive(Clone, Default)]
struct Daemon {
    /// Source → zone.
    sources: Arc<Mutex<BTreeMap<String, String>>>,
    strict: Option<&'static str>,
    /// It does what it is asked for and never says so.
    mute: bool,
    refuses: Option<&'static str>,
}

#[interface(name = "org.fedoraproject.FirewallD1.zone")]
impl Daemon {
    #[zbus(name = "getZoneOfSource")]
    fn zone_of_source(&self, source: &str) -> String {
        self.sources.lock().expect("no panic").get(source).cloned().unwrap_or_default()
    }

    #[zbus(name = "addSource")]
    async fn add_source(&self, zone: &str, source: &str) -> fdo::Result<String> {
        if self.refuses == Some(source) {
            return Err(fdo::Error::Failed("INVALID_ADDR".into()));
        }
        let bound = self.sources.lock().expect("no panic").insert(source.to_owned(), zone.to_owned());
        assert_eq!(None, bound, "{source} is bound already");
        if self.mute {
            std::future::pending::<()>().await;
        }
        Ok(zone.to_owned())
    }

    #[zbus(name = "removeSource")]
    fn remove_source(&self, zone: &str, source: &str) -> fdo::Result<String> {
        match self.sources.lock().expect("no panic").remove(source) {
            Some(bound) if bound == zone => Ok(bound),
            other => Err(fdo::Error::Failed(format!("{source} is bound to {other:?}"))),
        }
    }
}

struct Config(&'static str);

#[interface(name = "org.fedoraproject.FirewallD1.config")]
impl Config {
    #[zbus(property, name = "StrictForwardPorts")]
    fn strict(&self) -> &str {
        self.0
    }
}

/// A running daemon, a command that is connected to it, and the host's state.
struct Scene {
    firewall: Firewall,
    daemon: Daemon,
    store: Store,
    place: PathBuf,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Scene {
    fn new(name: &str, daemon: Daemon) -> Self {
        let place = std::env::temp_dir().join(format!("netpath-firewalld-{}-{name}", std::process::id()));
        let mut scene = Self {
            firewall: Firewall::default(),
            daemon: daemon.clone(),
            store: Store::at(place.join("host")),
            place,
            running: None,
        };
        scene.next_command(daemon, PATIENCE);
        scene
    }

    /// Another command, to a daemon with the same sources.
    fn next_command(&mut self, daemon: Daemon, patience: Duration) {
        self.end();
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let daemon = Daemon { sources: self.daemon.sources.clone(), ..daemon };
        let (end, ended) = oneshot::channel();
        let served = std::thread::spawn(move || serve(daemon, theirs, ended));
        self.firewall = Firewall(State::Running(Firewalld::over(ours, patience)));
        self.running = Some((end, served));
    }

    fn end(&mut self) {
        self.firewall = Firewall::default();
        if let Some((end, served)) = self.running.take() {
            drop(end);
            served.join().expect("the daemon has not panicked");
        }
    }

    fn hold(&mut self, wanted: &[&str]) -> usize {
        let lock = self.store.lock(&|| false).expect("the lock");
        self.firewall.hold(&self.store, &lock, &Foreign::default(), &nets(wanted))
    }

    /// As an administrator does by firewall-cmd.
    fn bind(&self, source: &str, zone: &str) {
        self.daemon.sources.lock().expect("no panic").insert(source.into(), zone.into());
    }

    fn sources(&self) -> Vec<(String, String)> {
        self.daemon.sources.lock().expect("no panic").clone().into_iter().collect()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.end();
        }
        let _ = std::fs::remove_dir_all(&self.place);
    }
}

fn serve(daemon: Daemon, stream: UnixStream, ended: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async move {
        stream.set_nonblocking(true).expect("a socket");
        let stream = tokio::net::UnixStream::from_std(stream).expect("a socket");
        let (path, strict) = ("/org/fedoraproject/FirewallD1", daemon.strict);
        let mut builder = connection::Builder::unix_stream(stream)
            .p2p()
            .server(zbus::Guid::generate())
            .and_then(|b| b.serve_at(path, daemon))
            .expect("a server");
        if let Some(strict) = strict {
            builder = builder.serve_at(format!("{path}/config"), Config(strict)).expect("a server");
        }
        let _serving = builder.build().await.expect("a connection");
        let _ = ended.await;
    });
}

fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().map(|t| t.parse().expect("a network")).collect()
}

fn bound(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(source, zone)| ((*source).to_owned(), (*zone).to_owned())).collect()
}

const FRONT: &str = "10.89.1.0/24";
const BACK: &str = "fd00:89::/64";

#[test]
fn subnets_come_into_the_zone_and_go_with_the_last_endpoint() {
    let mut scene = Scene::new("come-and-go", Daemon::default());
    assert_eq!(2, scene.hold(&[FRONT, BACK]));
    assert_eq!(bound(&[(FRONT, "trusted"), (BACK, "trusted")]), scene.sources());
    assert_eq!(0, scene.hold(&[FRONT, BACK]), "a second time");
    assert_eq!(1, scene.hold(&[BACK]));
    assert_eq!(bound(&[(BACK, "trusted")]), scene.sources());
    assert_eq!(1, scene.hold(&[]));
    assert_eq!(bound(&[]), scene.sources());
    assert_eq!(Trusted::default(), scene.store.trusted());
}

#[test]
fn a_reload_drops_them_and_the_next_look_puts_them_back() {
    let mut scene = Scene::new("reload", Daemon::default());
    scene.hold(&[FRONT]);
    scene.daemon.sources.lock().expect("no panic").clear();
    assert_eq!(1, scene.hold(&[FRONT]));
    assert_eq!(bound(&[(FRONT, "trusted")]), scene.sources());
}

#[test]
fn sources_of_an_administrator_stay() {
    let mut scene = Scene::new("there", Daemon::default());
    scene.bind(FRONT, "trusted");
    assert_eq!(0, scene.hold(&[FRONT]));
    assert_eq!(0, scene.hold(&[]));
    assert_eq!(bound(&[(FRONT, "trusted")]), scene.sources());
}

#[test]
fn a_subnet_in_another_zone_is_left_there_and_remembered() {
    let mut scene = Scene::new("elsewhere", Daemon::default());
    scene.bind(FRONT, "internal");
    assert_eq!(1, scene.hold(&[FRONT, BACK]));
    assert_eq!("internal", scene.store.trusted().elsewhere[&nets(&[FRONT]).into_iter().next().expect("one")]);
    assert_eq!(1, scene.hold(&[]));
    assert_eq!(bound(&[(FRONT, "internal")]), scene.sources());
}

#[test]
fn a_subnet_that_was_moved_to_another_zone_is_no_longer_netpaths() {
    let mut scene = Scene::new("moved", Daemon::default());
    scene.hold(&[FRONT]);
    scene.bind(FRONT, "drop");
    assert_eq!(0, scene.hold(&[FRONT]));
    scene.bind(FRONT, "trusted");
    scene.hold(&[]);
    assert_eq!(bound(&[(FRONT, "trusted")]), scene.sources());
    assert_eq!(Trusted::default(), scene.store.trusted());
}

/// The command has heard nothing of its call when it ends.
#[test]
fn what_a_killed_command_has_added_is_taken_out_by_the_next() {
    let mut scene = Scene::new("killed", Daemon::default());
    scene.next_command(Daemon { mute: true, ..Daemon::default() }, Duration::from_millis(300));
    assert_eq!(0, scene.hold(&[FRONT]));
    assert_eq!(bound(&[(FRONT, "trusted")]), scene.sources());
    scene.next_command(Daemon::default(), PATIENCE);
    assert_eq!(1, scene.hold(&[]));
    assert_eq!(bound(&[]), scene.sources());
}

#[test]
fn a_firewalld_that_does_not_answer_is_waited_for_once() {
    let mut scene = Scene::new("hung", Daemon::default());
    scene.next_command(Daemon { mute: true, ..Daemon::default() }, Duration::from_millis(300));
    let begun = Instant::now();
    scene.hold(&[FRONT, BACK]);
    scene.hold(&[FRONT, BACK]);
    assert!(!scene.firewall.wait(&Foreign::default()));
    assert!((300..2_000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
}

#[test]
fn one_subnet_that_is_refused_does_not_keep_the_others_out() {
    let mut scene = Scene::new("refused", Daemon { refuses: Some(FRONT), ..Daemon::default() });
    scene.hold(&[FRONT, BACK]);
    assert_eq!(bound(&[(BACK, "trusted")]), scene.sources());
}

#[test]
fn strict_forward_ports_refuse_published_ports_of_networks_that_lead_out() {
    let publishing = [record(1, &["10.88.0.2/16"], vec![tcp(HostBind::Any, 8080, 80, 1)])];
    let silent = [record(1, &["10.88.0.2/16"], Vec::new())];
    let mut internal = publishing.clone();
    internal[0].network.internal = true;
    for (name, strict, refused) in [("yes", Some("yes"), true), ("no", Some("no"), false), ("old", None, false)] {
        let mut scene = Scene::new(name, Daemon { strict, ..Daemon::default() });
        let checked = scene.firewall.preflight(&Foreign::default(), &publishing);
        assert_eq!(refused, checked.is_err(), "{strict:?}");
        if let Err(e) = checked {
            let phrase = "Port forwarding not possible as firewalld StrictForwardPorts enabled";
            assert!(e.to_string().contains(phrase) && e.next_step().is_some(), "{e}");
        }
        assert!(
            scene.firewall.preflight(&Foreign::default(), &silent).is_ok()
                && scene.firewall.preflight(&Foreign::default(), &internal).is_ok(),
            "{strict:?}"
        );
    }
}

#[test]
fn subnets_of_internal_networks_are_not_trusted() {
    let open = record(1, &["10.88.0.2/16"], Vec::new());
    let mut internal = record(2, &["10.89.0.2/24"], Vec::new());
    internal.network.internal = true;
    let mut coming = record(3, &["10.90.0.2/24"], Vec::new());
    coming.links = None;
    let expected: BTreeSet<IpNet> = open.network.subnets.iter().map(|s| s.net.trunc()).collect();
    assert!(!expected.is_empty());
    assert_eq!(expected, subnets(&Desired { records: vec![open, internal, coming] }));
}
