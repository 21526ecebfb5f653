# A rootless Podman of an ordinary user, in the namespaces that this shell was started in: a host with Podman installed and an
# address, 192.0.2.1. Prints one line for each observation, with a word in front; everything ends with this shell.
#
# Hidden behind file systems of its own: /run /var/lib /var/tmp /dev /etc/containers /sys, and single files of /etc. BASE: an
# empty directory below /tmp, readable for everyone; OURS: what Podman is to take for netavark, beside it.
set -eu

mount --make-rprivate /
for place in "$BASE" /run /var/lib /etc/containers; do
    mount -t tmpfs -o mode=0755 netpath-test "$place"
done
mount -t tmpfs -o mode=1777 netpath-test /var/tmp
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
home=$BASE/home
mkdir -p "$BASE/helpers" "$home" "$BASE/image/bin" "$BASE/image/www" /run/lock /run/user/1000
chown 1000:1000 "$home" /run/user/1000
chmod 700 /run/user/1000
echo "ordinary:x:1000:1000::$home:/bin/sh" >"$BASE/passwd"
echo "nameserver 192.0.2.2" >"$BASE/resolv.conf"
mount --bind "$BASE/passwd" /etc/passwd
mount --bind "$BASE/resolv.conf" "$(readlink -m /etc/resolv.conf)"

# Devices that an ordinary user may open: on the real machine those of tun and FUSE are root's.
dev=$BASE/dev
mkdir "$dev"
mount -t tmpfs -o mode=0755 netpath-test "$dev"
mkdir "$dev/net" "$dev/pts" "$dev/shm"
for node in "null 1 3" "zero 1 5" "full 1 7" "random 1 8" "urandom 1 9" "tty 5 0" "fuse 10 229" "net/tun 10 200"; do
    set -- $node
    mknod -m 666 "$dev/$1" c "$2" "$3"
done
mount -t tmpfs -o mode=1777 netpath-test "$dev/shm"
mount --rbind /dev/pts "$dev/pts"
ln -s pts/ptmx "$dev/ptmx"
ln -s /proc/self/fd "$dev/fd"
mount --rbind "$dev" /dev

for helper in aardvark-dns rootlessport; do
    for dir in /usr/libexec/podman /usr/lib/podman; do
        [ ! -x "$dir/$helper" ] || ln -sf "$dir/$helper" "$BASE/helpers/$helper"
    done
done
ln -s "$OURS" "$BASE/helpers/netavark"
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
# Without subordinate users, of which the machine has none for this one, all files belong to the user.
cat >/etc/containers/storage.conf <<END
[storage]
driver = "vfs"
[storage.options.vfs]
ignore_chown_errors = "true"
END
echo '{"default":[{"type":"insecureAcceptAnything"}]}' >/etc/containers/policy.json

cp "$(command -v busybox)" "$BASE/image/bin/busybox"
for name in sh httpd wget; do
    ln -s busybox "$BASE/image/bin/$name"
done
echo "a page of the container" >"$BASE/image/www/index.html"
tar -C "$BASE/image" -c . >"$BASE/image.tar"

ip link set lo up
ip link add eth0 type veth peer name wire
ip addr add 192.0.2.1/24 dev eth0
ip link set eth0 up
ip link set wire up
mkdir "$BASE/outside"
echo "a page outside" >"$BASE/outside/index.html"
busybox httpd -p 192.0.2.1:9000 -h "$BASE/outside"

podman() {
    setpriv --reuid 1000 --regid 1000 --clear-groups env -i PATH="$PATH" HOME="$home" XDG_RUNTIME_DIR=/run/user/1000 \
        podman --log-level=error "$@"
}
# The server may still be starting.
page() {
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        if got=$("$@" 2>/dev/null); then
            break
        fi
        sleep 0.3
    done
    echo "$got"
}
cd "$home"
podman import "$BASE/image.tar" bb >/dev/null 2>&1
podman network create front >/dev/null
podman run -d --name web --network front -p 8080:80 bb httpd -f -p 80 -h /www >/dev/null 2>"$BASE/errors"
echo "ERRORS $(grep -v 'subuid\|single mapping\|shared mount' "$BASE/errors" || true)"
echo "PUBLISHED $(page busybox wget -q -O - http://192.0.2.1:8080/)"
echo "BY NAME $(page podman run --rm --network front bb wget -q -O - http://web/)"
echo "OUTWARD $(page podman exec web wget -q -O - http://192.0.2.1:9000/)"
echo "TABLES $(podman unshare --rootless-netns nft list tables | sort | tr '\n' ' ')"
podman rm -f -t 0 web >/dev/null
# Without zombies: this shell reaps none. The last ones may be ending.
left() {
    ps -o stat=,comm= -U 1000 | grep -v '^Z' | grep 'netpath\|netavark\|aardvark\|slirp'
}
for _ in 1 2 3 4 5 6 7 8 9 10; do
    left >/dev/null || break
    sleep 0.2
done
echo "LEFT $(left || true)"
