//! Checks that the object does not depend on the checkout's path: the checkout is copied to another directory, built there, and
//! compared. Artefacts of `core` and of registry crates are copied too, so that it takes seconds; our own crates are recompiled
//! because of their new path.

use crate::{build_ebpf, workspace};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

const BUILD: &str = "elsewhere";

/// `Ok(Some(text))`: the objects differ; the text says how.
///
/// # Errors
/// The copy or the build failed.
pub(crate) fn difference() -> Result<Option<String>> {
    let here = fs::read(workspace::object()).context("cannot read the object: cargo xtask build-ebpf")?;
    let copy = Copy::make()?;
    let built = build_ebpf::build_in(&build_ebpf::toolchain()?, &copy.0, &copy.0.join(BUILD), Stdio::inherit())?;
    let there = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    if here == there {
        return Ok(None);
    }
    let at = here.iter().zip(&there).position(|(a, b)| a != b).unwrap_or(here.len().min(there.len()));
    let kept = workspace::target().join("ebpf/netpath-ebpf.elsewhere.o");
    fs::copy(&built, &kept).with_context(|| format!("cannot write {}", kept.display()))?;
    Ok(Some(format!(
        "{} and {} bytes, first different byte at {at}; the other object is {}",
        here.len(),
        there.len(),
        build_ebpf::relative(&kept).display()
    )))
}

/// A copy of the sources of the programs, in a directory of its own; removed on drop.
struct Copy(PathBuf);

impl Copy {
    fn make() -> Result<Self> {
        let copy = Self(std::env::temp_dir().join(format!("netpath-xtask-{}", std::process::id())));
        let root = workspace::root();
        for directory in ["netpath-common", "netpath-ebpf"] {
            copy_tree(&root.join(directory), &copy.0.join(directory))?;
        }
        copy_tree(&workspace::target().join("ebpf/cargo"), &copy.0.join(BUILD))?;
        // netpath-common inherits its version from the workspace, whose other members must exist by name.
        fs::copy(root.join("Cargo.toml"), copy.0.join("Cargo.toml")).context("cannot copy Cargo.toml")?;
        for member in ["netpath", "tests", "xtask"] {
            copy_manifest(&root.join(member), &copy.0.join(member))?;
        }
        Ok(copy)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn copy_manifest(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.join("src"))?;
    fs::copy(from.join("Cargo.toml"), to.join("Cargo.toml"))
        .with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let (source, copy) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            if entry.file_name() != "target" {
                copy_tree(&source, &copy)?;
            }
        } else {
            fs::copy(&source, &copy).with_context(|| format!("cannot copy {}", source.display()))?;
            // Cargo decides by modification time whether an artefact is fresh.
            fs::File::options().write(true).open(&copy)?.set_modified(entry.metadata()?.modified()?)?;
        }
    }
    Ok(())
}
