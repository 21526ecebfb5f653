//! Settings of a bridge for systemd-sysctl, in `/run/sysctl.d/10-netpath-<bridge>.conf`.
//!
//! udev runs systemd-sysctl some time after an interface is created. On a host with settings for all interfaces (RHEL:
//! strict `rp_filter` by `net.ipv4.conf.*.rp_filter`) systemd-sysctl would overwrite netpath's settings. A full key takes
//! precedence over a pattern (sysctl.d(5)). So the file exists from before the bridge is created until it is deleted.
//!
//! The file is written only on hosts with systemd and in the network namespace of PID 1: udev does not see interfaces of
//! other namespaces, and a bridge there may have the same name as one of the host. A file that cannot be written is no
//! error, since most hosts have no such setting.

use crate::model::IfName;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Exists where systemd is the init system (sd_booted(3)).
const SYSTEMD: &str = "/run/systemd/system";
const DIR: &str = "/run/sysctl.d";

/// Adds sysctls of a bridge, each a path below /proc/sys and its value. Called before the bridge is created.
pub fn keep(bridge: &IfName, values: &[(String, String)]) {
    if is_read_here()
        && let Err(e) = keep_in(Path::new(DIR), bridge.as_str(), values)
    {
        tracing::warn!(%bridge, error = %e, "systemd may change the sysctls of the bridge: cannot write its file in {DIR}");
    }
}

/// Adds a sysctl of an interface that has a file. Called before the sysctl is set.
pub fn keep_also(path: &str, value: &str) {
    if let Some(interface) = interface_of(path)
        && is_read_here()
        && file_in(Path::new(DIR), interface).exists()
        && let Err(e) = keep_in(Path::new(DIR), interface, &[(path.to_owned(), value.to_owned())])
    {
        tracing::warn!(error = %e, "systemd may change sysctl {path}: cannot write into {DIR}");
    }
}

/// Removes the file of a bridge. Called before the bridge is deleted.
pub fn remove(bridge: &IfName) {
    if is_read_here()
        && let Err(e) = remove_in(Path::new(DIR), bridge.as_str())
    {
        tracing::warn!(%bridge, error = %e, "cannot remove the file of the bridge from {DIR}");
    }
}

fn is_read_here() -> bool {
    let namespace = |path| fs::metadata(path).map(|m| (m.dev(), m.ino()));
    let is_first = || match (namespace("/proc/thread-self/ns/net"), namespace("/proc/1/ns/net")) {
        (Ok(own), Ok(first)) => own == first,
        _ => false,
    };
    Path::new(SYSTEMD).is_dir() && is_first()
}

fn file_in(dir: &Path, interface: &str) -> PathBuf {
    dir.join(format!("10-netpath-{interface}.conf"))
}

fn keep_in(dir: &Path, interface: &str, values: &[(String, String)]) -> io::Result<()> {
    if !is_representable(interface) {
        tracing::debug!(interface, "a file for systemd-sysctl cannot hold the name of the bridge");
        return Ok(());
    }
    let file = file_in(dir, interface);
    let before = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => String::new(),
        Err(e) => return Err(e),
    };
    let lines = before.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(" = "));
    let mut all: BTreeMap<&str, &str> = lines.collect();
    all.extend(values.iter().map(|(path, value)| (path.as_str(), value.as_str())));
    let lines = all.iter().map(|(path, value)| format!("{path} = {value}\n"));
    let text = format!("# Written by netpath, and removed with the interface\n{}", lines.collect::<String>());
    if text == before {
        return Ok(());
    }
    fs::create_dir_all(dir)?;
    fs::write(&file, text)
}

fn remove_in(dir: &Path, interface: &str) -> io::Result<()> {
    match fs::remove_file(file_in(dir, interface)) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Whether a key can contain the name. Dots are kept in keys with slashes, but `=` and wildcards have no escape.
fn is_representable(interface: &str) -> bool {
    interface.bytes().all(|b| b.is_ascii_graphic() && !b"=*?[\\".contains(&b))
}

/// `br0` in `net/ipv4/conf/br0/route_localnet`.
fn interface_of(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("net/ipv4/conf/").or_else(|| path.strip_prefix("net/ipv6/conf/"))?;
    Some(rest.split_once('/')?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("netpath-sysctl-{}-{name}", std::process::id())))
        }

        fn keep(&self, interface: &str, values: &[(&str, &str)]) -> Option<String> {
            let values: Vec<_> = values.iter().map(|(p, v)| ((*p).to_owned(), (*v).to_owned())).collect();
            keep_in(&self.0, interface, &values).expect("written");
            fs::read_to_string(self.0.join(format!("10-netpath-{interface}.conf"))).ok()
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_file_holds_all_settings_of_its_bridge_until_it_is_removed() {
        let place = Place::new("all");
        let first = [("net/ipv4/conf/br0/rp_filter", "2"), ("net/ipv6/conf/br0/accept_ra", "0")];
        let own = "# Written by netpath, and removed with the interface\n\
                   net/ipv4/conf/br0/rp_filter = 2\nnet/ipv6/conf/br0/accept_ra = 0\n";
        assert_eq!(Some(own), place.keep("br0", &first).as_deref());
        // The next container on the bridge, a value that changes, and one more.
        place.keep("br0", &first);
        place.keep("br0", &[("net/ipv4/conf/br0/route_localnet", "1"), ("net/ipv4/conf/br0/rp_filter", "0")]);
        let all = "# Written by netpath, and removed with the interface\n\
                   net/ipv4/conf/br0/route_localnet = 1\nnet/ipv4/conf/br0/rp_filter = 2\n\
                   net/ipv6/conf/br0/accept_ra = 0\n";
        assert_eq!(Some(all), place.keep("br0", &first).as_deref());
        remove_in(&place.0, "br0").expect("removed");
        remove_in(&place.0, "br0").expect("nothing to remove");
        assert_eq!(0, fs::read_dir(&place.0).expect("a directory").count());
    }

    /// `br=x` would be read as the key `net/ipv4/conf/br` with the value `x/… = 2`, and `br*` as a pattern.
    #[test]
    fn a_name_with_special_characters_gets_no_file() {
        let place = Place::new("names");
        for name in ["br=x", "br*", "br?", "br[0]", "br\\", "brü", "br\u{7}"] {
            assert_eq!(None, place.keep(name, &[("net/ipv4/conf/x/rp_filter", "2")]), "{name}");
        }
        for name in ["br.7", "br-7", "-br", "#br", "!br", "br@7", "br{a,b}"] {
            let path = format!("net/ipv4/conf/{name}/rp_filter");
            let text = place.keep(name, &[(&path, "2")]).expect("a file");
            assert!(text.ends_with(&format!("\nnet/ipv4/conf/{name}/rp_filter = 2\n")), "{text}");
        }
    }

    #[test]
    fn the_interface_of_a_sysctl_is_found() {
        assert_eq!(Some("br0.7"), interface_of("net/ipv4/conf/br0.7/route_localnet"));
        assert_eq!(Some("all"), interface_of("net/ipv6/conf/all/forwarding"));
        assert_eq!(None, interface_of("net/ipv4/ip_forward"));
    }
}
