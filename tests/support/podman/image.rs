//! The one image of the engine tests: a static busybox, a page, and optionally one program with its libraries.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// The body at `http://container/`.
pub const PAGE: &str = "netpath says hello\n";

/// A tar archive of the root file system for `podman import`, made once per run.
///
/// # Errors
/// A file could not be copied or packed.
pub fn archive(peer: Option<&Path>) -> Result<&'static [u8]> {
    static MADE: Mutex<Vec<(Option<PathBuf>, &'static [u8])>> = Mutex::new(Vec::new());
    let mut made = MADE.lock().map_err(|_| anyhow::anyhow!("an earlier test could not make the image"))?;
    let key = peer.map(Path::to_path_buf);
    if let Some((_, archive)) = made.iter().find(|(k, _)| *k == key) {
        return Ok(archive);
    }
    let dir = std::env::temp_dir().join(format!("netpath-image-{}-{}", std::process::id(), made.len()));
    std::fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let packed = fill(&dir, peer).and_then(|()| pack(&dir));
    std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    let archive: &'static [u8] = packed?.leak();
    made.push((key, archive));
    Ok(archive)
}

fn fill(root: &Path, peer: Option<&Path>) -> Result<()> {
    for dir in ["bin", "etc", "tmp", "www"] {
        std::fs::create_dir(root.join(dir))?;
    }
    std::fs::write(root.join("www/index.html"), PAGE)?;
    let busybox = super::find_program("busybox").context("busybox is not installed")?;
    std::fs::copy(&busybox, root.join("bin/busybox"))?;
    let applets = Command::new(&busybox).arg("--list").output()?;
    for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|a| *a != "busybox") {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
    }
    let Some(peer) = peer else { return Ok(()) };
    std::fs::copy(peer, root.join("bin/peer")).with_context(|| format!("cannot copy {}", peer.display()))?;
    // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, and the loader by its path alone.
    let libraries = Command::new("ldd").arg(peer).output().context("cannot run ldd")?;
    for word in String::from_utf8_lossy(&libraries.stdout).split_whitespace().filter(|w| w.starts_with('/')) {
        let to = root.join(word.trim_start_matches('/'));
        std::fs::create_dir_all(to.parent().context("a library without a directory")?)?;
        std::fs::copy(word, &to).with_context(|| format!("cannot copy {word}"))?;
    }
    Ok(())
}

fn pack(root: &Path) -> Result<Vec<u8>> {
    let tar = Command::new("tar").args(["--owner=0", "--group=0", "-c", "-C"]).arg(root).arg(".").output()?;
    ensure!(tar.status.success(), "tar: {}", String::from_utf8_lossy(&tar.stderr));
    Ok(tar.stdout)
}
