//! Format of the file that aardvark-dns reads for each network.
//!
//! First line: the addresses to listen on, separated by commas, then a space and the network's upstream servers, if any. A further
//! column is netpath's own: `ttl=SECONDS`.
//! Each further line: `id v4,v4 v6,v6 name,name[ server,server]`, one space between columns, empty columns kept.
//! Source: aardvark-dns, src/config/mod.rs.

use super::files::TTL;
use crate::model::Record;
use crate::model::error::{Error, Result};
use ipnet::IpNet;
use std::fmt::Write as _;
use std::net::IpAddr;

/// The file of a network. Lines of netavark and unknown lines are kept unchanged.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Zone {
    header: String,
    lines: Vec<String>,
}

impl Zone {
    pub(super) fn parse(text: &str) -> Self {
        let mut lines = text.lines().map(str::to_owned);
        Self { header: lines.next().unwrap_or_default(), lines: lines.filter(|l| !l.is_empty()).collect() }
    }

    pub(super) fn text(&self) -> String {
        let mut text =
            String::with_capacity(self.header.len() + self.lines.iter().map(|l| l.len() + 1).sum::<usize>() + 1);
        text.push_str(&self.header);
        text.push('\n');
        for line in &self.lines {
            text.push_str(line);
            text.push('\n');
        }
        text
    }

    /// Whether the network has no container.
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    pub(super) fn set_header(&mut self, listen: &[IpAddr], servers: &[IpAddr], ttl: u32) {
        self.header = join(listen);
        if ttl != 0 {
            let _ = write!(self.header, "  {TTL}{ttl}");
        }
        self.set_servers(servers);
    }

    /// Replaces the second column of the header.
    pub(super) fn set_servers(&mut self, servers: &[IpAddr]) {
        let mut columns = self.header.split(' ').map(str::to_owned);
        let listen = columns.next().unwrap_or_default();
        let others: Vec<String> = columns.skip(1).collect();
        self.header = listen;
        if !servers.is_empty() || !others.is_empty() {
            let _ = write!(self.header, " {}", join(servers));
        }
        for other in others {
            let _ = write!(self.header, " {other}");
        }
    }

    /// Whether the server listens on this address.
    pub(super) fn listens_on(&self, address: &IpAddr) -> bool {
        self.header.split(' ').next().unwrap_or_default().split(',').any(|a| a.parse() == Ok(*address))
    }

    /// Adds or replaces the container's line.
    pub(super) fn put(&mut self, entry: &Entry) {
        self.remove(&entry.id);
        self.lines.push(entry.line());
    }

    /// Removes the container's line; `false`: there was none. Compares whole columns, since an id may be a part of another.
    pub(super) fn remove(&mut self, id: &str) -> bool {
        let before = self.lines.len();
        self.lines.retain(|l| l.split(' ').next() != Some(id));
        before != self.lines.len()
    }
}

/// One container on one network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    id: String,
    v4: Vec<IpAddr>,
    v6: Vec<IpAddr>,
    names: Vec<String>,
    servers: Vec<IpAddr>,
}

impl Entry {
    /// # Errors
    /// The id cannot be written to the file.
    pub(super) fn of(record: &Record) -> Result<Self> {
        let id = &record.container.id;
        if !fits(id) {
            return Err(Error::new(format!("cannot name {} in DNS", record.container.label()))
                .because(format!("its id {id:?} is empty or contains white space or a comma")));
        }
        let addresses: Vec<IpAddr> = record.endpoint.addresses.iter().map(IpNet::addr).collect();
        let (v4, v6) = addresses.into_iter().partition(IpAddr::is_ipv4);
        let mut names: Vec<String> = Vec::new();
        for name in std::iter::once(&record.container.name).chain(&record.endpoint.aliases) {
            if !fits(name) {
                tracing::warn!(
                    "invalid network alias {name:?} of {}: it is empty or contains white space or a comma; it is left out",
                    record.container.label()
                );
            } else if !names.contains(name) {
                names.push(name.clone());
            }
        }
        if names.is_empty() {
            // aardvark-dns rejects the whole file if a line has no names.
            names.push(id.clone());
        }
        Ok(Self { id: id.clone(), v4, v6, names, servers: record.endpoint.dns_servers.clone() })
    }

