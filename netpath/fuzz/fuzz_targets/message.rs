//! Messages to the DNS server: as queries of clients, and as answers of upstream servers. Its corpus is also that of the unit test
//! `no_message_makes_it_panic`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::PathBuf;
use std::sync::OnceLock;

/// Network files, made once.
fn dir() -> &'static PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let dir = std::env::temp_dir().join(format!("netpath-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        std::fs::write(dir.join("front"), "10.89.7.1\nid 10.89.7.2 fd41::2 web,pool\nid2 10.89.7.3  pool\n").expect("a file");
        dir
    })
}

fuzz_target!(|message: &[u8]| netpath::dns::inspect::exercise(dir(), message).expect("a readable answer"));
