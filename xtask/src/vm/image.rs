//! The initramfs of a guest: init, kernel modules, the programs under test, the programs that they call, and libraries.

use super::cpio::Archive;
use super::kernel::Kernel;
use super::modules::{self, Module};
use crate::{need, workspace};
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Programs that the tests call. iptables under all its names: the tests use both variants where both exist.
const CALLED: [&str; 7] = ["ip", "tc", "bridge", "nft", "conntrack", "busybox", "dnsmasq"];
const APPLETS: [&str; 11] =
    ["sh", "cat", "ls", "mkdir", "sleep", "kill", "nsenter", "unshare", "env", "true", "udhcpc"];
/// Podman's DNS server, which netpath starts by this path.
const AARDVARK: &str = "/usr/lib/podman/aardvark-dns";
/// Files that some of them read.
const FILES: [&str; 4] = ["/etc/protocols", "/etc/services", "/etc/passwd", "/etc/group"];
const BIN: &str = "/usr/bin";

/// Environment variables that tests read in a guest too.
const HANDED_ON: [&str; 3] = ["NETPATH_SOAK", "NETPATH_SEED", "NETPATH_VERIFIER"];

/// A suite to run in the guest; arguments are those of libtest.
#[derive(Clone)]
pub(super) struct Suite {
    pub name: String,
    pub executable: PathBuf,
    pub arguments: Vec<String>,
    /// Whether the whole suite runs, if perhaps in several guests.
    pub is_whole: bool,
    /// Whether it is controlled over the second serial port.
    pub conducted: bool,
}

/// The programs of this workspace that go into a guest, stripped.
pub(super) struct Programs {
    pub init: PathBuf,
    pub netpath: PathBuf,
    /// Other programs, by the names under which they are called.
    pub more: Vec<(&'static str, PathBuf)>,
}

/// Everything except the plan and the modules: equal for all kernels, so it is built once.
pub(super) struct Base(Vec<(PathBuf, Entry)>);

enum Entry {
    File(Vec<u8>, bool),
    Link(String),
}

impl Base {
    /// # Errors
    /// A program or a library is missing.
    pub(super) fn gather<'s>(programs: &Programs, suites: impl IntoIterator<Item = &'s Suite>) -> Result<Self> {
        let mut base = Self(Vec::new());
        let mut libraries = BTreeSet::new();
        for (from, to) in
            [(&programs.init, PathBuf::from("/init")), (&programs.netpath, Path::new(BIN).join("netpath"))]
        {
            base.program(&to, from, true, &mut libraries)?;
        }
        let executables: BTreeSet<&PathBuf> = suites.into_iter().map(|s| &s.executable).collect();
        for executable in executables {
            base.program(&in_guest(executable), executable, true, &mut libraries)?;
        }
        for name in CALLED {
            let Some(path) = need::program(name) else {
                bail!("{name} is not on this machine\n  next: cargo xtask setup")
            };
            base.called(name, &path, &mut libraries)?;
        }
        for (name, path) in &programs.more {
            base.program(&Path::new(BIN).join(name), path, false, &mut libraries)?;
        }
        for name in names_of_iptables() {
            if let Some(path) = need::program(&name) {
                base.called(&name, &path, &mut libraries)?;
            }
        }
        if Path::new(AARDVARK).is_file() {
            base.program(Path::new(AARDVARK), Path::new(AARDVARK), false, &mut libraries)?;
        }
        for applet in APPLETS {
            base.0.push((Path::new(BIN).join(applet), Entry::Link("busybox".to_owned())));
        }
        // iptables loads its extensions from a directory beside its library.
        for directory in libraries.iter().filter_map(|l| l.parent()).map(|d| d.join("xtables")).collect::<BTreeSet<_>>()
        {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                libraries.insert(entry.path());
            }
        }
        for path in libraries.iter().map(PathBuf::as_path).chain(FILES.iter().map(Path::new).filter(|f| f.exists())) {
            let content = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            base.0.push((merged(path), Entry::File(content, true)));
        }
        // The tests read the objects from their paths in the checkout.
        for object in [workspace::object(), workspace::object_v4()] {
            let content = fs::read(&object).with_context(|| format!("cannot read {}", object.display()))?;
            base.0.push((object, Entry::File(content, false)));
        }
        Ok(base)
    }

    /// Adds a program of this machine, which may be one name of a multi-call binary.
    fn called(&mut self, name: &str, path: &Path, libraries: &mut BTreeSet<PathBuf>) -> Result<()> {
        let real = fs::canonicalize(path).with_context(|| format!("cannot read {}", path.display()))?;
        let real_name = real.file_name().unwrap_or_default();
        self.program(&Path::new(BIN).join(real_name), &real, false, libraries)?;
        if real_name != name {
            self.0.push((Path::new(BIN).join(name), Entry::Link(real_name.to_string_lossy().into_owned())));
        }
        Ok(())
    }

    fn program(&mut self, to: &Path, from: &Path, strip: bool, libraries: &mut BTreeSet<PathBuf>) -> Result<()> {
        libraries.extend(libraries_of(from)?);
        let content = if strip { stripped(from)? } else { fs::read(from)? };
        self.0.push((to.to_owned(), Entry::File(content, true)));
        Ok(())
    }

    /// The initramfs for `kernel`, without the modules `without`.
    ///
    /// # Errors
    /// A module cannot be read, or the archive cannot be written.
    pub(super) fn image(&self, kernel: &Kernel, suites: &[Suite], without: &[String], to: &Path) -> Result<()> {
        let mut archive = Archive::default();
        for directory in ["proc", "sys", "dev", "run", "tmp", "root", BIN, "usr/lib", "usr/lib64"] {
            archive.directory(Path::new(directory));
        }
        for (name, target) in
            [("bin", "usr/bin"), ("sbin", "usr/bin"), ("usr/sbin", "bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")]
        {
            archive.link(Path::new(name), target);
        }
        // The kernel opens it before init has mounted anything.
        archive.character_device(Path::new("dev/console"), (5, 1));
        for (path, entry) in &self.0 {
            match entry {
                Entry::File(content, is_program) => archive.file(path, content, *is_program),
                Entry::Link(target) => archive.link(path, target),
            }
        }
        // The path to the object passes through it.
        archive.directory(&workspace::root().join("tests"));
        let modules = modules::gather(&kernel.modules, modules::WANTED, without)?;
        for (name, content) in &modules {
            archive.file(&Path::new("/modules").join(name), content, false);
        }
        archive.file(Path::new("/plan.json"), plan(&modules, suites).as_bytes(), false);
        fs::write(to, archive.finish()).with_context(|| format!("cannot write {}", to.display()))
    }
}

