//! Puts netpath in the place of Podman's network programs, and takes it away again.

use crate::model::error::{Context, Error, Result};
use crate::state::installed::{self, Found, NAMES, Root, UNITS};
use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// One change of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    Link { at: PathBuf, to: PathBuf },
    Write { at: PathBuf, text: String },
    Remove { at: PathBuf },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Link { at, to } => write!(f, "link {} to {}", at.display(), to.display()),
            Change::Write { at, .. } => write!(f, "write {}", at.display()),
            Change::Remove { at } => write!(f, "remove {}", at.display()),
        }
    }
}

/// The changes that make Podman use the netpath at `binary`. None is needed where all is as it should be.
///
/// # Errors
/// A file that is not netpath's is in the way.
pub fn install(root: &Root, binary: &Path) -> Result<Vec<Change>> {
    let to = root.inside(binary);
    if to.file_name().is_none_or(|name| name != "netpath") {
        return Err(Error::new(format!("cannot install {}", to.display()))
            .because("its name is not netpath, by which netpath knows its links")
            .next("copy it to /usr/local/bin/netpath, and run that"));
    }
    let dirs = root.helper_dirs()?;
    let dir = dirs.first().ok_or_else(|| {
        Error::new("cannot install names for Podman")
            .because("helper_binaries_dir in containers.conf has no directory")
            .next("put /usr/local/libexec/podman in front of that list")
    })?;
    let mut changes = Vec::new();
    for name in NAMES {
        let at = dir.join(name);
        match installed::link(&at)? {
            Found::Own(old) if old == to => {}
            Found::Nothing | Found::Own(_) => changes.push(Change::Link { at, to: to.clone() }),
            Found::Other(what) => {
                let next = match dirs.iter().any(|d| *d == root.at("/usr/local/libexec/podman")) {
                    // It is the first directory then.
                    true => format!("move {} away", at.display()),
                    false => {
                        "put /usr/local/libexec/podman in front of helper_binaries_dir in containers.conf".to_owned()
                    }
                };
                return Err(in_the_way(&at, &what).next(next));
            }
        }
    }
    for (name, template) in UNITS {
        let (at, text) = (root.unit(name), installed::unit_text(template, &to));
        match installed::unit(&at)? {
            Found::Own(_) if fs::read_to_string(&at).is_ok_and(|there| there == text) => {}
            Found::Nothing | Found::Own(_) => changes.push(Change::Write { at, text }),
            Found::Other(what) => {
                return Err(in_the_way(&at, &what).next(format!("move {} away", at.display())));
            }
        }
    }
    Ok(changes)
}

fn in_the_way(at: &Path, what: &str) -> Error {
    Error::new(format!("cannot install {}", at.display())).because(format!("{what} is there that is not netpath's"))
}

/// The changes that undo [`install`]: only what is netpath's, wherever it is.
///
/// # Errors
/// A file cannot be examined.
pub fn uninstall(root: &Root) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    for dir in root.helper_dirs()? {
        for name in NAMES {
            let at = dir.join(name);
            if let Found::Own(_) = installed::link(&at)? {
                changes.push(Change::Remove { at });
            }
        }
    }
    for (name, _) in UNITS {
        let at = root.unit(name);
        if let Found::Own(_) = installed::unit(&at)? {
            // Links to a unit that is gone would be left.
            changes.extend(root.enabled(name)?.into_iter().map(|at| Change::Remove { at }));
            changes.push(Change::Remove { at });
        }
    }
    Ok(changes)
}

/// # Errors
/// The first one that cannot be made. Those before it stay; a repeated call continues.
pub fn carry_out(changes: &[Change]) -> Result<()> {
    changes.iter().try_for_each(|change| {
        let done = match change {
            Change::Link { at, to } => replace(at, |new| symlink(to, new)),
            Change::Write { at, text } => replace(at, |new| fs::write(new, text)),
            Change::Remove { at } => remove(at),
        };
        done.context(|| format!("cannot {change}"))
    })
}

/// Makes the file under another name first, so that Podman never finds a part of it.
fn replace(at: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    fs::create_dir_all(at.parent().unwrap_or(at))?;
    let mut new = at.as_os_str().to_owned();
    new.push(".netpath-new");
    let new = PathBuf::from(new);
    let _ = fs::remove_file(&new);
    let made = make(&new).and_then(|()| fs::rename(&new, at));
    if made.is_err() {
        let _ = fs::remove_file(&new);
    }
    made
}

/// With its directory, if that is empty then.
fn remove(at: &Path) -> io::Result<()> {
    match fs::remove_file(at) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let _ = fs::remove_dir(at.parent().unwrap_or(at));
    Ok(())
}
