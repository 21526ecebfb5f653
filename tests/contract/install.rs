//! `netpath install podman` and `uninstall`, in a directory and in a mount namespace of the test's own.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use support::need;
use support::netavark::write_program;
use support::topology::Topology;

struct Host {
    _topology: Topology,
    root: PathBuf,
    netpath: PathBuf,
}

impl Host {
    /// A directory with netpath in its place.
    fn new() -> Result<Self> {
        let topology = Topology::new()?;
        let root = topology.dir().join("root");
        let netpath = root.join("usr/local/bin/netpath");
        std::fs::create_dir_all(root.join("usr/local/bin"))?;
        write_program(&netpath, &std::fs::read(support::netavark::binary()?)?)?;
        Ok(Self { _topology: topology, root, netpath })
    }

    fn call(&self, verb: &str, words: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.netpath);
        command.args([verb, "podman", "--root"]).arg(&self.root).args(words).output().context("netpath cannot be run")
    }

    fn done(&self, verb: &str, words: &[&str]) -> Result<String> {
        let out = self.call(verb, words)?;
        ensure!(out.status.success(), "{verb}: {}", String::from_utf8_lossy(&out.stderr));
        Ok(String::from_utf8_lossy(&out.stdout).replace(&self.root.to_string_lossy().into_owned(), ""))
    }

    fn refused(&self, verb: &str) -> Result<String> {
        let out = self.call(verb, &[])?;
        ensure!(!out.status.success(), "{verb} succeeded: {}", String::from_utf8_lossy(&out.stdout));
        Ok(String::from_utf8_lossy(&out.stderr).into_owned())
    }

    /// Every file and link below the root.
    fn files(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let mut dirs = vec![self.root.clone()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(&dir)? {
                let path = entry?.path();
                if path.is_dir() && !path.is_symlink() {
                    dirs.push(path);
                } else {
                    found.push(format!("/{}", path.strip_prefix(&self.root)?.display()));
                }
            }
        }
        found.sort();
        Ok(found)
    }

    fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.root.join(path.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().context("no directory")?)?;
        std::fs::write(path, text).context("cannot write")
    }
}

const NETAVARK: &str = "/usr/local/libexec/podman/netavark";
const PROXY: &str = "/usr/local/lib/systemd/system/netavark-dhcp-proxy.service";

#[test]
fn install_makes_what_it_says_and_uninstall_removes_just_that() -> Result<()> {
    need!(need::root(), need::netpath());
    let host = Host::new()?;
    // As `systemctl enable` does for another unit.
    host.write("/etc/systemd/system/sockets.target.wants/other.socket", "")?;
    host.write("/usr/local/lib/systemd/system/other.service", "")?;
    let before = host.files()?;
    let would = host.done("install", &["--dry-run"])?;
    ensure!(would.contains(&format!("would link {NETAVARK} to /usr/local/bin/netpath")), "{would}");
    assert_eq!(before, host.files()?, "a dry run changed something");
    let said = host.done("install", &[])?;
    assert_eq!(
        would.replace("would ", ""),
        said.lines().take(would.lines().count()).map(|l| format!("{l}\n")).collect::<String>()
    );
    assert_eq!(Path::new("/usr/local/bin/netpath"), std::fs::read_link(host.root.join(&NETAVARK[1..]))?);
    let unit = std::fs::read_to_string(host.root.join(&PROXY[1..]))?;
    ensure!(unit.contains("\nExecStart=/usr/local/bin/netpath dhcp-proxy"), "{unit}");
    ensure!(host.done("install", &[])?.contains("already"), "installed twice");
    let there = host.files()?;
    // Enabled by `systemctl enable`.
    let wants = host.root.join("etc/systemd/system/sockets.target.wants/netavark-dhcp-proxy.socket");
    std::os::unix::fs::symlink("/usr/local/lib/systemd/system/netavark-dhcp-proxy.socket", wants)?;
    let would = host.done("uninstall", &["--dry-run"])?;
    ensure!(would.contains(&format!("would remove {NETAVARK}\n")), "{would}");
    assert_eq!(there.len() + 1, host.files()?.len(), "a dry run changed something");
    host.done("uninstall", &[])?;
    assert_eq!(before, host.files()?);
    ensure!(!host.root.join("usr/local/libexec/podman").exists(), "an empty directory is left");
    ensure!(host.done("uninstall", &[])?.contains("nothing"), "uninstalled twice");
    Ok(())
}

#[test]
fn a_file_that_is_not_netpaths_is_never_replaced_or_removed() -> Result<()> {
    need!(need::root(), need::netpath());
    for path in [NETAVARK, PROXY] {
        let host = Host::new()?;
        host.write(path, "theirs")?;
        let before = host.files()?;
        let told = host.refused("install")?;
        ensure!(told.contains(path) && told.contains("not netpath's") && told.contains("next: move"), "{told}");
        assert_eq!(before, host.files()?, "something was installed beside it");
        host.done("uninstall", &[])?;
        assert_eq!("theirs", std::fs::read_to_string(host.root.join(&path[1..]))?);
    }
    // A link to something else, and an old link of netpath's own.
    let host = Host::new()?;
    let at = host.root.join(&NETAVARK[1..]);
    std::fs::create_dir_all(at.parent().context("no directory")?)?;
    std::os::unix::fs::symlink("/usr/lib/podman/netavark", &at)?;
    ensure!(host.refused("install")?.contains("a link to /usr/lib/podman/netavark"), "the link was taken");
    std::fs::remove_file(&at)?;
    std::os::unix::fs::symlink("/opt/old/netpath", &at)?;
    host.done("install", &[])?;
    assert_eq!(Path::new("/usr/local/bin/netpath"), std::fs::read_link(&at)?);
    Ok(())
}

