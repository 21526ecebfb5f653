//! Inside a user namespace of an ordinary user, as rootless Podman makes one: netfilter over netlink serves, without
//! programs of the host, an error, a warning or a pause.

use anyhow::{Context, Result, ensure};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use support::need;
use support::netavark::{binary, write_program};

/// User and group of processes without rights of their own (overflowuid).
const ORDINARY: u32 = 65_534;

/// Prints `CHECK value` lines. `$1`: the directory of the program, with a link named netavark to it.
const SCRIPT: &str = r#"
set -e
mount -t tmpfs none /run
mkdir /run/netns /run/config
ip link set lo up
ip addr add 192.0.2.2/32 dev lo
unshare --net sleep 60 &
container=$!
while [ "$(readlink /proc/$container/ns/net)" = "$(readlink /proc/$$/ns/net)" ]; do :; done
touch /run/netns/c
mount --bind /proc/$container/ns/net /run/netns/c
cat > /run/document
call() { PATH=$1 "$2/netavark" --config /run/config --rootless=true "$3" /run/netns/c < /run/document; }
call /nowhere "$1" setup > /run/answer 2> /run/errors
echo "STDERR $(cat /run/errors)"
echo "$("$1/netpath" status | head -n 1)"
nsenter --net=/run/netns/c busybox nc -l -p 80 -e echo hello &
for _ in 1 2 3 4 5 6 7 8 9 10; do
    heard=$(busybox nc -w 1 192.0.2.2 8080 < /dev/null 2>/dev/null) && break
    sleep 0.1
done
echo "HEARD $heard"
call /nowhere "$1" teardown
echo "RULES $(nft list ruleset)"
echo "LINKS $(ip -o link | grep -c podman7 || true)"
kill $container
"#;

#[test]
fn an_ordinary_user_is_served_by_nftables() -> Result<()> {
    need!(
        need::netpath(),
        need::root(),
        user_namespaces(),
        need::program("unshare"),
        need::program("busybox"),
        need::program("nft")
    );
    let dir = std::env::temp_dir().join(format!("netpath-rootless-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    let outcome = served(&dir);
    std::fs::remove_dir_all(&dir)?;
    outcome
}

/// # Errors
/// This kernel forbids an ordinary user to make namespaces.
fn user_namespaces() -> need::Need {
    let mut command = Command::new("unshare");
    let made = command.args(["--user", "--map-root-user", "--net", "true"]).uid(ORDINARY).gid(ORDINARY).output();
    let made = made.is_ok_and(|out| out.status.success());
    if made { Ok(()) } else { Err("user namespaces of an ordinary user".to_owned()) }
}

fn served(dir: &std::path::Path) -> Result<()> {
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))?;
    write_program(&dir.join("netpath"), &std::fs::read(binary()?)?)?;
    std::os::unix::fs::symlink("netpath", dir.join("netavark"))?;
    let document = serde_json::json!({
        "container_id": "0".repeat(64), "container_name": "web",
        "port_mappings": [{"host_ip": "", "host_port": 8080, "container_port": 80, "range": 1, "protocol": "tcp"}],
        "networks": {"front": {"static_ips": ["10.89.7.5"], "interface_name": "eth0"}},
        "network_info": {"front": {
            "name": "front", "id": "1".repeat(64), "driver": "bridge", "network_interface": "podman7",
            "subnets": [{"subnet": "10.89.7.0/24", "gateway": "10.89.7.1"}],
            "ipv6_enabled": false, "internal": false, "dns_enabled": false, "ipam_options": {"driver": "host-local"}
        }}
    });
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "--mount", "sh", "-c", SCRIPT, "sh"]).arg(dir);
    command.uid(ORDINARY).gid(ORDINARY);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("unshare")?;
    child.stdin.take().context("its input")?.write_all(document.to_string().as_bytes())?;
    let out = child.wait_with_output()?;
    let (said, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    let lines = ["STDERR ", "DATAPATH  nftables, 1 endpoint", "HEARD hello", "RULES ", "LINKS 0"];
    ensure!(said.lines().eq(lines), "expected {lines:#?}\nfound {said}\n{errors}");
    Ok(())
}
