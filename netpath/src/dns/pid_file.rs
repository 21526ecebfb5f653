//! `aardvark.pid` among the network files: the process that answers from them, and reads them again on SIGHUP.

use std::io;
use std::path::Path;

pub(super) const NAME: &str = "aardvark.pid";

/// # Errors
/// It cannot be written.
pub fn write(dir: &Path) -> io::Result<()> {
    let (own, path) = (std::process::id().to_string(), dir.join(NAME));
    if std::fs::read_to_string(&path).is_ok_and(|text| text == own) { Ok(()) } else { std::fs::write(path, own) }
}

/// Not that of a server which has been started in the meantime.
pub fn remove_own(dir: &Path) {
    let path = dir.join(NAME);
    if std::fs::read_to_string(&path).is_ok_and(|text| text == std::process::id().to_string()) {
        let _ = std::fs::remove_file(path);
    }
}
