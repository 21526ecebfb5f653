//! Removes the leftovers of killed tests and demos: only objects that carry our names and whose creating process is dead.
//!
//! Names: `<temporary directory>/netpath-<room>-<pid>[-<n>]`, and `/run/netpath-test/<pid>-<n>`, where a topology
//! (tests/support/topology.rs) mounts its namespaces and stores the cookie of its host, which is part of the names of records
//! and pins.

use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const ROOMS: [&str; 4] = ["xtask", "engine", "image", "wire"];
const TOPOLOGIES: &str = "/run/netpath-test";

pub(crate) fn run() -> Result<ExitCode> {
    let mut removed = Vec::new();
    for directory in entries(&std::env::temp_dir()).into_iter().filter(|p| is_leftover(p, "netpath-", &ROOMS)) {
        remove(&directory, &mut removed)?;
    }
    for topology in entries(Path::new(TOPOLOGIES)).into_iter().filter(|p| is_leftover(p, "", &[])) {
        if let Ok(cookie) = fs::read_to_string(topology.join("cookie")) {
            remove_traces(cookie.trim(), &mut removed)?;
        }
        for file in entries(&topology) {
            end_namespace(&file);
        }
        remove(&topology, &mut removed)?;
    }
    for path in &removed {
        println!("removed {}", path.display());
    }
    println!("{}", if removed.is_empty() { "no leftovers" } else { "clean" });
    Ok(ExitCode::SUCCESS)
}

/// Removes records and pins of the host namespace with this cookie.
fn remove_traces(cookie: &str, removed: &mut Vec<PathBuf>) -> Result<()> {
    if cookie.is_empty() || !cookie.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(());
    }
    let mut traces = vec![Path::new("/run/netpath").join(cookie)];
    traces.extend(entries(Path::new("/sys/fs/bpf/netpath")).iter().map(|version| version.join(cookie)));
    traces.iter().filter(|t| t.exists()).try_for_each(|t| remove(t, removed))
}

/// Ends the processes in the namespace mounted on `file`, and unmounts it.
fn end_namespace(file: &Path) {
    let Ok(meta) = fs::metadata(file) else { return };
    let mounted = file.parent().and_then(|d| fs::metadata(d).ok()).is_some_and(|d| d.dev() != meta.dev());
    if !mounted {
        return;
    }
    for process in entries(Path::new("/proc")) {
        let inside =
            fs::metadata(process.join("ns/net")).is_ok_and(|ns| (ns.dev(), ns.ino()) == (meta.dev(), meta.ino()));
        if let Some(pid) = process.file_name().and_then(|n| n.to_str()?.parse::<u32>().ok()).filter(|_| inside) {
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
        }
    }
    let _ = Command::new("umount").arg("--lazy").arg(file).status();
}

fn remove(directory: &Path, removed: &mut Vec<PathBuf>) -> Result<()> {
    fs::remove_dir_all(directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    removed.push(directory.to_owned());
    Ok(())
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|e| e.path()).collect()
}

/// `<prefix><room>-<pid>[-<n>]` of a dead process; without rooms `<pid>-<n>`.
fn is_leftover(path: &Path, prefix: &str, rooms: &[&str]) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some(mut parts) = name.strip_prefix(prefix).map(|rest| rest.split('-')) else { return false };
    if !rooms.is_empty() && !parts.next().is_some_and(|room| rooms.contains(&room)) {
        return false;
    }
    let maker: Option<u32> = parts.next().and_then(|pid| pid.parse().ok());
    maker.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(name: &str) -> bool {
        is_leftover(Path::new(name), "netpath-", &ROOMS)
    }

    #[test]
    fn objects_of_a_living_process_are_no_leftovers() {
        assert!(!left(&format!("/tmp/netpath-xtask-{}", std::process::id())));
        assert!(left("/tmp/netpath-xtask-4194305") && left("/tmp/netpath-engine-4194305-0"));
        assert!(is_leftover(Path::new("/run/netpath-test/4194305-3"), "", &[]));
    }

    #[test]
    fn objects_with_other_names_are_left_alone() {
        for name in
            ["/tmp/netpath-4194305", "/tmp/other-user-4194305", "/tmp/netpath-other-4194305", "/tmp/netpath-xtask-a"]
        {
            assert!(!left(name), "{name}");
        }
    }

    #[test]
    fn an_invalid_cookie_names_nothing() {
        let mut removed = Vec::new();
        assert!(remove_traces("../etc", &mut removed).is_ok() && removed.is_empty());
        assert!(remove_traces("", &mut removed).is_ok() && removed.is_empty());
    }
}
