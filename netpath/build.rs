//! Puts the eBPF objects, which another toolchain makes, where the crate can embed them, with a digest of their bytes.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{env, fs, process};

#[allow(unreachable_pub, reason = "a module of the library")]
#[path = "src/model/clock.rs"]
mod clock;

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("..");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/model/clock.rs");
    // The second one is made from the first.
    let [all, _, dns] = ["netpath-ebpf.o", "netpath-ebpf-v4.o", "netpath-ebpf-dns.o"].map(|name| {
        let object = root.join("target/ebpf").join(name);
        println!("cargo::rerun-if-changed={}", object.display());
        let bytes = match fs::read(&object) {
            Ok(bytes) if !bytes.is_empty() => bytes,
            Ok(_) => stop(&format!("target/ebpf/{name} is empty")),
            Err(e) => stop(&format!("cannot read target/ebpf/{name}: {e}")),
        };
        let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join(name);
        if let Err(e) = fs::write(&out, &bytes) {
            stop(&format!("cannot write {}: {e}", out.display()));
        }
        bytes
    });
    let digest = digest(&[all, dns].concat());
    println!("cargo::rustc-env=NETPATH_OBJECT_DIGEST={digest:016x}");
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let epoch = env::var("SOURCE_DATE_EPOCH").ok().and_then(|s| s.parse().ok());
    println!("cargo::rustc-env=NETPATH_BUILD_TIME={}", clock::rfc3339(epoch.unwrap_or_else(now)));
}

fn stop(why: &str) -> ! {
    println!("cargo::error=the eBPF programs are missing: {why}; run `cargo xtask build-ebpf` first");
    process::exit(1)
}

/// FNV-1a (draft-eastlake-fnv): tells builds apart, protects against nothing.
fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
