//! Kernel modules with their dependencies, in load order.
//!
//! Dependencies are read from the modules themselves: an unpacked package has no `modules.dep`, which depmod writes at
//! installation.

use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Modules that netpath, the tests and the programs they call need. A kernel may have some built in, or lack them; then the
/// tests that need them say so.
pub(super) const WANTED: &[&str] = &[
    // links
    "veth",
    "bridge",
    "br_netfilter",
    "dummy",
    "macvlan",
    "ipvlan",
    "8021q",
    "vrf",
    "bonding",
    "ifb",
    "tun",
    "virtio_pci",
    "virtio_net",
    // queues and hooks
    "sch_ingress",
    "sch_netem",
    "sch_htb",
    "sch_tbf",
    "sch_fq",
    "sch_fq_codel",
    "cls_bpf",
    "act_bpf",
    // requested by name while others are loaded, when no modprobe is present
    "crc32c_generic",
    "crc32c_intel",
    // nf_tables, and iptables on it
    "nf_tables",
    "nft_chain_nat",
    "nft_compat",
    "nft_ct",
    "nft_fib",
    "nft_fib_inet",
    "nft_fib_ipv4",
    "nft_fib_ipv6",
    "nft_hash",
    "nft_limit",
    "nft_log",
    "nft_masq",
    "nft_nat",
    "nft_numgen",
    "nft_redir",
    "nft_reject",
    "nft_reject_inet",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_nat",
    "nf_flow_table",
    "nft_flow_offload",
    // iptables
    "ip_tables",
    "iptable_filter",
    "iptable_nat",
    "iptable_mangle",
    "iptable_raw",
    "ip6_tables",
    "ip6table_filter",
    "ip6table_nat",
    "ip6table_mangle",
    "ip6table_raw",
    "xt_addrtype",
    "xt_comment",
    "xt_conntrack",
    "xt_limit",
    "xt_LOG",
    "xt_mark",
    "xt_MASQUERADE",
    "xt_multiport",
    "xt_nat",
    "xt_physdev",
    "xt_REDIRECT",
    "ip6t_rpfilter",
    "ipt_rpfilter",
    "xt_sctp",
    "xt_statistic",
    "xt_tcpudp",
    // sockets
    "sctp",
];

/// A module's name and its uncompressed content.
pub(super) type Module = (String, Vec<u8>);

/// The modules `wanted` below `directory`, dependencies first; without those in `without` and their dependents.
///
/// # Errors
/// A module cannot be read.
pub(super) fn gather(directory: &Path, wanted: &[&str], without: &[String]) -> Result<Vec<Module>> {
    let mut index = BTreeMap::new();
    list(directory, &mut index)?;
    let mut gathering = Gathering { index, without, seen: BTreeSet::new(), ordered: Vec::new() };
    for name in wanted {
        gathering.add(&canonical(name))?;
    }
    Ok(gathering.ordered)
}

struct Gathering<'a> {
    index: BTreeMap<String, PathBuf>,
    without: &'a [String],
    seen: BTreeSet<String>,
    ordered: Vec<Module>,
}

impl Gathering<'_> {
    /// A module that is not in the index is built in, or missing from this kernel.
    fn add(&mut self, name: &str) -> Result<()> {
        if self.without.iter().any(|w| canonical(w) == name) || !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(path) = self.index.get(name).cloned() else { return Ok(()) };
        let content = read(&path)?;
        for needed in needs(&content) {
            self.add(&needed)?;
        }
        self.ordered.push((name.to_owned(), content));
        Ok(())
    }
}

fn list(directory: &Path, index: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list(&entry.path(), index)?;
        } else if let Some((stem, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
            index.insert(canonical(stem), entry.path());
        }
    }
    Ok(())
}

/// File names use either `-` or `_`; the kernel knows only `_`.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return std::fs::read(path).with_context(|| format!("cannot read {}", path.display())),
    };
    let out = Command::new(program).args(["--decompress", "--stdout"]).arg(path).output();
    let out = out.with_context(|| format!("cannot start {program}, which kernel modules are packed with"))?;
    if !out.status.success() {
        bail!("cannot unpack {}: {}", path.display(), String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(out.stdout)
}

/// The modules that the section `.modinfo` of a module names: `depends=a,b`, and `softdep=pre: a b`.
fn needs(module: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for (key, separator) in [("depends=", ','), ("softdep=pre: ", ' ')] {
        let is_entry = |at: &usize| *at == 0 || module[at - 1] == 0;
        let starts = module.windows(key.len()).enumerate().filter(|(_, w)| *w == key.as_bytes()).map(|(at, _)| at);
        for at in starts.filter(is_entry) {
            let value = module[at + key.len()..].split(|b| *b == 0).next().unwrap_or_default();
            let value = String::from_utf8_lossy(value).into_owned();
            let before_post = value.split("post:").next().unwrap_or_default();
            found.extend(before_post.split(separator).filter(|n| !n.trim().is_empty()).map(|n| canonical(n.trim())));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_dependencies_are_read_from_modinfo() {
        let module = b"\x7fELF\0license=GPL\0depends=nf-tables,nf_nat\0softdep=pre: libcrc32c post: x\0name=a\0";
        assert_eq!(vec!["nf_tables", "nf_nat", "libcrc32c"], needs(module));
        assert!(needs(b"license=GPL\0depends=\0").is_empty());
        assert!(needs(b"\0xdepends=b\0").is_empty());
    }
}