fn names_of_iptables() -> impl Iterator<Item = String> {
    let forms = ["iptables", "ip6tables"].into_iter().flat_map(|f| ["", "-nft", "-legacy"].map(|k| format!("{f}{k}")));
    forms.flat_map(|f| ["", "-save", "-restore"].map(|v| format!("{f}{v}")))
}

/// The plan that the guest's init executes (tests/guest/main.rs).
fn plan(modules: &[Module], suites: &[Suite]) -> String {
    let names: Vec<&String> = modules.iter().map(|(name, _)| name).collect();
    let suites: Vec<_> = suites
        .iter()
        .map(|s| serde_json::json!({"name": s.name, "program": in_guest(&s.executable), "arguments": s.arguments, "conducted": s.conducted}))
        .collect();
    let environment: BTreeMap<&str, String> =
        HANDED_ON.into_iter().filter_map(|name| Some((name, std::env::var(name).ok()?))).collect();
    serde_json::json!({"modules": names, "suites": suites, "directory": workspace::root(), "environment": environment})
        .to_string()
}

fn in_guest(executable: &Path) -> PathBuf {
    Path::new("/tests").join(executable.file_name().unwrap_or_default())
}

/// /lib and /lib64 are symbolic links in the guest, as on every current distribution.
fn merged(path: &Path) -> PathBuf {
    let is_split = path.starts_with("/lib") || path.starts_with("/lib64");
    if is_split { Path::new("/usr").join(path.strip_prefix("/").unwrap_or(path)) } else { path.to_owned() }
}

/// The shared libraries of a program, with the loader. Empty for a static program.
fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    let out = Command::new("ldd").arg(program).env("LC_ALL", "C").output().context("cannot start ldd")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    if let Some(missing) = text.lines().find(|l| l.contains("not found")) {
        bail!("{}: {}", program.display(), missing.trim());
    }
    Ok(libraries_in(&text))
}

fn libraries_in(ldd: &str) -> Vec<PathBuf> {
    ldd.lines().filter_map(|l| l.split_whitespace().find(|w| w.starts_with('/'))).map(PathBuf::from).collect()
}

/// The program without debug information, which is ten times the rest.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    let directory = workspace::target().join("vm/stripped");
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    // Another run may do the same at this time.
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let to = directory.join(format!("{}-{name}", std::process::id()));
    let out = Command::new("strip").arg("--strip-debug").arg("-o").args([&to, program]).output();
    let out = out.context("cannot start strip, which comes with the C compiler")?;
    if !out.status.success() {
        bail!("cannot strip {}: {}", program.display(), String::from_utf8_lossy(&out.stderr).trim());
    }
    let content = fs::read(&to).with_context(|| format!("cannot read {}", to.display()))?;
    fs::remove_file(&to).with_context(|| format!("cannot remove {}", to.display()))?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_read_from_ldd() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x00007f)\n\t/lib64/ld-linux.so.2 (0x1)\n";
        let paths: Vec<PathBuf> = ["/lib/x/libc.so.6", "/lib64/ld-linux.so.2"].map(PathBuf::from).to_vec();
        assert_eq!(paths, libraries_in(text));
        assert!(libraries_in("\tstatically linked\n").is_empty());
        assert_eq!(Path::new("/usr/lib64/ld-linux.so.2"), merged(&paths[1]));
        assert_eq!(Path::new("/usr/lib/x"), merged(Path::new("/usr/lib/x")));
    }
}
