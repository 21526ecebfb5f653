# Makes the namespaces that this shell was started in look like a freshly booted host with an engine installed, then
# stays as their first process: everything in them ends with it, and it ends when its standard input is closed.
#
# Hidden behind file systems of its own: /run /var/lib /var/tmp /dev/shm /etc/containers /sys. The rest of the real host
# is seen, and not written to. BASE: an empty directory below /tmp, DRIVER: of storage. May be empty:
# OURS: what Podman is to take for netavark, instead of the distribution's; ROOT: another root file system to boot into.
set -eu

mount --make-rprivate /
if [ -n "$ROOT" ]; then
    mount --rbind "$ROOT" "$ROOT"
    mount --rbind /proc "$ROOT/proc"
    mount --rbind /dev "$ROOT/dev"
    mount -t tmpfs -o mode=1777 netpath-test "$ROOT/tmp"
    mkdir -p "$ROOT$BASE"
    if [ -n "$OURS" ]; then
        ours="$(dirname "$BASE")/ours-$(basename "$BASE")"
        : >"$ROOT$ours"
        mount --bind "$OURS" "$ROOT$ours"
        OURS=$ours
    fi
    cd "$ROOT"
    pivot_root . mnt
    umount -l /mnt
fi
for place in "$BASE" /run /var/lib /dev/shm /etc/containers; do
    mount -t tmpfs -o mode=0755 netpath-test "$place"
done
mount -t tmpfs -o mode=1777 netpath-test /var/tmp
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p "$BASE/helpers" "$BASE/home" /run/lock

for helper in netavark aardvark-dns; do
    for dir in /usr/libexec/podman /usr/lib/podman; do
        [ ! -x "$dir/$helper" ] || ln -sf "$dir/$helper" "$BASE/helpers/$helper"
    done
done
if [ -n "$OURS" ]; then
    ln -sf "$OURS" "$BASE/helpers/netavark"
    ln -sf "$OURS" "$BASE/helpers/aardvark-dns"
fi

# Each engine talks to the name servers of its host; this one has none.
resolv=$(readlink -m /etc/resolv.conf)
mkdir -p "$(dirname "$resolv")"
[ -e "$resolv" ] || : >"$resolv"
echo "nameserver 192.0.2.2" >"$BASE/resolv.conf"
mount --bind "$BASE/resolv.conf" "$resolv"

# default_ulimits: the real host may lack CAP_SYS_RESOURCE. cgroups: what its controllers allow is not ours to try.
cat >/etc/containers/containers.conf <<END
[containers]
default_ulimits = ["nofile=1024:2048", "nproc=4096:4096"]
cgroups = "disabled"
[network]
network_backend = "netavark"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
helper_binaries_dir = ["$BASE/helpers"]
END
cat >/etc/containers/storage.conf <<END
[storage]
driver = "$DRIVER"
graphroot = "/var/lib/containers/storage"
runroot = "/run/containers/storage"
END
echo '{"default":[{"type":"insecureAcceptAnything"}]}' >/etc/containers/policy.json

echo ready
# Orphans (conmon, aardvark-dns) are reaped while the shell waits.
exec 3<&0
cat <&3 >/dev/null &
wait
