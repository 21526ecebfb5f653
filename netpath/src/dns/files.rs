//! Reads the directory of aardvark-dns: one file per network, in the format that [`super::zone`] describes. The header may have a
//! third column, `ttl=SECONDS`. A line that is wrong is logged with its number and left out; everything else counts.

use super::pid_file;
use super::table::{Header, Line, Table, Zone};
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Suffix of the file of an internal network, for which nothing is forwarded.
pub(super) const INTERNAL: &str = "%int";
/// In front of the seconds, in the third column of the header.
pub(super) const TTL: &str = "ttl=";
/// No network has so many containers.
const LARGEST: u64 = 64 * 1024 * 1024;
/// Two changes within one tick of the file system's clock look the same.
const TICK: Duration = Duration::from_millis(50);

/// Whether a directory has the file of a network.
pub fn has_networks(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut files| files.any(|f| f.is_ok_and(|f| f.file_name() != pid_file::NAME)))
}

/// The files as they were read last: a reload parses only those that have changed.
pub(super) struct Files {
    dir: PathBuf,
    known: HashMap<OsString, (Stamp, Arc<Zone>)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self { inode: metadata.ino(), size: metadata.size(), changed: (metadata.ctime(), metadata.ctime_nsec()) }
    }

    /// Whether a later change has another stamp for certain.
    fn is_settled(&self, now: SystemTime) -> bool {
        let Ok(seconds) = self.changed.0.try_into() else { return false };
        let changed = SystemTime::UNIX_EPOCH + Duration::new(seconds, self.changed.1.try_into().unwrap_or(0));
        now.duration_since(changed).is_ok_and(|age| age > TICK)
    }
}

impl Files {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), known: HashMap::new() }
    }

    /// # Errors
    /// The directory cannot be read, unless it does not exist: then there is no network.
    pub(super) fn read(&mut self) -> io::Result<Table> {
        let mut read = HashMap::new();
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => Some(entries),
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Err(e) => return Err(io::Error::new(e.kind(), format!("cannot read {}: {e}", self.dir.display()))),
        };
        for entry in entries.into_iter().flatten() {
            let name = entry?.file_name();
            if name == pid_file::NAME {
                continue;
            }
            let path = self.dir.join(&name);
            match self.zone(&name, &path) {
                Ok(Some(zone)) => drop(read.insert(name, zone)),
                Ok(None) => {}
                // Removed in the meantime.
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => tracing::warn!("cannot read {}: {e}; its names are not known", path.display()),
            }
        }
        self.known = read;
        let mut zones: Vec<_> = self.known.values().map(|(_, zone)| Arc::clone(zone)).collect();
        // Always in the same order, whatever that of the directory is.
        zones.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Table::new(zones))
    }

    fn zone(&self, name: &OsString, path: &Path) -> io::Result<Option<(Stamp, Arc<Zone>)>> {
        let metadata = fs::metadata(path)?;
        if !metadata.is_file() || metadata.len() > LARGEST {
            return Err(io::Error::other("it is no file of a network"));
        }
        let (stamp, now) = (Stamp::of(&metadata), SystemTime::now());
        if let Some((known, zone)) = self.known.get(name)
            && *known == stamp
        {
            return Ok(Some((stamp, Arc::clone(zone))));
        }
        let mut text = String::from_utf8_lossy(&fs::read(path)?).into_owned();
        if let Some((_, zone)) = self.known.get(name)
            && text.is_empty()
        {
            // It is being written in place.
            return Ok(Some((Stamp::default(), Arc::clone(zone))));
        }
        text.make_ascii_lowercase();
        let shown = name.to_string_lossy();
        let (network, internal) = match shown.strip_suffix(INTERNAL) {
            Some(network) => (network, true),
            None => (&*shown, false),
        };
        let zone = parse(network, internal, &text, path);
        let stamp = if stamp.is_settled(now) { stamp } else { Stamp::default() };
        Ok(Some((stamp, Arc::new(zone))))
    }
}

fn parse(network: &str, internal: bool, text: &str, path: &Path) -> Zone {
    let warn = |number: usize, cause: String| {
        tracing::warn!("{} line {number}: {cause}; the line is ignored", path.display());
    };
    let mut lines = (1..).zip(text.split('\n')).filter(|(_, line)| !line.is_empty());
    let header = lines.next().map(|(number, line)| header(line, |cause| warn(number, cause))).unwrap_or_default();
    let (mut entries, mut addresses) = (Vec::with_capacity(text.len() / 96), Vec::with_capacity(text.len() / 96));
    for (number, line) in lines {
        match entry(line, &mut addresses) {
            Ok(entry) => entries.push(entry),
            Err(cause) => warn(number, cause),
        }
    }
    Zone::new(network.to_owned(), internal, header, text, entries, addresses)
}

/// Keeps what is right: without any address to listen on, the names of the network are known to its containers on other networks.
fn header(line: &str, warn: impl Fn(String)) -> Header {
    let mut columns = line.split(' ');
    let mut list = |what: &str| {
        let words = columns.next().unwrap_or_default().split(',').filter(|w| !w.is_empty());
        let address = |word: &str| match word.parse() {
            Ok(address) => Some(address),
            Err(_) => {
                warn(format!("{word:?} is no address of {what}"));
                None
            }
        };
        words.filter_map(address).collect::<Vec<IpAddr>>()
    };
    let (listen, servers) = (list("a gateway"), list("a DNS server"));
    let mut ttl = 0;
    for column in columns.filter(|c| !c.is_empty()) {
        match column.strip_prefix(TTL).and_then(|seconds| seconds.parse().ok()) {
            Some(seconds) => ttl = seconds,
            None => warn(format!("{column:?} is no TTL")),
        }
    }
    Header { listen, servers, ttl }
}

/// Adds its addresses to those of the other lines.
fn entry<'t>(line: &'t str, all: &mut Vec<IpAddr>) -> Result<Line<'t>, String> {
    let mut columns = line.split(' ');
    let (Some(id), Some(v4), Some(v6), Some(names)) = (columns.next(), columns.next(), columns.next(), columns.next())
    else {
        return Err("it has fewer than four columns".to_owned());
    };
    if id.is_empty() || names.is_empty() {
        return Err("it has no container or no name".to_owned());
    }
    let first = all.len();
    let mut servers = Vec::new();
    let add = |text: &str, fits: fn(&IpAddr) -> bool, to: &mut Vec<IpAddr>| {
        text.split(',').filter(|w| !w.is_empty()).try_for_each(|word| {
            let address = word.parse().ok().filter(fits);
            to.push(address.ok_or_else(|| format!("{word:?} is no address for this column"))?);
            Ok(())
        })
    };
    let added = add(v4, IpAddr::is_ipv4, all)
        .and_then(|()| add(v6, IpAddr::is_ipv6, all))
        .and_then(|()| add(columns.next().unwrap_or_default(), |_| true, &mut servers));
    if let Err(cause) = added {
        all.truncate(first);
        return Err(cause);
    }
    Ok(Line { id, addresses: first as u32..all.len() as u32, names, servers })
}
