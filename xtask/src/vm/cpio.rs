//! Writes an initramfs in the "newc" format of cpio (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    count: u32,
    /// Names already written: the first entry of a name stays.
    names: BTreeSet<PathBuf>,
}

impl Archive {
    pub(super) fn file(&mut self, path: &Path, content: &[u8], is_program: bool) {
        self.add(path, if is_program { PROGRAM } else { FILE }, (0, 0), content);
    }

    pub(super) fn link(&mut self, path: &Path, target: &str) {
        self.add(path, LINK, (0, 0), target.as_bytes());
    }

    pub(super) fn directory(&mut self, path: &Path) {
        self.add(path, DIRECTORY, (0, 0), &[]);
    }

    pub(super) fn character_device(&mut self, path: &Path, number: (u32, u32)) {
        self.add(path, CHARACTER_DEVICE, number, &[]);
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    /// Adds an entry with its parent directories, which the kernel does not create.
    fn add(&mut self, path: &Path, mode: u32, device: (u32, u32), content: &[u8]) {
        let path = relative(path);
        if path.as_os_str().is_empty() || self.names.contains(&path) {
            return;
        }
        if let Some(above) = path.parent().filter(|p| !p.as_os_str().is_empty() && !self.names.contains(*p)) {
            self.add(above, DIRECTORY, (0, 0), &[]);
        }
        self.entry(&path.to_string_lossy(), mode, device, content);
        self.names.insert(path);
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.count += 1;
        let (size, name_size) = (content.len() as u32, name.len() as u32 + 1);
        // inode, mode, uid, gid, links, mtime, size, device of the file, device number, length of the name, checksum
        let fields = [self.count, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes().chain([0]));
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

fn relative(path: &Path) -> PathBuf {
    path.strip_prefix("/").unwrap_or(path).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_holds_the_directories_above_a_file_once() {
        let mut archive = Archive::default();
        archive.file(Path::new("/usr/bin/a"), b"abcde", true);
        archive.file(Path::new("usr/bin/b"), b"", false);
        archive.file(Path::new("usr/bin/b"), b"another", false);
        let bytes = archive.finish();
        assert_eq!(0, bytes.len() % 4);
        let text = String::from_utf8_lossy(&bytes);
        for (name, times) in [("usr\0", 1), ("usr/bin\0", 1), ("usr/bin/b\0", 1), ("TRAILER!!!\0", 1), ("another", 0)] {
            assert_eq!(times, text.matches(name).count(), "{name}");
        }
        // 110 bytes of header, the name with its NUL, padded; then the content.
        assert!(text.starts_with("070701") && text.contains("abcde"));
    }
}