    fn line(&self) -> String {
        let mut line = format!("{} {} {} {}", self.id, join(&self.v4), join(&self.v6), self.names.join(","));
        if !self.servers.is_empty() {
            let _ = write!(line, " {}", join(&self.servers));
        }
        line
    }
}

/// Whether a text can be an item of a column.
fn fits(text: &str) -> bool {
    !text.is_empty() && !text.contains([' ', ',', '\n', '\r', '\t'])
}

fn join(addresses: &[IpAddr]) -> String {
    let mut text = String::new();
    for a in addresses {
        if !text.is_empty() {
            text.push(',');
        }
        let _ = write!(text, "{a}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(s: &str) -> IpAddr {
        s.parse().expect("an address")
    }

    fn entry(id: &str, v4: &[&str], v6: &[&str], names: &[&str], servers: &[&str]) -> Entry {
        let all = |l: &[&str]| l.iter().map(|s| ip(s)).collect();
        Entry {
            id: id.into(),
            v4: all(v4),
            v6: all(v6),
            names: names.iter().map(|s| (*s).into()).collect(),
            servers: all(servers),
        }
    }

    #[test]
    fn a_zone_is_written_in_the_format_of_aardvark_dns() {
        let mut z = Zone::default();
        z.set_header(&[ip("10.89.7.1"), ip("fd41:7::1")], &[ip("9.9.9.9"), ip("1.1.1.1")], 0);
        z.put(&entry("abc", &["10.89.7.5"], &["fd41:7::5"], &["shop", "www"], &["9.9.9.9"]));
        z.put(&entry("def", &["10.89.7.6"], &[], &["db"], &[]));
        z.put(&entry("eee", &[], &["fd41:7::7"], &["six"], &[]));
        assert_eq!(
            "10.89.7.1,fd41:7::1 9.9.9.9,1.1.1.1\n\
             abc 10.89.7.5 fd41:7::5 shop,www 9.9.9.9\n\
             def 10.89.7.6  db\n\
             eee  fd41:7::7 six\n",
            z.text()
        );
        assert_eq!(z, Zone::parse(&z.text()));
    }

    #[test]
    fn a_second_put_replaces_the_first() {
        let mut z = Zone::parse("10.0.0.1\nabc 10.0.0.2  old\nabcd 10.0.0.3  other\n");
        z.put(&entry("abc", &["10.0.0.9"], &[], &["new"], &[]));
        assert_eq!("10.0.0.1\nabcd 10.0.0.3  other\nabc 10.0.0.9  new\n", z.text());
    }

    #[test]
    fn an_id_that_is_part_of_another_id_removes_only_its_own_line() {
        let mut z = Zone::parse("10.0.0.1\nabc 10.0.0.2  x\nxabc 10.0.0.3  abc\n");
        assert!(z.remove("abc"));
        assert!(!z.remove("abc"));
        assert_eq!("10.0.0.1\nxabc 10.0.0.3  abc\n", z.text());
        assert!(z.remove("xabc"));
        assert!(z.is_empty());
    }

    #[test]
    fn setting_servers_changes_nothing_else() {
        let mut z = Zone::parse("10.0.0.1,fd00::1 8.8.8.8\nabc 10.0.0.2  x 1.1.1.1\n");
        z.set_servers(&[ip("9.9.9.9")]);
        assert_eq!("10.0.0.1,fd00::1 9.9.9.9\nabc 10.0.0.2  x 1.1.1.1\n", z.text());
        z.set_servers(&[]);
        assert_eq!("10.0.0.1,fd00::1\nabc 10.0.0.2  x 1.1.1.1\n", z.text());
        z.set_header(&[ip("10.0.0.1")], &[], 60);
        assert_eq!("10.0.0.1  ttl=60\nabc 10.0.0.2  x 1.1.1.1\n", z.text());
        z.set_servers(&[ip("9.9.9.9")]);
        assert_eq!("10.0.0.1 9.9.9.9 ttl=60\nabc 10.0.0.2  x 1.1.1.1\n", z.text());
    }

    #[test]
    fn an_item_with_a_separator_does_not_fit() {
        for bad in ["", "a b", "a,b", "a\nb", "a\rb", "a\tb"] {
            assert!(!fits(bad), "{bad:?}");
        }
        assert!(fits("web.example_1-x"));
    }
}