#[test]
fn the_name_goes_where_containers_conf_lets_podman_look_first() -> Result<()> {
    need!(need::root(), need::netpath());
    let host = Host::new()?;
    host.write("/usr/share/containers/containers.conf", "[engine]\nhelper_binaries_dir = [\"/opt/a\"]\n")?;
    host.write(
        "/etc/containers/containers.conf.d/9.conf",
        "[engine]\nhelper_binaries_dir = [\n \"/opt/b\", \"/usr/lib/podman\"]\n",
    )?;
    let said = host.done("install", &[])?;
    ensure!(said.contains("link /opt/b/netavark to /usr/local/bin/netpath"), "{said}");
    host.done("uninstall", &[])?;
    host.write("/opt/b/netavark", "theirs")?;
    let told = host.refused("install")?;
    ensure!(told.contains("next: put /usr/local/libexec/podman in front of helper_binaries_dir"), "{told}");
    Ok(())
}

#[test]
fn doctor_finds_what_is_missing_left_over_or_in_front() -> Result<()> {
    need!(need::root(), need::netpath(), need::program("unshare"));
    let host = Host::new()?;
    // The machine's own directories are hidden from these commands alone.
    let doctor = |script: &str| -> Result<Vec<String>> {
        let hidden = "for dir in /usr/local /usr/libexec /usr/lib/podman /etc/containers /usr/share/containers; do \
                      [ -d $dir ] && mount -t tmpfs none $dir; done; mkdir -p /usr/local/bin /usr/local/libexec/podman; \
                      cp \"$0\" /usr/local/bin/netpath; PATH=/usr/local/bin:$PATH; ";
        let script = format!("{hidden}{{ {script}; }} >&2; netpath doctor --json; true");
        let out = Command::new("unshare")
            .args(["-m", "--propagation", "private", "sh", "-c", &script])
            .arg(&host.netpath)
            .output()?;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        let report: Value = serde_json::from_slice(&out.stdout).with_context(|| said)?;
        let findings = report["findings"].as_array().context("no findings")?.iter();
        let own = |what: &&str| what.contains("podman") || what.contains("/systemd/");
        Ok(findings.filter_map(|f| f["what"].as_str()).filter(own).map(str::to_owned).collect())
    };
    let install = "netpath install podman";
    for (script, expected) in [
        ("true", None),
        (install, None),
        ("ln -s /usr/local/bin/netpath /usr/local/libexec/podman/netavark", None),
        ("netpath install podman; netpath uninstall podman", None),
        (
            "netpath install podman; rm /usr/local/lib/systemd/system/netpath-preload.service",
            Some("netpath-preload.service is missing"),
        ),
        (
            "netpath install podman; rm /usr/local/libexec/podman/netavark",
            Some("netavark is missing where Podman looks"),
        ),
        ("netpath install podman; rm /usr/local/libexec/podman/*", Some("is left over")),
        (
            "netpath install podman; echo >> /usr/local/lib/systemd/system/netpath-preload.service",
            Some("is of another version"),
        ),
        ("ln -s /opt/netpath /usr/local/libexec/podman/netavark", Some("leads to /opt/netpath, which is gone")),
        (
            "mkdir -p /usr/local/lib/podman; ln -s /usr/local/bin/netpath /usr/local/lib/podman/netavark; \
             cp /bin/true /usr/local/libexec/podman/netavark",
            Some("Podman runs /usr/local/libexec/podman/netavark and not netpath"),
        ),
    ] {
        let found = doctor(script)?;
        match expected {
            None => ensure!(found.is_empty(), "{script}: {found:?}"),
            Some(text) => ensure!(found.iter().any(|f| f.contains(text)), "{script}: {found:?}"),
        }
    }
    Ok(())
}

#[test]
fn systemd_accepts_the_units() -> Result<()> {
    need!(need::netpath(), need::program("systemd-analyze"));
    let host = Host::new()?;
    host.done("install", &[])?;
    // Beside systemd's own units, without being installed: its paths lead to netpath in the test's directory.
    let dir = host.root.join("units");
    std::fs::create_dir(&dir)?;
    let names = ["netpath-agent.path", "netpath-agent.service", "netpath-preload.service"];
    for name in names {
        let text = std::fs::read_to_string(host.root.join("usr/local/lib/systemd/system").join(name))?;
        std::fs::write(dir.join(name), text.replace("/usr/local/bin/netpath", &host.netpath.to_string_lossy()))?;
    }
    let verify = || -> Result<(bool, String)> {
        let mut command = Command::new("systemd-analyze");
        let out = command.args(["verify", "--man=no"]).args(names.map(|name| dir.join(name))).output()?;
        Ok((out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned()))
    };
    let (is_accepted, said) = verify()?;
    ensure!(is_accepted && !said.contains("netpath-"), "{said}");
    // Control.
    let agent = dir.join(names[1]);
    std::fs::write(&agent, std::fs::read_to_string(&agent)?.replace("Restart=on-failure", "Restart=perhaps"))?;
    ensure!(verify()?.1.contains("perhaps"), "a mistake is accepted");
    Ok(())
}
